"""The experiment on electronic labels: where quadrupoles are about, its table, and a run."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.fidelity import LevelOfTheory
from mfm.structure import Structure
from tests.morse import geometry

SCRIPT = Path(__file__).parents[2] / "experiments" / "electronic_labels" / "run.py"
NUCLEI, SPICE = "the nuclear charge centre", "a point one bohr below the centroid on every axis"
NUMBERS, Q = np.array([8, 1, 1]), np.array([-0.8, 0.5, 0.3])


@pytest.fixture
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("electronic_labels_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def store(script: ModuleType, origin: str, n_records: int = 6, trace: float = -5.0) -> Store:
    """Molecules of point charges, with quadrupoles about a point and a trace that charges do not have."""
    rng, records = np.random.default_rng(0), []
    for _ in range(n_records):
        structure = Structure(NUMBERS, geometry(NUMBERS.tolist(), rng))
        places = structure.positions - script.ORIGINS[origin](structure)
        labels = {"energy_dft": np.array(rng.normal()), "forces_dft": rng.normal(size=(3, 3)), "charges_dft": Q}
        labels["dipole_dft"] = Q @ structure.positions
        labels["quadrupole_dft"] = np.einsum("i,ia,ib->ab", Q, places, places) + trace * np.eye(3)
        records.append(Record(structure, labels))
    return Store.from_records(records, DatasetCard(name="tiny", levels={"dft": LevelOfTheory(method="none")}))


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Path:
    data = ["--train", folder / "data.h5", "--test", folder / "data.h5"]
    words = ["run.py", "--fast", *data, "--results", folder / "r", "--work", folder / "w", *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert script.main() == 0
    return folder / "r"


def test_arms_are_trained_and_tabled(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(script, SPICE).write(tmp_path / "data.h5")
    results = run(script, monkeypatch, tmp_path)
    names = ["off-0", "charges-0", "charges-dipole-0", "charges-dipole-quadrupole-0"]
    found = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    assert [len(cell["metrics"]) for cell in found.values()] == [2, 3, 4, 5]
    assert {cell["clock"]["step"] for cell in found.values()} == {5}
    assert len({cell["train_digest"] for cell in found.values()}) == 1
    assert "dipole_of_charges_rmse" not in found["off-0"]
    # the first arm with electronic labels has charges alone, whose dipole is measured all the same
    assert found["charges-0"]["dipole_of_charges_rmse"] > 0
    # charges are learned from their labels: nearer than no charges at all
    assert found["charges-0"]["metrics"]["charges_dft"]["rmse_me"] < 1e3 * np.sqrt(np.mean(Q**2))
    text = capsys.readouterr().out
    assert "| optimiser steps | 5 | 5 | 5 | 5 |  |" in text
    assert "Long range" not in text
    assert f"Quadrupoles of the files are about {SPICE}." in text
    # what is there is not trained again; models with long range are added in a table of their own
    times = {name: (results / f"{name}.json").stat().st_mtime_ns for name in names}
    run(script, monkeypatch, tmp_path, "--long-range", "--arms", "charges")
    assert {name: (results / f"{name}.json").stat().st_mtime_ns for name in names} == times
    far = json.loads((results / "charges-long-range-0.json").read_text(encoding="utf-8"))
    assert far["train_digest"] == found["charges-0"]["train_digest"]
    assert far["n_parameters"] > found["charges-0"]["n_parameters"]
    assert "Long range\n\n" in capsys.readouterr().out


@pytest.mark.parametrize("origin", [NUCLEI, SPICE])
def test_quadrupoles_are_moved_to_the_nuclear_charge_centre(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: str
) -> None:
    store(script, origin).write(tmp_path / "data.h5")
    words = ["--train", tmp_path / "data.h5", "--test", tmp_path / "data.h5", "--results", tmp_path, "--work", tmp_path]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    script.write_data(script.parse_arguments())
    found = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert found["quadrupoles_about"] == origin
    assert found["misfits_to_charges"][origin] == pytest.approx(0.0, abs=1e-12)
    assert max(found["misfits_to_charges"].values()) > 0.1
    assert found["dipole_of_charges_rmse"] == pytest.approx(0.0, abs=1e-12)
    assert found["quadrupole_of_charges_rmse"] == pytest.approx(0.0, abs=1e-12)
    assert found["charges_spread"] == pytest.approx(np.std(Q))
    right = store(script, NUCLEI)
    for part in ("train", "test"):
        np.testing.assert_allclose(
            open_dataset(tmp_path / f"{part}.h5").values("quadrupole_dft"), right.values("quadrupole_dft"), atol=1e-12
        )


def test_quadrupoles_of_ions_are_not_moved(script: ModuleType) -> None:
    record = store(script, NUCLEI)[0]
    ion = Record(Structure(NUMBERS, record.structure.positions, charge=1, multiplicity=2), record.labels)
    with pytest.raises(SystemExit, match="quadrupoles of ions"):
        script.about_nuclei(ion, script.spice_origin)


def test_the_table_holds_what_was_measured(script: ModuleType, tmp_path: Path) -> None:
    def write(arm: str, seed: int, force: float, charge: float | None) -> None:
        metrics = {"energy_dft": {"rmse_mev_per_atom": 1.5}, "forces_dft": {"rmse_mev_per_angstrom": force}}
        if charge is not None:
            metrics |= {"charges_dft": {"rmse_me": charge}, "dipole_dft": {"rmse_me_angstrom": 75.0}}
        content = {"arm": arm, "long_range": False, "seed": seed, "metrics": metrics}
        content |= {"clock": {"step": 4000, "seconds": 1200.0}, "dipole_of_charges_rmse": 0.09}
        (tmp_path / f"{arm.replace('+', '-')}-{seed}.json").write_text(json.dumps(content), encoding="utf-8")

    for seed, force in ((0, 50.0), (1, 60.0)):
        write("off", seed, force, None)
        write("charges+dipole", seed, 1.1 * force, 40.0)
    labels = {"quadrupoles_about": NUCLEI, "misfits_to_charges": {NUCLEI: 0.5}}
    labels |= {"dipole_of_charges_rmse": 0.0797, "quadrupole_of_charges_rmse": 0.478, "charges_spread": 0.4}
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    rows = {line.split(" | ")[0][2:]: line for line in script.report(tmp_path).splitlines() if line.startswith("| ")}
    assert "| 55.0 (50.0 to 60.0) |  | 60.5 (55.0 to 66.0) |  |" in rows["forces, RMSE, meV/Å"]
    assert "| 1.000 (1.000 to 1.000) |  | 1.100 (1.100 to 1.100) |" in rows["over that of `off` with the same seed"]
    # 1 − (0.04 / 0.4)²
    assert "|  |  | 0.9900 (0.9900 to 0.9900) |  |" in rows["charges, R²"]
    assert rows["dipole, RMSE, e Å"].endswith("| 0.0750 (0.0750 to 0.0750) |  | 0.0797 |")
    assert rows["quadrupole, RMSE, e Å²"].endswith("|  |  |  |  | 0.478 |")
    assert "20.0 (20.0 to 20.0)" in rows["minutes of training"]
