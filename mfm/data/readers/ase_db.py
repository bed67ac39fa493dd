"""ASE databases (SQLite): labels in the columns of the calculator, or in ``data`` as schnetpack writes them.

Calculator columns (``energy``, ``forces`` …) are in ASE's units by definition. Entries of ``data``, and key-value
pairs, get their unit from the metadata (``_property_unit_dict``); without it ASE's units are assumed, with a warning.
``atomrefs`` of the metadata become the references of the card.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase.data import chemical_symbols
from ase.db.row import AtomsRow

from mfm.data.readers.base import (
    Column,
    Known,
    ReadOptions,
    Source,
    make_record,
    plan_labels,
    single_level_card,
)
from mfm.data.records import Record
from mfm.properties import parse_task
from mfm.units import conversion_factor

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("energy", "data.energy"), "eV"),
    Known("forces", ("forces", "data.forces"), "eV/Å"),
    Known("stress", ("stress", "data.stress"), "eV/Å^3"),
    Known("charges", ("charges", "data.charges", "data.partial_charges"), "e"),
    Known("dipole", ("dipole", "data.dipole"), "e*Å"),
)
_CALCULATOR = ("energy", "forces", "stress", "charges", "dipole")


def matches(path: Path, head: bytes) -> bool:
    """Whether it is an SQLite file with a table `systems`."""
    return not path.is_dir() and head.startswith(b"SQLite format 3\x00")


def read(path: Path, options: ReadOptions) -> Source:
    """Read an ASE database.

    Raises
    ------
    ValueError
        If the file is not an ASE database, is empty or truncated, or a key matches nothing.
    """
    try:
        with ase.db.connect(path, type="db") as database:
            metadata = database.metadata
            # of every row: what the first one lacks is a label of the others all the same
            found = dict.fromkeys(key for row in database.select() for key in _values(row))
            n_rows = len(database)
    except (sqlite3.DatabaseError, OSError) as error:
        raise ValueError(f"cannot read `{path.name}` as an ASE database, it may be truncated: {error}") from error
    if not n_rows:
        raise ValueError(f"`{path.name}` must hold at least one row, got an empty database")
    stated = {f"data.{name}": unit for name, unit in metadata.get("_property_unit_dict", {}).items()}
    units = {key: stated[key] for key in found if stated.get(key)}
    columns = plan_labels(found, _KNOWN, options, path.name, units)
    assumed = any(column.key not in units and column.key not in _CALCULATOR for column in columns)
    card = single_level_card(path, columns, options, assumed_units=assumed)
    card = card.replace(references=_references(metadata, columns, stated))
    return Source(_records(path, columns, options, metadata.get("_distance_unit", "Å")), card)


def _values(row: AtomsRow) -> dict[str, Any]:
    """Everything in a row that could be a label, by the key it is asked for."""
    values = {name: row.get(name) for name in _CALCULATOR if row.get(name) is not None}
    values.update({name: v for name, v in row.key_value_pairs.items() if isinstance(v, int | float)})
    values.update({f"data.{name}": value for name, value in row.data.items()})
    return values


def _references(metadata: dict[str, Any], columns: list[Column], stated: dict[str, str]) -> dict[str, dict[str, float]]:
    references = {}
    for task, key, _ in columns:
        atoms = metadata.get("atomrefs", {}).get(key.removeprefix("data."), [])
        if parse_task(task).property == "energy" and np.any(atoms):
            factor = conversion_factor(stated.get(key, "eV"), "eV")
            references[parse_task(task).fidelity] = {
                chemical_symbols[z]: float(energy) * factor for z, energy in enumerate(atoms) if energy
            }
    return references


def _records(path: Path, columns: list[Column], options: ReadOptions, length: str) -> Iterator[Record]:
    scale = options.position_factor(length)
    molecule_keys = (options.keys["molecule"],) if "molecule" in options.keys else ("molecule", "smiles")
    try:
        with ase.db.connect(path, type="db") as database:
            for row in database.select():
                values = _values(row)
                text = {**row.data, **row.key_value_pairs}
                spin = text.get("multiplicity", text.get("spin"))
                yield make_record(
                    f"row {row.id} of `{path.name}`",
                    row.numbers,
                    row.positions * scale,
                    {task: np.asarray(values[key]) * factor for task, key, factor in columns if key in values},
                    cell=np.asarray(row.cell) * scale,
                    pbc=row.pbc,
                    charge=float(text.get("charge", 0) or 0),
                    multiplicity=None if spin is None else float(spin),
                    molecule=next((str(text[key]) for key in molecule_keys if key in text), ""),
                    origin=str(text.get(options.keys.get("origin", ""), options.origin)),
                )
    except sqlite3.DatabaseError as error:
        raise ValueError(f"cannot read `{path.name}` as an ASE database, it may be truncated: {error}") from error
