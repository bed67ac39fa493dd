"""Atomic references: isolated atoms, least squares, and what least squares cannot know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm.data import Record, Store
from mfm.data.references import fit_references, free_atom_energy, references_beside, residual_energies
from mfm.graph import Structure
from tests.strategies import CARD, random_records

TRUE = {1: -13.6, 6: -1036.2, 7: -1485.1, 8: -2042.6}


def labelled(compositions, offset=0.0, task="energy_dft"):
    """Store whose energies are sums over atoms, plus an offset per structure."""
    made = []
    for numbers in compositions:
        x = np.zeros((len(numbers), 3))
        x[:, 0] = np.arange(len(numbers))
        energy = sum(TRUE[z] for z in numbers) + offset
        made.append(Record(Structure(np.array(numbers), x), {task: np.array(energy)}))
    return Store.from_records(made, CARD)


# Hartree-Fock limits, hartree: Bunge, Barrientos, Bunge, At. Data Nucl. Data Tables 53, 113 (1993)
@pytest.mark.parametrize(("z", "energy"), [(6, -37.6886), (7, -54.4009), (8, -74.8094), (16, -397.5049)])
def test_free_atoms_against_hartree_fock(z, energy):
    assert free_atom_energy(z) / 27.211386245988 == pytest.approx(energy, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from(sorted(TRUE)), min_size=1, max_size=6), min_size=1, max_size=8))
def test_least_squares_reproduces_sums_over_atoms(compositions):
    store = labelled(compositions)
    references = fit_references(store, ["dft"])["dft"]
    np.testing.assert_allclose(residual_energies(store, "energy_dft", references), 0.0, atol=1e-8)


def test_determined_references_are_found():
    store = labelled([[1, 1], [6, 8], [8, 8], [6, 1, 1, 1], [7, 7]])
    fitted = fit_references(store, ["dft"])["dft"]
    assert fitted == pytest.approx(TRUE, abs=1e-8)


def test_one_molecule_stays_near_free_atoms():
    store = labelled([[8, 1, 1]] * 3, offset=-9.5)
    fitted = fit_references(store, ["dft"])["dft"]
    # the atomisation energy is shared out; no atom takes the energy of another
    assert fitted[8] == pytest.approx(TRUE[8], abs=15)
    assert fitted[1] == pytest.approx(TRUE[1], abs=15)
    assert fitted[8] + 2 * fitted[1] == pytest.approx(TRUE[8] + 2 * TRUE[1] - 9.5)


def test_one_molecule_of_formation_energies_shares_evenly():
    x = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    water = Record(Structure(np.array([8, 1, 1]), x), {"energy_dft": np.array(-9.0)})
    fitted = fit_references(Store.from_records([water], CARD), ["dft"])["dft"]
    assert fitted == pytest.approx({1: -3.0, 8: -3.0})


def test_rare_element_is_determined():
    store = labelled([[1] * 6 + [6]] * 200 + [[1] * 4 + [6, 6]] * 200 + [[1, 8, 6]])
    assert fit_references(store, ["dft"])["dft"][8] == pytest.approx(TRUE[8], abs=1e-6)


def test_isolated_atoms_of_the_card_come_first():
    card = CARD.replace(references={"dft": {"H": -13.0, "O": -2040.0, "N": -1.0}})
    store = Store(*_columns(labelled([[8, 1, 1]])), card)
    assert fit_references(store, ["dft"])["dft"] == {1: -13.0, 8: -2040.0, 7: -1.0}
    fitted = fit_references(store, ["dft"], method="least_squares")["dft"]
    assert set(fitted) == {1, 8}
    residual = residual_energies(store, "energy_dft", {1: -13.0, 8: -2040.0})
    assert residual[0] == pytest.approx(TRUE[8] + 2 * TRUE[1] + 2066.0)


def _columns(store):
    return store._columns, store._tables


def test_element_without_a_reference():
    card = CARD.replace(references={"dft": {"H": -13.0}})
    store = Store(*_columns(labelled([[8, 1, 1]])), card)
    message = r"every element needs a reference energy, O has none at `dft` of card `generated` \(known: H\)"
    with pytest.raises(ValueError, match=message):
        fit_references(store, ["dft"])
    with pytest.raises(ValueError, match=r"O has none at `energy_dft` \(known: H\)"):
        residual_energies(store, "energy_dft", {1: -13.0})


def test_each_fidelity_uses_its_own_records():
    store = Store.from_records(random_records(30), CARD)
    references = fit_references(store, ["dft", "ccsdt"])
    assert set(references) == {"dft", "ccsdt"}
    residual = residual_energies(store, "energy_ccsdt", references["ccsdt"])
    np.testing.assert_array_equal(np.isnan(residual), ~store.coverage("energy_ccsdt"))
    assert residual.dtype == np.float64


def test_no_energies_at_a_fidelity():
    store = Store.from_records(random_records(3), CARD).subset([1, 2])
    with pytest.raises(ValueError, match=r"references of `ccsdt` need at least one record with `energy_ccsdt`"):
        fit_references(store, ["ccsdt"])
    with pytest.raises(ValueError, match=r"card `generated` gives no isolated atoms for `dft`"):
        fit_references(store, ["dft"], method="isolated_atoms")


def test_references_beside_a_base_take_the_difference_of_paired_records():
    pairs = []
    for record in labelled([[1, 1], [6, 8], [8, 1, 1], [6, 1, 1, 1]]):
        numbers = record.structure.atomic_numbers
        high = record.labels["energy_dft"] + 0.5 * len(numbers) + 0.25 * (numbers == 8).sum()
        pairs.append(Record(record.structure, {**record.labels, "energy_ccsdt": high}))
    beside = references_beside(Store.from_records(pairs, CARD), "ccsdt", "dft", TRUE)
    assert beside == pytest.approx({1: TRUE[1] + 0.5, 6: TRUE[6] + 0.5, 8: TRUE[8] + 0.75}, abs=1e-9)


def test_references_beside_a_base_need_paired_records():
    unpaired = [*labelled([[1, 1]]), *labelled([[8, 8]], task="energy_ccsdt")]
    with pytest.raises(ValueError, match="need records with both `energy_ccsdt` and `energy_dft`, got none"):
        references_beside(Store.from_records(unpaired, CARD), "ccsdt", "dft", TRUE)
