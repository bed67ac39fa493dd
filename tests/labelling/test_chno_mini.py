"""The shipped datasets hold what their cards and the documentation promise."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from mfm.data.info import describe, format_description
from mfm.data.joining import join_labels
from mfm.data.opening import BUILTIN_FOLDER, open_dataset
from mfm.data.records import Record
from mfm.data.splits import shared_geometries
from mfm.data.store import Store
from mfm.graph import Structure
from mfm.labelling.export import Export
from mfm.labelling.plan import read_plan
from mfm.units import HARTREE

PLAN = Path(__file__).parents[2] / "data_scripts/chno_mini.yaml"


@pytest.fixture(scope="module")
def store() -> Store:
    return open_dataset("builtin:chno-mini")


@pytest.fixture(scope="module")
def dft(store: Store) -> Store:
    """What carries a `dft` label."""
    return store.subset(store.coverage("energy_dft"))


def test_counts(store: Store) -> None:
    assert len(set(store.molecules)) >= 400
    assert store.coverage("energy_xtb").sum() >= 20_000
    assert store.coverage("energy_dft").sum() >= 1_500
    assert store.coverage("energy_ccsdt").sum() >= 600
    # whatever has a dearer label has the cheaper ones
    assert not (store.coverage("energy_ccsdt") & ~store.coverage("energy_dft")).any()
    assert not (store.coverage("energy_dft") & ~store.coverage("energy_xtb")).any()
    assert store.elements == [1, 6, 7, 8]
    # the same geometry would have the same energy to the last bit
    assert len(np.unique(store.values("energy_xtb"))) == store.coverage("energy_xtb").sum()
    assert sum(file.stat().st_size for file in BUILTIN_FOLDER.glob("*.h5")) < 25e6


def test_what_is_said_of_it(dft: Store) -> None:
    """`mfm data info`: coverage and ranges of all levels, flags, sizes of the parts, and no leak between them.

    Of what carries a `dft` label, which has labels of the others too; all of it takes a minute under type checks.
    """
    told = describe(dft)
    assert told["split"]["leaks"] == []
    text = format_description(told)
    assert "leakage       none" in text
    for level in ("xtb", "dft", "ccsdt"):
        assert f"energy_{level}" in text


def test_densities_belong_to_it(store: Store, dft: Store) -> None:
    densities = open_dataset("builtin:chno-mini-densities")
    assert len(densities) >= 400
    assert len(shared_geometries(densities, dft)) >= len(densities) - 5  # some determinants were refused later
    assert densities.card.levels["dft"].is_compatible(store.card.levels["dft"])
    joined = join_labels(dft, densities)
    labelled = joined.subset(joined.coverage("density_dft"))
    assert np.isin(labelled.molecules, store.card.test_molecules).sum() >= 30
    basis = joined.card.density_bases["dft"]
    for record in labelled.subset(range(0, len(labelled), 10)):
        rows, structure = record.labels["density_dft"], record.structure
        assert basis.electrons(rows, structure.atomic_numbers).sum() == pytest.approx(-structure.charge, abs=1e-5)
        np.testing.assert_allclose(basis.dipole(rows, structure), record.labels["dipole_dft"], atol=1e-4)


def test_it_is_what_the_plan_asked_for(store: Store) -> None:
    plan = read_plan(PLAN)
    assert set(store.molecules) <= {molecule.smiles for molecule in plan.molecules}
    assert sorted(store.card.test_molecules) == sorted(plan.test_molecules)
    for name, level in plan.levels.items():
        assert level.identifier in store.card.levels[name].settings


def test_nothing_of_the_test_molecules_is_outside(store: Store) -> None:
    held_out = np.isin(store.molecules, store.card.test_molecules)
    outside = {part for molecule in set(store.molecules[~held_out]) for part in molecule.split(".")}
    assert outside.isdisjoint(store.card.test_molecules)
    # nobody trains on more of them than was chosen: further geometries are of other molecules
    assert set(store.origins[held_out]).isdisjoint({"stretched", "compressed"})


def test_test_molecules_have_both_levels_at_every_size(store: Store) -> None:
    held_out = np.isin(store.molecules, store.card.test_molecules)
    n_heavy = store.composition([1, 6, 7, 8])[:, 1:].sum(axis=1)
    for size, least in ((2, 8), (3, 8), (4, 8), (6, 6)):
        chosen = held_out & (n_heavy == size) & store.coverage("energy_dft")
        assert len(set(store.molecules[chosen])) >= 2
        assert store.coverage("energy_ccsdt")[chosen].sum() >= least
    assert n_heavy[~held_out & np.array(["." not in name for name in store.molecules])].max() == 5


def test_labels_are_physical(dft: Store) -> None:
    for record in dft:
        assert np.abs(record.labels["forces_dft"].sum(axis=0)).max() < 5e-3
        if "charges_dft" in record.labels:
            assert record.labels["charges_dft"].sum() == pytest.approx(record.structure.charge, abs=1e-3)
        assert record.flags.get("t1_ccsdt", 0.0) <= 0.02
        assert record.flags.get("d1_ccsdt", 0.0) <= 0.06


def test_forces_of_the_cheap_level_sum_to_zero(store: Store) -> None:
    labelled = store.subset(store.coverage("forces_xtb"))
    first = np.concatenate([[0], np.cumsum(labelled.n_atoms)[:-1]])
    assert np.abs(np.add.reduceat(labelled.values("forces_xtb"), first)).max() < 5e-3


def test_atomisation_energies_of_both_levels_agree(dft: Store) -> None:
    """References and energies are of one level: a mix-up would cost tens of eV."""
    references = dft.card.references
    assert references["ccsdt"]["H"] == pytest.approx(-0.5 * HARTREE, abs=1e-3)
    counts = dft.composition([1, 6, 7, 8])
    atoms = {name: counts @ [references[name][symbol] for symbol in "HCNO"] for name in ("xtb", "dft", "ccsdt")}
    binding = {name: (dft.energies(f"energy_{name}") - atoms[name]) / dft.n_atoms for name in atoms}
    charges = np.array([record.structure.charge for record in dft])
    whole = ~np.isin(dft.origins, ["stretched", "compressed"]) & (charges == 0)  # an ion cost its ionisation
    assert (binding["dft"][whole] < -1.5).all()
    assert (binding["xtb"][whole] < -1.5).all()
    both = dft.coverage("energy_ccsdt")
    np.testing.assert_allclose(binding["dft"][both], binding["ccsdt"][both], atol=0.1)


def test_ccsdt_forces_are_of_other_geometries(store: Store) -> None:
    forces = open_dataset("builtin:ccsdt-forces")
    assert len(forces) == 5
    same = store.subset(np.isin(store.molecules, forces.molecules))
    assert len(shared_geometries(same, forces)) == 0
    for record in forces:
        assert record.labels["forces_ccsdt"].shape == record.labels["forces_dft"].shape
        assert record.flags["net_force_ccsdt"] < 1e-4
    assert store.card.levels["ccsdt"].is_compatible(forces.card.levels["ccsdt"])
    assert store.card.levels["dft"].is_compatible(forces.card.levels["dft"])


def test_molecules_that_became_others_are_not_exported() -> None:
    """By most of their geometries, of which those with bonds broken on purpose do not count."""
    without_others = runpy.run_path(str(PLAN.with_name("export_chno_mini.py")))["without_others"]
    water = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])

    def record(molecule: str, scale: float, origin: str) -> Record:
        charge = {"O": 0, "[OH2+]": 1}[molecule]
        structure = Structure(np.array([8, 1, 1]), water * scale, charge=charge)
        return Record(structure, {"energy_dft": np.asarray(-2000.0)}, molecule, origin)

    kept = [record("O", 1.0, "modes"), record("O", 1.1, "modes"), record("O", 1.8, "bond")]
    kept += [record("O", 2.0 + 0.1 * k, "stretched") for k in range(5)]
    torn = [record("[OH2+]", 1.8, "modes"), record("[OH2+]", 1.9, "bond"), record("[OH2+]", 1.0, "modes")]
    exported = without_others(Export([*kept, *torn], {}, {"failed": 1}))
    assert [r.structure for r in exported.records] == [r.structure for r in kept]
    assert exported.left_out == {"failed": 1, "`[OH2+]` was another molecule": 3}
