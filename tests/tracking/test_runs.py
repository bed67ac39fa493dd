"""Journal, sender and store together: what a run records arrives, once, whatever happens in between."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfm import tracking
from mfm.tracking.journal import JOURNAL, Journal, Position
from mfm.tracking.sending import Sender

pytestmark = [
    # MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("in_this_process"),
]


def _store(directory: Path) -> tracking.Store:
    return tracking.open_store(tracking.locate(directory))


def _runs(directory: Path) -> dict:
    return {run.info.run_name: run for run in _store(directory).search()}


def test_parent_and_child_keep_params_metrics_and_tags(directory, tmp_path):
    parent = tracking.start_run(tmp_path / "run", "exp", "recipe", {"mfm.commit": "abc"}, directory)
    child = parent.child("dft", {"mfm.stage": "dft"})
    child.log_params({"lr": 1e-3, "long": "x" * 9000})
    child.log_params({"lr": 5})  # a resumed run logs again what it knows: parameters of a run never change
    for step in range(450):
        child.log_metrics({"train/loss": 1.0 / (step + 1), "val/energy_dft/mae_mev": 2.5}, step)
    child.finish()
    parent.finish()
    runs = _runs(directory)
    read = runs["dft"]
    assert read.info.status == runs["recipe"].info.status == "FINISHED"
    assert read.data.params["lr"] == "0.001"
    assert read.data.metrics["train/loss"] == pytest.approx(1 / 450)
    assert read.data.tags["mlflow.parentRunId"] == runs["recipe"].info.run_id
    assert runs["recipe"].data.tags["mfm.commit"] == "abc"
    assert len(_store(directory).history(read.info.run_id, "train/loss")) == 450
    record = tracking.read_runs(_store(directory), ["recipe"])[0]
    assert record.params["dft.lr"] == "0.001"
    assert len(tracking.read_curves(_store(directory), record, ["train/loss"])["train/loss"]) == 450


def test_metrics_are_sent_in_few_calls(directory, tmp_path, monkeypatch):
    run = tracking.start_run(tmp_path / "run", "exp", "run", {}, directory)
    for step in range(200):
        run.log_metrics({"train/loss": 1.0}, step)
    calls = []
    original = tracking.Store.log_metrics
    monkeypatch.setattr(tracking.Store, "log_metrics", lambda *args, **kw: (calls.append(args), original(*args, **kw)))
    run.finish()
    assert [len(points) for _, _, points in calls] == [200]


def test_artifacts_inputs_and_models_lie_below_the_folder_of_runs(directory, tmp_path):
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "run", {}, directory)
    (folder / "config.yaml").write_text("a: 1")
    (folder / "model.mfm").write_text("weights")
    run.log_artifacts([folder / "config.yaml"])
    run.log_dataset("chno", "builtin:chno", "0123456789abcdef", "train")
    run.log_checkpoint(folder / "model.mfm", "model", {"lr": 1}, {"test/energy_dft/mae_mev": 3.0})
    run.finish()
    read = _runs(directory)["run"]
    copied = directory / "artifacts" / "exp" / read.info.run_id / "artifacts" / "config.yaml"
    assert copied.read_text() == "a: 1"
    assert read.inputs.dataset_inputs[0].dataset.digest == "0123456789abcdef"
    (model,) = [output.model_id for output in read.outputs.model_outputs]
    assert (directory / "artifacts" / "exp" / "models" / model / "artifacts" / "model.mfm").read_text() == "weights"
    assert read.data.metrics["test/energy_dft/mae_mev"] == 3.0
    logged = _store(directory)._client.get_logged_model(model)
    assert logged.status.value == "READY"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("test/energy_dft/mae_mev", 3.0)]


@pytest.mark.parametrize(("code", "n_calls"), [("BAD_REQUEST", 2), ("INTERNAL_ERROR", 1)])
def test_a_dataset_that_another_run_brings_at_the_same_time_is_recorded(directory, monkeypatch, code, n_calls):
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    store = _store(directory)
    send, calls = store._client.log_inputs, []

    def refuse_once(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 1:
            raise MlflowException("duplicate key value", databricks_pb2.ErrorCode.Value(code))
        send(*args, **kwargs)

    monkeypatch.setattr(store._client, "log_inputs", refuse_once)
    run = store.create_run(store.experiment("exp"), "run", {})
    if n_calls == 1:  # a server that does not answer is not asked for twice as long
        with pytest.raises(tracking.StoreError, match="duplicate key"):
            store.log_dataset(run, "water", "water.h5", "0123", "train")
    else:
        store.log_dataset(run, "water", "water.h5", "0123", "train")
        [found] = store._client.get_run(run).inputs.dataset_inputs
        assert found.dataset.name == "water"
    assert len(calls) == n_calls


def test_what_the_store_refuses_does_not_hold_up_the_rest(directory, tmp_path):
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "run", {}, directory)
    run.log_metrics({"bad[name": 1.0}, 1)
    run.log_params({"lr": 1})  # keeps the refused metric out of the batch of the next
    run.log_artifacts([folder / "missing.png"])
    run.log_checkpoint(folder / "missing.mfm", "model", {}, {})
    run.log_metrics({"train/loss": 1.0}, 2)
    run.finish()
    read = _runs(directory)["run"]
    assert read.info.status == "FINISHED"
    assert read.data.metrics == {"train/loss": 1.0}
    problem = Position.read(folder).problem
    assert "bad[name" in problem
    assert "missing.png" in problem
    models = _store(directory)._client.search_logged_models([read.info.experiment_id])
    assert [model.status.value for model in models] == ["FAILED"]


def test_a_resumed_run_is_the_same_run_and_repeats_no_point(directory, tmp_path):
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "recipe", {}, directory)
    child = run.child("dft", {})
    for step in (1, 2, 3):
        child.log_metrics({"train/loss": 1.0 / step}, step)
    child.finish("KILLED")
    run.finish("KILLED")
    with (folder / JOURNAL).open("a") as file:
        file.write('{"op": "metrics", "run": "dft", "val')  # the process died while it wrote
    again = tracking.start_run(folder, "exp", "recipe", {}, directory, resume=True)
    child = again.child("dft", {})
    for step in (2, 3, 4):  # the saved state was older than the last point
        child.log_metrics({"train/loss": 1.0 / step}, step)
    child.finish()
    again.finish()
    runs = _runs(directory)
    assert {name: found.info.status for name, found in runs.items()} == {"recipe": "FINISHED", "dft": "FINISHED"}
    history = _store(directory).history(runs["dft"].info.run_id, "train/loss")
    assert history == [(step, 1.0 / step) for step in (1, 2, 3, 4)]


def test_a_new_run_in_an_old_folder_does_not_continue_it(directory, tmp_path):
    for _ in range(2):
        tracking.start_run(tmp_path / "run", "exp", "run", {}, directory).finish()
    assert len(_store(directory).search()) == 2


def test_nothing_is_lost_when_the_store_fails_and_sync_completes_it(directory, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "run", {}, directory)
    run.log_metrics({"train/loss": 1.0}, 1)
    original = tracking.Store.log_metrics

    def full(*args, **kwargs):
        raise tracking.StoreError("No space left on device")

    monkeypatch.setattr(tracking.Store, "log_metrics", full)
    run.log_metrics({"train/loss": 0.5}, 2)
    run.finish()
    assert "No space left on device" in Position.read(folder).problem
    assert _runs(directory)["run"].info.status == "RUNNING"
    monkeypatch.setattr(tracking.Store, "log_metrics", original)
    identifier = tracking.synchronise(folder, directory)
    read = _runs(directory)["run"]
    assert (read.info.run_id, read.info.status) == (identifier, "FINISHED")
    assert _store(directory).history(identifier, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert tracking.synchronise(folder, directory) == identifier
    assert len(_store(directory).search()) == 1
    assert Position.read(folder).problem == ""


def test_a_run_that_the_store_does_not_open_is_sent_once_it_does(directory, tmp_path):
    """MLflow refuses runs of an experiment that was deleted, and takes them again when it is restored."""
    client = _store(directory)._client
    experiment = _store(directory).experiment("exp")
    client.delete_experiment(experiment)
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "run", {}, directory)
    run.log_metrics({"train/loss": 1.0}, 1)
    run.finish()
    assert "must be in the 'active' state" in Position.read(folder).problem
    with pytest.raises(ValueError, match="must be in the 'active' state"):
        tracking.synchronise(folder, directory)
    client.restore_experiment(experiment)
    assert _store(directory).history(tracking.synchronise(folder, directory), "train/loss") == [(1, 1.0)]


def test_a_store_that_was_replaced_gets_the_run_from_the_beginning(directory, empty_store, tmp_path):
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "run", {}, directory)
    run.log_metrics({"train/loss": 1.0}, 1)
    run.finish()
    (directory / "mlflow.db").write_bytes((empty_store / "mlflow.db").read_bytes())
    identifier = tracking.synchronise(folder, directory)
    assert _store(directory).history(identifier, "train/loss") == [(1, 1.0)]


def test_a_run_that_ended_without_a_word_is_marked_as_killed(directory, tmp_path):
    run = tracking.start_run(tmp_path / "run", "exp", "recipe", {}, directory)
    run.child("done", {}).finish()
    run.child("dft", {}).log_metrics({"train/loss": 1.0}, 1)
    tracking.synchronise(tmp_path / "run", directory)
    runs = _runs(directory)
    statuses = {name: found.info.status for name, found in runs.items()}
    assert statuses == {"recipe": "KILLED", "dft": "KILLED", "done": "FINISHED"}
    assert runs["dft"].data.metrics["train/loss"] == 1.0


def test_a_database_that_is_none_is_an_error_that_says_so(directory, tmp_path):
    (directory / "mlflow.db").write_bytes(b"garbage" * 1000)
    run = tracking.start_run(tmp_path / "run", "exp", "run", {}, directory)
    run.finish()
    assert "file is not a database" in Position.read(tmp_path / "run").problem
    with pytest.raises(ValueError, match=r"the database of runs sqlite:.* cannot be used: .*file is not a database"):
        tracking.synchronise(tmp_path / "run", directory)


def test_a_folder_of_runs_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tracking.StoreError, match=r"the store of runs .*file.* cannot be used"):
        tracking.open_store(tracking.locate(tmp_path / "file"))


def test_a_server_that_does_not_answer_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MFM_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = tracking.start_run(tmp_path / "run", "exp", "run", {})
    run.finish()
    assert "the store of runs http://127.0.0.1:9 says: " in Position.read(tmp_path / "run").problem


def test_what_sync_cannot_send_is_named(tmp_path, directory):
    with pytest.raises(ValueError, match=r"holds no `tracking\.jsonl`; give the folder of a run"):
        tracking.synchronise(tmp_path, directory)


def test_runs_that_start_together_make_one_experiment(directory):
    with ThreadPoolExecutor(4) as pool:
        stores = [_store(directory) for _ in range(4)]
        assert len(set(pool.map(lambda store: store.experiment("new"), stores))) == 1


def test_the_load_of_the_machine_is_measured_now_and_then(monkeypatch):
    from mfm.tracking.environment import SystemMetrics

    assert SystemMetrics(every=3600).measure() == {}
    found = SystemMetrics(every=0).measure()
    assert 10 < found["system/process_memory_mb"] < 1e6
    assert 0 <= found["system/machine_memory_percent"] <= 100


def test_the_environment_lists_packages():
    found = json.loads(tracking.describe_environment())
    assert found["python"].startswith("3.")
    assert "torch" in found["packages"]


def test_environment_variable_moves_the_store(monkeypatch, tmp_path):
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


def test_ui_command_names_the_store(directory):
    command = tracking.ui_command(directory, port=5123)
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert f"sqlite:///{directory}/mlflow.db" in command


def test_a_journal_is_read_up_to_its_last_whole_line(tmp_path):
    Journal(tmp_path).append("close", "", {"status": "FINISHED", "time": 0})
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op": "cl')
    assert len(Sender(tmp_path, tracking.locate(tmp_path)).position.runs) == 0
    Journal(tmp_path).append("close", "", {"status": "KILLED", "time": 0})
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["FINISHED", "KILLED"]


def test_runs_of_other_folders_nest_by_key_and_are_continued(directory, tmp_path):
    """As the trials of a search do, which other processes, and other machines, carry out."""
    search = tracking.start_run(tmp_path / "search", "exp", "search", {}, directory, key="search-1")
    trial = tracking.start_run(tmp_path / "trial", "exp", "trial-000", {}, directory, parent="search-1")
    trial.log_metrics({"val/loss": 1.0}, 1)
    trial.finish()
    assert (
        "`search-1`, which this one is nested under, is not recorded yet" in Position.read(tmp_path / "trial").problem
    )
    search.finish()
    tracking.synchronise(tmp_path / "trial", directory)
    again = tracking.start_run(tmp_path / "elsewhere", "exp", "trial-000", {}, directory, parent="search-1")
    again.log_metrics({"val/loss": 0.5}, 2)
    again.finish()
    runs = _store(directory).search()
    assert sorted(run.info.run_name for run in runs) == ["search", "trial-000"]
    found = _runs(directory)
    assert found["trial-000"].data.tags["mlflow.parentRunId"] == found["search"].info.run_id
    assert found["trial-000"].data.metrics["val/loss"] == 0.5
    assert found["trial-000"].info.status == "FINISHED"


def test_a_trial_that_is_begun_anew_has_each_stage_once(directory, tmp_path):
    """Its state was lost with the machine that worked on it, and the journal with it."""
    tracking.start_run(tmp_path / "search", "exp", "search", {}, directory, key="search-1").finish()
    for attempt, steps in (("first", (1, 2)), ("second", (1, 2, 3))):
        trial = tracking.start_run(tmp_path / attempt, "exp", "trial-000", {}, directory, parent="search-1")
        trial.log_dataset("chno", "builtin:chno", "0123456789abcdef", "train")
        stage = trial.child("dft", {})
        for step in steps:
            stage.log_metrics({"train/loss": float(len(steps))}, step)
        stage.finish()
        trial.finish()
    runs = _store(directory).search()
    assert sorted(run.info.run_name for run in runs) == ["dft", "search", "trial-000"]
    found = _runs(directory)
    assert _store(directory).history(found["dft"].info.run_id, "train/loss") == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert found["dft"].data.tags["mlflow.parentRunId"] == found["trial-000"].info.run_id
    assert len(found["trial-000"].inputs.dataset_inputs) == 1


def test_a_run_that_is_joined_waits_for_the_one_who_begins_it(directory, tmp_path):
    """Two machines that work on a study in one folder: each has its own journal, the run is one."""
    second = tracking.join_run(tmp_path / "search" / "process-2", "exp", "search", directory, "search-1")
    second.log_metrics({"trials/complete": 1.0}, 1)
    second.finish()
    problem = Position.read(tmp_path / "search" / "process-2").problem
    assert "`search-1`, which another process begins, is not recorded yet" in problem
    first = tracking.start_run(tmp_path / "search", "exp", "search", {"mfm.seed": "0"}, directory, key="search-1")
    first.log_metrics({"trials/complete": 2.0}, 2)
    first.finish()
    identifier = tracking.synchronise(tmp_path / "search" / "process-2", directory)
    (run,) = _store(directory).search()
    assert run.info.run_id == identifier
    assert run.data.tags["mfm.seed"] == "0"
    assert _store(directory).history(identifier, "trials/complete") == [(1, 1.0), (2, 2.0)]
