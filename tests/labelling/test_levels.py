"""Levels: every force is minus a gradient, every rerun has the same bits, what is wrong or unsupported is refused."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from mfm.graph import Structure
from mfm.labelling.checks import check_structure, estimate_seconds
from mfm.labelling.coupled_cluster import label_coupled_cluster
from mfm.labelling.defects import check_gradient
from mfm.labelling.force_field import label_mmff
from mfm.labelling.geometries import conformers, fragments
from mfm.labelling.levels import (
    LEVELS,
    CompositeLevel,
    CoupledClusterLevel,
    DensityFunctionalLevel,
    ForceFieldLevel,
    Level,
    Request,
    TightBindingLevel,
    base_identifier,
    make_request,
    read_level,
)
from mfm.labelling.molecule import Labels
from mfm.labelling.store import Job
from mfm.labelling.worker import compute
from mfm.labelling.xtb import label_xtb


def _bent(smiles: str, seed: int = 1) -> Structure:
    """A conformer, distorted; molecules of a cluster in a row."""
    structure = conformers(smiles, 1, 1)[0]
    positions = structure.positions + np.random.default_rng(seed).normal(scale=0.05, size=structure.positions.shape)
    for k, (_, atoms) in enumerate(fragments(smiles)):
        positions[atoms] += [4.0 * k, 0, 0] - positions[atoms].mean(axis=0)
    return Structure(structure.atomic_numbers, positions, charge=structure.charge, multiplicity=structure.multiplicity)


def _along(compute: Callable[[Structure], Labels], structure: Structure, step: float = 0.004) -> float:
    """Largest error of the forces along a random direction of unit length per atom, eV/Å: four energies."""
    direction = np.random.default_rng(7).normal(size=structure.positions.shape)
    direction /= np.linalg.norm(direction) / np.sqrt(len(structure))
    slope = 0.0
    for h, weight in ((step, 4 / 3), (2 * step, -1 / 3)):
        ends = []
        for sign in (1, -1):
            moved = Structure(
                structure.atomic_numbers,
                structure.positions + sign * h * direction,
                charge=structure.charge,
                multiplicity=structure.multiplicity,
            )
            ends.append(float(compute(moved).values["energy"]))
        slope -= weight * (ends[0] - ends[1]) / (2 * h)
    return abs(float((compute(structure).values["forces"] * direction).sum()) - slope)


def _computed(level: Level, molecule: str) -> Callable[[Structure], Labels]:
    return lambda structure: compute(Job("", "", structure, "bond", molecule), Request(level))


CHEAP = [
    ("mmff", ("O", "CO", "C=O", "CC(=O)[O-]", "C[NH3+]", "O.CO")),
    ("xtb", ("O", "C#N", "[OH]", "[OH-]", "C[CH2]", "[NH4+]", "O.O")),
    ("dft_lite", ("[OH]", "[OH-]")),
]
DEAR = [("dft_lite", ("O", "C#N", "C=O", "[CH3]", "[NH4+]", "[CH2]")), ("dft", ("O", "[OH]", "[OH-]", "C#N", "N"))]


@pytest.mark.parametrize(("name", "smiles"), [(name, smiles) for name, several in CHEAP for smiles in several])
def test_forces_are_minus_the_gradient(name: str, smiles: str) -> None:
    """To 1 meV/Å along a random direction."""
    assert _along(_computed(LEVELS[name], smiles), _bent(smiles)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "smiles"), [(name, smiles) for name, several in DEAR for smiles in several])
def test_forces_are_minus_the_gradient_dear(name: str, smiles: str) -> None:
    error = _along(_computed(LEVELS[name], smiles), _bent(smiles))
    print(f"{name} {smiles} {1e3 * error:.4f} meV/Å")
    assert error < 1e-3


@pytest.mark.parametrize(("smiles", "triples"), [("O", True), ("[OH]", False)])
def test_coupled_cluster_forces(smiles: str, triples: bool) -> None:
    """Without the multipliers of (T), PySCF's gradient would be 25 meV/Å off here."""
    assert _along(_computed(CoupledClusterLevel(triples=triples), smiles), _bent(smiles)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("smiles", "triples"), [("[OH-]", True), ("C#N", True), ("[CH3]", False), ("[NH4+]", True)])
def test_coupled_cluster_forces_dear(smiles: str, triples: bool) -> None:
    error = _along(_computed(CoupledClusterLevel(triples=triples), smiles), _bent(smiles))
    print(f"CCSD{'(T)' * triples} {smiles} {1e3 * error:.4f} meV/Å")
    assert error < 1e-3


@pytest.mark.parametrize("name", ["mmff", "xtb", "dft_lite"])
def test_a_rerun_has_the_same_bits(name: str) -> None:
    """Whatever was labelled in between: what a level keeps between labels changes none."""
    water, compute_water = _bent("O"), _computed(LEVELS[name], "O")
    first = compute_water(water)
    compute_water(dataclasses.replace(water, positions=1.1 * water.positions))
    _computed(LEVELS[name], "N")(_bent("N"))
    second = compute_water(water)
    assert first.flags == second.flags
    for key, value in first.values.items():
        np.testing.assert_array_equal(value, second.values[key])


def test_gradients_known_to_be_wrong_are_refused() -> None:
    radical = _bent("[OH]")
    with pytest.raises(ValueError, match=r"in PySCF .* the UCCSD\(T\) gradient is up to 69 meV/Å off .* issue 3305"):
        check_gradient(is_open_shell=True, has_triples=True, is_fitted=False, installed="2.14.0")
    with pytest.raises(
        ValueError, match=r"density-fitted coupled cluster .* \(pyscf issue 3425\); set `forces: false`"
    ):
        check_gradient(is_open_shell=False, has_triples=False, is_fitted=True, installed="2.13.1")
    # right in these releases, or repaired in later ones
    check_gradient(is_open_shell=True, has_triples=False, is_fitted=False, installed="2.14.0")
    check_gradient(is_open_shell=False, has_triples=True, is_fitted=False, installed="2.14.0")
    check_gradient(is_open_shell=True, has_triples=True, is_fitted=True, installed="2.15.0")
    with pytest.raises(ValueError, match="forces must be right to be a label"):
        label_coupled_cluster(radical, CoupledClusterLevel())
    energies_only = label_coupled_cluster(radical, CoupledClusterLevel(forces=False))
    assert set(energies_only.values) == {"energy"}


def test_one_electron_at_coupled_cluster() -> None:
    atom = Structure(np.array([1]), np.zeros((1, 3)))
    labels = label_coupled_cluster(atom, CoupledClusterLevel())
    assert float(labels.values["energy"]) == pytest.approx(-13.58, abs=0.03)
    assert labels.values["forces"].shape == (1, 3)


def test_molecules_of_a_cluster_interact_at_mmff() -> None:
    """RDKit leaves that out unless it is told not to."""
    near = conformers("O", 1, 1)[0]
    numbers = near.atomic_numbers[[0, 0, 1, 2, 1, 2]]
    positions = [
        np.concatenate([near.positions, near.positions + np.array([apart, 0, 0])])[[0, 3, 1, 2, 4, 5]]
        for apart in (3.0, 50.0)
    ]
    close, far = (
        float(label_mmff(Structure(numbers, p), ForceFieldLevel(), "O.O").values["energy"]) for p in positions
    )
    assert abs(close - far) > 0.01


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        (
            "[CH3]",
            r"MMFF94 describes closed-shell molecules with bonds, got CH3 with multiplicity 2; label it at `xtb`",
        ),
        ("[BH3]", r"MMFF94 must have a type for every atom, got `\[BH3\]`"),
    ],
)
def test_mmff_says_what_it_does_not_describe(smiles: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_mmff(_bent(smiles), ForceFieldLevel(), smiles)


def test_atoms_in_another_order_than_the_smiles_at_mmff() -> None:
    """Their bonds are perceived, not taken from the name."""
    water = _bent("O")
    turned = dataclasses.replace(
        water, atomic_numbers=water.atomic_numbers[::-1].copy(), positions=water.positions[::-1].copy()
    )
    named, perceived = (label_mmff(structure, ForceFieldLevel(), "O") for structure in (water, turned))
    assert float(perceived.values["energy"]) == pytest.approx(float(named.values["energy"]), abs=1e-9)
    np.testing.assert_allclose(perceived.values["forces"][::-1], named.values["forces"], atol=1e-9)


def test_a_molecule_that_does_not_converge_at_xtb_does_not_spoil_the_next() -> None:
    water = _bent("O")
    before = label_xtb(water, TightBindingLevel())
    with pytest.raises(ValueError, match="GFN2-xTB must converge, got"):
        label_xtb(dataclasses.replace(water, positions=np.zeros((3, 3))), TightBindingLevel())
    after = label_xtb(water, TightBindingLevel())
    np.testing.assert_array_equal(before.values["forces"], after.values["forces"])


def test_dipole_of_an_ion_at_xtb_does_not_depend_on_the_origin() -> None:
    ion = _bent("[OH-]")
    moved = Structure(ion.atomic_numbers, ion.positions + 3.0, charge=-1)
    dipoles = [label_xtb(s, TightBindingLevel()).values["dipole"] for s in (ion, moved)]
    np.testing.assert_allclose(*dipoles, atol=1e-6)
    assert label_xtb(ion, TightBindingLevel()).flags["gap"] > 5.0


def test_structures_that_a_level_cannot_describe() -> None:
    crowded = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, 0.3]]))
    with pytest.raises(ValueError, match=r"atoms must not overlap, got C \(atom 0\) and O \(atom 1\) of CO at 0.30 Å"):
        check_structure(crowded, LEVELS["xtb"])
    chloride = Structure(np.array([19, 17]), np.array([[0.0, 0, 0], [0, 0, 2.7]]))
    with pytest.raises(ValueError, match=r"element must be supported by dft:.*, got K \(no MBIS shells\) in ClK"):
        check_structure(chloride, LEVELS["dft"])
    with pytest.raises(ValueError, match=r"got K \(no cc-pvdz basis\) in ClK; drop this level for it"):
        check_structure(chloride, LEVELS["ccsdt"])
    check_structure(chloride, LEVELS["xtb"])
    radium = Structure(np.array([88]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"got Ra \(no parameters\)"):
        check_structure(radium, LEVELS["xtb"])
    pair = Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 1.6]]))
    check_structure(pair, LEVELS["dft"], "stretched")
    with pytest.raises(ValueError, match=r"does not describe bonds stretched beyond .* got H2 of origin `stretched`"):
        check_structure(pair, LEVELS["ccsdt"], "stretched")
    periodic = Structure(np.array([1, 1]), pair.positions, cell=np.eye(3) * 9, pbc=np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match=r"labels are for molecules, got H2 with pbc"):
        label_xtb(periodic, TightBindingLevel())


@pytest.mark.parametrize(
    ("name", "smiles", "measured"),
    [("dft", "O", 3.6), ("dft", "CO", 15.4), ("dft", "CCO", 43.0), ("dft_lite", "O", 1.1), ("dft_lite", "CCO", 7.6),
     ("ccsdt", "O", 0.5), ("ccsdt", "CO", 3.3), ("ccsdt", "CCO", 13.8), ("ccsdt", "NCC(=O)O", 52.0)],
)  # fmt: skip
def test_estimates_are_near_what_was_measured(name: str, smiles: str, measured: float) -> None:
    assert 0.6 < estimate_seconds(conformers(smiles, 1, 1)[0], Request(LEVELS[name])) / measured < 1.7


def test_estimates_of_the_other_levels() -> None:
    water, radical = conformers("O", 1, 1)[0], conformers("[OH]", 1, 1)[0]
    cheap = [estimate_seconds(water, Request(LEVELS[name])) for name in ("mmff", "xtb")]
    assert cheap[0] < cheap[1] < 0.01
    # 0.2 s without, 0.6 s with the gradient
    assert 0.05 < estimate_seconds(water, Request(CoupledClusterLevel())) < 2.0
    asked = make_request(LEVELS["dft"], ["polarizability"])
    assert estimate_seconds(water, asked) > 1.3 * estimate_seconds(water, Request(LEVELS["dft"]))
    assert estimate_seconds(radical, Request(LEVELS["dft"])) > estimate_seconds(water, Request(LEVELS["dft"]))


def test_identifiers_tell_settings_apart() -> None:
    assert len({level.identifier for level in LEVELS.values()}) == len(LEVELS)
    assert TightBindingLevel(accuracy=0.1).identifier != TightBindingLevel().identifier
    for level in (*LEVELS.values(), CoupledClusterLevel()):
        assert level.identifier in level.level_of_theory("1.0").settings
    assert not LEVELS["dft"].level_of_theory("1").is_compatible(LEVELS["dft_lite"].level_of_theory("1"))


def test_identifiers_of_shipped_labels_do_not_change() -> None:
    """Labels are stored under these names: a changed default must get a new name, on purpose."""
    assert LEVELS["dft"].identifier == "dft:wb97m-d3bj/def2-tzvppd:615617ee0d1c"
    assert LEVELS["ccsdt"].identifier == "composite:ccsd(t)/cbs(cc-pvtz,cc-pvqz)+cc-pvdz:2b7df5c90186"


def test_requests_name_level_and_extras() -> None:
    level = LEVELS["dft"]
    request = make_request(level, ["polarizability", "density"])
    assert request.key == f"{level.identifier}|density|polarizability"
    assert base_identifier(request.key) == level.identifier
    assert Request.from_key(request.key, {level.identifier: level}) == request
    with pytest.raises(ValueError, match=r"queue must name levels out of none, got dft:"):
        Request.from_key(request.key, {})
    with pytest.raises(ValueError, match=r"extras of xtb:.* must be among none, got density; ask a Kohn-Sham level"):
        make_request(LEVELS["xtb"], ["density"])
    with pytest.raises(ValueError, match=r"must be among density, polarizability, got magnetism"):
        make_request(level, ["magnetism"])


def test_levels_described_in_a_plan() -> None:
    assert read_level("dft", None) is LEVELS["dft"]
    assert read_level("pbe", {"kind": "dft", "functional": "pbe"}) == DensityFunctionalLevel(functional="pbe")
    assert read_level("cbs", {"kind": "composite"}) == CompositeLevel()
    with pytest.raises(ValueError, match=r"level must be one of mmff, xtb, dft_lite, dft, ccsdt, .* got `b3lyp`"):
        read_level("b3lyp", None)
    with pytest.raises(ValueError, match=r"`kind` of level `x` must be one of dft, .* got 'hf'"):
        read_level("x", {"kind": "hf"})
    with pytest.raises(ValueError, match=r"level `x` of kind `xtb` has settings method, accuracy; got accurracy"):
        read_level("x", {"kind": "xtb", "accurracy": 1})
