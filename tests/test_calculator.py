"""The ASE calculator: numbers, signs, fidelities, caches and refusals."""

import copy
import pickle
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import fs
from ase.vibrations import Vibrations

from mfm import MFMCalculator, Structure, save_checkpoint
from mfm.evaluation.dynamics import run_dynamics, thermalise
from mfm.graph import neighbour_list
from mfm.heads import TaskConfig
from mfm.potential import SkinNeighbours
from tests.tiny import CUTOFF, tiny_model

EXACT = 1e-10
"""eV, eV/Å: sums in another order, float64."""
FINITE_DIFFERENCE = 1e-6
"""eV/Å, eV/Å^3: central differences with steps of 1e-4."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "model.mfm"
    save_checkpoint(target, tiny_model())
    return target


def make(path: Path, **options: object) -> MFMCalculator:
    return MFMCalculator(path, **{"fidelity": "ccsdt", "device": "cpu", **options})


def ethanol(seed: int = 0) -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def diamond() -> ase.Atoms:
    """Rattled and sheared, so that no component of the stress vanishes by symmetry."""
    atoms = bulk("C", cubic=True)
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


# ---- numbers


def test_checkpoint_and_model_in_memory_agree(path: Path) -> None:
    atoms, model = ethanol(), tiny_model()
    from_file, from_memory = make(path), MFMCalculator(model, fidelity="ccsdt", device="cpu")
    assert from_file.get_potential_energy(atoms) == from_memory.get_potential_energy(atoms)
    np.testing.assert_array_equal(from_file.get_forces(atoms), from_memory.get_forces(atoms))


def test_results_hold_every_fidelity(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    atoms.get_forces()
    results = atoms.calc.results
    assert set(results) == {"energy", "free_energy", "forces", "energy_dft", "energy_ccsdt"}
    assert results["energy"] == results["free_energy"] == results["energy_ccsdt"] != results["energy_dft"]
    for fidelity in ("dft", "ccsdt"):
        other = make(path, fidelity=fidelity)
        assert other.get_potential_energy(atoms) == pytest.approx(results[f"energy_{fidelity}"], abs=EXACT)


def test_energy_alone_equals_energy_with_forces(path: Path) -> None:
    atoms = ethanol()
    first, second = make(path), make(path)
    energy = first.get_potential_energy(atoms)
    assert "forces" not in first.results
    second.get_forces(atoms)
    assert second.get_potential_energy(atoms) == pytest.approx(energy, abs=EXACT)


def test_isolated_atom_has_the_reference_energy(path: Path) -> None:
    atoms = ase.Atoms("O", info={"spin": 1})
    assert make(path).get_potential_energy(atoms) == -2041.9
    assert make(path, fidelity="dft").get_potential_energy(atoms) == -2043.2
    np.testing.assert_array_equal(make(path).get_forces(atoms), np.zeros((1, 3)))


def test_forces_are_minus_the_gradient(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    forces, step = atoms.get_forces(), 1e-4
    for atom, axis in [(0, 0), (3, 2), (8, 1)]:
        energies = []
        for sign in (1, -1):
            atoms.positions[atom, axis] += sign * step
            energies.append(atoms.get_potential_energy())
            atoms.positions[atom, axis] -= sign * step
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=FINITE_DIFFERENCE)


def test_stress_is_the_strain_derivative_over_the_volume(path: Path) -> None:
    atoms = diamond()
    atoms.calc = make(path)
    stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
    cell, volume, step = atoms.cell.array.copy(), atoms.get_volume(), 1e-4
    assert np.abs(stress).min() > 1e-4
    for row in range(3):
        for column in range(row, 3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[row, column] += 0.5 * sign * step
                strain[column, row] += 0.5 * sign * step
                strained = atoms.copy()
                strained.set_cell(cell @ (np.eye(3) + strain), scale_atoms=True)
                strained.calc = atoms.calc
                energies.append(strained.get_potential_energy())
            expected = (energies[0] - energies[1]) / (2 * step * volume)
            assert stress[row, column] == pytest.approx(expected, abs=FINITE_DIFFERENCE)


def test_supercell_is_extensive(path: Path) -> None:
    atoms, calculator = diamond(), make(path)
    energy, forces, stress = (
        calculator.get_potential_energy(atoms),
        calculator.get_forces(atoms),
        calculator.get_stress(atoms),
    )
    double = atoms * (2, 1, 1)
    assert calculator.get_potential_energy(double) == pytest.approx(2 * energy, abs=1e-9)
    np.testing.assert_allclose(calculator.get_forces(double), np.tile(forces, (2, 1)), atol=EXACT)
    np.testing.assert_allclose(calculator.get_stress(double), stress, atol=EXACT)


def test_cell_of_a_molecule_does_not_matter(path: Path) -> None:
    atoms = ethanol()
    boxed = atoms.copy()
    boxed.set_cell([3.0, 3.0, 3.0])
    assert make(path).get_potential_energy(boxed) == make(path).get_potential_energy(atoms)


def test_float32_energies_carry_float64_references(path: Path) -> None:
    atoms = ethanol()
    single, double = make(path, dtype="float32"), make(path, dtype="float64")
    # float32 numbers near 4200 eV are 5e-4 eV apart
    assert single.get_potential_energy(atoms) == pytest.approx(double.get_potential_energy(atoms), abs=1e-4)
    assert single.get_potential_energy(atoms) % 2**-12 != 0
    np.testing.assert_allclose(single.get_forces(atoms), double.get_forces(atoms), atol=1e-4)


# ---- fidelities


def test_fidelities_and_gaps(path: Path) -> None:
    atoms = ethanol()
    calculator = make(path)
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    dft = make(path, fidelity="dft")
    assert calculator.fidelities() == ["dft", "ccsdt"]
    assert calculator.gap("ccsdt", "dft") == pytest.approx(energy - dft.get_potential_energy(atoms), abs=EXACT)
    assert calculator.gap("dft", "ccsdt") == -calculator.gap("ccsdt", "dft")
    expected = atoms.get_forces() - dft.get_forces(atoms)
    np.testing.assert_allclose(calculator.forces_gap("ccsdt", "dft"), expected, atol=EXACT)
    assert np.abs(expected).max() > 1e-3


def test_gap_needs_no_second_forward(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    atoms.get_forces()
    monkeypatch.setattr(atoms.calc._potential, "evaluate", None)
    assert np.isfinite(atoms.calc.gap("ccsdt", "dft"))


def test_a_gap_leaves_nothing_of_the_structure_before(path: Path) -> None:
    first, second = ethanol(), ethanol()
    second.positions[0] += 0.1
    calculator = make(path)
    calculator.get_forces(first)
    gap = calculator.gap("ccsdt", "dft", second)
    assert gap == pytest.approx(make(path).gap("ccsdt", "dft", second), abs=EXACT)
    expected = make(path).get_forces(second)
    assert np.abs(expected - calculator.get_forces(first)).max() > 1e-2
    calculator.gap("ccsdt", "dft", second)
    np.testing.assert_allclose(calculator.get_forces(second), expected, atol=EXACT)


def test_fidelity_can_be_switched(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    energy = atoms.get_potential_energy()
    atoms.calc.fidelity = "dft"
    assert atoms.get_potential_energy() == make(path, fidelity="dft").get_potential_energy(atoms) != energy
    assert atoms.calc.fidelity == "dft"


def test_single_fidelity_needs_no_name() -> None:
    calculator = MFMCalculator(tiny_model({"energy_dft": TaskConfig()}), device="cpu")
    assert calculator.fidelity == "dft"


def test_several_fidelities_and_none_named(path: Path) -> None:
    with pytest.raises(ValueError, match="has several fidelities, name one: `fidelity` must be one of dft, ccsdt"):
        MFMCalculator(path)


def test_unknown_fidelity(path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of dft, ccsdt, got `ccsd`; did you mean `ccsdt`\?"):
        MFMCalculator(path, fidelity="ccsd")
    with pytest.raises(ValueError, match=r"must be one of dft, ccsdt, got `mp2`$"):
        make(path).gap("mp2", "dft", ethanol())


def test_gap_without_a_structure(path: Path) -> None:
    with pytest.raises(ValueError, match="there is no structure yet: pass `atoms`, or compute an energy first"):
        make(path).gap("ccsdt", "dft")


# ---- refusals


def test_unseen_elements(path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds N; `.*` of this model knows H, C, O"):
        make(path).get_potential_energy(molecule("NH3"))


def test_unseen_charge(path: Path) -> None:
    atoms = ethanol()
    atoms.info["charge"] = -2
    with pytest.raises(ValueError, match=r"has charge -2; this model was trained on charge in \[0, 1\]"):
        make(path).get_potential_energy(atoms)


@pytest.mark.parametrize("pbc", [False, [True, True, False]])
def test_stress_needs_three_periodic_directions(path: Path, pbc: bool | list[bool]) -> None:
    atoms = diamond()
    atoms.pbc = pbc
    atoms.calc = make(path)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match=r"periodic in all three directions, got `pbc`"):
        atoms.get_stress()


def test_potential_refuses_stress_of_a_molecule(path: Path) -> None:
    with pytest.raises(ValueError, match=r"stress needs a structure that is periodic in all three directions"):
        make(path)._potential.evaluate(Structure.from_ase(ethanol()), stress=["dft"])


def test_unknown_dtype(path: Path) -> None:
    with pytest.raises(ValueError, match="`dtype` must be `float32` or `float64`, got `float16`"):
        make(path, dtype="float16")


def test_negative_skin(path: Path) -> None:
    with pytest.raises(ValueError, match="`skin` must be 0 Å or more, got -1"):
        make(path, skin=-1.0)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        MFMCalculator(tmp_path / "model.mfm")


# ---- caches


def test_same_structure_is_not_computed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    forces = atoms.get_forces()
    monkeypatch.setattr(atoms.calc._potential, "evaluate", None)
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert np.isfinite(atoms.get_potential_energy())


def test_change_of_charge_or_spin_is_noticed(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    atoms.get_potential_energy()
    assert atoms.calc.check_state(atoms) == []
    atoms.info["charge"] = 1
    assert atoms.calc.check_state(atoms) == ["charge"]
    atoms.get_potential_energy()
    assert atoms.calc.check_state(atoms) == []
    atoms.info["spin"] = 2
    assert atoms.calc.check_state(atoms) == ["spin"]
    atoms.info["name"] = "does not matter"
    atoms.get_potential_energy()
    assert atoms.calc.check_state(atoms) == []


def edges(neighbours: tuple[Any, Any]) -> set[tuple[int, ...]]:
    edge_index, shifts = map(np.asarray, neighbours)
    assert (np.diff(edge_index[1]) >= 0).all()
    return set(map(tuple, np.concatenate([edge_index.T, shifts], axis=1).tolist()))


@pytest.mark.parametrize("periodic", [False, True])
def test_skin_gives_the_exact_neighbours(periodic: bool) -> None:
    rng = np.random.default_rng(0)
    atoms = diamond() * 2 if periodic else ethanol()
    neighbours = SkinNeighbours(CUTOFF, skin=0.5)
    for step in range(40):
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        if step == 20 and periodic:
            atoms.wrap()
        if step == 25 and periodic:
            atoms.set_cell(atoms.cell * 1.03, scale_atoms=False)
        if step == 30:
            atoms.pbc = [periodic, False, False]
        if step == 35:
            del atoms[3]
        structure = Structure.from_ase(atoms)
        assert edges(neighbours(structure)) == edges(neighbour_list(structure, CUTOFF))


def test_skin_does_not_change_a_trajectory(path: Path) -> None:
    final = []
    for skin in (0.0, 0.5):
        atoms = diamond()
        atoms.calc = make(path, skin=skin)
        thermalise(atoms, 600, seed=3)
        run_dynamics(atoms, 60, timestep=1.0)
        final.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.positions))
    assert final[0][0] == pytest.approx(final[1][0], abs=EXACT)
    np.testing.assert_allclose(final[0][1], final[1][1], atol=EXACT)
    np.testing.assert_allclose(final[0][2], final[1][2], atol=EXACT)


def test_one_calculator_for_several_structures(path: Path) -> None:
    shared, water = make(path), molecule("H2O")
    expected = make(path).get_forces(ethanol())
    shared.get_forces(water)
    np.testing.assert_allclose(shared.get_forces(ethanol()), expected, atol=EXACT)
    np.testing.assert_allclose(shared.get_forces(water), make(path).get_forces(water), atol=EXACT)


def test_model_in_memory_is_copied() -> None:
    model, atoms = tiny_model(), ethanol()
    model.train()
    calculator = MFMCalculator(model, fidelity="dft", device="cpu")
    energy = calculator.get_potential_energy(atoms)
    for parameter in model.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    assert model.training
    calculator.reset()
    assert calculator.get_potential_energy(atoms) == energy


# ---- ASE


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
def test_copies_and_pickles(path: Path, duplicate: object) -> None:
    atoms, calculator = ethanol(), make(path)
    expected = calculator.get_forces(atoms)
    other = duplicate(calculator)  # type: ignore[operator]
    other.reset()
    np.testing.assert_array_equal(other.get_forces(atoms), expected)


def test_optimiser_lowers_the_energy(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.02).run(fmax=0.0, steps=5)
    assert atoms.get_potential_energy() < before


def test_molecular_dynamics_conserves_energy(path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(path)
    thermalise(atoms, 50, seed=0)
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, 0.1 * fs).run(50)
    # the weights are random, the surface is rough, and the step is small: what remains is the step's error
    assert atoms.get_total_energy() == pytest.approx(before, abs=1e-3)


def test_vibrations_run(path: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = make(path)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vibrations"))
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-6)
