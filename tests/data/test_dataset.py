"""Graphs with residual energies."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mfm.data import Record, Store
from mfm.data.dataset import GraphDataset
from mfm.data.references import fit_references
from mfm.data.sampling import AtomBudgetBatchSampler
from mfm.graph import Structure, collate
from tests.strategies import CARD, random_records

STORE = Store.from_records(random_records(12), CARD)
REFERENCES = fit_references(STORE, ["dft", "ccsdt"])
TASKS = ["energy_dft", "forces_dft", "energy_ccsdt", "dipole_dft"]


def test_labels_and_missing_labels():
    dataset = GraphDataset(STORE, 4.0, TASKS, REFERENCES, dtype=torch.float64)
    graph, record = dataset[1], STORE[1]
    assert set(TASKS) <= set(graph.keys())
    torch.testing.assert_close(graph["forces_dft"], torch.as_tensor(record.labels["forces_dft"]))
    atoms = sum(REFERENCES["dft"][int(z)] for z in record.structure.atomic_numbers)
    assert graph["energy_dft"].item() == pytest.approx(float(record.labels["energy_dft"]) - atoms, abs=1e-8)
    assert graph["energy_ccsdt"].isnan().all()
    assert graph["dipole_dft"].shape == (1, 3)
    assert graph["dipole_dft"].isnan().all()


def test_energies_keep_their_digits():
    # 1e-4 eV on 17.6 keV is lost in float32 unless the references go first
    numbers = np.array([8] * 8 + [6] * 9 + [1] * 8)
    x = np.stack(np.unravel_index(np.arange(25), (3, 3, 3)), axis=1) * 1.2
    energies = [-17617.7301, -17617.7302]
    made = [Record(Structure(numbers, x + 0.01 * i), {"energy_dft": np.array(e)}) for i, e in enumerate(energies)]
    store = Store.from_records(made, CARD)
    dataset = GraphDataset(store, 3.0, ["energy_dft"], fit_references(store, ["dft"]))
    assert dataset[0]["energy_dft"].dtype == torch.float32
    assert (dataset[0]["energy_dft"] - dataset[1]["energy_dft"]).item() == pytest.approx(1e-4, rel=1e-3)


def test_graphs_are_kept():
    dataset = GraphDataset(STORE, 4.0, TASKS, REFERENCES)
    assert dataset[3] is dataset[3]
    fresh = GraphDataset(STORE, 4.0, TASKS, REFERENCES, cache=False)
    assert fresh[3] is not fresh[3]


def test_batches_through_a_loader():
    dataset = GraphDataset(STORE, 4.0, TASKS, REFERENCES)
    sampler = AtomBudgetBatchSampler(STORE.n_atoms, 20)
    batches = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate))
    assert sum(batch.n_structures for batch in batches) == len(STORE)
    assert max(batch.n_atoms for batch in batches) <= 20
    assert pickle.loads(pickle.dumps(dataset))[0].n_atoms == dataset[0].n_atoms


def test_energy_without_references():
    with pytest.raises(ValueError, match=r"`energy_ccsdt` needs atomic references of `ccsdt`, got only dft"):
        GraphDataset(STORE, 4.0, TASKS, {"dft": REFERENCES["dft"]})
    with pytest.raises(ValueError, match=r"every element needs a reference energy"):
        GraphDataset(STORE, 4.0, ["energy_dft"], {"dft": {1: -13.6}})


def test_force_rms():
    dataset = GraphDataset(STORE, 4.0, TASKS, REFERENCES)
    assert dataset.force_rms("dft") == pytest.approx(np.sqrt(np.mean(STORE.values("forces_dft") ** 2)))
    with pytest.raises(ValueError, match=r"no record of .* carries `forces_ccsdt`"):
        dataset.force_rms("ccsdt")
