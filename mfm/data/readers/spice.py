"""SPICE release HDF5: one group per molecule, units as attributes, gradients instead of forces.

Units come from the attributes of each array; one without an attribute is refused. The format does not state the
total charge, which is the sum of the formal charges in its SMILES (Eastman et al., doi:10.1038/s41597-022-01882-6).

Its dipole and quadrupole are about the origin of the coordinates. They are moved to the centre of nuclear charge
(docs/conventions.md): the dipole of an ion changes, and the quadrupole of whatever has a charge or a dipole.
"""

import re
from collections.abc import Iterator, Mapping
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

_DIPOLE, _QUADRUPOLE = "scf_dipole", "scf_quadrupole"
_KNOWN = (
    Known("energy", ("dft_total_energy",), "hartree"),
    Known("forces", ("dft_total_gradient",), "hartree/bohr", sign=-1),
    Known("charges", ("mbis_charges",), "e"),
    Known("atomic_dipoles", ("mbis_dipoles",), "e*bohr"),
    Known("dipole", (_DIPOLE,), "e*bohr"),
    Known("quadrupole", (_QUADRUPOLE,), "e*bohr^2"),
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
        If the file is truncated, an array states no unit, a key matches nothing, or there is a quadrupole without the
        dipole that it takes to move it.
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
            charge = formal_charge(smiles)
            centres = np.einsum("nax,a->nx", positions, numbers) / numbers.sum()
            converted |= _about(centres, charge, group, columns, options)
            for i, frame in enumerate(positions):
                yield make_record(
                    f"conformation {i} of `{name}` in `{path.name}`",
                    numbers,
                    frame,
                    {task: values[i] for task, values in converted.items()},
                    charge=charge,
                    molecule=smiles or name,
                    origin=options.origin or _text(group, "subset"),
                )


def _about(
    centres: np.ndarray, charge: int, group: h5py.Group, columns: list[Column], options: ReadOptions
) -> dict[str, np.ndarray]:
    """Task → dipoles, e Å, or quadrupoles, e Å², of all conformations, moved from the origin to `centres` (n, 3), Å."""
    moments = {column.key: column for column in columns if column.key in (_DIPOLE, _QUADRUPOLE) and column.key in group}
    if not moments:
        return {}
    dipoles = _dipoles(group, moments, options)
    moved = {}
    for key, (task, _, factor) in moments.items():
        if key == _DIPOLE:
            moved[task] = dipoles - charge * centres
            continue
        mixed = np.einsum("nx,ny->nxy", centres, dipoles)
        shift = charge * np.einsum("nx,ny->nxy", centres, centres) - mixed - mixed.swapaxes(1, 2)
        moved[task] = group[key][()].astype(np.float64).reshape(-1, 3, 3) * float(factor) + shift
    return moved


def _dipoles(group: h5py.Group, moments: Mapping[str, Column], options: ReadOptions) -> np.ndarray:
    """Dipoles about the origin, (n, 3), e Å, whether they are read as a label or not."""
    if _DIPOLE in moments:
        factor = float(moments[_DIPOLE].factor)
    else:
        unit = _unit(group[_DIPOLE]) if _DIPOLE in group else ""
        unit = options.units.get("dipole", unit)
        if not unit:
            raise ValueError(
                f"`{_QUADRUPOLE}` of `{group.name}` in `{Path(group.file.filename).name}` must come with `{_DIPOLE}`"
                " and its unit, got none: without it the quadrupole cannot be moved from the origin of the coordinates"
                " to the centre of nuclear charge; read the file without its quadrupole, by keys="
            )
        factor = conversion_factor(unit, "e*Å")
    return group[_DIPOLE][()].astype(np.float64).reshape(-1, 3) * factor


def _text(group: h5py.Group, name: str) -> str:
    if name not in group:
        return ""
    value = np.ravel(group[name][()])[0]
    return value.decode() if isinstance(value, bytes) else str(value)
