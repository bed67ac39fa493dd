"""The store of runs and models: the only file that imports MLflow.

Only MLflow's client is used, never its global active run. Its errors come out as :class:`StoreError`, which says what
to do, or as :class:`RefusedError` where trying again cannot help.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

import filelock

from mfm.tracking.location import DATABASE, Location

__all__ = ["KEY", "MetricPoint", "NotYetError", "RefusedError", "Store", "StoreError", "open_store"]

logger = logging.getLogger(__name__)

KEY = "mfm.key"
"""Tag by which runs of different folders find each other."""
_LONGEST_VALUE = 500
"""Characters of a parameter that are kept; the full configuration is an artifact."""
_LARGEST_BATCH = 1000
"""Metrics that MLflow takes in one call; of parameters it takes a tenth."""
_LOCK_SECONDS = 300.0
"""Longest wait for another process that makes the database."""


class StoreError(ValueError):
    """The store cannot be reached, read or written."""


class NotYetError(StoreError):
    """The store lacks what another process is about to record."""


class RefusedError(StoreError):
    """The store works and refuses this request, now and later."""


class MetricPoint(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    step: int
    time: int
    """Milliseconds since 1970."""


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


@contextmanager
def _clear_errors(location: Location) -> Iterator[None]:
    """Context in which errors of MLflow, the database and the file system become those of this file."""
    import sqlalchemy.exc

    try:
        yield
    except _mlflow().exceptions.MlflowException as error:
        permanent = error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
        kind = RefusedError if permanent else StoreError
        raise kind(f"the store of runs {location.uri} says: {_short(error)}") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StoreError(f"the database of runs {location.uri} cannot be used: {_short(error)}") from error
    except FileNotFoundError as error:
        raise RefusedError(f"a file to record is missing: {_short(error)}") from error
    except (OSError, filelock.Timeout) as error:
        raise StoreError(f"the store of runs {location.uri} cannot be used: {_short(error)}") from error


def _short(error: BaseException) -> str:
    """The first line of a message: what SQLAlchemy appends are statements and links."""
    return str(error).strip().split("\n")[0][:400]


def open_store(location: Location) -> "Store":
    """Open a store; creates the database, which only one process at a time may do.

    Raises
    ------
    StoreError
        If it cannot be reached, read or written, or is no database.
    """
    mlflow = _mlflow()
    with _clear_errors(location):
        if location.directory is None:
            client = mlflow.MlflowClient(tracking_uri=location.uri, registry_uri=location.uri)
            client.search_experiments(max_results=1)
            return Store(client, location)
        location.directory.mkdir(parents=True, exist_ok=True)
        # two processes that run the migrations of a new database at once crash
        with filelock.FileLock(location.directory / ".lock", timeout=_LOCK_SECONDS):
            if not (location.directory / DATABASE).exists():
                logger.info("creating the tracking database %s (about 10 s, once)", location.directory / DATABASE)
            client = mlflow.MlflowClient(tracking_uri=location.uri, registry_uri=location.uri)
            client.search_experiments(max_results=1)
        return Store(client, location)


class Store:
    """Runs, their parameters, metrics and files, and models; made by :func:`open_store`.

    Every method raises :class:`StoreError` if the store cannot be reached, read or written, and its subclass
    :class:`RefusedError` if the request itself is at fault.
    """

    def __init__(self, client: Any, location: Location) -> None:
        self.location = location
        self._client = client

    def experiment(self, name: str) -> str:
        """Identifier of an experiment, which is made if it does not exist, with artifacts at an absolute place."""
        with _clear_errors(self.location):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            if self.location.directory is None:
                return str(self._client.create_experiment(name))
            with filelock.FileLock(self.location.directory / ".lock", timeout=_LOCK_SECONDS):
                found = self._client.get_experiment_by_name(name)
                if found is not None:
                    return str(found.experiment_id)
                artifacts = (self.location.directory / "artifacts" / name).as_uri()
                return str(self._client.create_experiment(name, artifact_location=artifacts))

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], parent: str = "", time: int = 0) -> str:
        """Make a run and return its identifier.

        Parameters
        ----------
        experiment : str
            Name.
        parent : str
            Identifier of the run it is nested under, if any.
        time : int
            When it started, milliseconds since 1970; now if 0.
        """
        nested = {"mlflow.parentRunId": parent} if parent else {}
        identifier = self.experiment(experiment)
        with _clear_errors(self.location):
            run = self._client.create_run(identifier, start_time=time or None, tags={**tags, **nested}, run_name=name)
            return str(run.info.run_id)

    def knows(self, run: str) -> bool:
        """Whether a run of this identifier exists."""
        try:
            self.get(run)
        except RefusedError:
            return False
        return True

    def delete_children(self, parent: str, name: str) -> None:
        """Mark as deleted the runs of a name that are nested under a run."""
        for child in self.search(f"tags.`mlflow.parentRunId` = '{parent}'"):
            if child.info.run_name == name:
                with _clear_errors(self.location):
                    self._client.delete_run(child.info.run_id)

    def reopen(self, run: str) -> None:
        """Mark a run as running again."""
        with _clear_errors(self.location):
            self._client.update_run(run, status="RUNNING")

    def close(self, run: str, status: str, time: int = 0) -> None:
        """End a run as FINISHED, FAILED or KILLED, at a time in milliseconds since 1970 (now if 0)."""
        with _clear_errors(self.location):
            self._client.set_terminated(run, status, time or None)

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Log flat parameters; those already logged stay, since MLflow's parameters cannot change."""
        from mlflow.entities import Param

        with _clear_errors(self.location):
            known = self._client.get_run(run).data.params
            rows = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in params.items() if key not in known]
            for first in range(0, len(rows), _LARGEST_BATCH // 10):
                self._client.log_batch(run, params=rows[first : first + _LARGEST_BATCH // 10])

    def log_metrics(self, run: str, points: Sequence[MetricPoint], model: str | None = None) -> None:
        """Log metrics, of a logged model if its identifier is given; repeating it changes nothing."""
        from mlflow.entities import Metric

        rows = [Metric(point.name, point.value, point.time, point.step, model_id=model) for point in points]
        with _clear_errors(self.location):
            for first in range(0, len(rows), _LARGEST_BATCH):
                self._client.log_batch(run, metrics=rows[first : first + _LARGEST_BATCH])

    def log_dataset(self, run: str, name: str, source: str, digest: str, context: str) -> None:
        """Name a dataset as an input of the run; `context` is train, valid or test."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source}), profile=None
        )
        tag = InputTag("mlflow.data.context", context)
        inputs = [DatasetInput(dataset, tags=[tag])]
        with _clear_errors(self.location):
            try:
                self._client.log_inputs(run, datasets=inputs)
            except _mlflow().exceptions.MlflowException as error:
                # of two runs that bring the same dataset at once, the second is refused: it is there when asked again
                if error.error_code != "BAD_REQUEST":
                    raise
                self._client.log_inputs(run, datasets=inputs)

    def log_artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        with _clear_errors(self.location):
            self._client.log_artifact(run, str(path), folder)

    def log_model(self, run: str, path: Path, name: str, params: Mapping[str, Any]) -> str:
        """Copy a checkpoint to a logged model (of the type ``mfm``) of the run and return the model's identifier."""
        from mlflow.entities import LoggedModelOutput

        with _clear_errors(self.location):
            model = self._client.create_logged_model(
                self._client.get_run(run).info.experiment_id,
                name=name,
                source_run_id=run,
                params={key: str(value)[:_LONGEST_VALUE] for key, value in params.items()},
                model_type="mfm",
            )
            status = "FAILED"
            try:
                self._client.log_model_artifact(model.model_id, str(path))
                status = "READY"
            finally:
                self._client.finalize_logged_model(model.model_id, status)
            self._client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
            return str(model.model_id)

    def get(self, run: str) -> Any:
        """Run of an identifier, as MLflow has it."""
        with _clear_errors(self.location):
            return self._client.get_run(run)

    def search(self, condition: str = "", most: int = 1000) -> list[Any]:
        """Runs of all experiments that meet a condition in MLflow's language, the newest first."""
        with _clear_errors(self.location):
            ids = [experiment.experiment_id for experiment in self._client.search_experiments()]
            return list(
                self._client.search_runs(ids, condition, max_results=most, order_by=["attributes.start_time DESC"])
            )

    def find(self, key: str) -> str:
        """Identifier of the run with this key; empty if there is none."""
        found = self.search(f"tags.`{KEY}` = '{key}'", most=1)
        return str(found[0].info.run_id) if found else ""

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) pairs of a metric."""
        with _clear_errors(self.location):
            return [(point.step, point.value) for point in self._client.get_metric_history(run, metric)]

    def files(self, run: str, folder: str | None = None) -> list[str]:
        """Paths of a run's artifacts in a folder of them."""
        with _clear_errors(self.location):
            return [file.path for file in self._client.list_artifacts(run, folder)]

    def fetch(self, uri: str, folder: Path) -> Path:
        """Local path of an artifact; one that is on a server is copied to `folder` first.

        Parameters
        ----------
        uri : str
            Of a file or a directory, below the location of a run or of a logged model.
        """
        if uri.startswith("file:"):
            return Path(url2pathname(urlparse(uri).path))
        from mlflow.artifacts import download_artifacts

        with _clear_errors(self.location):
            return Path(download_artifacts(artifact_uri=uri, tracking_uri=self.location.uri, dst_path=str(folder)))

    def model_location(self, model: str) -> str:
        """URI of the directory of a logged model."""
        with _clear_errors(self.location):
            return str(self._client.get_logged_model(model).artifact_location)

    def add_version(self, name: str, run: str, model: str, tags: Mapping[str, str]) -> str:
        """Make a logged model the next version of a registered model, which is made if needed; returns its number."""
        with _clear_errors(self.location):
            try:
                self._client.create_registered_model(name)
            except _mlflow().exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # the location, not models:/ID: MLflow 3.17 would look that up in the store of its global settings
            source = self.model_location(model)
            version = self._client.create_model_version(name, source, run_id=run, model_id=model, tags=dict(tags))
            return str(version.version)

    def version(self, name: str, number: str = "", alias: str = "") -> Any:
        """Version of a registered model by its number or its alias, as MLflow has it."""
        with _clear_errors(self.location):
            if alias:
                return self._client.get_model_version_by_alias(name, alias)
            return self._client.get_model_version(name, number)

    def set_alias(self, name: str, alias: str, number: str, tags: Mapping[str, str]) -> None:
        """Let an alias point to a version, and tag that version."""
        with _clear_errors(self.location):
            for key, value in tags.items():
                self._client.set_model_version_tag(name, number, key, value)
            self._client.set_registered_model_alias(name, alias, number)

    def registered(self) -> dict[str, dict[str, str]]:
        """Registered models: name to alias to version number."""
        with _clear_errors(self.location):
            models = self._client.search_registered_models()
        return {model.name: {alias: str(number) for alias, number in model.aliases.items()} for model in models}
