"""The experiment on fine-tuning runs: parent and arms train, each moves what it should, and they enter the table."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mfm.checkpoint import load_model
from mfm.config import load_config
from mfm.training.data import prepare_data
from mfm.training.experiment import run_model
from mfm.training.recipe import RunConfig
from tests.morse import TINY, morse_store

SCRIPT = Path(__file__).parents[2] / "experiments" / "finetuning" / "run.py"


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("finetuning_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def call(script: ModuleType, folder: Path, *arguments: object) -> int:
    file = folder / "morse.h5"
    if not file.exists():
        morse_store().write(file)
    words = ["run.py", "--fast", "--train", file, "--test", file, "--fidelity", "low"]
    words += ["--work", folder / "work", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        return script.main()


@pytest.fixture(scope="module")
def study(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the parent and all arms."""
    folder = tmp_path_factory.mktemp("study")
    assert call(script, folder, "--results", folder / "results") == 0
    return folder


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def moved(study: Path, arm: str) -> set[str]:
    """Parameters of the parent that an arm has changed."""
    before, after = (load_model(study / "work" / name / "model.mfm").state_dict() for name in ("parent", f"{arm}-0"))
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_arms_are_measured_at_both_levels(script: ModuleType, study: Path) -> None:
    found = {path.stem: read(path) for path in (study / "results").glob("*.json")}
    assert set(found) == {"parent", *(f"{arm}-0" for arm in script.ARMS)}
    for arm in script.ARMS:
        cell = found[f"{arm}-0"]
        assert (cell["model"], cell["seed"], cell["frames"], cell["clock"]["step"]) == (arm, 0, 8, 5)
        assert cell["metrics"]["energy_low"]["count"] == 32
        assert ("parent_level" in cell) == (arm != "scratch")
    # also with nitrogen, which the new data lack
    assert found["full-0"]["parent_level"]["energy_dft"]["count"] == 80
    # the same 80 structures in other batches
    assert found["parent"]["parent_level"]["energy_dft"] == pytest.approx(found["parent"]["metrics"]["energy_dft"])


def test_each_arm_moves_what_it_should(study: Path) -> None:
    parent = read(study / "results" / "parent.json")["parent_level"]
    assert moved(study, "readout") == set()
    assert read(study / "results" / "readout-0.json")["parent_level"] == parent
    full, frozen, lora = (moved(study, arm) for arm in ("full", "frozen", "lora"))
    assert {name.split(".")[0] for name in full} == {"backbone", "heads"}
    assert frozen < full
    assert any(name.startswith("backbone.layers.0.") for name in frozen)
    assert all(name.startswith(("backbone.layers.0.", "heads.")) for name in frozen)
    assert 0 < len({name for name in lora if name.startswith("backbone.")}) < len(full)
    assert read(study / "results" / "full-0.json")["parent_level"] != parent


def test_what_is_replayed_is_what_the_parent_learned_last(study: Path) -> None:
    config = load_config(RunConfig, study / "work" / "replay-0" / "config.yaml")
    data = prepare_data(config.data, list(config.model.tasks), ["energy_xtb", "energy_dft"])
    replayed = data.train.subset(data.replayed)
    assert {name for name in replayed.labels if replayed.coverage(name).any()} == {"energy_dft", "forces_dft"}
    assert replayed.coverage("energy_dft").all()
    replay, full = (read(study / "results" / f"{arm}-0.json") for arm in ("replay", "full"))
    assert replay["train_digest"] != full["train_digest"]
    assert replay["parent_level"] != full["parent_level"]


def test_table(script: ModuleType, study: Path) -> None:
    lines = (study / "results" / "table.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ") for line in lines[2:]}
    assert list(rows) == ["parent", *script.ARMS]
    cell = read(study / "results" / "full-0.json")
    before = read(study / "results" / "parent.json")["parent_level"]["forces_dft"]["mae_mev_per_angstrom"]
    assert rows["full"][1] == f"{cell['metrics']['energy_low']['mae_mev']:.1f}"
    assert rows["full"][6] == f"{cell['parent_level']['forces_dft']['mae_mev_per_angstrom'] / before:.3f}"
    assert (rows["readout"][4], rows["readout"][6]) == ("1.000", "1.000")
    assert rows["scratch"][3:7] == ["", "", "", ""]


def test_a_given_parent_and_what_is_there(script: ModuleType, study: Path, tmp_path: Path) -> None:
    results = study / "results"
    time = (results / "full-0.json").stat().st_mtime_ns
    assert call(script, study, "--results", results) == 0
    assert (results / "full-0.json").stat().st_mtime_ns == time
    # the same parent by its file gives the same model
    given = ["--parent", study / "work" / "parent" / "model.mfm", "--arms", "readout"]
    other = tmp_path / "results"
    assert call(script, study, "--results", other, *given, "--work", tmp_path / "work") == 0
    assert read(other / "readout-0.json")["metrics"] == read(results / "readout-0.json")["metrics"]
    assert set(read(other / "parent.json")) == {"model", "checkpoint", "parent_level"}
    # fine-tuned, it is another one
    given[1] = study / "work" / "full-0" / "model.mfm"
    (other / "readout-0.json").unlink()
    with pytest.raises(SystemExit, match=r"parent\.json` is of another parent than"):
        call(script, study, "--results", other, *given)


def test_a_parent_without_the_level_is_refused(script: ModuleType, study: Path, tmp_path: Path) -> None:
    content = {
        "data": {"train": str(study / "morse.h5"), "valid_fraction": 0, "test_fraction": 0},
        "tasks": {"energy_high": {}}, "model": {"backbone": TINY}, "stages": [{"name": "all", "max_steps": 1}],
        "device": "cpu", "tracking": "none", "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_model(content, tmp_path / "run.json")
    with pytest.raises(SystemExit, match=r"must have the task `energy_dft`, .* has energy_high"):
        call(script, tmp_path, "--results", tmp_path / "results", "--parent", tmp_path / "run" / "model.mfm")
