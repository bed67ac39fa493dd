"""The experiment on infrared spectra: its reference, its table and its figure."""

import importlib.util
from pathlib import Path
from types import ModuleType

import ase
import numpy as np
import pytest
from scipy.integrate import trapezoid

from mfm.labelling.levels import LEVELS

SCRIPT = Path(__file__).parents[2] / "experiments" / "infrared" / "run.py"


def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("infrared_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_level_is_differentiated_and_reported(tmp_path: Path) -> None:
    run = script()
    water = ase.Atoms("OHH", [[0.0, 0.0, 0.0], [0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]])
    water.calc = run.LevelCalculator(LEVELS["xtb"])
    found = run.modes(water)
    bend, *stretches = found["wavenumbers"]
    assert 1400.0 < bend < 1700.0
    assert all(3400.0 < wavenumber < 3900.0 for wavenumber in stretches)
    tensors = water.calc.born_effective_charges(water)
    np.testing.assert_allclose(tensors.sum(axis=0), 0.0, atol=1e-3)
    hydrogen = tensors[1]
    assert abs(hydrogen[0, 2] - hydrogen[2, 0]) > 0.01  # so rows and columns differ
    shifted = [water.copy(), water.copy()]
    for atoms, step in zip(shifted, (0.01, -0.01), strict=True):
        atoms.calc = water.calc
        atoms.positions[1, 2] += step
    slope = (shifted[0].get_dipole_moment() - shifted[1].get_dipole_moment()) / 0.02
    np.testing.assert_allclose(hydrogen[:, 2], slope, atol=2e-3)
    # the Hessian's 18 geometries are the polar tensors' too; what else is known belongs to the optimisation
    assert len(water.calc.known) < 18 + 20 + 2

    grid = np.arange(0.0, 4000.0, 10.0)
    band = sum(found["intensities"]) / 100.0 * (np.abs(grid - 1500.0) < 50.0)
    parts = {
        "model": found,
        "reference": found | {"wavenumbers": [w - 10.0 for w in found["wavenumbers"]]},
        "dynamics": {"temperature": 300.0, "wavenumbers": grid.tolist(), "absorption": band.tolist()},
    }
    table = run.report(parts)
    assert f"| {bend - 10.0:.0f} | {bend:.0f} | {found['intensities'][0]:.1f} |" in table
    assert "Mean error 10 cm⁻¹" in table
    area = float(trapezoid(band, grid))
    assert f"dynamics {area:.0f}" in table
    run.draw(parts, tmp_path / "water.png")
    assert (tmp_path / "water.png").read_bytes().startswith(b"\x89PNG")


def test_levels_without_dipoles_are_refused() -> None:
    run = script()
    water = ase.Atoms("OHH", [[0.0, 0.0, 0.0], [0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]])
    water.calc = run.LevelCalculator(LEVELS["ccsdt"])
    with pytest.raises(SystemExit, match="`--reference` must be dft, dft_lite or xtb, got composite"):
        water.get_forces()
