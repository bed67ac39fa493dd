"""SPICE release HDF5: one group per molecule, units as attributes, gradients instead of forces.

Units come from the attributes of each array; one without an attribute is refused. The format does not state the
total charge, which is the sum of the formal charges in its SMILES (Eastman et al., doi:10.1038/s41597-022-01882-6).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.readers.hdf5 import first_group, groups, open_hdf5
from mfm.data.records import Record
from mfm.fidelity import LevelOfTheory
from mfm.properties import parse_task
from mfm.units import conversion_factor

__all__ = ["formal_charge", "matches", "read"]

_KNOWN = (
    Known("energy", ("dft_total_energy",), "hartree"),
    Known("forces", ("dft_total_gradient",), "hartree/bohr", sign=-1),
    Known("charges", ("mbis_charges",), "e"),
    Known("atomic_dipoles", ("mbis_dipoles",), "e*bohr"),
    Known("dipole", ("scf_dipole",), "e*bohr"),
    Known("quadrupole", ("scf_quadrupole",), "e*bohr^2"),
)
_LEVEL = LevelOfTheory("wB97M", "def2-TZVPPD", dispersion="D3(BJ)", program="Psi4", partition="MBIS")
_FORMAL_CHARGE = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges in a SMILES string.

    Examples
    --------
    >>> formal_charge("[NH3+]CC(=O)[O-]"), formal_charge("[Ca+2:1]"), formal_charge("[O--]")
    (0, 2, -2)
    """
    total = 0
    for signs, digits in _FORMAL_CHARGE.findall(smiles):
        size = int(digits) if digits else len(signs)
        total += size if signs[0] == "+" else -size
    return total


def matches(path: Path, head: bytes) -> bool:
    """Whether the first group has `conformations` and a `dft_total_energy`."""
    return {"conformations", "atomic_numbers"} <= first_group(path, head)


def read(path: Path, options: ReadOptions) -> Source:
    """Read a SPICE file.

    Raises
    ------
    ValueError
        If the file is truncated, an array states no unit, or a key matches nothing.
    """
    with open_hdf5(path) as file:
        _, group = next(groups(file))
        found = [name for name in group if name not in ("conformations", "atomic_numbers", "smiles", "subset")]
        units = {name: _unit(group[name]) for name in found}
    columns = plan_labels(found, _KNOWN, options, path.name, {name: unit for name, unit in units.items() if unit})
    for task, key, _ in columns:
        stated = {task, parse_task(task).property} & set(options.units)
        if not units[key] and not stated:
            raise ValueError(
                f"array `{key}` of `{path.name}` must state its unit in the attribute `units`; pass units="
            )
    levels = {parse_task(column.task).fidelity: _LEVEL for column in columns}
    return Source(_records(path, columns, options), single_level_card(path, columns, options, levels))


def _unit(array: h5py.Dataset) -> str:
    text = str(array.attrs.get("units", array.attrs.get("u", "")))
    return text.replace("elementary_charge", "e").replace("nanometers", "nm").replace(" ", "")


def _records(path: Path, columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    with open_hdf5(path) as file:
        for name, group in groups(file):
            length = _unit(group["conformations"]) or options.units.get("positions", "")
            if not length:
                raise ValueError(f"`conformations` of `{name}` in `{path.name}` must state its unit; pass units=")
            positions = group["conformations"][()].astype(np.float64) * conversion_factor(length, "Å")
            numbers = group["atomic_numbers"][()].astype(np.int64)
            converted = {task: group[key][()] * float(factor) for task, key, factor in columns if key in group}
            smiles = _text(group, "smiles")
            for i, frame in enumerate(positions):
                yield make_record(
                    f"conformation {i} of `{name}` in `{path.name}`",
                    numbers,
                    frame,
                    {task: values[i] for task, values in converted.items()},
                    charge=formal_charge(smiles),
                    molecule=smiles or name,
                    origin=options.origin or _text(group, "subset"),
                )


def _text(group: h5py.Group, name: str) -> str:
    if name not in group:
        return ""
    value = np.ravel(group[name][()])[0]
    return value.decode() if isinstance(value, bytes) else str(value)
