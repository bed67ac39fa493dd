"""Stores: the same content in memory and in a file, whole or not at all."""

import pickle

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from mfm.data import DatasetCard, Record, Store, write_store
from mfm.data.columns import ColumnBuilder
from mfm.graph import Structure
from tests.strategies import CARD, crystals, molecules, random_records, records

WITH_CRYSTALS = records(st.one_of(molecules(), crystals()))


def assert_equal(one: Record, other: Record) -> None:
    for name in ("atomic_numbers", "positions", "cell", "pbc"):
        np.testing.assert_array_equal(getattr(one.structure, name), getattr(other.structure, name))
    assert (one.structure.charge, one.structure.multiplicity) == (other.structure.charge, other.structure.multiplicity)
    assert (one.molecule, one.origin, dict(one.flags)) == (other.molecule, other.origin, dict(other.flags))
    assert one.labels.keys() == other.labels.keys()
    for task, value in one.labels.items():
        np.testing.assert_array_equal(value, other.labels[task])
        assert value.shape == other.labels[task].shape


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(WITH_CRYSTALS, min_size=1, max_size=3))
def test_memory_and_file_return_what_was_put_in(tmp_path, made):
    store = Store.from_records(made, CARD)
    write_store(tmp_path / "a.h5", made, CARD)
    opened = Store.open(tmp_path / "a.h5")
    assert len(store) == len(opened) == len(made)
    for i, record in enumerate(made):
        assert_equal(store[i], record)
        assert_equal(opened[i], record)
    assert opened.digest == store.digest
    assert opened.labels == store.labels


def test_columns():
    made = random_records(20)
    store = Store.from_records(made, CARD)
    assert store.labels == ["energy_ccsdt", "energy_dft", "forces_dft"]
    assert store.fidelities == ["dft", "ccsdt"]
    assert store.elements == sorted({int(z) for record in made for z in record.structure.atomic_numbers})
    np.testing.assert_array_equal(store.n_atoms, [len(record.structure) for record in made])
    np.testing.assert_array_equal(store.coverage("energy_ccsdt"), np.arange(20) % 3 == 0)
    assert not store.coverage("dipole_dft").any()
    energies = store.energies("energy_ccsdt")
    assert np.isnan(energies[1])
    assert energies[3] == made[3].labels["energy_ccsdt"]
    expected = np.concatenate([record.labels["forces_dft"] for record in made])
    np.testing.assert_array_equal(store.values("forces_dft"), expected)
    counts = store.composition(store.elements)
    np.testing.assert_array_equal(counts.sum(axis=1), store.n_atoms)
    assert counts[4, store.elements.index(1)] == np.sum(made[4].structure.atomic_numbers == 1)


def test_subset_is_a_store_of_its_own():
    made = random_records(20)
    store = Store.from_records(made, CARD)
    part = store.subset([7, 3, 9])
    for i, record in enumerate((made[7], made[3], made[9])):
        assert_equal(part[i], record)
    np.testing.assert_array_equal(part.coverage("energy_ccsdt"), [False, True, True])
    expected = np.concatenate([made[i].labels["forces_dft"] for i in (7, 3, 9)])
    np.testing.assert_array_equal(part.values("forces_dft"), expected)
    alone = Store.from_records([made[7], made[3], made[9]], CARD)
    assert part.digest == alone.digest != store.digest
    np.testing.assert_array_equal(part.subset([2, 0]).molecules, ["m4", "m2"])
    assert len(store.subset(store.coverage("energy_ccsdt"))) == 7


def test_flags():
    structure = Structure(np.array([1]), np.zeros((1, 3)))
    store = Store.from_records([Record(structure, {}, flags={"t1": 0.1}), Record(structure, {})], CARD)
    np.testing.assert_array_equal(store.flag("t1"), [0.1, np.nan])
    with pytest.raises(ValueError, match=r"flag must be one of t1, got `t2`"):
        store.flag("t2")


def test_pickle_maps_the_file_again(tmp_path):
    made = random_records(50)
    write_store(tmp_path / "a.h5", made, CARD)
    part = Store.open(tmp_path / "a.h5").subset([4, 2])
    pickled = pickle.dumps(part)
    assert len(pickled) < 4000
    assert pickle.loads(pickled).digest == part.digest
    memory = Store.from_records(made, CARD).subset([4, 2])
    assert pickle.loads(pickle.dumps(memory)).digest == part.digest


def test_spilling_gives_the_same_columns(tmp_path):
    made = random_records(30)
    spilling, whole = ColumnBuilder(CARD, tmp_path, spill_bytes=100), ColumnBuilder(CARD)
    for record in made:
        spilling.append(record)
        whole.append(record)
    (one, tables), (other, other_tables) = spilling.finish(), whole.finish()
    assert tables == other_tables
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_written_card_states_mfm_units(tmp_path):
    card = CARD.replace(units={"energy": "hartree"}, files=({"path": "a", "sha256": "0" * 64},))
    write_store(tmp_path / "a.h5", random_records(3), card)
    written = Store.open(tmp_path / "a.h5").card
    assert written.units == {"energy": "eV", "forces": "eV/Å"}
    assert written.files == ()


def test_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield from random_records(3)
        raise RuntimeError("the node went down")

    with pytest.raises(RuntimeError, match=r"went down"):
        write_store(tmp_path / "a.h5", failing(), CARD)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path):
    write_store(tmp_path / "a.h5", random_records(3), CARD)
    before = Store.open(tmp_path / "a.h5").digest
    with pytest.raises(ValueError, match=r"must have at least one record"):
        write_store(tmp_path / "a.h5", [], CARD)
    assert Store.open(tmp_path / "a.h5").digest == before


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"folder .*nowhere` does not exist"):
        write_store(tmp_path / "nowhere" / "a.h5", random_records(1), CARD)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path, share):
    path = tmp_path / "a.h5"
    write_store(path, random_records(30), CARD)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"may be truncated"):
        Store.open(path)


def test_other_hdf5_and_newer_version(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"is HDF5 but not an mfm store"):
        Store.open(path)
    write_store(path, random_records(1), CARD)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(ValueError, match=r"has store version 99, this mfm reads up to 1; update mfm"):
        Store.open(path)


def test_fidelity_without_a_level():
    message = "record 0 of `empty`: label `energy_dft` has fidelity `dft`, whose level of theory the card does not give"
    with pytest.raises(ValueError, match=message):
        Store.from_records(random_records(1), DatasetCard(name="empty"))


def test_overlapping_atoms():
    made = random_records(2)
    x = np.zeros((2, 3))
    x[1, 0] = 0.15
    bad = Record(Structure(np.array([1, 8]), x), {})
    with pytest.raises(ValueError, match=r"record 2 of `generated`: .*got 0.150 Å between atoms . \(.\) and . \(.\)"):
        Store.from_records([*made, bad], CARD)


def test_overlap_across_a_boundary():
    x = np.array([[0.05, 0.0, 0.0], [2.95, 0.0, 0.0]])
    bad = Record(Structure(np.array([1, 8]), x, 3.0 * np.eye(3), np.ones(3, dtype=bool)), {})
    with pytest.raises(ValueError, match=r"got 0.100 Å between atoms"):
        Store.from_records([bad], CARD)


def test_bad_requests():
    store = Store.from_records(random_records(4), CARD)
    with pytest.raises(ValueError, match=r"task must be an energy, got `forces_dft`"):
        store.energies("forces_dft")
    with pytest.raises(
        ValueError, match=r"label must be one of energy_ccsdt, energy_dft, forces_dft, got `dipole_dft`"
    ):
        store.values("dipole_dft")
    with pytest.raises(ValueError, match=r"indices must lie in 0 to 3, got 0 to 9"):
        store.subset([0, 9])
    with pytest.raises(ValueError, match=r"`elements` must hold every element of the store"):
        store.composition([1])
    with pytest.raises(IndexError, match=r"record must lie in 0 to 3, got 4"):
        store[4]
