"""The quickstart runs from labels to molecular dynamics, and its recipe stays short."""

import subprocess
import sys
from pathlib import Path

import yaml
from ase.io import read

from mfm import MFMCalculator
from mfm.config import load_config, validate
from mfm.training.recipe import RunConfig
from tests.morse import morse_store

FOLDER = Path(__file__).parents[2] / "experiments" / "quickstart"


def test_recipe_is_valid_and_short() -> None:
    config = load_config(RunConfig, FOLDER / "run.yaml")
    assert config.model.tasks["energy_ccsdt"].anchor == "energy_dft"
    lines = (FOLDER / "run.yaml").read_text(encoding="utf-8").splitlines()
    # two fidelities in at most 15 lines: what a user has to write
    assert len([line for line in lines if not line.startswith("#")]) <= 15


def test_recipe_in_the_readme_is_valid() -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    recipe = yaml.safe_load(readme.split("```yaml")[1].split("```")[0])
    assert list(validate(RunConfig, recipe).model.tasks) == ["energy_dft", "energy_ccsdt"]


def test_quickstart_runs(tmp_path: Path) -> None:
    morse_store().write(tmp_path / "morse.h5")
    command = [sys.executable, str(FOLDER / "run.py"), "--fast", "--output", str(tmp_path), "tracking=none"]
    settings = [f"data.train={tmp_path}/morse.h5", "tasks={energy_low: {}, energy_high: {anchor: energy_low}}"]
    result = subprocess.run([*command, *settings], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "A potential for Morse-low and Morse-high." in result.stdout
    model = tmp_path / "quickstart" / "model.mfm"
    assert str(model) in result.stdout
    assert MFMCalculator(model, fidelity="high", device="cpu").fidelities() == ["low", "high"]
    assert len(read(tmp_path / "quickstart" / "dynamics.traj", ":")) == 21
