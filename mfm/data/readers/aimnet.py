"""AIMNet2 HDF5: groups by number of atoms, total charge and multiplicity per configuration.

The format fixes its units: Å, eV, eV/Å, e, e Å (checked against its own charges). Its quadrupoles are traceless
sextets whose trace is lost, and are not read. NaN stands for what was not computed.
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

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("energy",), "eV"),
    Known("forces", ("forces",), "eV/Å"),
    Known("charges", ("charges",), "e"),
    Known("dipole", ("dipole",), "e*Å"),
)


def matches(path: Path, head: bytes) -> bool:
    """Whether the first group has `coord` and `numbers`."""
    return {"coord", "numbers"} <= first_group(path, head)


def read(path: Path, options: ReadOptions) -> Source:
    """Read an AIMNet2 file.

    Raises
    ------
    ValueError
        If the file is truncated or a key matches nothing.
    """
    with open_hdf5(path) as file:
        found = {name for _, group in groups(file) for name in group} - {"coord", "numbers", "charge", "mult", "_id"}
    columns = plan_labels(found, _KNOWN, options, path.name)
    return Source(_records(path, columns, options), single_level_card(path, columns, options))


def _records(path: Path, columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    scale = options.position_factor("Å")
    with open_hdf5(path) as file:
        for name, group in groups(file):
            positions = group["coord"][()].astype(np.float64) * scale
            numbers = group["numbers"][()].astype(np.int64)
            charges = group["charge"][()] if "charge" in group else np.zeros(len(positions))
            spins = group["mult"][()] if "mult" in group else None
            converted = {task: group[key][()] * float(factor) for task, key, factor in columns if key in group}
            for i, frame in enumerate(positions):
                yield make_record(
                    f"configuration {i} of group `{name}` in `{path.name}`",
                    numbers[i],
                    frame,
                    {task: values[i] for task, values in converted.items() if present(values[i])},
                    charge=float(charges[i]),
                    multiplicity=None if spins is None else float(spins[i]),
                    origin=options.origin,
                )
