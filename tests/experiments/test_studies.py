"""The studies of the shipped labels are valid, and the data have what they ask for."""

import re
from pathlib import Path

import numpy as np
import pytest

from mfm.config import load_config
from mfm.data import open_dataset
from mfm.data.store import Store
from mfm.scaling.grid import write_data as write_scaling_data
from mfm.scaling.plan import Cell as ScalingCell
from mfm.scaling.plan import ScalingConfig
from mfm.study.cells import Layout
from mfm.transfer.grid import write_data as write_transfer_data
from mfm.transfer.plan import Cell, TransferConfig

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SIZES = [50, 200, 800, 3200]


def heavy_atoms(store: Store) -> np.ndarray:
    return store.n_atoms - store.composition(store.elements)[:, store.elements.index(1)]


def test_scaling_study(tmp_path: Path) -> None:
    config = load_config(ScalingConfig, EXPERIMENTS / "scaling" / "study.yaml")
    assert len(config.cells()) == 3 * 4 * 2 * 2
    assert config.structures == SIZES
    # a law needs three values of each axis, and seeds for its intervals
    assert len(config.sizes) >= 3
    assert config.seeds > 1
    layout = Layout(tmp_path)
    ends = [SIZES[0], SIZES[-1]]
    write_scaling_data(config.model_copy(update={"structures": ends}), layout)
    test = open_dataset(layout.test)
    assert sorted(set(test.molecules)) == list(test.card.test_molecules)
    for n in ends:
        train = open_dataset(layout.train(ScalingCell("c8", n, 400, 1)))
        assert len(train) == n
        assert train.coverage("forces_xtb").all()
        assert set(train.molecules).isdisjoint(test.molecules)
        assert set(test.elements) <= set(train.elements)
        assert set(test.charge_states) <= set(train.charge_states)


def test_transfer_study(tmp_path: Path) -> None:
    config = load_config(TransferConfig, EXPERIMENTS / "chno_transfer" / "study.yaml")
    assert len(config.cells()) == 3 * (1 + 5 * 3)
    assert config.stability is not None
    assert (config.stability.temperature, config.stability.structures) == (500, 2)
    assert config.labels == [50, 200, 500]
    # writing takes seconds per training set, and the largest asks for most
    one = config.model_copy(update={"labels": [500], "strategies": ["scratch"], "seeds": 1})
    layout = Layout(tmp_path)
    write_transfer_data(one, layout)
    train, test = open_dataset(layout.train(Cell("scratch", 500, 0))), open_dataset(layout.test)
    assert train.coverage("energy_ccsdt").sum() == 500
    assert train.coverage("forces_dft").sum() > 1000
    assert test.coverage("energy_ccsdt").sum() == 42
    assert set(train.molecules).isdisjoint(test.molecules)
    assert heavy_atoms(train).max() < 6


def test_structures_out_of_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXPERIMENTS / "chno_transfer" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"python - <<'END'\n(.*?)\nEND\n", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # what the reader is told to run
    (name,) = re.findall(r"out_of_distribution=(\S+)", text)
    store = open_dataset(tmp_path / name)
    assert len(store) == 6
    assert set(heavy_atoms(store)) == {6}
    assert store.coverage("energy_ccsdt").all()
    assert set(store.molecules) <= set(store.card.test_molecules)
