"""Transfer studies: their grid, what they resume, and what their report says."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfm.cli import main
from mfm.config import load_config, validate
from mfm.data import open_dataset
from mfm.study.cells import Layout, keep_settings
from mfm.study.report import mean_interval
from mfm.transfer.grid import run_grid
from mfm.transfer.plan import STRATEGIES, Cell, TransferConfig
from mfm.transfer.report import Findings, hurting, labels_needed, write_report
from tests.morse import TINY, morse_store

STEPS = 8
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "morse.h5"
    morse_store().write(path)
    return path


def _content(file: Path | str, **changes: Any) -> dict[str, Any]:
    content = {
        "name": "morse",
        "run": {
            "data": {"train": str(file), "test_fraction": 0.25},
            "model": {"backbone": TINY, "readout_channels": 8},
            "batch": {"structures": 4},
            "device": "cpu",
            "tracking": "none",
        },
        "low": "low",
        "high": "high",
        "labels": [3, 6],
        "compute": {"max_steps": STEPS},
        "strategies": ["scratch", "readout"],
        "seeds": 2,
    }
    return {**content, **changes}


def _config(file: Path | str, **changes: Any) -> TransferConfig:
    return validate(TransferConfig, _content(file, **changes))


@pytest.fixture(scope="module")
def study(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TransferConfig, Path]:
    folder = tmp_path_factory.mktemp("study")
    config = _config(file, stability={"picoseconds": 0.02, "structures": 1}, out_of_distribution=str(file))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
        patch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())
        assert run_grid(config, folder)
    torch.set_num_threads(threads)
    return config, folder


def test_every_model_has_the_same_compute(study):
    config, folder = study
    layout = Layout(folder)
    steps = {cell: json.loads(layout.result(cell).read_text())["clock"]["step"] for cell in config.cells()}
    assert len(steps) == 2 * (1 + 2 * 2)
    for cell, mine in steps.items():
        parent = config.parent(cell)
        if cell.n_labels:
            assert mine + (steps[parent] if parent else 0) == STEPS


def test_labels_are_nested_and_the_same_for_all_strategies(study):
    _, folder = study
    layout = Layout(folder)
    for seed in range(2):
        sets = []
        for n in (0, 3, 6):
            store = open_dataset(str(layout.train(Cell("scratch", n, seed))))
            assert len(store) == 24
            covered = store.coverage("energy_high")
            assert covered.sum() == n
            assert store.coverage("energy_low").all()
            sets.append(set(np.flatnonzero(covered).tolist()))
        assert sets[0] < sets[1] < sets[2]
    tests = set(open_dataset(str(layout.test)).molecules)
    assert tests.isdisjoint(store.molecules)


def test_what_is_there_is_not_trained_again(study):
    config, folder = study
    layout = Layout(folder)
    gone = Cell("readout", 6, 1)
    before = {cell: layout.result(cell).read_text() for cell in config.cells()}
    layout.result(gone).unlink()
    times = {cell: layout.result(cell).stat().st_mtime_ns for cell in config.cells() if cell != gone}
    # its run is still there, so that it is only tested again
    assert run_grid(config, folder)
    assert {cell: layout.result(cell).stat().st_mtime_ns for cell in times} == times
    again = json.loads(layout.result(gone).read_text())
    assert again["metrics"] == json.loads(before[gone])["metrics"]


def test_models_of_another_study_are_not_taken_for_its_own(study):
    config, folder = study
    content = config.model_dump(mode="json")
    changed = {**content, "rate": 5e-4, "run": {**content["run"], "batch": {"structures": 2}}}
    with pytest.raises(ValueError, match=r"a study with another `rate`, `run\.batch\.structures`; restore"):
        run_grid(validate(TransferConfig, changed), folder)
    assert run_grid(validate(TransferConfig, {**content, "labels": [3], "seeds": 1, "target": 5.0}), folder)


def test_the_report_names_errors_prices_and_costs(study):
    config, folder = study
    markdown, page, figure = write_report(config, folder)
    text = markdown.read_text()
    assert re.search(r"^8 of 8 models of [0-9, ]+ parameters, 2 seeds", text, re.MULTILINE)
    assert "| target | scratch | readout |" in text
    assert "energy, out of distribution:" in text
    row = next(line for line in text.splitlines() if line.startswith("| readout | low first, then the high level's"))
    assert float(row.split("|")[3]) >= 0
    assert "<table>" in page.read_text()
    assert "data:image/png;base64," in page.read_text()
    assert figure.stat().st_size > 10_000


def test_the_report_names_every_version_that_made_a_model(study):
    config, folder = study
    path = Layout(folder).result(Cell("readout", 6, 1))
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "commit": "0123456789ab"}))
    try:
        text = write_report(config, folder)[0].read_text()
    finally:
        path.write_text(before)
    assert f"Commit 0123456789ab, {json.loads(before)['commit']}, test data" in text


def test_the_price_of_a_power_law():
    errors = {n: {0: 100.0 / n, 1: 100.0 / n} for n in (1, 10, 1000)}
    assert labels_needed(errors, 1.0).value == pytest.approx(100.0)
    assert labels_needed(errors, 0.01).value == math.inf
    assert labels_needed(errors, 500.0).value == 1.0
    spread = labels_needed({n: {0: 50.0 / n, 1: 100.0 / n, 2: 200.0 / n} for n in (1, 10, 1000)}, 1.0)
    assert spread.value == pytest.approx(100.0)
    assert spread.low == pytest.approx(50.0)
    assert spread.high == pytest.approx(200.0)
    assert math.isnan(labels_needed({1: {0: 2.0}, 10: {0: 0.5}}, 1.0).low)


def test_seeds_that_are_not_there_yet_do_not_count():
    whole = {1: {1: 100.0, 2: 400.0}, 100: {1: 1.0, 2: 4.0}}
    # seed 0 is ten times better and has not reached 100 labels, seed 3 has only that
    partial = {1: {0: 10.0, **whole[1]}, 100: {**whole[100], 3: 0.1}}
    assert labels_needed(partial, 8.0) == labels_needed(whole, 8.0)
    with pytest.raises(ValueError, match="a seed must have an error at every number of labels"):
        labels_needed({1: {0: 1.0}, 10: {1: 1.0}}, 0.5)


def test_an_interval_of_seeds():
    assert mean_interval([1.0, 2.0, 4.0]).text(2) == "2.00 (0.36 to 11.19)"
    assert mean_interval([3.0]).text() == "3.0"


def _write(layout: Layout, values: dict[tuple[str, int], dict[int, float]]) -> None:
    """Results of models, with energies alone."""
    for (strategy, n), errors in values.items():
        for seed, error in errors.items():
            path = layout.result(Cell(strategy, n, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"metrics": {"energy_high": {"mae_mev": error}}, "seed": seed}))


def test_harm_is_judged_by_the_seeds_that_both_have(file, tmp_path):
    config = _config(file, strategies=["scratch", "joint"], seeds=4, labels=[3, 6])
    values = {
        # by itself `joint` looks worse: the seed that is hard for both is done for it alone
        ("scratch", 3): {0: 10.0, 1: 11.0}, ("joint", 3): {0: 9.0, 1: 10.0, 2: 500.0},
        # and here better, since the easy seed is
        ("scratch", 6): {1: 10.0, 2: 10.5, 3: 11.0}, ("joint", 6): {0: 0.1, 1: 20.0, 2: 21.0, 3: 22.0},
    }  # fmt: skip
    _write(Layout(tmp_path), values)
    (line,) = hurting(Findings(config, tmp_path))
    assert line.startswith("`joint`, 6 labels, energy, test: 2.00 times the error of `scratch`, **hurts** (p = ")
    assert Findings(config, tmp_path).target("metrics", "energy") == pytest.approx(10.0)  # of seed 1, which has both


def test_harm_is_flagged_where_seeds_agree(file, tmp_path):
    config = _config(file, strategies=["scratch", "joint"], seeds=3, labels=[3, 6])
    values = {
        ("scratch", 3): [10.0, 11.0, 10.5], ("joint", 3): [20.0, 21.0, 22.0],
        ("scratch", 6): [10.0, 2.0, 5.0], ("joint", 6): [10.0, 4.0, 3.0],
    }  # fmt: skip
    _write(Layout(tmp_path), {cell: dict(enumerate(errors)) for cell, errors in values.items()})
    lines = hurting(Findings(config, tmp_path))
    assert len(lines) == 2
    assert lines[0].startswith("`joint`, 3 labels, energy, test: 2.00 times the error of `scratch`, **hurts** (p = ")
    assert "within the noise of seeds" in lines[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ["scratch", "magic"]}, r"`strategies` must be of scratch, joint, .*, got `magic`"),
        ({"strategies": ["anchor"]}, r"`strategies` must hold `scratch`"),
        ({"labels": [6, 3]}, r"`labels` must rise"),
        ({"low": "high"}, r"`low` and `high` must differ"),
        ({"weights": {"hihg": 2}}, r"`weights` must be positive, of `low` and `high`, got {'hihg': 2.0}"),
        ({"compute": {}}, r"one of `max_steps` and `max_minutes`"),
        ({"run": {"data": {"train": "x"}, "seed": 1}}, r"`run` must leave `seed` to the study"),
        ({"run": {"data": {"train": "x"}, "optimizr": {}}}, r"unknown key; did you mean `optimizer`"),
    ],
)
def test_mistakes_are_named_before_anything_runs(file, changes, message):
    with pytest.raises(ValueError, match=message):
        _config(file, **changes)


def test_too_few_labels_and_no_test_part(file, tmp_path):
    with pytest.raises(ValueError, match=r"`labels` asks for 500 labels of `high`, the training part has 12"):
        run_grid(_config(file, labels=[3, 500]), tmp_path)
    run = {**_content(file)["run"], "data": {"train": str(file), "test_fraction": 0}}
    with pytest.raises(ValueError, match=r"a study needs test structures with `energy_high`"):
        run_grid(_config(file, run=run), tmp_path)
    with pytest.raises(ValueError, match=r"no model of `morse` is finished"):
        write_report(_config(file), tmp_path)


def test_stability_is_reported_for_every_number_of_labels(study):
    config, folder = study
    write_report(config, folder)
    _, title, section = (folder / "report.md").read_text().lower().partition("picoseconds at 500 k until a bond breaks")
    assert title
    rows = [line for line in section.splitlines() if line.startswith(("| 3 |", "| 6 |"))][:2]
    assert all(row.count("0.0 (0.0 to 0.0)") == 2 for row in rows), rows  # 0.02 ps, of both strategies


def test_results_on_other_data_are_not_averaged(file, tmp_path):
    config = _config(file, strategies=["scratch", "joint"], seeds=1, labels=[3, 6])
    _write(Layout(tmp_path), {(name, n): {0: 1.0} for name in ("scratch", "joint") for n in (3, 6)})
    for n, digest in ((3, "a"), (6, "b")):
        path = Layout(tmp_path).result(Cell("joint", n, 0))
        path.write_text(json.dumps({**json.loads(path.read_text()), "out_of_distribution_digest": digest}))
    with pytest.raises(ValueError, match=r"out of distribution on different data, a, b; `out_of_distribution`"):
        Findings(config, tmp_path)


def test_a_study_goes_on_when_mfm_has_a_new_setting(file, tmp_path):
    """What an older study did not write was what is the default now; anything else is another study."""
    config = _config(file)
    keep_settings(Layout(tmp_path), config, set(), lambda: None)
    path = Layout(tmp_path).study
    written = json.loads(path.read_text())
    del written["denoise_share"], written["weights"]
    path.write_text(json.dumps(written))
    keep_settings(Layout(tmp_path), config, set(), lambda: None)
    assert json.loads(path.read_text())["denoise_share"] == config.denoise_share
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="another `denoise_share`"):
        keep_settings(Layout(tmp_path), _config(file, denoise_share=0.5), set(), lambda: None)
    with pytest.raises(ValueError, match=r"another `weights\.high`"):
        keep_settings(Layout(tmp_path), _config(file, weights={"high": 0.1}), set(), lambda: None)


def test_the_command_reports_what_is_there(study, capsys, tmp_path):
    import yaml

    config, folder = study
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["transfer", str(path), "--output", str(folder), "--report-only"]) == 0
    assert "labels of high that a target error costs" in capsys.readouterr().out.lower()
    assert main(["transfer", str(path), "--workers", "0"]) == 2
    assert "`--workers` must be at least 1" in capsys.readouterr().err


def test_the_studies_of_the_experiments_are_valid():
    config = load_config(TransferConfig, EXPERIMENTS / "h2co_transfer" / "study.yaml")
    assert len(config.cells()) == 3 * (1 + 5 * 5)
    config = load_config(TransferConfig, EXPERIMENTS / "rmd17_transfer" / "study.yaml")
    assert len(config.cells()) == 3 * (1 + 3 * 3)


@pytest.mark.parametrize("strategy", ["denoised", "denoised-joint"])
def test_denoising_takes_its_share_of_the_same_compute(file, tmp_path, strategy):
    config = _config(file, strategies=["scratch", strategy], labels=[6], seeds=1, compute={"max_steps": 4})
    assert run_grid(config, tmp_path)
    recipe = config.recipe(Cell(strategy, 6, 0), str(file), str(file), "folder")
    assert [(stage.objective, stage.max_steps) for stage in recipe.stages] == [("denoising", 1), ("supervised", 3)]
    found = json.loads(Layout(tmp_path).result(Cell(strategy, 6, 0)).read_text())
    assert found["clock"]["step"] == 4
    assert np.isfinite(found["metrics"]["energy_high"]["mae_mev"])


def test_all_strategies_make_valid_recipes(file):
    config = _config(file, strategies=list(STRATEGIES))
    for cell in config.cells():
        recipe = config.recipe(cell, str(file), str(file), "folder")
        assert ("energy_high" in recipe.model.tasks) == (cell.n_labels > 0)


def test_weights_are_those_of_all_models(file):
    config = _config(file, strategies=list(STRATEGIES), weights={"high": 0.1})
    for cell in config.cells():
        tasks = config.recipe(cell, str(file), str(file), "folder").model.tasks
        assert {name: task.weight for name, task in tasks.items()} == {
            name: 0.1 if name == "energy_high" else 1.0 for name in tasks
        }


def test_data_out_of_distribution_are_looked_for_before_training(file, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.h5"):
        run_grid(_config(file, out_of_distribution=str(tmp_path / "nowhere.h5")), tmp_path / "study")
    assert not (tmp_path / "study" / "data").exists()


def test_how_foreign_files_are_read_is_not_asked_of_the_studys_own(file):
    run = _content(file)["run"]
    foreign = {"format": "extxyz", "keys": {"energy": "E"}, "units": {"energy": "hartree"}, "split": "random_frames"}
    config = _config(file, run={**run, "data": {**run["data"], **foreign}})
    found = config.recipe(config.cells()[0], "train.h5", "test.h5", "folder").data
    assert (found.train, found.test, found.format, found.keys, found.units) == ("train.h5", "test.h5", None, None, None)
