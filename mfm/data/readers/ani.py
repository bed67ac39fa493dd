"""ANI-1x/1ccx and ANI-2x HDF5: several levels of theory in one file, NaN (or charges all 0) where absent.

The formats fix their units: Å, hartree, hartree/Å, e, e Å (Smith et al., doi:10.1038/s41597-020-0473-z; Devereux et
al., doi:10.1021/acs.jctc.0c00121). Correlation energies (``mp2_tz.corr_energy`` …) are parts, not totals, and are
read only if asked for by key. Second moments are traceless sextets whose trace is lost, and are not read.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mfm.data.readers.base import (
    Column,
    Known,
    ReadOptions,
    Source,
    make_record,
    plan_labels,
    present,
    single_level_card,
)
from mfm.data.readers.hdf5 import first_group, groups, open_hdf5
from mfm.data.records import Record
from mfm.fidelity import LevelOfTheory
from mfm.properties import parse_task

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy_wb97x_dz", ("wb97x_dz.energy", "energies"), "hartree"),
    Known("forces_wb97x_dz", ("wb97x_dz.forces", "forces"), "hartree/Å"),
    Known("dipole_wb97x_dz", ("wb97x_dz.dipole",), "e*Å"),
    Known("charges_wb97x_dz", ("wb97x_dz.hirshfeld_charges",), "e"),
    Known("energy_wb97x_tz", ("wb97x_tz.energy",), "hartree"),
    Known("forces_wb97x_tz", ("wb97x_tz.forces",), "hartree/Å"),
    Known("dipole_wb97x_tz", ("wb97x_tz.dipole",), "e*Å"),
    Known("charges_wb97x_tz", ("wb97x_tz.mbis_charges",), "e"),
    Known("energy_hf_dz", ("hf_dz.energy",), "hartree"),
    Known("energy_hf_tz", ("hf_tz.energy",), "hartree"),
    Known("energy_hf_qz", ("hf_qz.energy",), "hartree"),
    Known("energy_ccsdt", ("ccsd(t)_cbs.energy",), "hartree"),
)
_LEVELS = {
    "wb97x_dz": LevelOfTheory("wB97X", "6-31G(d)", partition="Hirshfeld"),
    "wb97x_tz": LevelOfTheory("wB97X", "def2-TZVPP", partition="MBIS"),
    "hf_dz": LevelOfTheory("HF", "cc-pVDZ"),
    "hf_tz": LevelOfTheory("HF", "cc-pVTZ"),
    "hf_qz": LevelOfTheory("HF", "cc-pVQZ"),
    "ccsdt": LevelOfTheory("CCSD(T)", "CBS", composite="ANI-1ccx DLPNO-CCSD(T)*/CBS", frozen_core=True),
}
_ATOMS = ("atomic_numbers", "species")


def matches(path: Path, head: bytes) -> bool:
    """Whether the first group has `coordinates` beside `atomic_numbers` (1x, 1ccx) or `species` (2x)."""
    names = first_group(path, head)
    return "coordinates" in names and any(name in names for name in _ATOMS)


def read(path: Path, options: ReadOptions) -> Source:
    """Read an ANI file; `options.fidelity` keeps one of its levels.

    Raises
    ------
    ValueError
        If the file is truncated or a key matches nothing.
    """
    with open_hdf5(path) as file:
        found = {name for _, group in groups(file) for name in group} - {"coordinates", *_ATOMS}
    columns = plan_labels(found, _KNOWN, options, path.name)
    return Source(_records(path, columns, options), single_level_card(path, columns, options, _LEVELS))


def _records(path: Path, columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    scale = options.position_factor("Å")
    with open_hdf5(path) as file:
        for name, group in groups(file):
            positions = group["coordinates"][()].astype(np.float64) * scale
            atoms = group["atomic_numbers"][()] if "atomic_numbers" in group else group["species"][()]
            numbers = np.broadcast_to(atoms, positions.shape[:2]).astype(np.int64)
            converted = {task: group[key][()] * float(factor) for task, key, factor in columns if key in group}
            for i, frame in enumerate(positions):
                labels = {task: values[i] for task, values in converted.items() if _is_present(task, values[i])}
                where = f"conformation {i} of `{name}` in `{path.name}`"
                yield make_record(where, numbers[i], frame, labels, origin=options.origin)


def _is_present(task: str, value: np.ndarray | np.floating) -> bool:
    # the release writes exact zeros for Hirshfeld charges that were not computed
    return present(value) and (parse_task(task).property != "charges" or bool(np.any(value)))
