"""Experiment tracking: the only file that imports MLflow.

Runs live under ``mlruns/`` of the working directory: a SQLite database and artifacts with explicit, absolute
locations. The environment variable ``MFM_TRACKING_URI`` moves all of it, for instance to a server. A recipe is a
parent run and each stage a child. Only the client interface is used, never MLflow's global active run.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import filelock

__all__ = [
    "Location",
    "NoRun",
    "Run",
    "TrackedRun",
    "TrackingError",
    "code_version",
    "compare_runs",
    "find_run",
    "flatten",
    "locate",
    "start_run",
    "ui_command",
    "ui_environment",
]

logger = logging.getLogger(__name__)

_URI_VARIABLE = "MFM_TRACKING_URI"
_DATABASE = "mlflow.db"
_LONGEST_VALUE = 500
"""Characters of a parameter that are kept; the full configuration is an artifact."""
_PARENT = "mlflow.parentRunId"
_BUFFER = 200
_FLUSH_SECONDS = 20.0


class Location(NamedTuple):
    """Where runs are kept."""

    uri: str
    """MLflow tracking URI."""
    directory: Path | None
    """Directory of database and artifacts; None for a server, which places artifacts itself."""


def locate(directory: str | Path = "mlruns") -> Location:
    """Location named by ``MFM_TRACKING_URI``, else a database in `directory`.

    A value that is not a URI (``/data/mlruns``) is taken as a directory.
    """
    named = os.environ.get(_URI_VARIABLE, "")
    if "://" in named:
        return Location(named, None)
    root = Path(named or directory).resolve()
    return Location(f"sqlite:///{root / _DATABASE}", root)


def _mlflow() -> ModuleType:
    """MLflow, imported on first use (3 to 4 s) and with its telemetry off.

    The variable is read while MLflow is imported, so the caller's environment is restored right after.
    """
    if "mlflow" in sys.modules:
        return sys.modules["mlflow"]
    name = "MLFLOW_DISABLE_TELEMETRY"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        import mlflow
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return mlflow


def _client(location: Location) -> Any:
    """Client of the location; creates the database, which only one process at a time may do."""
    mlflow = _mlflow()
    if location.directory is None:
        return mlflow.MlflowClient(tracking_uri=location.uri)
    location.directory.mkdir(parents=True, exist_ok=True)
    # two processes that run the migrations of a new database at once crash
    with filelock.FileLock(location.directory / ".lock"):
        if not (location.directory / _DATABASE).exists():
            logger.info("creating the tracking database %s (about 10 s, once)", location.directory / _DATABASE)
        client = mlflow.MlflowClient(tracking_uri=location.uri)
        client.search_experiments(max_results=1)
    return client


def _experiment(client: Any, location: Location, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    if location.directory is None:
        return str(client.create_experiment(name))
    with filelock.FileLock(location.directory / ".lock"):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (location.directory / "artifacts" / name).as_uri()
        return str(client.create_experiment(name, artifact_location=artifacts))


class TrackingError(ValueError):
    """Runs cannot be recorded; says nothing about the run itself."""


class TrackedRun:
    """A run that is open for writing; made by :func:`start_run`.

    Metrics are buffered and written in batches, because a single write to SQLite takes milliseconds.
    """

    def __init__(self, client: Any, location: Location, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._location = location
        self._experiment_id = experiment_id
        self._pending: list[Any] = []
        self._flushed = time.monotonic()

    def child(self, name: str, tags: Mapping[str, str], run_id: str | None = None) -> "TrackedRun":
        """Run nested under this one; that of `run_id`, or else of that name, is reopened if there is one."""
        run_id = run_id or _nested(self._client, self._experiment_id, self.run_id, name)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment_id, tags={**tags, _PARENT: self.run_id}, run_name=name)
            run_id = run.info.run_id
        return TrackedRun(self._client, self._location, run_id, self._experiment_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log flat parameters; those already logged stay, since MLflow's parameters cannot change."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        rows = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in params.items() if key not in known]
        for first in range(0, len(rows), 100):
            self._client.log_batch(self.run_id, params=rows[first : first + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics; they are written in batches, and at the end."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if len(self._pending) >= _BUFFER or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write queued metrics."""
        for first in range(0, len(self._pending), 1000):
            self._client.log_batch(self.run_id, metrics=self._pending[first : first + 1000])
        self._pending = []
        self._flushed = time.monotonic()

    def log_dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Name a dataset as an input of the run; `context` is train, valid or test."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source}), profile=None
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags=[tag])])

    def log_artifacts(self, paths: Sequence[Path], folder: str | None = None) -> None:
        """Copy files to the run's artifacts."""
        for path in paths:
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_checkpoint(self, path: Path, name: str, params: Mapping[str, Any]) -> str:
        """Log a checkpoint as a logged model (of the type ``mfm``) and return its model id."""
        from mlflow.entities import LoggedModelOutput

        model = self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=self.run_id,
            params={key: str(value)[:_LONGEST_VALUE] for key, value in params.items()},
            model_type="mfm",
        )
        status = "FAILED"
        try:
            self._client.log_model_artifact(model.model_id, str(path))
            status = "READY"
        finally:
            self._client.finalize_logged_model(model.model_id, status)
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def finish(self, status: str = "FINISHED") -> None:
        """Write what is queued and close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._client.set_terminated(self.run_id, status)


class NoRun:
    """A run that is recorded nowhere; has the methods of :class:`TrackedRun`."""

    run_id = ""

    def child(self, name: str, tags: Mapping[str, str], run_id: str | None = None) -> "NoRun":
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

    def log_checkpoint(self, path: Path, name: str, params: Mapping[str, Any]) -> str:
        """Nothing."""
        return ""

    def finish(self, status: str = "FINISHED") -> None:
        """Nothing."""


Run = TrackedRun | NoRun
"""A run, recorded or not."""


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
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    directory: str | Path = "mlruns",
    run_id: str | None = None,
    parent: str = "",
) -> TrackedRun:
    """Open a run, creating the database and the experiment where needed.

    Parameters
    ----------
    tags : mapping
        Commit, data digest, seed, fidelities...
    run_id : str, optional
        An earlier run to continue.
    parent : str
        Run to nest this one under; the run of that name under it, if there is one, is continued.

    Raises
    ------
    TrackingError
        If the store cannot be reached or written, or does not know the earlier run.
    """
    location = locate(directory)
    errors = _mlflow().exceptions.MlflowException
    try:
        client = _client(location)
        experiment_id = _experiment(client, location, experiment)
        run_id = run_id or _nested(client, experiment_id, parent, name)
        if run_id is None:
            nesting = {_PARENT: parent} if parent else {}
            run_id = client.create_run(experiment_id, tags={**tags, **nesting}, run_name=name).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
    except errors as error:
        raise TrackingError(
            f"cannot record the run at {location.uri}: {error}; or train with `tracking=none`"
        ) from error
    return TrackedRun(client, location, run_id, experiment_id)


def _nested(client: Any, experiment_id: str, parent: str, name: str) -> str | None:
    """Run of that name under the parent, if there is one: left by a process that was killed."""
    if not parent:
        return None
    wanted = f"tags.`{_PARENT}` = '{parent}' and attributes.run_name = '{name}'"
    found = client.search_runs([experiment_id], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def find_run(client: Any, key: str) -> Any:
    """Run whose id starts with `key`, or the newest whose name is `key`.

    Raises
    ------
    ValueError
        If no run fits, or several ids do.
    """
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, max_results=5000, order_by=["attributes.start_time DESC"])
    by_id = [run for run in runs if run.info.run_id.startswith(key)]
    if len(by_id) > 1:
        raise ValueError(f"`{key}` fits {len(by_id)} run ids; give more characters")
    by_name = [run for run in runs if run.info.run_name == key]
    if by_id or by_name:
        return (by_id or by_name)[0]
    names = ", ".join(f"{run.info.run_name} ({run.info.run_id[:8]})" for run in runs[:8])
    raise ValueError(f"no run has the name or id `{key}`; the newest are: {names or 'none, the store is empty'}")


def compare_runs(keys: Sequence[str], directory: str | Path = "mlruns", every: bool = False) -> str:
    """Table of runs: parameters that differ, and the last value of each validation and test metric.

    Parameters
    ----------
    keys : sequence of str
        Run names or the first characters of run ids.
    every : bool
        Also list parameters that agree, and training metrics.

    Raises
    ------
    ValueError
        If a run is not found.
    """
    client = _client(locate(directory))
    runs = [find_run(client, key) for key in keys]
    rows = [["", *(f"{run.info.run_name} {run.info.run_id[:8]}" for run in runs)]]
    for kind in ("tags", "params"):
        for name in sorted(set().union(*(getattr(run.data, kind) for run in runs))):
            values = [getattr(run.data, kind).get(name, "-") for run in runs]
            if not name.startswith("mlflow.") and (every or len(set(values)) > 1):
                rows.append([name, *values])
    for name in sorted(set().union(*(run.data.metrics for run in runs))):
        if every or name.startswith(("val/", "test/")):
            rows.append([name, *(f"{run.data.metrics[name]:.3f}" if name in run.data.metrics else "-" for run in runs)])
    widths = [min(max(len(row[column]) for row in rows), 60) for column in range(len(rows[0]))]
    lines = ["  ".join(cell[:60].ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def ui_command(directory: str | Path = "mlruns", port: int = 5000) -> list[str]:
    """Command that serves the tracking pages of the location on this machine.

    Raises
    ------
    ValueError
        If the runs are on a server (open it instead), or there are none yet.
    """
    location = locate(directory)
    if location.directory is None:
        raise ValueError(f"the runs are on a server, open {location.uri} in a browser")
    if not (location.directory / _DATABASE).exists():
        raise ValueError(f"`{location.directory}` holds no runs yet; train first, or name another directory")
    store = ["--backend-store-uri", location.uri, "--default-artifact-root", str(location.directory / "artifacts")]
    return [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def ui_environment() -> dict[str, str]:
    """Environment for :func:`ui_command`: without telemetry and without eight idle job workers (0.7 GB)."""
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def code_version() -> str:
    """Commit of the source tree with `+changes` if it is edited, or ``unknown`` outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()[:12] + ("+changes" if changes.stdout.strip() else "")
