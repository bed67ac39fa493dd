"""Charges, dipoles, fields and meshes through the ASE calculator."""

import dataclasses
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from mfm import MFMCalculator
from mfm.checkpoint import save_checkpoint
from mfm.graph import Structure
from mfm.longrange import LatentEwaldConfig
from mfm.model import Domain, MFMModel
from tests.tiny import tiny_model


def long_range_model(**options: object) -> MFMModel:
    return tiny_model(long_range=LatentEwaldConfig(**options))


def make(field: tuple[float, float, float] | None = None, **options: object) -> MFMCalculator:
    return MFMCalculator(long_range_model(**options), fidelity="ccsdt", device="cpu", electric_field=field)


def ethanol(seed: int = 0) -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_a_checkpoint_brings_its_charges_back(tmp_path: Path) -> None:
    path = tmp_path / "model.mfm"
    save_checkpoint(path, long_range_model(own_charges=True, fidelities="scaled", dispersion=True))
    atoms, twin = ethanol(), ethanol()
    atoms.calc = MFMCalculator(path, fidelity="dft", device="cpu")
    twin.calc = MFMCalculator(
        long_range_model(own_charges=True, fidelities="scaled", dispersion=True), fidelity="dft", device="cpu"
    )
    np.testing.assert_array_equal(atoms.get_forces(), twin.get_forces())
    np.testing.assert_array_equal(atoms.get_charges(), twin.get_charges())


def test_results_hold_charges_dipole_and_both_parts_of_the_energy() -> None:
    atoms = ethanol()
    atoms.calc = make()
    total = atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["charges"].sum() == pytest.approx(0.0, abs=1e-12)
    assert np.abs(results["charges"]).max() > 1e-4
    np.testing.assert_allclose(atoms.get_dipole_moment(), results["charges"] @ atoms.positions, atol=1e-12)
    assert results["energy_short_range"] + results["energy_long_range"] == pytest.approx(total, abs=1e-9)
    assert abs(results["energy_long_range"]) > 1e-6


def test_born_effective_charges_are_slopes_of_the_dipole() -> None:
    atoms = ethanol()
    atoms.calc = make()
    found = atoms.calc.born_effective_charges(atoms)
    np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=1e-10)
    step, moments = 1e-4, []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions[3, 1] += sign * step
        moved.calc = atoms.calc
        moments.append(moved.get_dipole_moment())
    np.testing.assert_allclose(found[3, :, 1], (moments[0] - moments[1]) / (2 * step), atol=1e-7)


def test_a_field_turns_energies_into_enthalpies() -> None:
    plain, polarised = ethanol(), ethanol()
    field = np.array([0.1, 0.0, -0.2])
    plain.calc, polarised.calc = make(), make(tuple(field))
    difference = polarised.get_potential_energy() - plain.get_potential_energy()
    assert difference == pytest.approx(-plain.get_dipole_moment() @ field, abs=1e-9)
    slopes = np.einsum("iab,a->ib", plain.calc.born_effective_charges(), field)
    np.testing.assert_allclose(polarised.get_forces() - plain.get_forces(), slopes, atol=1e-9)


@pytest.mark.parametrize("mesh_above", [1000, 0], ids=["exact", "mesh"])
def test_stress_holds_the_long_range_part(mesh_above: int) -> None:
    atoms = bulk("C", cubic=True)
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = make(mesh_above=mesh_above)
    stress = atoms.get_stress(voigt=False)
    assert "dipole" not in atoms.calc.results
    assert abs(atoms.calc.results["energy_long_range"]) > 1e-4
    strain, energies = np.array([[1.0, 0.3, 0.0], [0.3, -0.5, 0.2], [0.0, 0.2, 0.4]]), []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + sign * 1e-4 * strain), scale_atoms=True)
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    slope = (energies[0] - energies[1]) / 2e-4 / atoms.get_volume()
    assert float((stress * strain).sum()) == pytest.approx(slope, abs=1e-6)


def test_the_mesh_is_kept_while_a_cell_breathes_and_renewed_when_it_is_another() -> None:
    """Scanned over a change of the mesh: 2.5 % steps of a cell in which the number of points would change."""
    calculator = make(mesh_above=0)
    atoms = bulk("C", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.05, seed=1)
    energies = []
    for scale in np.linspace(0.98, 1.02, 17):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array * scale, scale_atoms=True)
        moved.calc = calculator
        moved.get_potential_energy()
        energies.append(calculator.results["energy_long_range"])
    kept = np.abs(np.diff(energies, 6)).max()
    energies = []
    for scale in np.linspace(0.98, 1.02, 17):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array * scale, scale_atoms=True)
        moved.calc = make(mesh_above=0)
        moved.get_potential_energy()
        energies.append(moved.calc.results["energy_long_range"])
    assert np.abs(np.diff(energies, 6)).max() > 5 * kept


def test_a_large_slab_needs_no_third_vector() -> None:
    """On the mesh, whose size must come from the cell the slab is summed in, not from the one it came with."""
    atoms = bulk("C", cubic=True).repeat((2, 2, 1))
    atoms.rattle(0.05, seed=1)
    atoms.pbc = (True, True, False)
    energies = {}
    for name, mesh_above in (("exact", 1000), ("mesh", 0)):
        for third in (0.0, 30.0):
            cell = atoms.cell.array.copy()
            cell[2] = [0.0, 0.0, third]
            slab = ase.Atoms(
                atoms.symbols, atoms.positions, cell=cell, pbc=atoms.pbc, calculator=make(mesh_above=mesh_above)
            )
            slab.get_potential_energy()
            energies[name, third] = slab.calc.results["energy_long_range"]
    assert energies["exact", 0.0] == pytest.approx(energies["exact", 30.0], abs=1e-10)
    assert energies["mesh", 0.0] == pytest.approx(energies["mesh", 30.0], abs=1e-10)
    assert energies["mesh", 0.0] == pytest.approx(energies["exact", 0.0], rel=1e-3)


@pytest.mark.parametrize("axis", [0, 2], ids=["normal-first", "normal-last"])
def test_a_slab_on_a_mesh_does_not_jump_as_its_uppermost_atom_moves(axis: int) -> None:
    """In a cell as long as the slab needs at each step, the number of points along the normal changes on the way."""
    model = long_range_model(mesh_above=0)
    with torch.no_grad():  # charges of 1.4 e
        model.long_range.owners["all"].state.pulls.mul_(4.0)
    atoms = bulk("C", cubic=True).repeat((1, 1, 2))
    atoms.symbols[::2] = "O"
    atoms.rattle(0.05, seed=1)
    order = np.roll(np.arange(3), axis + 1)  # puts the last axis of the crystal where the normal is to be
    atoms = ase.Atoms(
        atoms.symbols, atoms.positions[:, order], cell=atoms.cell.array[order][:, order], pbc=np.arange(3) != axis
    )
    top = int(atoms.positions[:, axis].argmax())
    heights = atoms.positions[top, axis] + 0.01 * np.arange(80)
    jumps = {}
    for kept in (True, False):
        calculator, energies = MFMCalculator(model, fidelity="dft", device="cpu"), []
        for height in heights:
            atoms.positions[top, axis] = height
            if not kept:
                calculator._potential._slab_length = 0.0
            calculator.calculate(atoms, ["energy"])
            energies.append(calculator.results["energy_long_range"])
        jumps[kept] = np.abs(np.diff(energies, 4)).max() / len(atoms)
    assert jumps[True] < 1e-6
    assert jumps[False] > 1e-6


def test_a_slab_that_has_become_much_thicker_or_thinner_gets_another_cell() -> None:
    """The energy is that of a calculator that has seen nothing else."""
    atoms = bulk("C", cubic=True).repeat((1, 1, 2))
    atoms.pbc = (True, True, False)
    used = make(mesh_above=0)
    for stretch in (1.0, 6.0, 1.0):
        moved = atoms.copy()
        moved.positions[:, 2] *= stretch
        energies = []
        for calculator in (used, make(mesh_above=0)):
            moved.calc = calculator
            moved.get_potential_energy()
            energies.append(calculator.results["energy_long_range"])
        assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def polar_slab() -> ase.Atoms:
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.pbc = (True, True, False)
    return atoms


def test_own_charges_have_no_polarisation_along_periodic_directions() -> None:
    """It would change by charges times lattice vectors with the images that the positions are of."""
    crystal, slab = bulk("C", cubic=True), polar_slab()
    crystal.calc = make(own_charges=True)
    assert np.isfinite(crystal.get_forces()).all()
    born = (
        r"Born effective charges must not .* structure 0 .*`long_range\.own_charges`.*Train without `own_charges`, or"
    )
    with pytest.raises(ValueError, match=born):
        crystal.calc.born_effective_charges()
    for atoms in (crystal, slab):
        atoms.calc = make((0.1, 0.0, 0.0), own_charges=True)
        with pytest.raises(ValueError, match="energy in an electric field along a periodic direction must not depend"):
            atoms.get_forces()
    # along the normal of a slab there are no images: this field is as well defined as in a molecule
    plain, moved, wrapped = polar_slab(), polar_slab(), polar_slab()
    plain.calc, moved.calc = make(own_charges=True), make((0.0, 0.0, 0.2), own_charges=True)
    assert np.abs(moved.get_forces() - plain.get_forces()).max() > 1e-3
    wrapped.positions[1] += wrapped.cell[0]
    wrapped.calc = moved.calc
    forces = moved.get_forces()
    np.testing.assert_allclose(wrapped.get_forces(), forces, atol=1e-9)
    # nor has the share of a net charge
    crystal.info.update(charge=1, spin=2)
    crystal.calc = make()
    with pytest.raises(
        ValueError, match=r"its net charge of \+1 e is shared by all atoms.*Give the cell no net charge"
    ):
        crystal.calc.born_effective_charges(crystal)
    crystal.info.clear()
    assert np.abs(crystal.calc.born_effective_charges(crystal)).max() > 0.0


def test_a_charge_that_a_fidelity_has_not_seen_is_refused_there() -> None:
    model = long_range_model()
    model.domain = dataclasses.replace(model.domain, charges_of={"dft": (0, 1), "ccsdt": (0,)})
    cation = ethanol()
    cation.info.update(charge=1, spin=2)
    cation.calc = MFMCalculator(model, fidelity="dft", device="cpu")
    assert np.isfinite(cation.get_forces()).all()
    refused = r"C2H6O has charge 1; `ccsdt` was trained on charge in \[0\] only\. Ask for `dft`, or train `ccsdt` on"
    for ask in (
        lambda: cation.calc.gap("ccsdt", "dft"),
        lambda: cation.calc.forces_gap("ccsdt", "dft"),
        lambda: MFMCalculator(model, fidelity="ccsdt", device="cpu").get_potential_energy(cation),
        lambda: MFMCalculator(model, fidelity="ccsdt", device="cpu").born_effective_charges(cation),
    ):
        with pytest.raises(ValueError, match=refused):
            ask()
    cation.info.clear()
    assert np.isfinite(cation.calc.gap("ccsdt", "dft", cation))
    # a checkpoint from before there was such a list knows the charges of all levels
    content = model.domain.to_dict()
    assert Domain.from_dict(content) == model.domain
    del content["charges_of"]
    cation.info.update(charge=1, spin=2)
    Domain.from_dict(content).check(Structure.from_ase(cation), ["ccsdt"])


def test_what_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="`electric_field` must be three finite components"):
        make((0.0, float("nan"), 0.0))
    with pytest.raises(ValueError, match="`electric_field` acts on charges, which this model has not"):
        MFMCalculator(tiny_model(), fidelity="dft", device="cpu", electric_field=(0.0, 0.0, 0.1))
    local = MFMCalculator(tiny_model(), fidelity="dft", device="cpu")
    with pytest.raises(
        ValueError, match="Born effective charges need a dipole or charges, which this model has not at `dft`"
    ):
        local.born_effective_charges(ethanol())
    crystal = bulk("C", cubic=True)
    crystal.calc = make()
    with pytest.raises(PropertyNotImplementedError, match="dipole of a periodic structure depends on the choice"):
        crystal.get_dipole_moment()
    wire = molecule("H2O")
    wire.set_cell([10.0, 10.0, 4.0])
    wire.pbc = (False, False, True)
    wire.calc = make()
    with pytest.raises(ValueError, match="0, 2 and 3 periodic directions"):
        wire.get_potential_energy()
