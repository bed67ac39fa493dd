"""Deformation density and polarizability against numerical integration and finite fields."""

from typing import Any

import numpy as np
import pytest
from pyscf import df, dft, gto

from mfm.graph import Structure
from mfm.labelling.density_fit import fit_deformation_density
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import DensityFunctionalLevel
from mfm.labelling.molecule import build_molecule
from mfm.labelling.polarizability import polarizability
from mfm.units import BOHR, HARTREE

SMALL = DensityFunctionalLevel(basis="def2-svp", grid=2)
FITTING = SMALL.fitting_basis
WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.1], [0.8, 0.1, -0.5], [-0.75, 0.05, -0.45]]))
HYDROXYL = Structure(np.array([8, 1]), np.array([[0.1, 0.2, 0.0], [0.5, 0, 0.9]]))
HYDROXIDE = Structure(HYDROXYL.atomic_numbers, HYDROXYL.positions, charge=-1)


def _solved(structure: Structure, field: float = 0.0) -> Any:
    """PBE in a small basis, in a field along z."""
    molecule = build_molecule(structure, "def2-svp")
    solver = (dft.UKS if molecule.spin else dft.RKS)(molecule, xc="pbe").density_fit(auxbasis=FITTING)
    solver.grids.level, solver.conv_tol = 1, 1e-11
    bare = solver.get_hcore()
    solver.get_hcore = lambda *_: bare + field * molecule.intor_symmetric("int1e_r", comp=3)[2]
    solver.kernel()
    return solver


def _total(solver: Any) -> np.ndarray:
    density = solver.make_rdm1()
    return density if density.ndim == 2 else density[0] + density[1]


@pytest.mark.parametrize("structure", [WATER, HYDROXYL, HYDROXIDE], ids=["H2O", "OH", "OH-"])
def test_fit_has_the_right_charge_dipole_and_error(structure: Structure) -> None:
    """Integrals of the fitted density by quadrature: none of the closed forms of the fit is used."""
    solver = _solved(structure)
    molecule, density = solver.mol, _total(solver)
    fit = fit_deformation_density(molecule, density, FITTING)
    auxiliary = df.make_auxmol(molecule, FITTING)
    grid = dft.gen_grid.Grids(molecule)
    grid.level = 4
    grid.build()
    values = dft.numint.eval_ao(auxiliary, grid.coords) @ fit.coefficients
    assert grid.weights @ values == pytest.approx(-structure.charge, abs=2e-3)
    electronic = -np.einsum("xij,ij->x", molecule.intor_symmetric("int1e_r", comp=3), density)
    # free atoms are spherical: all of the dipole is that of the deformation, about the nuclei
    nuclear = molecule.atom_charges() @ molecule.atom_coords()
    dipole = -(grid.weights * values) @ grid.coords
    np.testing.assert_allclose(dipole, electronic + nuclear, atol=5e-3)
    assert fit.dipole_error < 1e-9
    # NMAE of def2-universal-jkfit on small molecules: 0.4 to 0.9 %; of the free atoms alone: 8 to 14 %
    assert 0.1 < fit.error < 1.0
    assert 8.0 < fit.baseline < 14.0


def test_a_free_atom_has_no_deformation() -> None:
    helium = gto.M(atom="He", basis="def2-svp", verbose=0)
    solver = dft.RKS(helium, xc="hf").run()
    fit = fit_deformation_density(helium, solver.make_rdm1(), FITTING)
    assert np.abs(fit.coefficients).max() < 1e-3
    assert fit.error < 0.01


@pytest.mark.parametrize("structure", [WATER, HYDROXYL, HYDROXIDE], ids=["H2O", "OH", "OH-"])
def test_polarizability_is_the_field_derivative_of_the_dipole(structure: Structure) -> None:
    tensor = polarizability(_solved(structure))
    step = 1e-3
    ends = [_solved(structure, sign * step) for sign in (1, -1)]
    moments = [-np.einsum("xij,ij->x", s.mol.intor_symmetric("int1e_r", comp=3), _total(s)) for s in ends]
    np.testing.assert_allclose(tensor[2], (moments[0] - moments[1]) / (2 * step), atol=2e-3)
    np.testing.assert_allclose(tensor, tensor.T, atol=1e-10)
    assert np.linalg.eigvalsh(tensor).min() > 0


def test_extras_change_no_other_label() -> None:
    plain = label_dft(WATER, SMALL)
    full = label_dft(WATER, SMALL, extras=("density", "polarizability"))
    for name, value in plain.values.items():
        np.testing.assert_array_equal(full.values[name], value)
    assert set(full.values) - set(plain.values) == {"density_coefficients", "polarizability"}
    assert full.flags["density_error"] < 1.0
    assert full.flags["density_dipole"] < 1e-9
    # water: 1.45 Å^3 by experiment; e² Å²/eV × the Coulomb constant is a volume. Without diffuse functions about half.
    volume = np.trace(full.values["polarizability"]) / 3 * HARTREE * BOHR
    assert 0.5 < volume < 1.45
