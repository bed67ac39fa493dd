"""The store: structures once, labels by task, random access without reading all."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mfm.data.card import DatasetCard
from mfm.data.columns import ColumnBuilder, Columns, read_columns, write_columns
from mfm.data.records import Record
from mfm.properties import PROPERTIES, parse_task
from mfm.structure import Structure

__all__ = ["Store", "write_store"]


class Store:
    """An immutable, ordered set of records; read from a file, or made with :meth:`from_records`.

    ``store[i]`` is a :class:`Record`; everything else is a column over all records at once. A store that was
    opened from a file maps it into memory and reads only what is asked for.
    """

    def __init__(
        self,
        columns: Columns,
        tables: dict[str, list[str]],
        card: DatasetCard,
        selection: np.ndarray | None = None,
        path: Path | None = None,
    ) -> None:
        self._columns = columns
        self._tables = tables
        self._path = path
        self._selection = np.arange(len(columns["structures/n_atoms"])) if selection is None else selection
        self.card = card
        """What the dataset is."""
        self.labels: list[str] = sorted({name.split("/")[1] for name in columns if name.startswith("labels/")})
        """Tasks that at least one record of the underlying dataset carries."""
        self.flags: list[str] = sorted({name.split("/")[1] for name in columns if name.startswith("flags/")})
        """Quality flags that at least one record of the underlying dataset carries."""

    @classmethod
    def from_records(cls, records: Iterable[Record], card: DatasetCard) -> "Store":
        """Store in memory.

        Raises
        ------
        ValueError
            If there is no record, a label's fidelity is not in the card, or atoms overlap.
        """
        builder = ColumnBuilder(card)
        for record in records:
            builder.append(record)
        return cls(*builder.finish(), card)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Store in a file that :func:`write_store` wrote, mapped into memory.

        Raises
        ------
        ValueError
            If the file is truncated, not a store, or of a newer version.
        """
        return cls(*read_columns(Path(path)), path=Path(path).absolute())

    def with_card(self, card: DatasetCard) -> "Store":
        """The same records under another card."""
        return Store(self._columns, self._tables, card, self._selection, self._path)

    def write(self, path: str | Path) -> None:
        """Write all records to a file; it appears whole or not at all."""
        write_store(path, self, self.card)

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, item: int) -> Record:
        row, labels, flags = self._row(item), {}, {}
        for task in self.labels:
            place = self._place(f"labels/{task}")[row]
            if place >= 0:
                labels[task] = self._value(task, int(place))
        for flag in self.flags:
            place = self._place(f"flags/{flag}")[row]
            if place >= 0:
                flags[flag] = float(self._columns[f"flags/{flag}/values"][place])
        molecule, origin = (
            self._tables[name][self._columns[f"structures/{name}"][row]] for name in ("molecule", "origin")
        )
        return Record(self._structure(row), labels, molecule, origin, flags)

    def _row(self, item: int) -> int:
        if not -len(self) <= item < len(self):
            raise IndexError(f"record must lie in 0 to {len(self) - 1}, got {item}")
        return int(self._selection[item])

    def _structure(self, row: int) -> Structure:
        first, last = self._offsets[row], self._offsets[row + 1]
        column = {name: self._columns[f"structures/{name}"] for name in ("cell", "pbc", "charge", "multiplicity")}
        return Structure(
            np.array(self._columns["structures/atomic_numbers"][first:last]),
            np.array(self._columns["structures/positions"][first:last]),
            np.array(column["cell"][row]),
            np.array(column["pbc"][row]),
            charge=int(column["charge"][row]),
            multiplicity=int(column["multiplicity"][row]),
        )

    def structures(self) -> Iterator[Structure]:
        """Structures of all records, without reading a label."""
        return (self._structure(int(row)) for row in self._selection)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Store(`{self.card.name}`, {len(self)} records, labels {', '.join(self.labels) or 'none'})"

    def __reduce__(self) -> tuple[object, ...]:
        # workers of a data loader map the file again instead of receiving its content
        if self._path is not None:
            return (_reopen, (self._path, self._selection, self.card))
        return (Store, (self._columns, self._tables, self.card, self._selection))

    @property
    def fidelities(self) -> list[str]:
        """Fidelities of the labels, in the order of the card."""
        present = {parse_task(task).fidelity for task in self.labels}
        return [fidelity for fidelity in self.card.levels if fidelity in present]

    @cached_property
    def n_atoms(self) -> np.ndarray:
        """(n_records,), number of atoms of each record."""
        return np.asarray(self._columns["structures/n_atoms"], dtype=np.int64)[self._selection]

    @cached_property
    def molecules(self) -> np.ndarray:
        """(n_records,), group key of each record."""
        return self._strings("molecule")

    @cached_property
    def origins(self) -> np.ndarray:
        """(n_records,), how the geometry of each record was made."""
        return self._strings("origin")

    @cached_property
    def charge_states(self) -> list[tuple[int, int]]:
        """Pairs of total charge and multiplicity that occur, ascending."""
        pairs = np.stack([self._gather(f"structures/{name}") for name in ("charge", "multiplicity")], axis=1)
        return [(int(charge), int(multiplicity)) for charge, multiplicity in np.unique(pairs, axis=0)]

    @property
    def charges(self) -> np.ndarray:
        """(n_records,), e: total charges."""
        return self._gather("structures/charge")

    @cached_property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        counts = np.bincount(self._gather("structures/atomic_numbers", ragged=True), minlength=1)
        return [int(z) for z in np.flatnonzero(counts)]

    def coverage(self, task: str) -> np.ndarray:
        """(n_records,), whether each record carries the label; all false for a label nobody carries."""
        parse_task(task)
        if task not in self.labels:
            return np.zeros(len(self), dtype=bool)
        return self._place(f"labels/{task}")[self._selection] >= 0

    def energies(self, task: str) -> np.ndarray:
        """(n_records,), eV, float64, NaN where missing.

        Raises
        ------
        ValueError
            If the task is not an energy.
        """
        if parse_task(task).property != "energy":
            raise ValueError(f"task must be an energy, got `{task}`; ask `values` for other properties")
        energies = np.full(len(self), np.nan)
        energies[self.coverage(task)] = self.values(task)
        return energies

    def values(self, task: str) -> np.ndarray:
        """Values of a label over the records that carry it, in order, concatenated if they are per atom.

        Raises
        ------
        ValueError
            If no record of the dataset carries the label.
        """
        if task not in self.labels:
            raise ValueError(f"label must be one of {', '.join(self.labels) or '(none)'}, got `{task}`")
        places = self._place(f"labels/{task}")[self._selection]
        places = places[places >= 0]
        if PROPERTIES[parse_task(task).property].per == "atom":
            places = _ranges(self._label_offsets[task], places)
        return np.asarray(self._columns[f"labels/{task}/values"][places])

    def flag(self, name: str) -> np.ndarray:
        """(n_records,), a quality flag, NaN where it was not recorded.

        Raises
        ------
        ValueError
            If no record of the dataset carries the flag.
        """
        if name not in self.flags:
            raise ValueError(f"flag must be one of {', '.join(self.flags) or '(none)'}, got `{name}`")
        places = self._place(f"flags/{name}")[self._selection]
        numbers = np.full(len(self), np.nan)
        numbers[places >= 0] = self._columns[f"flags/{name}/values"][places[places >= 0]]
        return numbers

    def composition(self, elements: Sequence[int]) -> np.ndarray:
        """(n_records, n_elements), how many atoms of each element a record has.

        Raises
        ------
        ValueError
            If the store has an element that is not asked for.
        """
        missing = sorted(set(self.elements) - {int(z) for z in elements})
        if missing:
            raise ValueError(f"`elements` must hold every element of the store, {missing} are missing from {elements}")
        column = np.zeros(119, dtype=np.int64)
        column[np.asarray(elements, dtype=np.int64)] = np.arange(len(elements))
        rows = np.repeat(np.arange(len(self)), self.n_atoms)
        flat = rows * len(elements) + column[self._gather("structures/atomic_numbers", ragged=True)]
        return np.bincount(flat, minlength=len(self) * len(elements)).reshape(len(self), len(elements))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Store":
        """Records at `indices`, in that order; shares the columns.

        Raises
        ------
        ValueError
            If an index is out of range.
        """
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise ValueError(f"indices must lie in 0 to {len(self) - 1}, got {chosen.min()} to {chosen.max()}")
        return Store(self._columns, self._tables, self.card, self._selection[chosen], self._path)

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all structures, labels, flags and levels, in order."""
        digest = hashlib.sha256(json.dumps({f: level.to_json() for f, level in self.card.levels.items()}).encode())
        for name in ("atomic_numbers", "positions"):
            digest.update(np.ascontiguousarray(self._gather(f"structures/{name}", ragged=True)).tobytes())
        for name in ("n_atoms", "cell", "pbc", "charge", "multiplicity"):
            digest.update(np.ascontiguousarray(self._gather(f"structures/{name}")).tobytes())
        digest.update(json.dumps([self.molecules.tolist(), self.origins.tolist()]).encode())
        for task in self.labels:
            covered = self.coverage(task)
            if covered.any():
                digest.update(task.encode() + covered.tobytes() + np.ascontiguousarray(self.values(task)).tobytes())
        for flag in self.flags:
            numbers = self.flag(flag)
            if not np.isnan(numbers).all():
                digest.update(flag.encode() + numbers.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self._columns["structures/n_atoms"], dtype=np.int64)])

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        return {}

    def _place(self, column: str) -> np.ndarray:
        """(n_underlying,), where each structure's value stands in a label or flag, -1 where it has none."""
        if column not in self._places:
            rows = self._columns[f"{column}/rows"]
            places = np.full(len(self._columns["structures/n_atoms"]), -1, dtype=np.int64)
            places[rows] = np.arange(len(rows))
            self._places[column] = places
        return self._places[column]

    @cached_property
    def _label_offsets(self) -> dict[str, np.ndarray]:
        offsets = {}
        for task in self.labels:
            if PROPERTIES[parse_task(task).property].per == "atom":
                counts = np.asarray(self._columns["structures/n_atoms"])[self._columns[f"labels/{task}/rows"]]
                offsets[task] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return offsets

    def _value(self, task: str, place: int) -> np.ndarray:
        values = self._columns[f"labels/{task}/values"]
        if task in self._label_offsets:
            first, last = self._label_offsets[task][place : place + 2]
            return np.array(values[first:last])
        return np.array(values[place])

    def _gather(self, name: str, ragged: bool = False) -> np.ndarray:
        rows = _ranges(self._offsets, self._selection) if ragged else self._selection
        return np.asarray(self._columns[name][rows])

    def _strings(self, name: str) -> np.ndarray:
        return np.array(self._tables[name], dtype=str)[self._gather(f"structures/{name}")]


def _ranges(offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Positions of the chosen rows in a concatenated column, in order."""
    counts = offsets[chosen + 1] - offsets[chosen]
    starts = np.repeat(offsets[chosen] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return np.arange(int(counts.sum())) + starts


def _reopen(path: Path, selection: np.ndarray, card: DatasetCard) -> Store:
    columns, tables, _ = read_columns(path)
    return Store(columns, tables, card, selection, path)


def write_store(path: str | Path, records: Iterable[Record], card: DatasetCard) -> None:
    """Write records to a store's file as they come, in bounded memory.

    The file appears whole or not at all. The card is written into it, without its list of source files (a file
    cannot hold its own checksum) and with its units set to mfm's, which the records are in.

    Raises
    ------
    ValueError
        If there is no record, a label's fidelity is not in the card, atoms overlap, or the folder is missing.
    """
    target = Path(path)
    folder = target.parent if target.parent.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".mfm-store-", dir=folder) as name:
        builder = ColumnBuilder(card, Path(name))
        try:
            for record in records:
                builder.append(record)
            columns, tables = builder.finish()
        finally:
            builder.close()
        properties = dict.fromkeys(parse_task(c.split("/")[1]).property for c in columns if c.startswith("labels/"))
        units = {prop: PROPERTIES[prop].unit for prop in properties}
        inner = card.replace(files=(), units=units, default_subset="all")
        write_columns(target, columns, tables, inner)
