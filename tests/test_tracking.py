import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from mfm import tracking

# MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database with its tables made, which takes seconds; tests copy it."""
    folder = tmp_path_factory.mktemp("template") / "mlruns"
    tracking.start_run("template", "first", {}, folder).finish()
    return folder


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_store, tmp_path / "mlruns"))


def _read(run: tracking.TrackedRun):
    return run._client.get_run(run.run_id)


def test_parent_and_child_keep_params_metrics_and_tags(store):
    parent = tracking.start_run("exp", "recipe", {"mfm.commit": "abc"}, store)
    child = parent.child("dft", {"mfm.stage": "dft"})
    child.log_params({"lr": 1e-3, "long": "x" * 9000})
    child.log_params({"lr": 5})  # a resumed run logs again what it knows: parameters of a run never change
    for step in range(450):
        child.log_metrics({"train/loss": 1.0 / (step + 1), "val/energy_dft/mae_mev": 2.5}, step)
    child.finish()
    parent.finish()
    read = _read(child)
    assert read.info.status == "FINISHED"
    assert read.data.params["lr"] == "0.001"
    assert read.data.metrics["train/loss"] == pytest.approx(1 / 450)
    assert read.data.tags["mlflow.parentRunId"] == parent.run_id
    assert len(child._client.get_metric_history(child.run_id, "train/loss")) == 450


def test_metrics_are_written_in_batches_and_at_the_end(store, monkeypatch):
    run = tracking.start_run("exp", "run", {}, store)
    written = []
    original = run._client.log_batch
    monkeypatch.setattr(run._client, "log_batch", lambda *args, **kw: (written.append(kw), original(*args, **kw)))
    run.log_metrics({"train/loss": 1.0}, 1)
    assert not written
    run.finish()
    assert len(written) == 1


def test_artifacts_inputs_and_checkpoints_lie_below_the_store(store, tmp_path):
    run = tracking.start_run("exp", "run", {}, store)
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "model.mfm").write_text("weights")
    run.log_artifacts([tmp_path / "config.yaml"])
    run.log_dataset("chno", "builtin:chno", "0123456789abcdef", "train")
    model_id = run.log_checkpoint(tmp_path / "model.mfm", "model", {"lr": 1})
    run.finish()
    assert (store / "artifacts" / "exp" / run.run_id / "artifacts" / "config.yaml").read_text() == "a: 1"
    assert (store / "artifacts" / "exp" / "models" / model_id / "artifacts" / "model.mfm").read_text() == "weights"
    read = _read(run)
    assert read.inputs.dataset_inputs[0].dataset.digest == "0123456789abcdef"
    assert [output.model_id for output in read.outputs.model_outputs] == [model_id]
    assert run._client.get_logged_model(model_id).status.value == "READY"


def test_a_checkpoint_that_cannot_be_read_is_marked_failed(store, tmp_path):
    run = tracking.start_run("exp", "run", {}, store)
    with pytest.raises(Exception, match=r"missing\.mfm"):
        run.log_checkpoint(tmp_path / "missing.mfm", "model", {})
    models = run._client.search_logged_models([run._experiment_id])
    assert [model.status.value for model in models] == ["FAILED"]


def test_a_run_is_continued_by_its_id(store):
    parent = tracking.start_run("exp", "recipe", {}, store)
    child = parent.child("dft", {})
    child.finish("KILLED")
    parent.finish("KILLED")
    again = tracking.start_run("exp", "recipe", {}, store, run_id=parent.run_id)
    assert again.child("dft", {}, run_id=child.run_id).run_id == child.run_id
    assert _read(child).info.status == "RUNNING"


def test_a_store_that_does_not_know_the_run_is_named(store):
    with pytest.raises(ValueError, match=r"cannot record the run at sqlite:.*; or train with `tracking=none`"):
        tracking.start_run("exp", "recipe", {}, store, run_id="0" * 32)


def test_compare_shows_what_differs(store):
    for name, rate in (("one", 0.1), ("two", 0.2)):
        run = tracking.start_run("exp", name, {"mfm.seed": "0"}, store)
        run.log_params({"optimizer.lr": rate, "same": 1})
        run.log_metrics({"test/energy_dft/mae_mev": 10 * rate, "train/loss": 1.0}, 3)
        run.finish()
    table = tracking.compare_runs(["one", "two"], store)
    assert "same" not in table
    assert "train/loss" not in table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert rows["optimizer.lr"] == ["0.1", "0.2"]
    assert rows["test/energy_dft/mae_mev"] == ["1.000", "2.000"]
    assert "train/loss" in tracking.compare_runs([run.run_id[:8], "two"], store, every=True)
    with pytest.raises(ValueError, match=r"no run has the name or id `three`; the newest are: two"):
        tracking.compare_runs(["one", "three"], store)


def test_environment_moves_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("MFM_TRACKING_URI", "http://server:5000")
    assert tracking.locate() == tracking.Location("http://server:5000", None)
    with pytest.raises(ValueError, match="open http://server:5000 in a browser"):
        tracking.ui_command()
    monkeypatch.setenv("MFM_TRACKING_URI", str(tmp_path))
    assert tracking.locate() == tracking.Location(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    monkeypatch.delenv("MFM_TRACKING_URI")
    assert tracking.locate(tmp_path / "x").directory == tmp_path / "x"
    with pytest.raises(ValueError, match="holds no runs yet"):
        tracking.ui_command(tmp_path / "x")


def test_ui_command_names_the_store(store):
    command = tracking.ui_command(store, port=5123)
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert f"sqlite:///{store}/mlflow.db" in command
    assert tracking.ui_environment()["MLFLOW_DISABLE_TELEMETRY"] == "true"


def _start(folder: str) -> str:
    run = tracking.start_run("exp", "run", {}, folder)
    run.finish()
    return run.run_id


@pytest.mark.slow
def test_processes_that_start_together_make_one_database(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        ids = list(pool.map(_start, [str(tmp_path / "mlruns")] * 2))
    assert len(set(ids)) == 2
