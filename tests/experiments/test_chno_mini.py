"""The experiment on the shipped labels runs: models train, are compared with CCSD(T) forces, and enter the table."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mfm.config import load_config, read_yaml
from mfm.data import open_dataset
from mfm.training.recipe import RunConfig
from mfm.tuning.space import read_space

FOLDER = Path(__file__).parents[2] / "experiments" / "chno_mini"


def test_recipe_is_valid() -> None:
    tasks = load_config(RunConfig, FOLDER / "run.yaml").model.tasks
    assert {name: task.anchor for name, task in tasks.items()} == {
        "energy_xtb": None, "energy_dft": "energy_xtb", "energy_ccsdt": "energy_dft",
    }  # fmt: skip


def test_space_is_valid() -> None:
    space = read_space(FOLDER / "space.yaml", read_yaml(FOLDER / "run.yaml"))
    assert {"optimizer.lr", "tasks.energy_dft.weight", "model.backbone.n_channels"} <= space.searched.keys()
    assert space.fixed["data.valid_fraction"] > 0


def test_selection_leaves_the_test_molecules_out() -> None:
    sys.modules.pop("run", None)  # of another experiment
    sys.path.insert(0, str(FOLDER))
    try:
        run = importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("run", None)
    whole = open_dataset("builtin:chno-mini")
    store = run.selection("builtin:chno-mini", 0)
    assert set(store.molecules) == set(whole.molecules) - set(whole.card.test_molecules)
    held_out = store.subset(np.isin(store.molecules, store.card.test_molecules))
    assert len(set(held_out.molecules)) == 20
    assert held_out.coverage("energy_ccsdt").sum() >= 20
    assert run.selection("builtin:chno-mini", 1).card.test_molecules != store.card.test_molecules


@pytest.mark.parametrize(("model", "levels"), [("denoised", ["xtb", "dft", "ccsdt"]), ("ccsdt-only", ["ccsdt"])])
def test_models_are_trained_compared_and_tabled(tmp_path: Path, model: str, levels: list[str]) -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--fast", "--models", model]
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    result = subprocess.run([*command, *folders], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "results" / f"{model}-0.json").read_text(encoding="utf-8"))
    assert list(found["forces_against_ccsdt"]) == [f"forces_{level}" for level in levels]
    assert found["clock"]["step"] == (15 if model == "denoised" else 5)
    assert found["metrics"]["energy_ccsdt"]["count"] >= 36
    assert [0.0 <= time <= 0.01 for time in found["survival_ps"].values()] == [True]
    assert list(found["survival_ps"]) == ["CCOC(C)=O"]  # the same one for all models, whatever they are trained on
    row = next(line for line in result.stdout.splitlines() if line.startswith("| CCSD(T) energy MAE, held-out"))
    assert f"{found['metrics']['energy_ccsdt']['mae_mev']:.1f}" in row
