"""A run as training sees it: every call appends to the journal, a process of its own sends that to the store."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mfm.tracking.environment import SystemMetrics
from mfm.tracking.journal import Journal, Position, forget
from mfm.tracking.location import DEFAULT_DIRECTORY

__all__ = ["NoRun", "Run", "TrackedRun", "flatten", "join_run", "start_run"]

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 120.0
"""Seconds that the end of a run waits for the store. A new database takes ten, an unreachable server two minutes."""
_CHECK_SECONDS = 10.0
_LOG = "tracking.log"


class _SenderProcess:
    """The process that sends a journal; it ends by itself when this process does."""

    def __init__(self, folder: Path, directory: str | Path) -> None:
        self._folder = folder
        self._command = f"mfm sync {folder}"
        if str(directory) != DEFAULT_DIRECTORY:
            self._command += f" --directory {directory}"
        self._checked = time.monotonic()
        self._told = ""
        package = str(Path(__file__).parents[2])
        environment = {
            # a server that does not answer is tried again from the journal, not for minutes within one request
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        # -P: what lies in the working directory must not be taken for a module
        command = [sys.executable, "-P", "-m", "mfm.tracking", str(folder), str(directory)]
        with (folder / _LOG).open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Report, once, why the store does not get the run; looks at most every ten seconds."""
        if time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        self._tell(Position.read(self._folder).problem)

    def _tell(self, problem: str) -> None:
        if problem and problem != self._told:
            self._told = problem
            logger.warning(
                "not everything is recorded: %s; nothing is lost, it is in `%s`: `%s` records it later",
                problem, self._folder, self._command,
            )  # fmt: skip

    def finish(self) -> None:
        """Wait until all is sent, or the store has failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(_LONGEST_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = None
        problem = Position.read(self._folder).problem
        if status == 0 or problem:
            self._tell(problem)
        elif status is None:
            self._tell(f"the store took longer than {_LONGEST_WAIT:.0f} s")
        else:
            self._tell(f"the process that records ended with status {status}, see `{_LOG}` there")


class TrackedRun:
    """A run that is open for writing; made by :func:`start_run`.

    Writing never waits for the store, and never fails because of it.
    """

    def __init__(
        self, journal: Journal, sender: _SenderProcess, system: SystemMetrics, experiment: str, name: str = ""
    ) -> None:
        self._journal = journal
        self._sender = sender
        self._system = system
        self._experiment = experiment
        self._name = name

    def child(self, name: str, tags: Mapping[str, str]) -> "TrackedRun":
        """Run nested under this one; the one of that name if the journal has it already."""
        nested = TrackedRun(self._journal, self._sender, self._system, self._experiment, name)
        nested._open(name, tags)
        return nested

    def _open(self, name: str, tags: Mapping[str, str], links: Mapping[str, Any] = MappingProxyType({})) -> None:
        content = {"experiment": self._experiment, "name": name, "tags": dict(tags), "time": _now(), **links}
        self._journal.append("open", self._name, content)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log flat parameters; those already logged stay, since parameters of a run never change."""
        self._journal.append("params", self._name, {"values": dict(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of an optimiser step, and now and then the load of the machine."""
        values = {name: float(value) for name, value in metrics.items()} | self._system.measure()
        self._journal.append("metrics", self._name, {"values": values, "step": step, "time": _now()})
        self._sender.check()

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Name a dataset as an input of the run; `context` is train, valid or test."""
        content = {"name": name, "source": source, "digest": digest, "context": context}
        self._journal.append("dataset", self._name, content)

    def log_artifacts(self, paths: Sequence[Path], folder: str | None = None) -> None:
        """Copy files, best of the run's folder, to the run's artifacts."""
        for path in paths:
            self._journal.append("file", self._name, {"path": self._relative(path), "folder": folder})

    def log_checkpoint(self, path: Path, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a checkpoint with its final metrics as a logged model (of the type ``mfm``)."""
        content = {"path": self._relative(path), "name": name, "params": dict(params), "time": _now()}
        self._journal.append("model", self._name, {**content, "metrics": dict(metrics)})

    def _relative(self, path: Path) -> str:
        """Path from the journal's folder where it lies below, so that the folder may move."""
        absolute, folder = path.resolve(), self._journal.folder.resolve()
        return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED; that of :func:`start_run` waits until the store has it."""
        self._journal.append("close", self._name, {"status": status, "time": _now()})
        if not self._name:
            self._sender.finish()


class NoRun:
    """A run that is recorded nowhere; has the methods of :class:`TrackedRun`."""

    def child(self, name: str, tags: Mapping[str, str]) -> "NoRun":
        """Nothing is nested: the same object."""
        return self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Nothing."""

    def log_artifacts(self, paths: Sequence[Path], folder: str | None = None) -> None:
        """Nothing."""

    def log_checkpoint(self, path: Path, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self, status: str = "FINISHED") -> None:
        """Nothing."""


Run = TrackedRun | NoRun
"""A run, recorded or not."""


def _now() -> int:
    return int(time.time() * 1000)


def flatten(content: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys.

    Examples
    --------
    >>> flatten({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}})
    {'optimizer.lr': 0.1, 'optimizer.betas.0': 0.9, 'optimizer.betas.1': 0.99}
    """
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    flat: dict[str, Any] = {}
    for key, value in items:
        if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def start_run(
    folder: Path,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    directory: str | Path = DEFAULT_DIRECTORY,
    resume: bool = False,
    parent: str = "",
    key: str = "",
) -> TrackedRun:
    """Open a run that is recorded in a folder's journal and, by a process of its own, in the store.

    A store that cannot be reached is reported in the log and holds nothing up.

    Parameters
    ----------
    folder : Path
        Of the run, made if needed.
    tags : mapping
        Commit, data digest, seed, fidelities...
    directory : path
        Folder of runs, where ``MFM_TRACKING_URI`` names none.
    resume : bool
        Continue the run whose journal the folder holds, instead of replacing it.
    parent : str
        Key of a run in another folder to nest this one under. The run of the same name under it, if the store has one,
        is continued.
    key : str
        Name by which runs of other folders find this one; a run that the store has under this key is continued.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        forget(folder)
    journal = Journal(folder)
    run = TrackedRun(journal, _SenderProcess(folder, directory), SystemMetrics(), experiment)
    run._open(name, tags, {"key": key or (f"{parent}/{name}" if parent else ""), "parent": parent})
    return run


def join_run(folder: Path, experiment: str, name: str, directory: str | Path, key: str) -> TrackedRun:
    """Open a run that another process has opened by :func:`start_run` with this key, and records as well.

    Parameters
    ----------
    folder : Path
        For the journal of this process; made if needed, and continued if it holds one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = TrackedRun(Journal(folder), _SenderProcess(folder, directory), SystemMetrics(), experiment)
    run._open(name, {}, {"key": key, "joins": True})
    return run
