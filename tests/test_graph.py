"""Structures and graphs."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings

from mfm.graph import Structure, build_graph, collate, neighbour_list
from tests.strategies import crystals, molecules

WATER = Structure.from_ase(molecule("H2O"))


@settings(max_examples=20, deadline=None)
@given(crystals() | molecules())
def test_neighbours_are_those_of_ase(structure: Structure) -> None:
    cutoff = 3.1
    edge_index, shifts = neighbour_list(structure, cutoff)
    expected = neighbor_list("ijS", structure.to_ase(), cutoff)
    ours = {(int(i), int(j), *map(int, s)) for j, i, s in zip(*edge_index, shifts, strict=True)}
    assert ours == {(int(i), int(j), *map(int, s)) for i, j, s in zip(*expected, strict=True)}
    assert (np.diff(edge_index[1]) >= 0).all()


@settings(max_examples=20, deadline=None)
@given(crystals() | molecules())
def test_ase_round_trip(structure: Structure) -> None:
    assert Structure.from_ase(structure.to_ase()) == structure


def test_hash_sees_geometry_and_state_only_where_they_matter() -> None:
    jitter = Structure(WATER.atomic_numbers, WATER.positions + 1e-9)
    boxed = Structure(WATER.atomic_numbers, WATER.positions, 50.0 * np.eye(3))
    assert WATER == jitter == boxed
    assert len({WATER, jitter, boxed}) == 1
    others = [
        Structure(WATER.atomic_numbers, WATER.positions + 1e-4),
        Structure(WATER.atomic_numbers, WATER.positions, charge=1),
        Structure(WATER.atomic_numbers, WATER.positions, multiplicity=3),
        Structure(WATER.atomic_numbers, WATER.positions, 50.0 * np.eye(3), np.ones(3, dtype=bool)),
    ]
    assert len({WATER, *others}) == 5


def test_default_multiplicity_is_the_lowest() -> None:
    assert WATER.multiplicity == 1
    assert Structure(WATER.atomic_numbers, WATER.positions, charge=1).multiplicity == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atomic_numbers": np.array([])}, "non-empty list of integers"),
        ({"atomic_numbers": np.array([8.0, 1.0, 1.0])}, "integers, got float64"),
        ({"atomic_numbers": np.array([8, 1, 0])}, "must lie in 1 to 118, got 0 to 8"),
        ({"positions": np.zeros((2, 3))}, r"`positions` must have shape \(3, 3\), got \(2, 3\)"),
        ({"positions": np.array([[0, 0, 0], [np.nan, 0, 0], [1, 1, 1]])}, "must be finite, got .* for atom 1"),
        ({"cell": np.zeros(9)}, r"`cell` must have shape \(3, 3\), got \(9,\)"),
        ({"cell": np.full((3, 3), np.inf)}, "`cell` must be finite"),
        ({"pbc": np.ones(3, dtype=bool)}, r"`pbc` is \[True, True, True\] but the cell .* give the cell"),
        ({"multiplicity": 2}, "does not go with 10 electrons"),
        ({"charge": 11}, "does not go with -1 electrons"),
    ],
)
def test_bad_structures(changes: dict[str, object], message: str) -> None:
    fields = {"atomic_numbers": WATER.atomic_numbers, "positions": WATER.positions, **changes}
    with pytest.raises(ValueError, match=message):
        Structure(**fields)


def test_overlapping_atoms() -> None:
    positions = WATER.positions.copy()
    positions[1] = positions[0] + 0.05
    with pytest.raises(ValueError, match=r"got 0\.087 Å between atoms 0 \(O\) and 1 \(H\) in H2O; check the length"):
        Structure(WATER.atomic_numbers, positions).check_distances()
    WATER.check_distances()


def test_labels_missing_and_misshapen() -> None:
    names = ["energy_dft", "forces_dft", "stress_dft"]
    graph = build_graph(WATER, 3.0, {"energy_dft": np.array(2.0)}, names)
    assert graph.energy_dft.tolist() == [2.0]
    assert torch.isnan(graph.forces_dft).all()
    assert graph.forces_dft.shape == (3, 3)
    assert graph.stress_dft.shape == (1, 3, 3)
    with pytest.raises(ValueError, match=r"label `forces_dft` must have shape \(3, 3\), got \(9,\), in H2O"):
        build_graph(WATER, 3.0, {"forces_dft": np.zeros(9)}, names)


def test_collating_batches_equals_collating_graphs() -> None:
    salt = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.6))
    graphs = [build_graph(structure, 4.0, {}, ["energy_dft"]) for structure in (WATER, salt, WATER)]
    flat = collate(graphs)
    nested = collate([collate(graphs[:2]), graphs[2]])
    for name, value in flat.to_dict().items():
        torch.testing.assert_close(nested[name], value, equal_nan=True)
    assert flat.ptr.tolist() == [0, 3, 5, 8]
    assert flat.batch.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert flat.atoms_per_structure().tolist() == [3, 2, 3]


def test_collating_needs_the_same_fields() -> None:
    with pytest.raises(ValueError, match="at least one graph"):
        collate([])
    odd = [build_graph(WATER, 3.0, {}, ["energy_dft"]), build_graph(WATER, 3.0)]
    with pytest.raises(ValueError, match="graph 1 differs in energy_dft"):
        collate(odd)
