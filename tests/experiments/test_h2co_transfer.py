"""The formaldehyde experiment runs, joined models start from the low level, and what is there is not trained again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "h2co_transfer" / "run.py"


@pytest.mark.skipif("MFM_BENCHMARK_DATA" not in os.environ, reason="needs h2co_multifidelity")
def test_cells_are_trained_once_and_tabled(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--fast", "--sizes", "10", "--joins", "cc-only", "anchor"]
    command += ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    cells = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "results").glob("*.json")}
    assert cells.keys() >= {"dft-0-0", "cc-only-10-0", "anchor-10-0"}
    assert cells["cc-only-10-0"]["clock"]["step"] == 10  # as many as the two stages of the anchored model
    assert cells["anchor-10-0"]["metrics"]["forces_ccsdt"]["count"] == 2400
    row = next(line for line in result.stdout.splitlines() if line.startswith("| 10 | forces MAE"))
    assert f"{cells['anchor-10-0']['metrics']['forces_ccsdt']['mae_mev_per_angstrom']:.2f}" in row
    assert (tmp_path / "results" / "figure.png").stat().st_size > 10_000
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "0 of 1 models to train" in again.stdout
