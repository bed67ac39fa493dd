"""The benchmark runs with mfm alone, scores what it should, and says what is missing."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from tests.morse import morse_store

FOLDER = Path(__file__).parents[2] / "experiments" / "backbone_benchmark"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    """The script as a module; it finds its neighbours beside it, as it does when it is run."""
    specification = importlib.util.spec_from_file_location("backbone_benchmark_run", FOLDER / "run.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(FOLDER))
    try:
        specification.loader.exec_module(script)
    finally:
        sys.path.remove(str(FOLDER))
    return script


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 labelled molecules as extended XYZ."""
    path = tmp_path_factory.mktemp("frames") / "morse.xyz"
    found = []
    for record in list(morse_store(n_per_molecule=3))[:20]:
        atoms = record.structure.to_ase()
        labels = {name: record.labels[f"{name}_low"] for name in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, energy=float(labels["energy"]), forces=labels["forces"])
        found.append(atoms)
    ase.io.write(path, found, format="extxyz")
    return path


def test_accuracy_of_mfm(run: ModuleType, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "out.json", tmp_path / "kept"
    small = ("model.backbone.n_channels=8", "model.backbone.n_product_channels=8", "model.readout_channels=8")
    overrides = [word for text in small for word in ("--override", text)]
    options = ["--data", frames, "--cpu-minutes", "0.01", "--core", "-1", "--json", out, "--keep", kept, *overrides]
    assert run.main([str(option) for option in options]) == 0
    assert capsys.readouterr().out.startswith("| peer | test |")
    report = json.loads(out.read_text(encoding="utf-8"))
    result = report["peers"]["mfm"]
    assert report["n_train"] == 16
    assert result["steps"] > 0
    assert 0.5 <= result["cpu_seconds"] < 10.0
    # what the workers get of the test set holds no labels, what the benchmark reports comes from its own copy
    with np.load(kept / "test.npz") as given, np.load(kept / "mfm_test.npz") as predicted:
        assert not given["energies"].any()
        assert not given["forces"].any()
        assert np.abs(predicted["forces"]).max() > 0
    assert result["tests"]["test"]["n_frames"] == 4
    assert result["tests"]["test"]["forces_rmse_mev_per_angstrom"] > 0


def test_errors_of_predictions(run: ModuleType) -> None:
    labels = run.Labels("digest", np.array([1.0, -2.0]), np.zeros((3, 3)))
    forces = np.zeros((3, 3))
    forces[0, 0] = 0.9
    found = run.errors({"energies": np.array([1.003, -2.001]), "forces": forces}, labels)
    assert found == pytest.approx(
        {
            "n_frames": 2,
            "energy_rmse_mev": np.sqrt(5.0),
            "energy_mae_mev": 2.0,
            "forces_rmse_mev_per_angstrom": 300.0,
            "forces_mae_mev_per_angstrom": 100.0,
        }
    )
    with pytest.raises(RuntimeError, match=r"predicted forces must be finite and of shape \(3, 3\), got \(2, 3\)"):
        run.errors({"energies": np.zeros(2), "forces": np.zeros((2, 3))}, labels)


def test_systems_are_those_of_the_table(run: ModuleType) -> None:
    systems = run.speed_systems()
    assert list(systems) == list(run.SYSTEMS)
    sizes = {name: sum(len(structure) for structure in found) for name, found in systems.items()}
    assert sizes == {
        "ethanol": 9, "molecule27": 27, "batch64x20": 1280, "water192": 192, "water648": 648, "train16x27": 432,
    }  # fmt: skip
    box = systems["water648"][0]
    grams_per_mole = 216 * 18.015
    assert grams_per_mole / 0.602214076 / np.linalg.det(box.cell) == pytest.approx(1.0, abs=1e-6)
    assert run.speed_systems()["water192"][0].content_hash() == systems["water192"][0].content_hash()


def test_speed_table_gives_ratios_to_mfm(run: ModuleType) -> None:
    def result(seconds: float) -> dict[str, object]:
        medians = {"water192": seconds, "train16x27": seconds}
        return {"median_seconds": medians, "training_structures_per_second": 16 / seconds}

    table = run.speed_table({"mfm": result(0.1), "mace": result(0.4)})
    assert "| mfm | 100.0 | 160.0 |" in table
    assert "| mace | 400.0 (4.00×) | 40.0 (4.00×) |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "mase", "--speed"], "`--peer` must be one of mfm, mace, nequip, schnetpack, torchmdnet, all"),
        (
            ["--peer", "mace", "--speed", "--envs", "nowhere"],
            "peer `mace` has no environment in `nowhere`; make it with",
        ),
        (["--data", "acac"], "benchmark `botnet_acac` needs MFM_BENCHMARK_DATA"),
        (["--data", "nothing.xyz"], "`--data` must be one of acac, ethanol50, ethanol950, aspirin, or a file"),
        (["--data", "acac", "--cpu-minutes", "0"], "`--cpu-minutes` must be above 0, got 0"),
        (["--speed", "--systems", "ice"], "`--systems` must be of ethanol, "),
        ([], "one of the arguments --data --speed is required"),
    ],
)
def test_what_is_refused(
    run: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MFM_BENCHMARK_DATA", raising=False)
    try:
        status = run.main([*arguments, "--core", "-1"])
    except SystemExit as stopped:
        status = stopped.code
    assert status != 0
    assert message in capsys.readouterr().err


def test_a_worker_that_fails_shows_why(run: ModuleType, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--data", str(frames), "--core", "-1", "--override", "optimizer.lrate=1"]) == 1
    assert "`optimizer.lrate`: unknown key" in capsys.readouterr().err
