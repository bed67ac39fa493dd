"""The labelling store: an append-only SQLite file that is also the queue of work.

One row per structure, one per (structure, level) label. A failure is a row too, so that a rerun does not try
it again; the work left is what the queue names and no row answers. SQLite in WAL mode loses at most the row
being written when a process is killed.
"""

import io
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm.graph import Structure
from mfm.labelling.levels import Level
from mfm.labelling.sampling import Sample

__all__ = ["Job", "LabelRow", "LabelStore"]

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
"""


class Job(NamedTuple):
    """One label to compute."""

    hash: str
    level: str
    """Level identifier."""
    structure: Structure
    origin: str


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


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes | None) -> dict[str, np.ndarray]:
    if data is None:
        return {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class LabelStore:
    """Structures, queue and labels in one file; one process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._connection = sqlite3.connect(self.path, timeout=60)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"a labelling store must be an SQLite file, got {self.path} ({error}); give another path"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add_level(self, fidelity: str, level: Level, settings: str) -> None:
        """Register a level under a fidelity name; `settings` is its full record as JSON."""
        with self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO levels VALUES (?, ?, ?)", (level.identifier, fidelity, settings)
            )

    def fidelities(self) -> dict[str, str]:
        """Level identifier → fidelity name."""
        return dict(self._connection.execute("SELECT identifier, fidelity FROM levels"))

    def enqueue(self, jobs: Sequence[tuple[Sample, str]]) -> int:
        """Append (sample, level identifier) to the queue, in order; those already there are skipped.

        Returns
        -------
        int
            Number of jobs added.
        """
        added = 0
        with self._connection:
            for sample, level in jobs:
                structure = sample.structure
                geometry = _pack(
                    {
                        "atomic_numbers": structure.atomic_numbers,
                        "positions": structure.positions,
                        "charge_multiplicity": np.array([structure.charge, structure.multiplicity]),
                    }
                )
                key = structure.content_hash()
                self._connection.execute(
                    "INSERT OR IGNORE INTO structures VALUES (?, ?, ?, ?)",
                    (key, sample.molecule, sample.origin, geometry),
                )
                cursor = self._connection.execute(
                    "INSERT OR IGNORE INTO queue (hash, level) VALUES (?, ?)", (key, level)
                )
                added += cursor.rowcount
        return added

    def pending(self) -> list[Job]:
        """Queued jobs without a label or a failure, in queue order."""
        rows = self._connection.execute(
            "SELECT q.hash, q.level, s.geometry, s.origin FROM queue q JOIN structures s ON s.hash = q.hash"
            " LEFT JOIN labels l ON l.hash = q.hash AND l.level = q.level WHERE l.hash IS NULL ORDER BY q.position"
        )
        return [Job(key, level, _structure(geometry), origin) for key, level, geometry, origin in rows]

    def counts(self) -> dict[tuple[str, str], int]:
        """(fidelity, status) → number of labels."""
        rows = self._connection.execute(
            "SELECT v.fidelity, l.status, count(*) FROM labels l JOIN levels v ON v.identifier = l.level GROUP BY 1, 2"
        )
        return {(fidelity, status): count for fidelity, status, count in rows}

    def record(self, row: LabelRow, provenance: Mapping[str, str]) -> None:
        """Write one answer; durable when this returns."""
        text = json.dumps(dict(provenance), sort_keys=True)
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO provenance (record) VALUES (?)", (text,))
            (number,) = self._connection.execute("SELECT id FROM provenance WHERE record = ?", (text,)).fetchone()
            data = _pack(row.values) if row.values else None
            self._connection.execute(
                "INSERT INTO labels (hash, level, status, data, flags, message, seconds, provenance)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row.hash, row.level, row.status, data, json.dumps(row.flags), row.message, row.seconds, number),
            )

    def labels(self, level: str) -> Iterator[LabelRow]:
        """All answers at one level, oldest first."""
        rows = self._connection.execute(
            "SELECT hash, level, status, data, flags, message, seconds FROM labels WHERE level = ? ORDER BY rowid",
            (level,),
        )
        for key, name, status, data, flags, message, seconds in rows:
            yield LabelRow(key, name, status, _unpack(data), json.loads(flags), message, seconds)

    def samples(self) -> dict[str, Sample]:
        """Structure hash → sample, in queue order."""
        rows = self._connection.execute(
            "SELECT s.hash, s.molecule, s.origin, s.geometry FROM structures s"
            " JOIN queue q ON q.hash = s.hash GROUP BY s.hash ORDER BY min(q.position)"
        )
        return {key: Sample(_structure(geometry), molecule, origin) for key, molecule, origin, geometry in rows}

    def provenances(self) -> list[dict[str, str]]:
        """Every distinct provenance record: versions, processor, environment."""
        return [json.loads(text) for (text,) in self._connection.execute("SELECT record FROM provenance ORDER BY id")]


def _structure(geometry: bytes) -> Structure:
    arrays = _unpack(geometry)
    charge, multiplicity = arrays["charge_multiplicity"].tolist()
    return Structure(arrays["atomic_numbers"], arrays["positions"], charge=charge, multiplicity=multiplicity)
