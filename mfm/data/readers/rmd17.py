"""Revised MD17 archives: one molecule, PBE/def2-SVP labels beside the original MD17 ones.

The format fixes its units: Å, kcal/mol, kcal/mol/Å (Christensen and von Lilienfeld, doi:10.1088/2632-2153/abba6f).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.readers.npz import archive_keys, load_archive
from mfm.data.records import Record
from mfm.fidelity import LevelOfTheory

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy_pbe", ("energies",), "kcal/mol"),
    Known("forces_pbe", ("forces",), "kcal/mol/Å"),
    Known("energy_pbe_ts", ("old_energies",), "kcal/mol"),
    Known("forces_pbe_ts", ("old_forces",), "kcal/mol/Å"),
)
_LEVELS = {
    "pbe": LevelOfTheory("PBE", "def2-SVP"),
    "pbe_ts": LevelOfTheory("PBE", dispersion="vdW-TS"),
}


def matches(path: Path, head: bytes) -> bool:
    """Whether it is an npz archive with `nuclear_charges` and `coords`."""
    return {"nuclear_charges", "coords"} <= archive_keys(path, head)


def read(path: Path, options: ReadOptions) -> Source:
    """Read an rMD17 archive.

    Raises
    ------
    ValueError
        If the file is truncated or a key matches nothing.
    """
    arrays = load_archive(path)
    found = set(arrays) - {"nuclear_charges", "coords"}
    columns = plan_labels(found, _KNOWN, options, path.name)
    return Source(_records(path, arrays, columns, options), single_level_card(path, columns, options, _LEVELS))


def _records(
    path: Path, arrays: dict[str, np.ndarray], columns: list[Column], options: ReadOptions
) -> Iterator[Record]:
    positions = arrays["coords"] * options.position_factor("Å")
    converted = {task: arrays[key].astype(np.float64) * factor for task, key, factor in columns}
    for i, frame in enumerate(positions):
        labels = {task: values[i] for task, values in converted.items()}
        where = f"frame {i} of `{path.name}`"
        yield make_record(where, arrays["nuclear_charges"], frame, labels, origin=options.origin or "md")
