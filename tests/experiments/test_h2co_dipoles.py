"""The experiment on dipoles of formaldehyde: its data, its report, and a run that goes on where it was stopped."""

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
from mfm.units import DEBYE
from tests.morse import geometry, morse

SCRIPT = Path(__file__).parents[2] / "experiments" / "h2co_dipoles" / "run.py"
NUMBERS = [6, 8, 1, 1]
FACTOR = 1.25
"""High level over low level."""


@pytest.fixture
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("h2co_dipoles_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def store(n_records: int = 40) -> Store:
    """Molecules of fixed charges, with dipoles at two levels that differ by a factor, and with labels of a third."""
    rng, charges, records = np.random.default_rng(0), np.array([0.2, -0.4, 0.1, 0.1]), []
    for _ in range(n_records):
        positions = geometry(NUMBERS, rng)
        energy, forces = morse(np.array(NUMBERS), positions, "low")
        dipole = charges @ positions
        labels = {"energy_dft": np.array(energy), "forces_dft": forces, "dipole_dft": dipole, "dipole_mp2": dipole}
        labels |= {"dipole_ccsdt": FACTOR * dipole, "energy_ccsdt": np.array(energy), "forces_ccsdt": forces}
        records.append(Record(Structure(np.array(NUMBERS), positions), labels))
    levels = {name: LevelOfTheory(method=name) for name in ("dft", "mp2", "ccsdt")}
    return Store.from_records(records, DatasetCard(name="formaldehyde", levels=levels))


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Path:
    words = ["run.py", "--fast", "--data", folder / "data.h5", "--results", folder / "r", "--work", folder / "w"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words, *arguments]])
    assert script.main() == 0
    return folder / "r"


def test_arms_are_trained_and_tabled(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store().write(tmp_path / "data.h5")
    results = run(script, monkeypatch, tmp_path, "--labels", 6, "--arms", "scratch", "anchor")
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*-*.json")}
    assert set(found) == {"scratch-6-0", "anchor-0-0", "anchor-6-0"}
    # equal steps, of which three quarters are at the low level
    assert {name: cell["clock"]["step"] for name, cell in found.items()} == {
        "scratch-6-0": 20,
        "anchor-0-0": 15,
        "anchor-6-0": 5,
    }
    assert all(cell["metrics"]["dipole_ccsdt"]["count"] == 6 for name, cell in found.items() if "-6-" in name)
    assert set(found["anchor-0-0"]["metrics"]) == {"dipole_dft"}
    assert set(found["scratch-6-0"]["metrics"]) == {"dipole_ccsdt"}
    assert set(found["anchor-6-0"]["metrics"]) == {"dipole_dft", "dipole_ccsdt"}
    text = capsys.readouterr().out
    assert "| CCSD(T)-F12 dipoles; MAE per component, D | scratch | anchor |" in text
    assert "| optimiser steps | 20 | 20 |" in text
    assert (results / "dipoles.png").read_bytes().startswith(b"\x89PNG")
    # what is there is not trained again; another arm is added
    times = {path: path.stat().st_mtime_ns for path in results.glob("*-*.json")}
    run(script, monkeypatch, tmp_path, "--labels", 6, "--arms", "anchor+energies")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    energies = json.loads((results / "anchor-energies-6-0.json").read_text(encoding="utf-8"))
    assert energies["train_digest"] == found["anchor-6-0"]["train_digest"]
    assert energies["arm"] == "anchor+energies"


def test_training_sets_are_nested_and_know_nothing_of_the_test(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store().write(tmp_path / "data.h5")
    words = ["run.py", "--data", tmp_path / "data.h5", "--work", tmp_path, "--labels", 8, 4, "--seeds", 0, 1]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    options = script.parse_arguments()
    wanted = list(script.cells(options))
    assert [cell.name for cell in wanted[:6]] == [
        "scratch-4-0",
        "scratch-8-0",
        "anchor-0-0",
        "anchor-4-0",
        "anchor-8-0",
        "anchor-energies-0-0",
    ]
    script.write_data(wanted, options)

    def with_high(name: str) -> set[bytes]:
        opened = open_dataset(tmp_path / "data" / name)
        return {record.structure.positions.tobytes() for record in opened if "dipole_ccsdt" in record.labels}

    train, test = (open_dataset(tmp_path / "data" / name) for name in ("train-8-0.h5", "test.h5"))
    assert len(train) == 34
    assert len(test) == 6
    assert set(train.labels) == {"dipole_ccsdt", "dipole_dft", "energy_dft", "forces_dft"}
    assert set(test.labels) == {"dipole_ccsdt", "dipole_dft"}
    assert len(with_high("train-4-0.h5")) == 4
    assert len(with_high("train-8-0.h5")) == 8
    assert with_high("train-4-0.h5") < with_high("train-8-0.h5") != with_high("train-8-1.h5")
    assert not with_high("train-0-0.h5")
    assert not with_high("test.h5") & {record.structure.positions.tobytes() for record in train}
    levels = script.compare_levels(test)
    assert levels["factor"] == pytest.approx(FACTOR)
    assert levels["scaled"]["mae_millidebye"] == pytest.approx(0.0, abs=1e-9)
    short = 1e3 * np.abs(test.values("dipole_dft")).mean() * (FACTOR - 1.0) / DEBYE
    assert levels["plain"]["mae_millidebye"] == pytest.approx(short)
    options.labels = [40]
    with pytest.raises(SystemExit, match="asks for 40 dipoles, the training part has 34"):
        script.write_data(list(script.cells(options)), options)


def test_the_report_says_what_errors_cost(script: ModuleType, tmp_path: Path) -> None:
    def write(arm: str, n_labels: int, seed: int, error: float, seconds: float) -> None:
        metrics = {"dipole_ccsdt": {"mae_millidebye": error, "mean_length_millidebye": 2 * error}}
        cell = script.Cell(arm, n_labels, seed)
        content = {**cell._asdict(), "metrics": metrics, "clock": {"step": 100, "seconds": seconds}}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(content), encoding="utf-8")

    for seed in (0, 1):
        write("anchor", 0, seed, 0.0, 120.0)
        for n in (10, 40, 160):
            # falls as 1/√n, a quarter of it with the other level
            write("scratch", n, seed, (80 + 2 * seed) / n**0.5, 60.0)
            write("anchor", n, seed, (20 + 2 * seed) / n**0.5, 60.0)
    levels = {"count": 6, "length_debye": 2.3, "factor": 1.14}
    levels |= {name: {"mae_millidebye": 160.0, "mean_length_millidebye": 300.0} for name in ("plain", "scaled")}
    (tmp_path / "levels.json").write_text(json.dumps(levels), encoding="utf-8")
    text = script.report(tmp_path)
    assert "| 40 | 0.0128 (0.0126 to 0.0130) | 0.0033 (0.0032 to 0.0035) |" in text
    assert "| MAE per component, D: 0.0100 | 66 (64 to 67) | ≤ 10 (≤ 10 to ≤ 10) |" in text
    # the error that scratch has with most labels costs just these
    rows = [line for line in text.splitlines() if "as `scratch` with 160" in line]
    assert [row.split(" | ")[0].split(": ")[1] for row in rows] == [
        f"{error}, as `scratch` with 160" for error in ("0.0064", "0.0128")
    ]
    assert all(row.split(" | ")[1].startswith("160 (") for row in rows)
    assert all(row.split(" | ")[2].startswith("11 (") for row in rows)
    assert "| CPU-minutes | 1.00 (1.00 to 1.00) | 3.00 (3.00 to 3.00) |" in text
    assert "| times 1.1400 | 0.1600 | 0.3000 |" in text
    # an error that is not reached
    assert script.price({10: {0: 0.5}, 20: {0: 0.4}}, 0.1) == "> 20"
    assert script.price({10: {0: 0.5}, 20: {1: 0.4}}, 0.1) == ""
