"""Splits: no molecule and no geometry in two parts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm.data import Record, Store
from mfm.data.splits import (
    by_file,
    by_molecule,
    check_split,
    first_n,
    predefined,
    random_frames,
    shared_geometries,
    write_split,
)
from tests.strategies import CARD, random_records

STORE = Store.from_records(random_records(60, molecules=12), CARD)


def covers_all(split, store):
    return np.array_equal(np.sort(np.concatenate(list(split.values()))), np.arange(len(store)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_molecules=st.integers(3, 20))
def test_by_molecule_never_parts_a_molecule(seed, n_molecules):
    store = Store.from_records(random_records(3 * n_molecules, molecules=n_molecules), CARD)
    split = by_molecule(store, seed=seed)
    check_split(store, split, whole_molecules=True)
    assert covers_all(split, store)
    assert set(split) == {"train", "valid", "test"}


def test_shares_and_seed():
    split = by_molecule(STORE, {"train": 0.5, "test": 0.5}, seed=3)
    assert len(split["train"]) == len(split["test"]) == 30
    again = by_molecule(STORE, {"train": 0.5, "test": 0.5}, seed=3)
    other = by_molecule(STORE, {"train": 0.5, "test": 0.5}, seed=4)
    assert np.array_equal(split["train"], again["train"])
    assert not np.array_equal(split["train"], other["train"])


def test_expensive_labels_are_shared_out():
    made = random_records(80, molecules=16)
    # only the molecules m0 to m3 carry the expensive label
    keep = [f"m{i}" for i in range(4)]
    made = [
        r if r.molecule in keep else Record(r.structure, {"energy_dft": r.labels["energy_dft"]}, r.molecule)
        for r in made
    ]
    store = Store.from_records(made, CARD)
    for seed in range(5):
        split = by_molecule(store, {"train": 0.5, "test": 0.5}, seed)
        for part in split.values():
            assert len(set(store.molecules[part]) & set(keep)) == 2


def test_held_out_molecules_are_the_test_set():
    store = STORE.with_card(CARD.replace(test_molecules=("m3", "m7")))
    split = by_molecule(store)
    assert set(store.molecules[split["test"]]) == {"m3", "m7"}
    assert len(split["valid"]) == 5
    assert covers_all(split, store)
    assert set(by_molecule(store, {"train": 0.9, "valid": 0.1})) == {"train", "valid", "test"}


def test_too_few_molecules():
    store = Store.from_records(random_records(10, molecules=2), CARD)
    with pytest.raises(ValueError, match=r"a split by molecule into train, valid, test needs as many molecules, got 2"):
        by_molecule(store)


def test_random_frames_keeps_equal_geometries_together():
    made = random_records(20)
    store = Store.from_records(made + made, CARD)
    split = random_frames(store, {"train": 0.5, "test": 0.5})
    assert covers_all(split, store)
    assert set(split["train"] % 20).isdisjoint(split["test"] % 20)
    assert len(shared_geometries(store.subset(split["train"]), store.subset(split["test"]))) == 0
    assert list(shared_geometries(store.subset([0, 1]), store.subset([5, 21]))) == [1]


def test_bad_fractions():
    with pytest.raises(ValueError, match=r"fractions must be positive and sum to 1, got"):
        by_molecule(STORE, {"train": 0.5, "test": 0.4})
    with pytest.raises(ValueError, match=r"part `test` would be empty with 60 geometries"):
        random_frames(STORE, {"train": 0.999, "test": 0.001})


def test_first_n():
    split = first_n(STORE, {"train": 10, "valid": 5})
    assert list(split["valid"]) == [10, 11, 12, 13, 14]
    with pytest.raises(ValueError, match=r"sizes must be at least 1 and sum to at most 60 records"):
        first_n(STORE, {"train": 61})


def test_predefined():
    split = predefined(STORE, {"train": ["m1", "m2"], "test": [0]})
    assert set(STORE.molecules[split["train"]]) == {"m1", "m2"}
    with pytest.raises(ValueError, match=r"part `train` names molecules that `generated` lacks: m99"):
        predefined(STORE, {"train": ["m99"]})
    with pytest.raises(ValueError, match=r"record 3 must be in one part, it is in `train` and `test`"):
        predefined(STORE, {"train": [1, 3], "test": [3]})
    with pytest.raises(ValueError, match=r"part `train` must have positions in 0 to 59, got 60"):
        predefined(STORE, {"train": [60]})
    leaky = predefined(STORE, {"train": [0], "test": [12]})
    with pytest.raises(ValueError, match=r"molecule `m0` must be in one part, it is in `train` and `test`"):
        check_split(STORE, leaky, whole_molecules=True)


def test_file_round_trip(tmp_path):
    path = tmp_path / "split.json"
    split = by_molecule(STORE)
    write_split(path, split, STORE)
    for part, indices in by_file(STORE, path).items():
        np.testing.assert_array_equal(indices, split[part])
    with pytest.raises(ValueError, match=r"was made for data with digest"):
        by_file(STORE.subset(np.arange(30)), path)
    path.write_text(json.dumps({"train": ["m1"], "test": ["m2"]}))
    assert set(by_file(STORE, path)) == {"train", "test"}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read split"):
        by_file(STORE, path)
