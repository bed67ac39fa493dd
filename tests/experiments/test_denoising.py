"""The experiment on the floor of a denoising loss runs and leaves its curves and figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "denoising" / "run.py"


def test_curves_and_figure_are_left(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "10", "--seeds", "0", "--results", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    curves = json.loads((tmp_path / "floor.json").read_text(encoding="utf-8"))["curves"]
    assert [len(curve["loss"]) for curve in curves] == [10, 10]
    # before anything is learned: the variance of the noise, of which 3 of 9 directions are visible
    assert curves[0]["loss"][0] == pytest.approx(3 / 9, abs=0.15)
    assert curves[1]["loss"][0] == pytest.approx(1.0, abs=0.3)
    assert curves[1]["floor"] - curves[0]["floor"] == pytest.approx(2 / 3)
    assert (tmp_path / "floor.png").stat().st_size > 10_000
