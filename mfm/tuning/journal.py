"""A study's journal: one JSON record per line in one file, which many processes append to."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

__all__ = ["Journal"]


class Journal:
    """Append-only file of records. A process may be killed, and the disk fill up, at any moment.

    The lock is one of the operating system's, which a killed process lets go of at once. A record that a killed
    process, or a full disk, left half written was never acknowledged; the next writer cuts it off.

    Parameters
    ----------
    path : Path
        Made with its folder if it does not exist.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
        self._known = (0, 0)
        """A number of records and where the next one starts, so that a reader need not start from the beginning."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Records from that number on; one that is being written is not there yet."""
        number, offset = self._known if log_number_from >= self._known[0] else (0, 0)
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                number, offset = number + 1, offset + len(line)
                self._known = number, offset
                if number > log_number_from:
                    yield self._parsed(line, number)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} of the study's journal `{self._path}` is damaged ({error}); restore the file, or start"
                " anew with another `--storage`"
            ) from error
        return record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, all or none.

        Raises
        ------
        OSError
            If they cannot be written, for instance to a full disk.
        """
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock, self._path.open("r+b", buffering=0) as file:
            end = _end_of_records(file)
            file.truncate(end)
            file.seek(end)
            try:
                written = 0
                while written < len(content):
                    written += file.write(content[written:]) or 0
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)
                raise OSError(
                    error.errno,
                    f"{error.strerror}: cannot write the study's journal; finished trials are kept: make room, then run"
                    " the same command again",
                    str(self._path),
                ) from error


def _end_of_records(file: Any) -> int:
    """Where the last complete line ends."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        tail: bytes = file.read(end - start)
        if (position := tail.rfind(b"\n")) >= 0:
            return start + position + 1
        end = start
    return 0
