"""Ragged columns: the one layout of a store, in memory and in its file.

Structures are concatenated atom by atom, with ``structures/n_atoms`` to cut them apart. A label (and a flag) is
two columns: ``rows``, the structures that carry it, in ascending order, and ``values``, concatenated. Hence an
absent label costs nothing, a new one rewrites nothing, and one structure is a handful of slices.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.properties import PROPERTIES, parse_task
from mfm.structure import neighbour_list

__all__ = ["FORMAT", "VERSION", "ColumnBuilder", "Columns", "read_columns", "write_columns"]

FORMAT = "mfm-store"
"""Attribute `format` of a store's file."""
VERSION = 1
"""Attribute `version`: raised whenever the layout changes."""

_STRUCTURE_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "structures/n_atoms": ("<i4", ()),
    "structures/atomic_numbers": ("u1", ()),
    "structures/positions": ("<f8", (3,)),
    "structures/cell": ("<f8", (3, 3)),
    "structures/pbc": ("?", (3,)),
    "structures/charge": ("<i4", ()),
    "structures/multiplicity": ("<i4", ()),
    "structures/molecule": ("<i4", ()),
    "structures/origin": ("<i4", ()),
}

_CLOSE = 0.5
"""Å; no two nuclei of a useful label are closer, so only such structures need the exact check."""

Columns = dict[str, np.ndarray]
"""Column name to array; memory maps where the columns lie in a file."""


class ColumnBuilder:
    """Appends records to columns, in memory or spilling into a folder.

    Parameters
    ----------
    card : DatasetCard
        Names the fidelities that labels may have.
    folder : Path, optional
        Where to spill; memory use is then bounded by `spill_bytes`.
    spill_bytes : int
        Size of the rows held in memory before they are spilled.
    """

    def __init__(self, card: DatasetCard, folder: Path | None = None, spill_bytes: int = 1 << 26) -> None:
        self._card = card
        self._folder = folder
        self._spill_bytes = spill_bytes
        self._pending: dict[str, list[np.ndarray]] = {name: [] for name in _STRUCTURE_COLUMNS}
        self._layout = dict(_STRUCTURE_COLUMNS)
        self._pending_bytes = 0
        self._files: dict[str, IO[bytes]] = {}
        self._tables: dict[str, dict[str, int]] = {"molecule": {}, "origin": {}}
        self.n_records = 0

    def append(self, record: Record) -> None:
        """Add one record.

        Raises
        ------
        ValueError
            If a label has a fidelity that the card does not know, or atoms overlap.
        """
        try:
            _check_overlap(record)
            self._check_fidelities(record)
        except ValueError as error:
            raise ValueError(f"record {self.n_records} of `{self._card.name}`: {error}") from error
        structure = record.structure
        self._add("structures/n_atoms", len(structure.atomic_numbers))
        for name in ("atomic_numbers", "positions"):
            self._add(f"structures/{name}", getattr(structure, name), ragged=True)
        for name in ("cell", "pbc", "charge", "multiplicity"):
            self._add(f"structures/{name}", getattr(structure, name))
        for name, table in self._tables.items():
            self._add(f"structures/{name}", table.setdefault(getattr(record, name), len(table)))
        for task, value in record.labels.items():
            prop = PROPERTIES[parse_task(task).property]
            self._layout.setdefault(f"labels/{task}/rows", ("<i8", ()))
            self._layout.setdefault(f"labels/{task}/values", ("<f8", prop.shape))
            self._add(f"labels/{task}/rows", self.n_records)
            self._add(f"labels/{task}/values", value, ragged=prop.per == "atom")
        for flag, number in record.flags.items():
            self._layout.setdefault(f"flags/{flag}/rows", ("<i8", ()))
            self._layout.setdefault(f"flags/{flag}/values", ("<f8", ()))
            self._add(f"flags/{flag}/rows", self.n_records)
            self._add(f"flags/{flag}/values", number)
        self.n_records += 1
        if self._folder is not None and self._pending_bytes > self._spill_bytes:
            self._spill(self._folder)

    def finish(self) -> tuple[Columns, dict[str, list[str]]]:
        """Columns and string tables of all records.

        Raises
        ------
        ValueError
            If nothing was appended.
        """
        if self.n_records == 0:
            raise ValueError(f"dataset `{self._card.name}` must have at least one record, got none; is the file empty?")
        tables = {name: list(table) for name, table in self._tables.items()}
        if self._folder is None:
            return {name: self._concatenate(name) for name in self._layout}, tables
        self._spill(self._folder)
        columns: Columns = {}
        for name, (dtype, shape) in self._layout.items():
            file = self._files[name]
            file.close()
            columns[name] = np.memmap(file.name, dtype=dtype, mode="r").reshape(-1, *shape)
        return columns, tables

    def close(self) -> None:
        """Close the spill files."""
        for file in self._files.values():
            file.close()

    def _check_fidelities(self, record: Record) -> None:
        for task in record.labels:
            fidelity = parse_task(task).fidelity
            if fidelity not in self._card.levels:
                known = ", ".join(self._card.levels) or "none"
                raise ValueError(
                    f"label `{task}` has fidelity `{fidelity}`, whose level of theory the card does not give (known:"
                    f" {known}); add it to `levels`"
                )
            if parse_task(task).property == "density" and fidelity not in self._card.density_bases:
                raise ValueError(
                    f"label `{task}` needs the basis of its coefficients; add it to the card's `density_bases`"
                )

    def _add(self, name: str, value: np.ndarray | float | int, ragged: bool = False) -> None:
        array = np.asarray(value, dtype=self._layout[name][0])
        array = array if ragged else array[None]
        self._pending.setdefault(name, []).append(array)
        self._pending_bytes += array.nbytes

    def _concatenate(self, name: str) -> np.ndarray:
        dtype, shape = self._layout[name]
        pieces = self._pending.get(name)
        return np.concatenate(pieces) if pieces else np.empty((0, *shape), dtype=dtype)

    def _spill(self, folder: Path) -> None:
        for name in self._layout:
            if name not in self._files:
                self._files[name] = (folder / f"{len(self._files)}.bin").open("wb")
            self._concatenate(name).tofile(self._files[name])
            self._pending[name] = []
        self._pending_bytes = 0


def _check_overlap(record: Record) -> None:
    # a quick look first: only the structure's own check decides, and words the message
    structure = record.structure
    if structure.pbc.any() or len(structure) > 300:
        (senders, receivers), shifts = neighbour_list(structure, _CLOSE)
        vectors = structure.positions[senders] + shifts @ structure.cell - structure.positions[receivers]
        closest = float(np.square(vectors).sum(axis=1).min(initial=np.inf))
    else:
        vectors = structure.positions[:, None] - structure.positions[None]
        squared = np.square(vectors).sum(axis=-1)
        np.fill_diagonal(squared, np.inf)
        closest = float(squared.min())
    if closest < _CLOSE**2:
        structure.check_distances()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary file in the folder of `path` that takes its place when the block ends well, and goes otherwise."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write `{path}`: folder `{path.parent}` does not exist; create it first")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_columns(path: Path, columns: Columns, tables: Mapping[str, list[str]], card: DatasetCard) -> None:
    """Write a store's file; it appears whole or not at all.

    Columns are contiguous and uncompressed, so that a reader maps them into memory instead of copying.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["card"] = card.to_yaml()
        for name, column in columns.items():
            dataset = file.create_dataset(name, shape=column.shape, dtype=column.dtype)
            for start in range(0, len(column), 1 << 20):
                dataset[start : start + (1 << 20)] = column[start : start + (1 << 20)]
        for name, strings in tables.items():
            file.create_dataset(f"tables/{name}", data=np.frombuffer(json.dumps(strings).encode(), dtype=np.uint8))


def read_columns(path: Path) -> tuple[Columns, dict[str, list[str]], DatasetCard]:
    """Columns (memory-mapped), string tables and card of a store's file.

    Raises
    ------
    ValueError
        If the file is truncated, not a store, or of a newer version.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"cannot open `{path}` as HDF5, it may be truncated: {error}") from error
    with file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"`{path}` is HDF5 but not an mfm store: attribute `format` must be `{FORMAT}`")
        if file.attrs["version"] > VERSION:
            raise ValueError(
                f"`{path}` has store version {file.attrs['version']}, this mfm reads up to {VERSION}; update mfm"
            )
        columns: Columns = {}
        for name in _leaves(file):
            if not name.startswith("tables/"):
                columns[name] = _map(path, file[name])
        tables = {name: json.loads(data[()].tobytes()) for name, data in file["tables"].items()}
        card = DatasetCard.from_yaml(file.attrs["card"], source=f"card inside `{path}`")
    return columns, tables, card


def _leaves(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def _map(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    offset = dataset.id.get_offset()
    if offset is None or dataset.size == 0:
        return np.asarray(dataset[()])
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
