"""Sending a journal to a store: in a process of its own while the run lasts, or later by ``mfm sync``."""

import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from mfm.tracking.journal import JOURNAL, Position, read_records
from mfm.tracking.location import Location, locate
from mfm.tracking.store import KEY, MetricPoint, NotYetError, RefusedError, Store, StoreError, open_store

__all__ = ["Sender", "follow", "synchronise"]

logger = logging.getLogger(__name__)

_EVERY = 5.0
"""Seconds between looks at the journal."""
_AFTER_FAILURE = 30.0
"""Seconds before another attempt at a store that failed."""
_PATIENCE = 60.0
"""Seconds that the end of a run waits for the one it is nested under to be recorded."""
_LOCK = ".tracking.lock"


class Sender:
    """What sends the journal of a folder, from where an earlier sender stopped.

    Parameters
    ----------
    folder : Path
        Holds the journal.
    location : Location
        Of the store.
    """

    def __init__(self, folder: Path, location: Location) -> None:
        self._folder = folder
        self._location = location
        self._store: Store | None = None
        self.position = Position.read(folder)
        self._refused: list[str] = []

    def send(self) -> None:
        """Send what is new.

        Raises
        ------
        StoreError
            If the store fails, or refuses to open the run; what was sent before is not sent again by the next call.
        """
        if self._store is None:
            self._store = self._open()
        records = read_records(self._folder, self.position.sent)
        for _, group in itertools.groupby(enumerate(records), key=_joint):
            chosen = [record for _, record in group]
            try:
                self._apply(self._store, [record for record, _ in chosen])
            except RefusedError as error:
                if chosen[0][0]["op"] == "open":
                    raise  # nothing of a run arrives that is not there: it stays unsent until it can be opened
                self._refused.append(str(error))
            self.position.sent = chosen[-1][1]
            self._note("; ".join(self._refused[:3]))

    def _open(self) -> Store:
        store = open_store(self._location)
        known = self.position.runs.get("")
        if known is not None and not store.knows(known):
            logger.info("the store does not know this run, it is sent from the beginning")
            self.position = Position()
        return store

    def _note(self, problem: str) -> None:
        self.position.problem = problem
        self.position.write(self._folder)

    def fail(self, error: StoreError) -> None:
        """Note beside the journal why nothing is sent."""
        self._note(str(error))

    def close_open_runs(self) -> None:
        """End as KILLED every run that nobody ended: the process that wrote the journal is gone."""
        last: dict[str, str] = {}
        for record, _ in read_records(self._folder, 0):
            if record["op"] in ("open", "close"):
                last[record["run"]] = record["op"]
        for name, op in last.items():
            if op == "open" and self._store is not None and name in self.position.runs:
                self._store.close(self.position.runs[name], "KILLED")

    def _apply(self, store: Store, records: Sequence[dict[str, Any]]) -> None:
        first = records[0]
        if first["op"] == "open":
            self._apply_open(store, first)
            return
        run = self.position.runs[first["run"]]
        match first["op"]:
            case "metrics":
                points = [
                    MetricPoint(name, float(value), record["step"], record["time"])
                    for record in records
                    for name, value in record["values"].items()
                ]
                store.log_metrics(run, points)
            case "params":
                store.log_params(run, first["values"])
            case "dataset":
                store.log_dataset(run, first["name"], first["source"], first["digest"], first["context"])
            case "file":
                store.log_artifact(run, self._folder / first["path"], first["folder"])
            case "model":
                model = store.log_model(run, self._folder / first["path"], first["name"], first["params"])
                points = [MetricPoint(name, float(value), 0, first["time"]) for name, value in first["metrics"].items()]
                store.log_metrics(run, points, model)
            case "close":
                store.close(run, first["status"], first["time"])

    def _apply_open(self, store: Store, record: dict[str, Any]) -> None:
        name = record["run"]
        if name in self.position.runs:
            store.reopen(self.position.runs[name])
            return
        parent = self.position.runs[""] if name else _found(store, record.get("parent", ""))
        key = record.get("key", "")
        known = store.find(key) if key else ""
        if known:
            store.reopen(known)
        elif record.get("joins"):
            raise NotYetError(f"the run `{key}`, which another process begins, is not recorded yet")
        if name:
            # of an attempt that was given up, whose journal is gone: this one replaces it
            store.delete_children(parent, record["name"])
        tags = {**record["tags"], KEY: key} if key else record["tags"]
        self.position.runs[name] = known or store.create_run(
            record["experiment"], record["name"], tags, parent, record["time"]
        )
        self.position.write(self._folder)


def _found(store: Store, key: str) -> str:
    """Identifier of the run of another folder that has this key; empty if there is no key."""
    run = store.find(key) if key else ""
    if key and not run:
        raise NotYetError(f"the run `{key}`, which this one is nested under, is not recorded yet")
    return run


def _joint(item: tuple[int, tuple[dict[str, Any], int]]) -> tuple[str, int]:
    """Key of records that are sent in one call: metrics of a run that follow each other."""
    number, (record, _) = item
    return (record["run"], -1) if record["op"] == "metrics" else (record["run"], number)


def follow(folder: Path, directory: str | Path) -> int:
    """Send a journal as it grows, until standard input closes; returns the exit status.

    Standard input is the other end of a pipe that the training process holds: it closes when that process ends, however
    it ends. Signals to stop are ignored: they mean the training process, which then writes how it ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    # a resumed run waits until the sender of its earlier life is done
    with filelock.FileLock(folder / _LOCK):
        sender, waited = Sender(folder, locate(directory)), 0
        while True:
            last = ended.is_set()
            try:
                sender.send()
                if last:
                    sender.close_open_runs()
            except NotYetError as error:
                sender.fail(error)
                if waited < _PATIENCE:
                    waited += 1
                    time.sleep(1.0)
                    continue
            except StoreError as error:
                sender.fail(error)
                if not last:
                    ended.wait(_AFTER_FAILURE)
            if last:
                return 1 if sender.position.problem else 0
            ended.wait(_EVERY)


def synchronise(folder: Path, directory: str | Path) -> str:
    """Send what a store has not got of a run's journal; returns the identifier of the run.

    Raises
    ------
    ValueError
        If the folder holds no journal, another process is sending it, or the store fails.
    """
    if not (folder / JOURNAL).exists():
        raise ValueError(f"`{folder}` holds no `{JOURNAL}`; give the folder of a run that was trained with tracking")
    try:
        with filelock.FileLock(folder / _LOCK, timeout=0):
            started = time.monotonic()
            sender = Sender(folder, locate(directory))
            sender.send()
            sender.close_open_runs()
    except filelock.Timeout as error:
        raise ValueError(f"the run in `{folder}` is going on and records itself; wait for its end") from error
    logger.info("%s: recorded in %.1f s", folder, time.monotonic() - started)
    if sender.position.problem:
        raise StoreError(f"recorded, but for what was refused: {sender.position.problem}")
    return sender.position.runs[""]
