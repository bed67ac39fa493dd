"""Geometries: reproducible, distinct, bonded; SMILES that cannot be used are refused."""

import numpy as np
import pytest

from mfm.graph import Structure
from mfm.labelling import sampling
from mfm.labelling.geometries import (
    bonds,
    canonical_smiles,
    conformers,
    fingerprint,
    rotatable_dihedrals,
    side_of_bond,
)
from mfm.labelling.levels import LEVELS, TightBindingLevel
from mfm.labelling.sampling import Sample, sample_molecule
from mfm.labelling.xtb import label_xtb


@pytest.fixture(scope="module")
def peroxide() -> list[Sample]:
    return sample_molecule("OO", 9, seed=5)


def test_samples_start_at_the_equilibrium_and_vary_in_origin(peroxide: list[Sample]) -> None:
    assert peroxide[0].origin == "equilibrium"
    assert {sample.molecule for sample in peroxide} == {"OO"}
    assert len({sample.origin for sample in peroxide}) >= 4
    forces = label_xtb(peroxide[0].structure, TightBindingLevel()).values["forces"]
    # the optimiser stops at 0.005 eV/Å on the norm of an atom's force
    assert np.abs(forces).max() < 0.01


def test_samples_are_distinct_and_keep_their_bonds(peroxide: list[Sample]) -> None:
    marks = [fingerprint(sample.structure) for sample in peroxide]
    for k, mark in enumerate(marks):
        assert all(np.abs(mark - other).max() > 0.01 for other in marks[:k])
    i, j = bonds("OO").T
    start = peroxide[0].structure.positions
    equilibrium = np.linalg.norm(start[i] - start[j], axis=1)
    for sample in peroxide:
        positions = sample.structure.positions
        ratios = np.linalg.norm(positions[i] - positions[j], axis=1) / equilibrium
        assert 0.7 <= ratios.min() <= ratios.max() <= 1.5


def test_the_seed_fixes_everything_and_more_samples_extend_fewer(peroxide: list[Sample]) -> None:
    again = sample_molecule("OO", 4, seed=5)
    assert [s.structure.content_hash() for s in again] == [s.structure.content_hash() for s in peroxide[:4]]
    other = sample_molecule("OO", 2, seed=6)
    assert other[1].structure.content_hash() != peroxide[1].structure.content_hash()


def test_impossible_requests_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling._Sampler, "is_acceptable", lambda self, positions: False)
    monkeypatch.setattr(sampling, "_PATTERN", ("modes",))
    with pytest.raises(ValueError, match=r"`O` must give 2 distinct geometries, got 1 in 401 trials"):
        sample_molecule("O", 2, seed=0)


def test_conformers_are_distinct() -> None:
    found = conformers("OCCO", n_trials=10, seed=1)
    assert len(found) > 1
    assert all(structure.formula == "C2H6O2" for structure in found)


def test_an_unreadable_smiles_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"SMILES must parse and obey valence rules, got `C\(C`"):
        canonical_smiles("C(C")


def test_a_molecule_that_does_not_embed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfm.labelling.geometries.rdDistGeom.EmbedMultipleConfs", lambda *arguments: [])
    with pytest.raises(ValueError, match=r"`CC` must embed in three dimensions, got no geometry in 3 trials"):
        conformers("CC", n_trials=3, seed=0)


def test_graph_helpers() -> None:
    assert canonical_smiles("OCC") == canonical_smiles("CCO") == "CCO"
    assert len(bonds("CCO")) == 8
    # C-C and C-O turn; a triple bond's axis does not
    assert len(rotatable_dihedrals("CCO")) == 2
    assert rotatable_dihedrals("CC#C") == []
    assert len(side_of_bond("CCO", 0, 1)) == 5
    assert len(side_of_bond("C1CC1", 0, 1)) == 9


def test_fingerprint_ignores_rotation_and_order() -> None:
    numbers, positions = np.array([8, 1, 1]), np.array([[0.0, 0, 0], [0.9, 0, 0], [0, 1.1, 0]])
    turned = Structure(numbers[[2, 0, 1]], positions[[2, 0, 1]] @ np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    np.testing.assert_allclose(fingerprint(turned), fingerprint(Structure(numbers, positions)), atol=1e-12)


def test_level_identifiers_tell_settings_apart() -> None:
    assert len({level.identifier for level in LEVELS.values()}) == 3
    assert TightBindingLevel(accuracy=0.1).identifier != TightBindingLevel().identifier
    for level in LEVELS.values():
        assert level.identifier in level.level_of_theory("1.0").settings


def test_identifiers_of_shipped_labels_do_not_change() -> None:
    """Labels are stored under these names: a changed default must get a new name, on purpose."""
    assert LEVELS["dft"].identifier == "dft:wb97m-d3bj/def2-tzvppd:615617ee0d1c"
    assert LEVELS["ccsdt"].identifier == "composite:ccsd(t)/cbs(cc-pvtz,cc-pvqz)+cc-pvdz:2b7df5c90186"
