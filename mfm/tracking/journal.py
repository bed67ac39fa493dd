"""Everything a run records, in a file of its folder, before anything is sent to a store.

The file is there whatever happens to the store: what could not be sent is sent later from it. Each line is a JSON
object whose ``op`` is ``open``, ``params``, ``metrics``, ``dataset``, ``file``, ``model`` or ``close`` and whose
``run`` is the name of the run within the file: empty for the run itself, else that of a child such as a stage.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["JOURNAL", "Journal", "Position", "forget", "read_records"]

JOURNAL = "tracking.jsonl"
"""Name of the journal in a run's folder."""
_POSITION = "tracking.json"


class Journal:
    """The journal of a folder, open for appending.

    Metrics of a step that is in the file already are not written again: a resumed run repeats steps.

    Parameters
    ----------
    folder : Path
        Must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL
        self._last: dict[tuple[str, str], int] = {}
        if self._path.exists():
            _drop_torn_line(self._path)
            for record, _ in read_records(folder, 0):
                self._note(record)

    def append(self, op: str, run: str, content: Mapping[str, Any]) -> None:
        """Add a line, in one write, so that a reader sees all of it or nothing."""
        record = {"op": op, "run": run, **content}
        if op == "metrics":
            last, step = self._last, int(record["step"])
            record["values"] = {k: v for k, v in record["values"].items() if step > last.get((run, k), -1)}
            if not record["values"]:
                return
        self._note(record)
        with self._path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n")

    def _note(self, record: Mapping[str, Any]) -> None:
        if record["op"] == "metrics":
            self._last.update({(record["run"], name): int(record["step"]) for name in record["values"]})


def _drop_torn_line(path: Path) -> None:
    """Cut off what a process that died in the middle of a write has left."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def read_records(folder: Path, start: int) -> list[tuple[dict[str, Any], int]]:
    """Whole lines of a journal from a byte on, each with the byte after it."""
    with (folder / JOURNAL).open("rb") as file:
        file.seek(start)
        content = file.read()
    records, end = [], start
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        end += len(line)
        records.append((json.loads(line), end))
    return records


@dataclasses.dataclass
class Position:
    """How much of a journal has been sent, and as which runs; kept in a file beside it."""

    sent: int = 0
    """Bytes of the journal that are in the store."""
    runs: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a run in the journal to its identifier in the store."""
    problem: str = ""
    """Why the rest was not sent, or what was refused; empty if all is well."""

    @classmethod
    def read(cls, folder: Path) -> "Position":
        """Position of a folder; at the beginning if nothing was sent yet."""
        try:
            return cls(**json.loads((folder / _POSITION).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        part = folder / f".{_POSITION}.{os.getpid()}"
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        os.replace(part, folder / _POSITION)


def forget(folder: Path) -> None:
    """Delete the journal of a folder, if there is one, and how far it was sent."""
    for name in (JOURNAL, _POSITION):
        (folder / name).unlink(missing_ok=True)
