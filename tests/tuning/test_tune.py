"""Whole searches with tiny models: what they leave, how they go on, what they refuse."""

import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import yaml

from mfm import tracking
from mfm.checkpoint import load_model
from mfm.cli import main
from mfm.config import load_config, validate
from mfm.evaluation.evaluate import evaluate
from mfm.tracking.journal import read_records
from mfm.tracking.run import _SenderProcess
from mfm.training.data import prepare_data
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from mfm.tuning.objectives import COST
from mfm.tuning.run import tune
from mfm.tuning.space import check_space
from tests.tuning.conftest import SPACE

ERROR = "val/energy_high/mae_mev_per_atom"

# MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than the runs; one search draws them."""
    for name in ("history", "importances", "contour", "front"):
        monkeypatch.setattr(f"mfm.tuning.results.plot_{name}", lambda *args: args[-1].touch())
    monkeypatch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
    monkeypatch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())


class NoSender(_SenderProcess):
    """Sends nothing: the journal is what counts."""

    def __init__(self, folder: Path, directory: str | Path) -> None: ...

    def check(self) -> None: ...

    def finish(self) -> None: ...


def _retrain(path: Path, folder: Path) -> float:
    """Train a run file that a search wrote; its figure."""
    config = load_config(RunConfig, path, [f"output={folder}"])
    return train(config).evaluations["valid"].flat("val")[ERROR]


def test_a_search_leaves_tables_figures_and_a_recipe_with_the_same_figure(content, space, options, tmp_path):
    result = tune(content, space, options(n_trials=5))
    assert result.finished
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names >= {"best.yaml", "contour.png", "history.png", "importances.png", "summary.md", "trials.csv"}
    records = result.results.records
    assert [(record.number, record.state) for record in records] == [(n, "complete") for n in range(5)]
    best = min(records, key=lambda record: record.values)
    assert result.results.front == [best.number]
    assert best.metrics[ERROR] == best.values[0]
    assert best.metrics[COST] > 0
    with (tmp_path / "study" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row[ERROR]) for row in rows] == [record.values[0] for record in records]
    assert f"| {best.number} | {best.values[0]:.4g} |" in (tmp_path / "study" / "summary.md").read_text()
    assert _retrain(tmp_path / "study" / "best.yaml", tmp_path / "again") == pytest.approx(best.values[0], abs=1e-6)


@pytest.mark.usefixtures("_no_figures")
def test_a_search_goes_on_with_more_trials_and_refuses_another_space(content, space, options, tmp_path):
    first = tune(content, space, options(n_trials=2)).results.records
    again = tune(content, space, options(n_trials=3)).results.records
    assert list(again[:2]) == list(first)
    assert len(again) == 3
    other = check_space({**SPACE, "optimizer.lr": [1e-3, 2e-3]}, content)
    with pytest.raises(ValueError, match=r"was begun with another space; .*name another study with `--study`"):
        tune(content, other, options(n_trials=3))
    with pytest.raises(ValueError, match=r"was begun with another batch\.atoms;"):
        tune({**content, "batch": {"structures": 4, "atoms": 99}}, space, options(n_trials=3))
    with pytest.raises(ValueError, match=r"holds trial-000, trial-001, trial-002 of another study; .*`--study`"):
        tune(content, space, options(n_trials=3, storage=str(tmp_path / "other.journal")))


@pytest.mark.usefixtures("_no_figures")
def test_several_objectives_leave_a_recipe_for_each_trial_of_the_front(content, space, options, tmp_path):
    result = tune(content, space, options(n_trials=3, objectives=[ERROR, COST])).results
    assert 1 <= len(result.front) <= 3
    for number in result.front:
        mine = result.records[number].values
        assert len(mine) == 2
        assert not any(all(a < b for a, b in zip(other.values, mine, strict=True)) for other in result.records)
    assert set(result.recipes) == set(result.front)
    number = result.front[0]
    config = load_config(RunConfig, tmp_path / "study" / f"best-{number:03d}.yaml")
    assert config.name == f"morse-tune-best-{number:03d}"
    assert config.optimizer.lr == result.records[number].settings["optimizer.lr"]
    assert (tmp_path / "study" / "front.png").exists()


@pytest.mark.usefixtures("_no_figures")
def test_a_stopped_trial_goes_on_where_it_was(content, space, options, tmp_path, caplog, monkeypatch):
    content["stages"] = [{"name": "joint", "max_steps": 8}]
    whole = tune(content, space, options(n_trials=1)).results.records[0]

    class Stop(logging.Handler):
        """Asks to stop at the first validation, as a scheduler does."""

        def emit(self, record: logging.LogRecord) -> None:
            if "joint  50 %" in record.getMessage():
                os.kill(os.getpid(), signal.SIGTERM)

    other = {"storage": str(tmp_path / "j"), "output": str(tmp_path / "other"), "n_trials": 1}
    content["tracking"] = {"directory": str(tmp_path / "mlruns")}
    monkeypatch.setattr("mfm.tracking.run._SenderProcess", NoSender)
    logger, handler = logging.getLogger("mfm.training.callbacks"), Stop()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "mfm"):
            stopped = tune(content, space, options(**other))
    finally:
        logger.removeHandler(handler)
    assert not stopped.finished
    assert [record.state for record in stopped.results.records] == ["waiting"]
    resumed = tune(content, space, options(**other))
    assert resumed.finished
    assert resumed.results.records[0].values == whole.values
    steps = [json.loads(line) for line in (tmp_path / "other" / "trial-000" / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if f"{ERROR}" in line["metrics"]] == [4, 8]
    told = [record["values"] for record, _ in read_records(tmp_path / "other", 0) if record["op"] == "metrics"]
    assert [values["trials/complete"] for values in told] == [0, 1]
    assert told[1][f"best/{ERROR}"] == whole.values[0]


@pytest.mark.usefixtures("_no_figures")
def test_trials_that_cannot_be_trained_fail_and_others_go_on(content, options, tmp_path):
    space = check_space({"optimizer.lr": [1e20, 1e-3], "optimizer.warmup_steps": 0, "seed": 1}, content)
    result = tune({**content, "log_every": 1}, space, options(n_trials=6)).results
    states = {(record.settings["optimizer.lr"], record.state) for record in result.records}
    assert states == {(1e20, "failed"), (1e-3, "complete")}
    assert "failed: the loss must stay finite" in result.to_markdown()


@pytest.mark.usefixtures("_no_figures")
def test_a_search_in_which_everything_fails_stops(content, options):
    space = check_space({"optimizer.lr": [1e19, 1e20], "optimizer.warmup_steps": 0}, content)
    with pytest.raises(ValueError, match=r"the first 5 trials all failed, the last with: the loss must stay finite"):
        tune({**content, "log_every": 1}, space, options(n_trials=20))


@pytest.mark.usefixtures("_no_figures")
def test_bad_trials_end_early(content, options):
    content |= {"stages": [{"name": "joint", "max_steps": 16}], "validations": 8}
    space = check_space({"optimizer.lr": [1e-9, 2e-2]}, content)
    records = tune(content, space, options(n_trials=9)).results.records
    pruned = [record for record in records if record.state == "pruned"]
    assert pruned
    assert {record.settings["optimizer.lr"] for record in pruned} == {1e-9}
    assert all(record.number >= 5 for record in pruned)
    assert {record.state for record in records} == {"pruned", "complete"}


@pytest.mark.usefixtures("_no_figures")
def test_a_full_disk_stops_the_search_which_then_goes_on(content, space, options, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mfm.training.resume.torch.save", lambda content, file: _full())
        with pytest.raises(OSError, match="No space left on device"):
            tune(content, space, options())
    result = tune(content, space, options())
    assert [record.state for record in result.results.records] == ["complete"] * 3


def _full() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


@pytest.mark.usefixtures("_no_figures")
def test_trials_start_from_a_checkpoint(content, options, tmp_path):
    low = {**content, "tasks": {"energy_low": {}}, "output": str(tmp_path / "parent")}
    parent = train(validate(RunConfig, low)).checkpoint
    # a tenth of a step from the parent: only its weights explain errors as small as its own
    child = {**content, "stages": [{"name": "joint", "max_steps": 2}]}
    child["model"] = {key: value for key, value in content["model"].items() if key != "readout_channels"}
    space = check_space({"optimizer.lr": [1e-9, 1e-8]}, child, parent=load_model(parent))
    goal = "val/energy_low/mae_mev_per_atom"
    search = options(n_trials=2, objectives=[goal], initial=str(parent))
    result = tune(child, space, search).results
    figure = evaluate(load_model(parent), prepare_data(validate(RunConfig, low).data, ["energy_low"]).valid)
    assert [record.values[0] for record in result.records] == pytest.approx([figure.flat("val")[goal]] * 2, rel=1e-3)
    best = load_config(RunConfig, tmp_path / "study" / "best.yaml", [f"output={tmp_path / 'again'}"])
    again = train(best, initial=parent).evaluations["valid"].flat("val")[goal]
    assert again == pytest.approx(min(record.values[0] for record in result.records), abs=1e-6)
    assert f"--from {parent}" in (tmp_path / "study" / "best.yaml").read_text()
    other = train(validate(RunConfig, {**low, "seed": 1, "output": str(tmp_path / "other")})).checkpoint
    with pytest.raises(ValueError, match="was begun with another parent; "):
        tune(child, space, dataclasses.replace(search, initial=str(other)))
    with pytest.raises(ValueError, match=r"with 16: `model\.backbone` must be the parent checkpoint's"):
        check_space({"model.backbone.n_channels": [8, 16]}, child, parent=load_model(parent))


@pytest.mark.usefixtures("_no_figures")
def test_processes_that_share_a_folder_keep_apart_what_each_writes(content, space, options, tmp_path, monkeypatch):
    monkeypatch.setattr("mfm.tracking.run._SenderProcess", NoSender)
    content["tracking"] = {"directory": str(tmp_path / "mlruns")}
    tune(content, space, options(n_trials=1))
    before = (tmp_path / "study" / "tracking.jsonl").read_bytes()
    with filelock.FileLock(tmp_path / "study" / ".process.lock"):  # as a process of another machine that goes on
        assert tune(content, space, options(n_trials=2)).finished
    assert (tmp_path / "study" / "tracking.jsonl").read_bytes() == before
    (opened,) = [r for r, _ in read_records(tmp_path / "study" / "process-2", 0) if r["op"] == "open"]
    assert opened["joins"]
    assert opened["key"] == json.loads(before.splitlines()[0])["key"]
    tune(content, space, options(n_trials=3))
    assert (tmp_path / "study" / "tracking.jsonl").stat().st_size > len(before)


def test_what_makes_no_search_is_refused_before_anything_starts(content, space, options, tmp_path):
    with pytest.raises(ValueError, match="`--trials` must be at least 1, got 0"):
        tune(content, space, options(n_trials=0))
    with pytest.raises(ValueError, match="an objective must be one of"):
        tune(content, space, options(objectives=["loss"]))
    without = {**content, "data": {**content["data"], "valid_fraction": 0}}
    with pytest.raises(ValueError, match=r"the recipe keeps none: set `data\.valid_fraction`"):
        tune(without, space, options())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_figures")
def test_the_command_line_records_every_trial_under_the_study(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mfm.cli._prepare", lambda options: None)
    content["tracking"] = {"experiment": "searches"}
    Path("run.yaml").write_text(yaml.safe_dump(content))
    Path("space.yaml").write_text(yaml.safe_dump(SPACE))
    arguments = ["tune", "run.yaml", "space.yaml", "--trials", "2", "--objective", ERROR, "seed=3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "study `morse-tune`: 2 complete" in printed
    assert "try: mfm train runs/morse-tune/best.yaml" in printed
    assert load_config(RunConfig, "runs/morse-tune/best.yaml").seed == 3
    assert Path("mlruns/optuna.journal").exists()
    store = tracking.open_store(tracking.locate())
    study = tracking.find_run(store, "morse-tune")
    assert study.info.status == "FINISHED"
    assert study.data.metrics["trials/complete"] == 2
    trials = store.search(f"tags.`mlflow.parentRunId` = '{study.info.run_id}'")
    assert sorted(run.info.run_name for run in trials) == ["trial-000", "trial-001"]
    assert all(run.info.status == "FINISHED" and ERROR in run.data.metrics for run in trials)
    assert {"optimizer.lr", "tasks.energy_low.weight"} <= trials[0].data.params.keys()
    # overrides may also stand after options that take one value
    assert main(["tune", "run.yaml", "space.yaml", "--trials", "2", "seed=4"]) == 2
    assert "was begun with another seed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tune", "run.yaml", "space.yaml", "--trials", "2", "seed"])
    assert "unrecognized arguments: seed" in capsys.readouterr().err


def test_without_optuna_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mfm.cli._prepare", lambda options: None)
    monkeypatch.setitem(sys.modules, "mfm.tuning.run", None)
    assert main(["tune", "run.yaml", "space.yaml", "--trials", "2"]) == 2
    assert "install it with: pip install mfm[tune]" in capsys.readouterr().err


def test_help_loads_nothing_heavy(capsys):
    code = "import sys\nfrom mfm.cli import main\ntry:\n    main(['tune', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "assert not {'optuna', 'torch', 'mlflow'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "optimizer.lr: {low: 1e-4, high: 1e-2, log: true}" in result.stdout
