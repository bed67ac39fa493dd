"""The experiment on densities: its table, and a run on labels of its own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "density" / "run.py"


def test_the_table_holds_what_was_measured(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("density_run", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    errors = {"nmae_percent": 0.9, "nmae_fit_percent": 0.7, "nmae_free_atoms_percent": 11.0, "electrons_e": 3e-14}
    errors["dipole_millidebye"] = 42.0
    scf = {"cycles_default": 12, "cycles_predicted": 9, "cycles_label": 8}
    cell = {
        "metrics": {"density_dft": errors, "energy_dft": {}},
        "scf": [scf | {"energy_default_ev": -100.0, "energy_predicted_ev": -100.000001}],
        "step_ratio": {"all": 1.5, "without density": 1.2},
        "points_per_second": 1.6e6,
        "clock": {"step": 100, "seconds": 60.0},
    }
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    table = module.report(tmp_path)
    for value in ("0.90 (0.90 to 0.90)", "3e-14", "12.0", "9.0", "0.0010", "1.50"):
        assert value in table


@pytest.mark.slow
def test_a_smoke_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--fast", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "r" / "seed-0.json").read_text(encoding="utf-8"))
    assert found["metrics"]["density_dft"]["electrons_e"] < 1e-6
    assert found["scf"][0]["energy_predicted_ev"] == pytest.approx(found["scf"][0]["energy_default_ev"], abs=1e-4)
    assert found["step_ratio"]["all"] > 1.0
    assert "SCF cycles from PySCF's guess" in result.stdout
