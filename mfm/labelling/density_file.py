"""Density coefficients of a labelling store as a file of their own: ragged, because elements differ in functions."""

from pathlib import Path
from typing import NamedTuple

import ase.data
import h5py
import numpy as np

from mfm.labelling.density_fit import basis_layout
from mfm.labelling.export import QualityRules, accepted_rows
from mfm.labelling.levels import DensityFunctionalLevel, Level
from mfm.labelling.store import LabelStore

__all__ = ["DensityRow", "read_densities", "write_densities"]


class DensityRow(NamedTuple):
    """Deformation density of one structure."""

    hash: str
    """Content hash of the structure."""
    coefficients: np.ndarray
    """(n_functions,), atomic units; see :mod:`mfm.labelling.density_fit`."""
    error: float
    """NMAE of the fit, percent: no model can be shown to be better than this."""


def write_densities(store: LabelStore, fidelity: str, level: Level, path: str | Path) -> int:
    """Write the coefficients of one fidelity as HDF5, single precision; returns the number of structures.

    Attributes of the file name the fitting basis, and for each element the degrees of its shells in order.

    Raises
    ------
    ValueError
        If there are none.
    """
    samples = store.samples()
    accepted = accepted_rows(store, QualityRules())[0].get(fidelity, {})
    rows = [accepted[key] for key in samples if key in accepted and "density_coefficients" in accepted[key].values]
    if not rows or not isinstance(level, DensityFunctionalLevel):
        raise ValueError(
            f"densities must have been asked for, got none at `{fidelity}` in {store.path}; label with --density"
        )
    numbers = sorted({int(z) for row in rows for z in samples[row.hash].structure.atomic_numbers})
    layout = basis_layout(level.fitting_basis, [ase.data.chemical_symbols[z] for z in numbers])
    lengths = [len(row.values["density_coefficients"]) for row in rows]
    with h5py.File(path, "w") as file:
        file.attrs.update({"fidelity": fidelity, "level": level.identifier, "basis": level.fitting_basis})
        for symbol, degrees in layout.items():
            file.attrs[f"shells_{symbol}"] = degrees
        file["hashes"] = [row.hash for row in rows]
        file["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
        file["errors"] = np.array([row.flags["density_error"] for row in rows], dtype=np.float32)
        every = np.concatenate([row.values["density_coefficients"] for row in rows]).astype(np.float32)
        file.create_dataset("coefficients", data=every, compression="gzip", shuffle=True)
    return len(rows)


def read_densities(path: str | Path) -> list[DensityRow]:
    """Read what :func:`write_densities` wrote."""
    with h5py.File(path) as file:
        offsets, every = file["offsets"][:], file["coefficients"][:]
        hashes, errors = file["hashes"].asstr()[:], file["errors"][:]
    return [
        DensityRow(str(name), every[start:stop], float(error))
        for name, start, stop, error in zip(hashes, offsets[:-1], offsets[1:], errors, strict=True)
    ]
