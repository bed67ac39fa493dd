"""What a training run records, however it ends."""

import shutil
from pathlib import Path

import pytest

from mfm import tracking
from mfm.checkpoint import read_provenance
from mfm.config import validate
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import morse_store, recipe

pytestmark = [
    # MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("in_this_process"),
]


@pytest.fixture
def config(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the configuration of a short run in ``run``, without figures, which take longer than the rest."""
    monkeypatch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
    monkeypatch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())
    morse_store().write(tmp_path / "morse.h5")

    def make(**changes) -> RunConfig:
        where = {"experiment": "test", "directory": str(directory)}
        stages = [{"name": "low", "tasks": ["energy_low"], "max_steps": 6}, {"name": "joint", "max_steps": 3}]
        settings = {"output": str(tmp_path / "run"), "stages": stages, "tracking": where, **changes}
        return validate(RunConfig, recipe(str(tmp_path / "morse.h5"), **settings))

    return make


def _statuses(store: tracking.Store) -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in store.search()}


def test_a_stopped_and_resumed_run_is_one_run_with_everything_in_it(config, directory):
    assert not train(config(), stop_after=("low", 3)).finished
    store = tracking.open_store(tracking.locate(directory))
    assert _statuses(store) == {"morse": "KILLED", "low": "KILLED"}
    result = train(config(), resume=True)
    assert _statuses(store) == {"morse": "FINISHED", "low": "FINISHED", "joint": "FINISHED"}
    (record,) = tracking.read_runs(store, [str(result.folder)])
    assert record.metrics["test/energy_high/count"] == 4
    assert record.params["optimizer.lr"] == "0.003"
    assert record.params["joint.max_steps"] == "3"
    assert record.tags["mfm.init"] == "random"
    assert record.tags["mfm.dirty"] in ("true", "false")
    assert tracking.read_curves(store, record, ["train/loss"])["train/loss"][0][0] == 3
    assert {"config.yaml", "environment.json", "history.jsonl", "learning_curves.png", "test_parity.npz",
            "test_parity_low.png", "test_parity_high.png"} <= set(store.files(record.id))  # fmt: skip
    assert tracking.open_model(f"runs:/{record.id}", directory=directory).fidelities == ["low", "high"]


def test_a_failed_run_ends_as_failed_and_keeps_what_it_recorded(config, directory):
    with pytest.raises(ValueError, match="the loss must stay finite"):
        train(config(optimizer={"lr": 1e20, "warmup_steps": 0}, log_every=1))
    store = tracking.open_store(tracking.locate(directory))
    assert _statuses(store) == {"morse": "FAILED", "low": "FAILED"}
    (record,) = tracking.read_runs(store, ["morse"])
    assert record.params["low.max_steps"] == "6"
    assert {"config.yaml", "environment.json"} <= set(store.files(record.id))


def test_a_second_ctrl_c_ends_the_run_as_killed(config, directory, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mfm.training.run.fit_stage", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config())
    assert _statuses(tracking.open_store(tracking.locate(directory))) == {"morse": "KILLED", "low": "KILLED"}


def test_training_does_not_need_a_store_that_works(config, directory, empty_store):
    (directory / "mlflow.db").write_bytes(b"garbage" * 1000)
    result = train(config())
    assert result.finished
    shutil.copy(empty_store / "mlflow.db", directory / "mlflow.db")
    identifier = tracking.synchronise(result.folder, directory)
    store = tracking.open_store(tracking.locate(directory))
    assert _statuses(store) == {"morse": "FINISHED", "low": "FINISHED", "joint": "FINISHED"}
    (record,) = tracking.read_runs(store, [identifier])
    assert record.metrics["test/energy_high/count"] == 4


def test_a_run_that_starts_from_an_alias_records_the_version(config, directory, tmp_path, monkeypatch):
    monkeypatch.setenv("MFM_TRACKING_URI", str(directory))
    parent = train(config())
    tracking.register(parent.folder, "base", "champion", lambda path: [])
    child = train(config(output=str(tmp_path / "child"), name="child"), initial="models:/base@champion")
    (record,) = tracking.read_runs(tracking.open_store(tracking.locate()), [str(child.folder)])
    assert record.tags["mfm.init"] == "models:/base/1"
    assert read_provenance(child.checkpoint)["parent"] == "models:/base/1"
