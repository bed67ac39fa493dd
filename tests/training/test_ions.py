"""Own charges of ions start from a linear fit, where ions make the forces."""

import logging

import ase
import numpy as np
import pytest
import torch

from mfm.config import validate
from mfm.data import DatasetCard, Record, Store
from mfm.fidelity import LevelOfTheory
from mfm.graph import build_graph
from mfm.model import MFMModel, ModelConfig, build_model
from mfm.structure import Structure
from mfm.training.data import fit_domain
from mfm.training.ions import fit_ions, start_from_ions
from mfm.units import COULOMB_CONSTANT
from tests.morse import morse_store

CARD = DatasetCard(name="ions", levels={"exact": LevelOfTheory(method="point charges")}, energy_zero="separate ions")
CHARGES = {12: 2.0, 17: -1.0, 11: 1.0, 19: 1.0}


def molten(numbers: list[int], count: int, periodic: bool = False) -> Store:
    """Clusters of point charges that repel each other; with `periodic`, in cells so large that images hardly count."""
    rng, records = np.random.default_rng(0), []
    atoms = np.array(numbers)
    charges = np.array([CHARGES[z] for z in numbers])
    corners = 3.1 * np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for _ in range(count):
        places = corners[rng.permutation(27)[: len(atoms)]] + 0.3 * rng.normal(size=(len(atoms), 3))
        vectors = places[:, None] - places[None]
        r = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms)) * 1e9
        pushes = COULOMB_CONSTANT * np.outer(charges, charges) / r**3 + 12 * 2e4 / r**14
        labels = {
            "energy_exact": np.array(0.5 * (COULOMB_CONSTANT * np.outer(charges, charges) / r + 2e4 / r**12).sum()),
            "forces_exact": (pushes[..., None] * vectors).sum(axis=1),
        }
        cell, pbc = np.eye(3) * 45.0 * periodic, np.full(3, periodic)
        records.append(Record(Structure(atoms, places, cell, pbc, int(charges.sum())), labels, molecule="ions"))
    return Store.from_records(records, CARD)


def model_of(store: Store, own_charges: bool = True, task: str = "energy_exact", **options: object) -> MFMModel:
    content = {
        "tasks": {task: {}},
        "backbone": {"cutoff": 5.0, "n_layers": 1, "n_channels": 8},
        "long_range": {"name": "latent_ewald", "own_charges": own_charges, **options},
    }
    config = validate(ModelConfig, content)
    return build_model(config, fit_domain(store, config.tasks, 5.0), 0, torch.float32)


SALT = [12, 17, 17, 11, 17, 11, 17, 12, 17, 17, 11, 17]


@pytest.mark.parametrize("periodic", [False, True])
def test_charges_of_point_charges_are_found(periodic):
    store = molten(SALT, 16, periodic)
    fit = fit_ions(store, "forces_exact", model_of(store).long_range.owners["all"], 5.0)
    assert fit.is_good
    assert fit.error < 0.2 * fit.error_of_pairs
    assert fit.charges.keys() == {11, 12, 17}
    for number, charge in fit.charges.items():
        # what the smooth charges of width 1.24 Å leave beyond the cutoff is the pairs' to describe, not quite
        assert charge == pytest.approx(CHARGES[number], abs=0.03)


def test_ions_that_never_meet_have_charges_of_their_own():
    records = [record for pair in zip(molten([11, 17] * 6, 8), molten([19, 17] * 6, 8), strict=True) for record in pair]
    # of every four neighbours two are fitted, one of each salt
    order = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]
    store = Store.from_records([records[number] for number in order], CARD)
    fit = fit_ions(store, "forces_exact", model_of(store).long_range.owners["all"], 5.0)
    assert fit.is_good
    for number, charge in fit.charges.items():
        assert charge == pytest.approx(CHARGES[number], abs=0.03)


def test_elements_that_were_not_fitted_start_as_they_would():
    store = Store.from_records([*molten(SALT, 16), *molten([19, 17] * 4, 1)], CARD)
    model = model_of(store)
    (owner,) = model.long_range.owners.values()
    before = owner.state.own_elements.detach().clone()
    start_from_ions(model, store.subset(range(16)))
    assert owner.state.own_elements[19] == before[19]
    assert owner.state.own_elements[17] != before[17]


@pytest.mark.parametrize("fidelities", ["shared", "own"])
def test_a_model_starts_with_them(fidelities, caplog):
    store = molten(SALT, 8)
    model = model_of(store, fidelities=fidelities)
    with caplog.at_level(logging.INFO, "mfm"):
        start_from_ions(model, store)
    assert "own charges start from a linear fit: Na +1.0" in caplog.text
    (owner,) = model.long_range.owners.values()
    for number in set(SALT):
        assert owner.state.own_elements[number, 0].item() == pytest.approx(CHARGES[number], abs=0.03)
    graph = build_graph(store[0].structure, model.cutoff)
    charges = owner.state(torch.randn(graph.n_atoms, model.backbone.n_scalars), graph).charges[:, 0]
    expected = [CHARGES[int(number)] for number in graph.atomic_numbers]
    np.testing.assert_allclose(charges.detach().numpy(), expected, atol=0.03)


def test_further_channels_keep_their_start():
    store = molten(SALT, 8)
    model = model_of(store, n_channels=2)
    start_from_ions(model, store)
    (owner,) = model.long_range.owners.values()
    graph = build_graph(store[0].structure, model.cutoff)
    charges = owner.state(torch.randn(graph.n_atoms, model.backbone.n_scalars), graph).charges
    assert charges[:, 0].abs().min() > 0.9
    assert charges[:, 1].abs().max() > 1e-3


def test_bonds_are_not_taken_for_ions(caplog):
    store = morse_store()
    model = model_of(store, task="energy_low")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "mfm"):
        start_from_ions(model, store)
    assert "own charges start from electronegativities" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def molecules(**charges: int) -> Store:
    """Structures of these formulas without forces; ``_`` sets apart those of one formula."""
    records = []
    for name, charge in charges.items():
        atoms = ase.Atoms(name.rstrip("_"))
        places = 1.2 * np.arange(3 * len(atoms)).reshape(-1, 3)
        labels = {"energy_exact": np.array(0.0)}
        records.append(Record(Structure(atoms.numbers, places, charge=charge), labels, molecule=name))
    return Store.from_records(records, CARD)


def test_own_charges_of_the_elements_add_up_to_the_total_charges(caplog):
    store = molecules(NH4=1, CHO2=-1, CHO2NH4=0, O2=0, O2_=-1)  # of O2 the composition does not tell the charge
    model = model_of(store)
    (owner,) = model.long_range.owners.values()
    before = owner.state.own_elements.detach().clone()
    with caplog.at_level(logging.INFO, "mfm"):
        start_from_ions(model, store)
    assert "from total charges: H " in caplog.text
    after = owner.state.own_elements.detach()[:, 0]
    assert float(after[7] + 4 * after[1]) == pytest.approx(1.0, abs=1e-6)
    assert float(after[6] + after[1] + 2 * after[8]) == pytest.approx(-1.0, abs=1e-6)
    # the least change: along the compositions alone
    shift = (after - before[:, 0])[[1, 6, 7, 8]].double().numpy()
    compositions = np.array([[4.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 2.0]])  # of H, C, N, O
    along = np.linalg.lstsq(compositions.T, shift, rcond=None)[0]
    np.testing.assert_allclose(compositions.T @ along, shift, atol=1e-6)
    others = [z for z in range(len(after)) if z not in (1, 6, 7, 8)]
    assert torch.equal(after[others], before[others, 0])


@pytest.mark.parametrize(
    "charges", [{"NH4": 1, "NH3": 0, "CH4": 0, "H2": 0}, {"CH4": 0, "H2O": 0}, {"O2": 0, "O2_": -1}]
)
def test_total_charges_that_the_elements_cannot_give_leave_the_start(charges):
    store = molecules(**charges)
    model = model_of(store)
    (owner,) = model.long_range.owners.values()
    before = owner.state.own_elements.detach().clone()
    start_from_ions(model, store)
    assert before[[1, 6, 7, 8]].all()
    assert torch.equal(owner.state.own_elements.detach(), before)


@pytest.mark.parametrize("own_charges", [False, None])
def test_models_without_own_charges_are_left_alone(own_charges, caplog):
    store = molten(SALT, 4)
    model = model_of(store, own_charges=False)
    if own_charges is None:
        content = model.config.model_dump() | {"long_range": None}
        model = build_model(validate(ModelConfig, content), model.domain, 0, torch.float32)
    with caplog.at_level(logging.INFO, "mfm"):
        start_from_ions(model, store)
    assert caplog.text == ""


def test_without_forces_nothing_is_fitted():
    records = [Record(r.structure, {"energy_exact": r.labels["energy_exact"]}, "ions") for r in molten(SALT, 3)]
    store = Store.from_records(records, CARD)
    model = model_of(store)
    start_from_ions(model, store)
    (owner,) = model.long_range.owners.values()
    assert owner.state.pulls.any()
    with pytest.raises(ValueError, match=r"`forces_exact` must be a label of the store, which has energy_exact"):
        fit_ions(store, "forces_exact", owner, 5.0)
