"""The shipped datasets hold what their cards and the documentation promise."""

from pathlib import Path

import numpy as np
import pytest

from mfm.data.opening import open_dataset
from mfm.data.store import Store
from mfm.labelling.geometries import canonical_smiles
from mfm.labelling.levels import LEVELS
from mfm.labelling.plan import read_plan
from mfm.units import HARTREE

PLAN = Path(__file__).parents[2] / "data_scripts/chno_mini.yaml"


@pytest.fixture(scope="module")
def store() -> Store:
    return open_dataset("builtin:chno-mini")


def test_counts(store: Store) -> None:
    assert len(set(store.molecules)) >= 60
    assert len(store) >= 500
    assert store.coverage("energy_dft").all()
    assert store.coverage("energy_ccsdt").sum() >= 200
    assert store.elements == [1, 6, 7, 8]
    assert len({record.structure.content_hash() for record in store}) == len(store)


def test_it_is_what_the_plan_asked_for(store: Store) -> None:
    plan = read_plan(PLAN)
    assert set(store.molecules) == {molecule.smiles for molecule in plan.molecules}
    assert sorted(store.card.test_molecules) == sorted(plan.test_molecules)
    assert all(canonical_smiles(molecule) == molecule for molecule in set(store.molecules))
    for name in ("dft", "ccsdt"):
        assert LEVELS[name].identifier in store.card.levels[name].settings


def test_test_molecules_have_both_levels_at_every_size(store: Store) -> None:
    held_out = np.isin(store.molecules, store.card.test_molecules)
    n_heavy = store.composition([1, 6, 7, 8])[:, 1:].sum(axis=1)
    for size in (2, 3, 4):
        chosen = held_out & (n_heavy == size)
        assert len(set(store.molecules[chosen])) >= 2
        assert store.coverage("energy_ccsdt")[chosen].sum() >= 8


def test_labels_are_physical(store: Store) -> None:
    for record in store:
        assert np.abs(record.labels["forces_dft"].sum(axis=0)).max() < 5e-3
        assert record.labels["charges_dft"].sum() == pytest.approx(0.0, abs=1e-3)
        assert record.flags.get("t1_ccsdt", 0.0) <= 0.02
        assert record.flags.get("d1_ccsdt", 0.0) <= 0.06


def test_atomisation_energies_of_both_levels_agree(store: Store) -> None:
    """References and energies are of one level: a mix-up would cost tens of eV."""
    references = store.card.references
    assert references["ccsdt"]["H"] == pytest.approx(-0.5 * HARTREE, abs=1e-3)
    counts = store.composition([1, 6, 7, 8])
    has_both = store.coverage("energy_ccsdt")
    atoms = {name: counts @ [references[name][symbol] for symbol in "HCNO"] for name in ("dft", "ccsdt")}
    binding = {name: (store.energies(f"energy_{name}") - atoms[name]) / store.n_atoms for name in ("dft", "ccsdt")}
    assert (binding["dft"] < -1.5).all()
    np.testing.assert_allclose(binding["dft"][has_both], binding["ccsdt"][has_both], atol=0.1)


def test_ccsdt_forces_are_of_other_geometries(store: Store) -> None:
    forces = open_dataset("builtin:ccsdt-forces")
    known = {record.structure.content_hash() for record in store}
    assert len(forces) == 5
    for record in forces:
        assert record.structure.content_hash() not in known
        assert record.labels["forces_ccsdt"].shape == record.labels["forces_dft"].shape
        assert record.flags["net_force_ccsdt"] < 1e-4
    assert store.card.levels["ccsdt"].is_compatible(forces.card.levels["ccsdt"])
    assert store.card.levels["dft"].is_compatible(forces.card.levels["dft"])
