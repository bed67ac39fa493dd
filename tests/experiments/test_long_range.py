"""The long-range experiments run, resume, and report; their reference for point charges is right."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import ase
import ase.io
import numpy as np
import pytest

from mfm.data import DatasetCard, Record, open_dataset, write_store
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from tests.morse import geometry

FOLDER = Path(__file__).parents[2] / "experiments" / "long_range"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Loads a script as a module; it finds its neighbours beside it, as it does when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(f"long_range_{name}", FOLDER / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        script = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(script)
        return script

    return load


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Path:
    results = folder / "results"
    words = ["run.py", "--fast", "--results", results, "--work", folder / "work", *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert script.main() == 0
    return results


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_ion_gas(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("ion_gas")
    results = run(script, monkeypatch, tmp_path)
    found = read(results / "ion-gas-long-range-4-0.json")
    assert found["clock"]["step"] == 10
    assert found["metrics"]["forces_exact"]["count"] == 2 * 16
    assert "r2" in found["charges"]
    assert "charges" not in read(results / "ion-gas-short-range-4-0.json")
    assert "| charges, R² |" in capsys.readouterr().out
    # what is there is not trained again
    time = (results / "ion-gas-long-range-4-0.json").stat().st_mtime_ns
    run(script, monkeypatch, tmp_path)
    assert (results / "ion-gas-long-range-4-0.json").stat().st_mtime_ns == time


def test_point_charges(load) -> None:
    ewald = load("ewald")
    faces = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    positions, charges = 5.6 * np.concatenate([faces, faces + 0.5]), np.repeat([1.0, -1.0], 4)
    energy, forces = ewald.Ewald(5.6)(positions, charges)
    assert -energy * 2.8 / (4 * ewald.COULOMB_CONSTANT) == pytest.approx(1.7475645946331822, rel=1e-7)
    assert np.abs(forces).max() < 1e-10
    positions = np.random.default_rng(0).random((8, 3)) * 6.0
    for function in (lambda x: ewald.Ewald(6.0)(x, charges), lambda x: ewald.repulsion(x, 6.0, 100.0, 3.0)):
        moved = [positions.copy(), positions.copy()]
        for place, step in zip(moved, (1e-4, -1e-4), strict=True):
            place[2, 1] += step
        slope = (function(moved[0])[0] - function(moved[1])[0]) / 2e-4
        assert function(positions)[1][2, 1] == pytest.approx(-slope, rel=1e-5)


@pytest.mark.parametrize("polarised", [False, True])
def test_charges_with_polarisation_are_told_from_those_without(load, polarised: bool) -> None:
    """Fits find again what energies were made of, and the far slope with it."""
    script, ewald = load("dimers_limit"), load("ewald").Ewald(24.0)
    axis = np.array([0.6, 0.0, 0.8])

    def made(distances: list[float]) -> object:
        pairs = [ewald(np.stack([np.zeros(3), (r - 0.4) * axis]), np.array([1.0, -1.0])) for r in distances]
        energies = [energy + 0.3 - 2.0 * polarised * float(forces[0] @ forces[0]) for energy, forces in pairs]
        return script.Pairs(np.array(distances), np.array(energies))

    near, far = made([6.0, 6.6, 7.4, 8.2, 9.0]), made([10.0, 10.6, 11.2])
    found = script.fit(near, far, axis, 24.0, True)
    assert found["shift"] == pytest.approx(0.4, abs=1e-3)
    assert found["polarisation"] == pytest.approx(2.0 * polarised, abs=1e-2)
    assert found["slope_ratio"] == pytest.approx(1.0, abs=1e-3)
    without = script.fit(near, far, axis, 24.0, False)
    assert (abs(without["slope_ratio"] - 1.0) > 0.01) == polarised
    assert "| 6.00 | yes |" in script.report([found])


def write_dimers(folder: Path) -> None:
    """Two water-like fragments of opposite charge, with energies −k_e/r."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    fragment = geometry([8, 1, 1], rng)
    for part, distances in (("train", (5.0, 6.0, 7.0)), ("test", (9.0, 10.0, 11.0))):
        frames = []
        for distance in distances:
            atoms = ase.Atoms(
                "OHHOHH",
                np.concatenate([fragment, fragment + np.array([distance, 0.0, 0.0])]),
                cell=[20.0] * 3,
                pbc=True,
            )
            atoms.info = {"chargeA": 1, "chargeB": -1, "indexB": 3, "distance": distance}
            atoms.info["inter_energy"] = -14.4 / distance
            atoms.arrays["forces"] = np.zeros((6, 3))
            frames.append(atoms)
        ase.io.write(folder / f"{part}-id0.xyz", frames, format="extxyz")


def test_dimers(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("dimers")
    monkeypatch.setenv("MFM_BENCHMARK_DATA", str(tmp_path / "data"))
    write_dimers(tmp_path / "data" / script.FOLDER)
    results = run(script, monkeypatch, tmp_path)
    found = read(results / "dimers-long-range-0.json")
    assert found["slope_labels"] == pytest.approx(-14.4)
    assert "fragment_charge" in found
    pairs = open_dataset(tmp_path / "work" / "dimer-id0-near.h5")
    with_fragments = open_dataset(tmp_path / "work" / "dimer-id0-near-and-fragments.h5")
    alone = [record for record in with_fragments if len(record.structure) == 3]
    assert len(with_fragments) == len(pairs) + len(alone) == 5
    assert [record.structure.charge for record in alone] == [1, -1]
    # labels are above charged fragments in the same cell
    assert all(record.structure.pbc.all() and record.structure.cell[0, 0] == 20.0 for record in alone)
    assert not any(record.labels["forces_dft"].any() or record.labels["energy_dft"] for record in alone)
    assert (results / "dimers.png").stat().st_size > 10_000
    assert "| charge of the first fragment, e |" in capsys.readouterr().out
    monkeypatch.delenv("MFM_BENCHMARK_DATA")
    with pytest.raises(SystemExit, match="the dimers need MFM_BENCHMARK_DATA"):
        script.main()


def test_dipeptides(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    card = DatasetCard(name="tiny", levels={"dft": LevelOfTheory(method="none")})
    records = []
    for _ in range(4):
        labels = {"energy_dft": np.array(rng.normal()), "forces_dft": rng.normal(size=(3, 3))}
        labels |= {"charges_dft": np.array([-0.8, 0.4, 0.4]), "dipole_dft": rng.normal(size=3)}
        records.append(Record(Structure(np.array([8, 1, 1]), geometry([8, 1, 1], rng)), labels))
    write_store(tmp_path / "data.h5", records, card)
    script = load("dipeptides")
    results = run(script, monkeypatch, tmp_path, "--train", tmp_path / "data.h5", "--test", tmp_path / "data.h5")
    found = read(results / "dipeptides-long-range-0.json")
    # charges start along differences of electronegativity
    assert found["charges_dft"]["scale"] > 0
    assert 0.3 < found["charges_dft"]["r2_scaled"] < 1
    assert found["dipole_dft"]["rmse"] > 0
    assert "| dipole components, R² |" in capsys.readouterr().out


def test_agreement_knows_no_sign(load) -> None:
    found = load("dipeptides").agreement(np.array([1.0, -1.0, 2.0, -2.0]), np.array([-2.0, 2.0, -4.0, 4.0]))
    assert found["scale"] == pytest.approx(-2.0)
    assert found["r2_scaled"] == pytest.approx(1.0)
    assert found["r2"] == pytest.approx(0.75)


def test_speed(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = [
        "--json",
        tmp_path / "speed.json",
        "--figure",
        tmp_path / "speed.png",
        "--repeats",
        1,
        "--largest",
        200,
        "--direct",
        200,
    ]
    words += ["--parts", "scaling", "batch", "mesh"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *map(str, words)])
    assert load("speed").main() == 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    found = read(tmp_path / "speed.json")
    assert found["scaling"]["n_atoms"] == [100, 200]
    assert found["batch"]["relative_force_error"] < 1e-6
    assert found["batch"]["relative_force_error_loop"] < 1e-5
    assert found["mesh"]["relative_force_error"] < 1e-3
