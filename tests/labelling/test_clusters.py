"""Dimers and clusters: monomers intact, contacts in range, reproducible."""

import contextlib

import ase.data
import numpy as np
import pytest
from ase.calculators.calculator import CalculationFailed

from mfm.graph import Structure
from mfm.labelling import clusters
from mfm.labelling.clusters import sample_cluster
from mfm.labelling.geometries import fragments, keeps_bonds
from mfm.labelling.sampling import Sample


@pytest.fixture(scope="module")
def ionic() -> list[Sample]:
    return sample_cluster("[NH4+].O", 4, seed=2)


def test_charge_parent_and_origins(ionic: list[Sample]) -> None:
    assert {sample.structure.charge for sample in ionic} == {1}
    assert {sample.molecule for sample in ionic} == {sample.parent for sample in ionic} == {"O.[NH4+]"}
    assert sorted(sample.origin for sample in ionic) == ["contact", "contact", "md300", "relaxed"]


def test_contacts_are_in_range(ionic: list[Sample]) -> None:
    for sample in ionic:
        (_, first), (_, second) = fragments(sample.molecule)
        positions, radii = sample.structure.positions, ase.data.vdw_radii[sample.structure.atomic_numbers]
        apart = np.linalg.norm(positions[first][:, None] - positions[second][None], axis=-1)
        closest = (apart / (radii[first][:, None] + radii[second][None])).min()
        if sample.origin == "contact":
            assert 0.79 < closest < 2.05
        # each part is the molecule that its name says
        assert sorted(sample.structure.atomic_numbers[first].tolist()) == [1, 1, 8]


def test_more_samples_extend_fewer(ionic: list[Sample]) -> None:
    assert sample_cluster("O.[NH4+]", 2, seed=2) == ionic[:2]


def test_radicals_and_atoms_join_clusters() -> None:
    (sample,) = sample_cluster("[OH].[Na+]", 1, seed=1)
    assert (sample.structure.charge, sample.structure.multiplicity) == (1, 2)


def test_clusters_that_react_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ammonium gives its proton to hydroxide: both are there in contact, and water and ammonia once relaxed."""
    monkeypatch.setattr(clusters, "_TURNS", ("contact",))
    (contact,) = sample_cluster("[NH4+].[OH-]", 1, seed=4)
    assert keeps_bonds(contact.structure, contact.molecule)
    relaxed = _relaxed(clusters._Cluster("[NH4+].[OH-]", 4))
    monkeypatch.setattr(clusters._Cluster, "relaxed", lambda cluster: relaxed)
    monkeypatch.setattr(clusters, "_TURNS", ("relaxed",))
    with pytest.raises(
        ValueError, match=r"must give 1 distinct geometries, got 0 in 21 trials, in 20 of which molecules reacted"
    ):
        sample_cluster("[NH4+].[OH-]", 1, seed=4)


def _relaxed(cluster: clusters._Cluster) -> Structure:
    """The first relaxation along which tight binding converges."""
    for _ in range(10):
        with contextlib.suppress(CalculationFailed):
            return cluster.relaxed()
    raise AssertionError("no relaxation came to an end")


def test_impossible_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a cluster must have two or more molecules separated by `\.`, got `CO`"):
        sample_cluster("CO", 1, seed=0)
    monkeypatch.setattr(clusters, "_CAP", -1e3)
    monkeypatch.setattr(clusters, "_TURNS", ("contact",))
    with pytest.raises(ValueError, match=r"`O.O` must give 1 distinct geometries, got 0 in 21 trials, in 0 of which"):
        sample_cluster("O.O", 1, seed=0)
