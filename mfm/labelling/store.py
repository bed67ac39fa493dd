"""The labelling store: an append-only SQLite file that is also the queue of work.

One row per structure, one per (structure, level) label. A failure is a row too, so that a rerun does not try
it again; the work left is what the queue names and no row answers. SQLite in WAL mode loses at most the row
being written when a process is killed.
"""

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np

from mfm.labelling.levels import Level, base_identifier, level_from_record
from mfm.labelling.packing import pack_arrays, pack_structure, unpack_arrays, unpack_structure
from mfm.labelling.sampling import Sample
from mfm.structure import Structure

__all__ = ["Answer", "Job", "LabelRow", "LabelStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS structures (
    hash TEXT PRIMARY KEY, molecule TEXT NOT NULL, origin TEXT NOT NULL, geometry BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS levels (
    identifier TEXT PRIMARY KEY, fidelity TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS queue (
    position INTEGER PRIMARY KEY, hash TEXT NOT NULL, level TEXT NOT NULL, UNIQUE (hash, level));
CREATE TABLE IF NOT EXISTS provenance (
    id INTEGER PRIMARY KEY, record TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS labels (
    hash TEXT NOT NULL, level TEXT NOT NULL, status TEXT NOT NULL, data BLOB, flags TEXT NOT NULL,
    message TEXT NOT NULL, seconds REAL NOT NULL, provenance INTEGER NOT NULL,
    created TEXT NOT NULL DEFAULT (datetime('now')), PRIMARY KEY (hash, level));
CREATE TABLE IF NOT EXISTS rejected (
    molecule TEXT PRIMARY KEY, message TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rejected_sources (
    molecule TEXT NOT NULL, source TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY (molecule, source));
CREATE INDEX IF NOT EXISTS structures_by_molecule ON structures (molecule);
"""
_ADDED_COLUMNS = ("parent", "source")
"""Of `structures`: the molecule it was derived from, and what made it. Stores of mfm 0.1 lack them."""


class Job(NamedTuple):
    """One label to compute."""

    hash: str
    level: str
    """Key of the request: the level's identifier, and extras."""
    structure: Structure
    origin: str
    molecule: str = ""


class Answer(NamedTuple):
    """What came of a job."""

    status: str
    """``ok`` or ``failed``."""
    values: dict[str, np.ndarray]
    flags: dict[str, float]
    message: str
    seconds: float
    """Of the processor; of the clock where a worker was lost."""


class LabelRow(NamedTuple):
    """One stored answer."""

    hash: str
    level: str
    status: str
    """``ok`` or ``failed``."""
    values: dict[str, np.ndarray]
    flags: dict[str, float]
    message: str
    seconds: float


class LabelStore:
    """Structures, queue and labels in one file; one process writes.

    Parameters
    ----------
    read_only : bool
        Open an existing store without writing anything, not even beside it.

    Raises
    ------
    ValueError
        If the file is not a labelling store.
    OSError
        If it cannot be opened, or not written where it should be.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        if read_only:
            self._connection = self._open_read_only()
            return
        with self._explained():
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)
            for name in _ADDED_COLUMNS:
                if name not in self._columns():
                    self._connection.execute(f"ALTER TABLE structures ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise FileNotFoundError(f"a labelling store must exist to be read, got no file {self.path}; label first")
        # a store that nobody writes has no log beside it, and can then be read from a read-only folder
        is_quiet = not Path(f"{self.path}-wal").exists()
        with self._explained():
            mode = "immutable=1" if is_quiet else "mode=ro"
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?{mode}", uri=True, timeout=60)
            connection.execute("SELECT count(*) FROM structures").fetchone()
        return connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as ours: what cannot be written is an OSError, what is no store a ValueError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"labels must be written to {self.path}, got: {error}; free some space or make file and folder"
                " writable, then run the same command again: every label that was reported as done is there"
            ) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise ValueError(
                f"a labelling store must be an SQLite file, got {self.path} ({error}); give another path"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._connection:
            yield self._connection

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for this process alone; the system releases it even if the process is killed.

        Raises
        ------
        OSError
            If another process labels into it.
        """
        held = filelock.FileLock(f"{self.path}.lock", timeout=0)
        try:
            held.acquire()
        except filelock.Timeout as error:
            raise OSError(
                f"one run may write to {self.path} at a time, got another one that does; wait for it, or give another"
                " store"
            ) from error
        try:
            yield
        finally:
            held.release()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _columns(self) -> list[str]:
        return [row[1] for row in self._connection.execute("PRAGMA table_info(structures)")]

    def add_level(self, fidelity: str, level: Level) -> None:
        """Register a level under a fidelity name.

        Raises
        ------
        ValueError
            If the name means another level in this store: labels of two levels must not be mixed.
        """
        known = {name: identifier for identifier, name in self.fidelities().items()}
        if known.get(fidelity, level.identifier) != level.identifier:
            raise ValueError(
                f"fidelity `{fidelity}` of {self.path} must stay {known[fidelity]}, got {level.identifier}; give the"
                " changed level another name, or label into another store"
            )
        with self._transaction() as connection:
            settings = json.dumps(dataclasses.asdict(level), sort_keys=True)
            connection.execute("INSERT OR IGNORE INTO levels VALUES (?, ?, ?)", (level.identifier, fidelity, settings))

    def fidelities(self) -> dict[str, str]:
        """Level identifier → fidelity name."""
        return dict(self._connection.execute("SELECT identifier, fidelity FROM levels"))

    def levels(self) -> dict[str, Level]:
        """Level identifier → level."""
        rows = self._connection.execute("SELECT identifier, settings FROM levels")
        return {identifier: level_from_record(identifier, settings) for identifier, settings in rows}

    def add_samples(self, samples: Iterable[Sample], source: str = "") -> None:
        """Keep geometries, in their order, without queueing anything; `source` says what made them.

        Those that the store has from an import, which does not know what made them, get the source and the parent.
        """
        with self._transaction() as connection:
            _insert_samples(connection, samples, source)

    def samples_of(self, molecule: str, source: str) -> list[Sample]:
        """Geometries of a molecule from one source, in their order."""
        rows = self._connection.execute(
            "SELECT molecule, origin, geometry, parent FROM structures WHERE molecule = ? AND source = ?"
            " ORDER BY rowid",
            (molecule, source),
        )
        return [Sample(unpack_structure(geometry), name, origin, parent) for name, origin, geometry, parent in rows]

    def enqueue(self, jobs: Sequence[tuple[Sample, str]]) -> int:
        """Append (sample, key of the request) to the queue, in order; those already there are skipped.

        A job is there too if the same level is queued with further extras.

        Returns
        -------
        int
            Number of jobs added.
        """
        added = 0
        queued: dict[tuple[str, str], list[set[str]]] = {}
        for key, level in self._connection.execute("SELECT hash, level FROM queue"):
            queued.setdefault((key, base_identifier(level)), []).append(set(level.split("|")))
        with self._transaction() as connection:
            _insert_samples(connection, (sample for sample, _ in jobs), "")
            for sample, level in jobs:
                key, wanted = sample.structure.content_hash(), set(level.split("|"))
                have = queued.setdefault((key, base_identifier(level)), [])
                if any(wanted <= other for other in have):
                    continue
                have.append(wanted)
                connection.execute("INSERT INTO queue (hash, level) VALUES (?, ?)", (key, level))
                added += 1
        return added

    def pending(self) -> list[Job]:
        """Queued jobs without a label or a failure, in queue order."""
        rows = self._connection.execute(
            "SELECT q.hash, q.level, s.geometry, s.origin, s.molecule FROM queue q JOIN structures s ON s.hash = q.hash"
            " LEFT JOIN labels l ON l.hash = q.hash AND l.level = q.level WHERE l.hash IS NULL ORDER BY q.position"
        )
        return [Job(key, level, unpack_structure(geometry), *rest) for key, level, geometry, *rest in rows]

    def counts(self) -> dict[tuple[str, str], int]:
        """(fidelity, status) → number of labels."""
        rows = self._connection.execute(
            "SELECT v.fidelity, l.status, count(*) FROM labels l"
            " JOIN levels v ON v.identifier = substr(l.level, 1, instr(l.level || '|', '|') - 1) GROUP BY 1, 2"
        )
        return {(fidelity, status): count for fidelity, status, count in rows}

    def record(self, row: LabelRow, provenance: Mapping[str, str]) -> None:
        """Write one answer; durable when this returns.

        Raises
        ------
        OSError
            If it cannot be written: disk full, file read-only.
        """
        with self._transaction() as connection:
            _insert_label(connection, row, _provenance_id(connection, provenance))

    def take_over(self, labels: Iterable[tuple[Sample, LabelRow]], provenance: Mapping[str, str]) -> int:
        """Add labels that were computed elsewhere, with their structures; what is there stays. Returns how many."""
        added = 0
        with self._transaction() as connection:
            number = _provenance_id(connection, provenance)
            for sample, row in labels:
                _insert_samples(connection, [sample], "")
                connection.execute("INSERT OR IGNORE INTO queue (hash, level) VALUES (?, ?)", (row.hash, row.level))
                added += _insert_label(connection, row, number, or_ignore=True)
        return added

    def reject(self, molecule: str, message: str, source: str = "") -> None:
        """Record that a molecule gives no geometries from a source, or from none at all, and why."""
        with self._transaction() as connection:
            if source:
                connection.execute(
                    "INSERT OR REPLACE INTO rejected_sources VALUES (?, ?, ?)", (molecule, source, message)
                )
            else:
                connection.execute("INSERT OR REPLACE INTO rejected VALUES (?, ?)", (molecule, message))

    def rejected(self, source: str | None = None) -> dict[str, str]:
        """Molecule → why it has no geometries: from this source, or from any if none is named."""
        found = dict(self._connection.execute("SELECT molecule, message FROM rejected ORDER BY rowid"))
        # stores of mfm 0.1, opened to be read, lack this table
        if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rejected_sources'").fetchone():
            found |= self._connection.execute(
                "SELECT molecule, message FROM rejected_sources WHERE source = ? OR ? IS NULL ORDER BY rowid",
                (source, source),
            )
        return found

    def forget_failures(self) -> int:
        """Remove failures, so that the next run tries them again; returns how many there were."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM rejected")
            connection.execute("DELETE FROM rejected_sources")
            return connection.execute("DELETE FROM labels WHERE status = 'failed'").rowcount

    def labels(self, level: str) -> Iterator[LabelRow]:
        """All answers to one key, oldest first."""
        rows = self._connection.execute(
            "SELECT hash, level, status, data, flags, message, seconds FROM labels WHERE level = ? ORDER BY rowid",
            (level,),
        )
        for key, name, status, data, flags, message, seconds in rows:
            yield LabelRow(key, name, status, unpack_arrays(data), json.loads(flags), message, seconds)

    def request_keys(self) -> list[str]:
        """Every key that queue or labels name, those with extras after those without."""
        rows = self._connection.execute("SELECT level FROM queue UNION SELECT level FROM labels")
        return sorted((key for (key,) in rows), key=lambda key: (key.count("|"), key))

    def seconds(self) -> list[tuple[str, Structure, float]]:
        """Key, structure and seconds of every label, to correct estimates by."""
        rows = self._connection.execute(
            "SELECT l.level, s.geometry, l.seconds FROM labels l JOIN structures s ON s.hash = l.hash"
            " WHERE l.status = 'ok'"
        )
        return [(level, unpack_structure(geometry), taken) for level, geometry, taken in rows]

    def failures(self) -> list[tuple[str, str, str]]:
        """Molecule, key and message of every failed label."""
        rows = self._connection.execute(
            "SELECT s.molecule, l.level, l.message FROM labels l JOIN structures s ON s.hash = l.hash"
            " WHERE l.status = 'failed' ORDER BY l.rowid"
        )
        return [(molecule, level, message) for molecule, level, message in rows]

    def samples(self) -> dict[str, Sample]:
        """Structure hash → sample, in queue order."""
        parent = "s.parent" if "parent" in self._columns() else "''"
        rows = self._connection.execute(
            f"SELECT s.hash, s.molecule, s.origin, s.geometry, {parent} FROM structures s"
            " JOIN queue q ON q.hash = s.hash GROUP BY s.hash ORDER BY min(q.position)"
        )
        return {
            key: Sample(unpack_structure(geometry), molecule, origin, parent)
            for key, molecule, origin, geometry, parent in rows
        }

    def provenances(self) -> list[dict[str, str]]:
        """Every distinct provenance record: versions, processor, environment."""
        return [json.loads(text) for (text,) in self._connection.execute("SELECT record FROM provenance ORDER BY id")]


def _insert_samples(connection: sqlite3.Connection, samples: Iterable[Sample], source: str) -> None:
    """Add structures; one that came without a source, such as from a file, is put in its place among those made now."""
    for sample in samples:
        key = sample.structure.content_hash()
        if source:
            # the order of rows is that in which geometries were made, and a plan chooses by it
            connection.execute("DELETE FROM structures WHERE hash = ? AND source = ''", (key,))
        connection.execute(
            "INSERT OR IGNORE INTO structures (hash, molecule, origin, geometry, parent, source)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key, sample.molecule, sample.origin, pack_structure(sample.structure), sample.parent, source),
        )


def _provenance_id(connection: sqlite3.Connection, provenance: Mapping[str, str]) -> int:
    text = json.dumps(dict(provenance), sort_keys=True)
    connection.execute("INSERT OR IGNORE INTO provenance (record) VALUES (?)", (text,))
    (number,) = connection.execute("SELECT id FROM provenance WHERE record = ?", (text,)).fetchone()
    return int(number)


def _insert_label(connection: sqlite3.Connection, row: LabelRow, provenance: int, or_ignore: bool = False) -> int:
    data = pack_arrays(row.values) if row.values else None
    return connection.execute(
        f"INSERT {'OR IGNORE ' if or_ignore else ''}INTO labels"
        " (hash, level, status, data, flags, message, seconds, provenance) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (row.hash, row.level, row.status, data, json.dumps(row.flags), row.message, row.seconds, provenance),
    ).rowcount
