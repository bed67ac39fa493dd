"""Charges and moments of heads through the ASE calculator."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io.cube
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from mfm import MFMCalculator
from mfm.heads import HEADS
from mfm.longrange import LatentEwaldConfig
from mfm.model import MFMModel, ModelConfig, build_model
from mfm.units import BOHR
from tests.densities import toy_basis
from tests.tiny import tiny_model


def electronic_model(
    tasks: Sequence[str] | dict[str, dict[str, str]], long_range: bool | LatentEwaldConfig = False
) -> MFMModel:
    plain = tiny_model()
    far = LatentEwaldConfig() if long_range is True else long_range or None
    domain = dataclasses.replace(plain.domain, density_bases={"dft": toy_basis(1, 6, 8)})
    config = ModelConfig.model_validate(
        {
            "backbone": {**plain.config.backbone.model_dump(), "equivariant_degree": 2},
            "tasks": tasks if isinstance(tasks, dict) else {task: {} for task in tasks},
            "long_range": None if far is None else far.model_dump(),
        }
    )
    model = build_model(config, domain, seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def make(
    tasks: Sequence[str] | dict[str, dict[str, str]],
    fidelity: str = "dft",
    long_range: bool | LatentEwaldConfig = False,
    field: Sequence[float] | None = None,
) -> MFMCalculator:
    model = electronic_model(tasks, long_range)
    return MFMCalculator(model, fidelity=fidelity, device="cpu", electric_field=field)


ALL = ["energy_dft", "energy_ccsdt", *(f"{prop}_dft" for prop in HEADS)]


def ethanol() -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.mark.parametrize("long_range", [False, True])
def test_charges_and_atomic_dipoles_make_the_dipole(long_range: bool) -> None:
    """With a long-range part, which has a dipole of its own charges alone, as well."""
    atoms = ethanol()
    atoms.calc = make(["energy_dft", "charges_dft", "atomic_dipoles_dft"], long_range=long_range)
    relative = atoms.positions - atoms.numbers @ atoms.positions / atoms.numbers.sum()
    atomic = atoms.calc.get_property("atomic_dipoles", atoms).sum(axis=0)
    assert np.linalg.norm(atomic) > 1e-3
    np.testing.assert_allclose(atoms.get_dipole_moment(), atoms.get_charges() @ relative + atomic, atol=1e-12)
    tensors, step = atoms.calc.born_effective_charges(), 1e-4
    moved = atoms.copy()
    moved.calc = atoms.calc
    dipoles = []
    for sign in (1, -1):
        moved.positions = atoms.positions
        moved.positions[0, 0] += sign * step
        dipoles.append(moved.get_dipole_moment())
    np.testing.assert_allclose((dipoles[0] - dipoles[1]) / (2 * step), tensors[0, :, 0], atol=1e-6)


def test_results_hold_every_head_of_the_fidelity() -> None:
    atoms = ethanol()
    atoms.calc = make(ALL)
    forces = atoms.get_forces()
    results = atoms.calc.results
    shapes = {name: np.shape(results[name]) for name in HEADS if name != "density"}
    assert "density" not in results  # of no use to a simulation
    assert shapes == {
        "charges": (9,), "atomic_dipoles": (9, 3), "dipole": (3,), "quadrupole": (3, 3), "polarizability": (3, 3),
    }  # fmt: skip
    assert forces.any()
    numbers = atoms.numbers
    relative = atoms.positions - numbers @ atoms.positions / numbers.sum()
    expected = atoms.get_charges() @ relative + results["atomic_dipoles"].sum(axis=0)
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected, atol=1e-12)
    assert atoms.calc.get_property("quadrupole", atoms) is not None
    atoms.calc.fidelity = "ccsdt"
    assert atoms.get_potential_energy() < 0
    assert not set(HEADS) & set(atoms.calc.results)


def test_what_the_checkpoint_lacks_is_listed() -> None:
    atoms = ethanol()
    atoms.calc = make(["energy_dft", "dipole_dft"])
    with pytest.raises(PropertyNotImplementedError, match="`charges` is not among what this model predicts at `dft`: "):
        atoms.get_charges()
    with pytest.raises(PropertyNotImplementedError, match=r"energy, free_energy, forces, stress, dipole$"):
        atoms.calc.get_property("magmoms", atoms)
    atoms.calc = make(["energy_dft", "dipole_ccsdt"], "ccsdt")
    with pytest.raises(PropertyNotImplementedError, match=r"`energy` is not among what .* at `ccsdt`: dipole$"):
        atoms.get_potential_energy()
    assert atoms.get_dipole_moment().any()
    assert "energy_dft" in atoms.calc.results
    with pytest.raises(ValueError, match="a gap needs energies, which this model has not at `ccsdt`"):
        atoms.calc.gap("ccsdt", "dft")


def test_a_crystal_has_charges_but_no_moments() -> None:
    crystal = bulk("C", cubic=True)
    crystal.rattle(0.05, seed=1)
    crystal.calc = make(ALL)
    assert crystal.get_charges().sum() == pytest.approx(0.0, abs=1e-10)
    for name in ("dipole", "quadrupole", "polarizability"):
        with pytest.raises(PropertyNotImplementedError, match=f"the {name} of a periodic structure depends on the"):
            crystal.calc.get_property(name, crystal)
        assert name not in crystal.calc.results
    tensors = crystal.calc.born_effective_charges(crystal)
    np.testing.assert_allclose(tensors.sum(axis=0), 0.0, atol=1e-10)
    assert np.abs(tensors).max() > 1e-4


def test_polar_tensors_are_slopes_of_the_dipole_of_the_head() -> None:
    atoms = ethanol()
    atoms.calc = make(["dipole_dft"])
    found = atoms.calc.born_effective_charges(atoms)
    step, moments = 1e-4, []
    for sign in (1.0, -1.0):
        other = atoms.copy()
        other.positions[3, 1] += sign * step
        other.calc = atoms.calc
        moments.append(other.get_dipole_moment())
    np.testing.assert_allclose(found[3, :, 1], (moments[0] - moments[1]) / (2 * step), atol=1e-7)


def test_a_head_goes_before_the_long_range_part() -> None:
    atoms = ethanol()
    atoms.calc = make(["energy_dft", "dipole_dft"], long_range=True)
    dipole, charges = atoms.get_dipole_moment(), atoms.get_charges()
    assert atoms.calc.results["energy_long_range"] != 0.0
    # the charges are the latent ones, the dipole has atomic dipoles beside them
    assert np.abs(dipole - charges @ atoms.positions).max() > 1e-4


ANCHORED = {
    "energy_dft": {},
    "energy_ccsdt": {"anchor": "energy_dft"},
    "dipole_dft": {},
    "dipole_ccsdt": {"anchor": "dipole_dft"},
}
CONDITIONED = ANCHORED | {"energy_ccsdt": {"conditioned": "energy_dft"}}
ONE_DIPOLE = {name: task for name, task in ANCHORED.items() if name != "dipole_ccsdt"}


@pytest.mark.parametrize("fidelity", ["dft", "ccsdt"])
@pytest.mark.parametrize(
    ("tasks", "kind"),
    [(["energy_dft", "energy_ccsdt"], "scaled"), (ANCHORED, "shared"), (CONDITIONED, "own"), (ONE_DIPOLE, "shared")],
    ids=["no-head", "anchored", "conditioned", "one-head"],
)
def test_a_field_acts_on_the_dipole_that_is_reported(
    tasks: list[str] | dict[str, dict[str, str]], kind: str, fidelity: str
) -> None:
    """E(F) = E(0) − μ·F and F_i(F) = F_i(0) + Z_i·F, with atomic dipoles and a fidelity's offset in μ and Z."""
    field, config = np.array([0.1, -0.3, 0.2]), LatentEwaldConfig(fidelities=kind)  # type: ignore[arg-type]
    plain, polarised = ethanol(), ethanol()
    plain.calc, polarised.calc = make(tasks, fidelity, config), make(tasks, fidelity, config, list(field))
    extra = polarised.get_forces() - plain.get_forces()
    results = polarised.calc.results
    moment = plain.get_dipole_moment() @ field
    assert abs(moment) > 1e-3
    assert results["energy"] - plain.get_potential_energy() == pytest.approx(-moment, abs=1e-9)
    assert results["energy_field"] == pytest.approx(-moment, abs=1e-9)
    slopes = np.einsum("iab,a->ib", plain.calc.born_effective_charges(), field)
    assert np.abs(slopes).max() > 1e-2
    np.testing.assert_allclose(extra, slopes, atol=1e-9)
    np.testing.assert_allclose(polarised.calc.born_effective_charges(), plain.calc.born_effective_charges(), atol=1e-12)
    # the field is a part of its own
    for name in ("energy_long_range", "energy_short_range"):
        assert results[name] == pytest.approx(plain.calc.results[name], abs=1e-9)
    parts = [results[f"energy_{part}"] for part in ("short_range", "long_range", "field")]
    assert sum(parts) == pytest.approx(results["energy"], abs=1e-9)
    assert "energy_field" not in plain.calc.results


def test_the_forces_in_a_field_are_slopes_of_the_enthalpy_of_an_ion() -> None:
    """The polarisation of an ion is about the origin, which does not move with the atoms."""
    atoms, field = ethanol(), [0.1, -0.3, 0.2]
    atoms.info.update(charge=1, spin=2)
    atoms.calc = make(ANCHORED, "ccsdt", True, field)
    forces, step, energies = atoms.get_forces(), 1e-4, []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert forces[2, 1] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-6)
    np.testing.assert_allclose(forces.sum(axis=0), field, atol=1e-9)


def test_a_crystal_in_a_field_has_the_forces_of_its_born_effective_charges() -> None:
    field = [0.1, -0.3, 0.2]
    plain, polarised = bulk("C", cubic=True), bulk("C", cubic=True)
    for crystal, calculator in ((plain, make(ANCHORED, "ccsdt", True)), (polarised, None)):
        crystal.rattle(0.05, seed=1)
        crystal.calc = calculator or make(ANCHORED, "ccsdt", True, field)
    slopes = np.einsum("iab,a->ib", plain.calc.born_effective_charges(plain), field)
    assert np.abs(slopes).max() > 1e-3
    np.testing.assert_allclose(polarised.get_forces() - plain.get_forces(), slopes, atol=1e-9)


def test_density_at_points_and_in_cube_files(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = make(["energy_dft", "energy_ccsdt", "density_dft"])
    atoms.calc.write_cube(tmp_path / "a.cube", atoms, step=0.4, margin=2.0)
    values, read = ase.io.cube.read_cube_data(str(tmp_path / "a.cube"))
    np.testing.assert_allclose(read.positions, atoms.positions, atol=1e-5)
    with (tmp_path / "a.cube").open() as file:
        rows = [line.split() for line in file][2:6]
    origin, steps = np.array(rows[0][1:], dtype=float), np.array([row[1:] for row in rows[1:]], dtype=float)
    index = np.array([5, 4, 7])
    point = (origin + index @ steps) * BOHR
    here = atoms.calc.density(point[None], atoms)[0]
    assert values[tuple(index)] * BOHR**-3 == pytest.approx(here, rel=1e-4)
    free = here - atoms.calc.density(point[None], atoms, field="deformation")[0]
    assert free > 0.0
    assert np.isfinite(atoms.calc.density(np.eye(3), atoms, field="potential")).all()
    assert atoms.get_potential_energy() < 0
    np.testing.assert_allclose(atoms.calc.density(point[None])[0], here, rtol=1e-12)


def test_densities_that_cannot_be_had() -> None:
    atoms = ethanol()
    atoms.calc = make(["energy_dft", "energy_ccsdt", "density_dft"], "ccsdt")
    with pytest.raises(ValueError, match=r"got one with energy \(densities at dft\); train a task `density_ccsdt`"):
        atoms.calc.density(np.zeros((1, 3)), atoms)
    atoms.calc.fidelity = "dft"
    with pytest.raises(ValueError, match="`field` must be one of density, deformation, potential, got `spin`"):
        atoms.calc.write_cube("a.cube", atoms, field="spin")
    with pytest.raises(ValueError, match=r"`points` must have shape \(n_points, 3\), in Å, got \(3,\)"):
        atoms.calc.density(np.zeros(3), atoms)
    with pytest.raises(ValueError, match="`density_dft` of a periodic structure depends on the choice of its cell"):
        atoms.calc.density(np.zeros((1, 3)), bulk("C", cubic=True))
