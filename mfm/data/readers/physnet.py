"""PhysNet archives: padded arrays N, Z, R with Q, E, F, D.

The format fixes its units: Å, eV, eV/Å, e Å (Unke and Meuwly, doi:10.1021/acs.jctc.9b00181).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.readers.npz import archive_keys, load_archive
from mfm.data.records import Record
from mfm.properties import PROPERTIES, parse_task

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("E",), "eV"),
    Known("forces", ("F",), "eV/Å"),
    Known("dipole", ("D",), "e*Å"),
    Known("charges", ("Qa",), "e"),
)


def matches(path: Path, head: bytes) -> bool:
    """Whether it is an npz archive with `N`, `Z` and `R`."""
    return {"N", "Z", "R"} <= archive_keys(path, head)


def read(path: Path, options: ReadOptions) -> Source:
    """Read a PhysNet archive.

    Raises
    ------
    ValueError
        If the file is truncated, a key matches nothing, or `N` does not fit the padding.
    """
    arrays = load_archive(path)
    if int(arrays["N"].max()) > arrays["Z"].shape[1]:
        raise ValueError(f"`{path.name}`: `N` must not exceed the {arrays['Z'].shape[1]} columns of `Z`")
    columns = plan_labels(set(arrays) - {"N", "Z", "R", "Q"}, _KNOWN, options, path.name)
    return Source(_records(path, arrays, columns, options), single_level_card(path, columns, options))


def _records(
    path: Path, arrays: dict[str, np.ndarray], columns: list[Column], options: ReadOptions
) -> Iterator[Record]:
    positions = arrays["R"] * options.position_factor("Å")
    converted = {task: arrays[key].astype(np.float64) * factor for task, key, factor in columns}
    charges = arrays.get("Q", np.zeros(len(positions)))
    for i, n_atoms in enumerate(arrays["N"].astype(int)):
        labels = {
            task: values[i, :n_atoms] if PROPERTIES[parse_task(task).property].per == "atom" else values[i]
            for task, values in converted.items()
        }
        where = f"frame {i} of `{path.name}`"
        yield make_record(
            where,
            arrays["Z"][i, :n_atoms].astype(np.int64),
            positions[i, :n_atoms],
            labels,
            charge=float(charges[i]),
            origin=options.origin,
        )
