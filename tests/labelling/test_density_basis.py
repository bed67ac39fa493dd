"""Bases and densities against PySCF's own evaluation of the same functions."""

import numpy as np
import pytest
import torch
from pyscf import df, dft, gto

from mfm.density.evaluator import MolecularDensity, density_at
from mfm.density.fields import field_at
from mfm.density.metric import overlap_matrix
from mfm.graph import Structure
from mfm.labelling.density_basis import density_basis
from mfm.labelling.density_fit import free_atoms
from mfm.labelling.molecule import build_molecule
from mfm.units import BOHR, HARTREE
from tests.densities import turned_rows

ORBITALS, FITTING = "def2-svp", "def2-universal-jkfit"
AMMONIUM = Structure(
    np.array([7, 1, 1, 1, 1]),
    np.array([[0, 0, 0.1], [0.6, 0.6, 0.6], [-0.6, -0.5, 0.6], [0.6, -0.6, -0.7], [-0.6, 0.6, -0.6]]),
    charge=1,
)
BASIS = density_basis(ORBITALS, FITTING, [1, 7])
MOLECULE = build_molecule(AMMONIUM, ORBITALS)
AUXILIARY = df.make_auxmol(MOLECULE, FITTING)
COEFFICIENTS = np.random.default_rng(0).normal(size=AUXILIARY.nao_nr())
"""In functions of unit square integral in bohr."""
DENSITY = MolecularDensity.of(AMMONIUM, BASIS.to_rows(COEFFICIENTS * BOHR**-1.5, AMMONIUM.atomic_numbers), BASIS)
POINTS = np.concatenate([AMMONIUM.positions, np.random.default_rng(1).normal(size=(200, 3))])


def test_values_and_gradients_agree_with_pyscf() -> None:
    values, *slopes = dft.numint.eval_ao(AUXILIARY, POINTS / BOHR, deriv=1) @ COEFFICIENTS
    points = torch.as_tensor(POINTS).requires_grad_(True)
    found = density_at(points, DENSITY, "deformation")
    np.testing.assert_allclose(found.detach(), values * BOHR**-3, rtol=0, atol=1e-8)
    gradient = torch.autograd.grad(found.sum(), points)[0]
    np.testing.assert_allclose(gradient, np.stack(slopes, axis=1) * BOHR**-4, rtol=1e-10, atol=1e-8)


def test_free_atoms_agree_with_pyscf() -> None:
    free = free_atoms(MOLECULE)
    orbitals = dft.numint.eval_ao(MOLECULE, POINTS / BOHR)
    expected = np.einsum("pi,ij,pj->p", orbitals, free, orbitals) * BOHR**-3
    found = density_at(torch.as_tensor(POINTS), DENSITY, "free")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-8)
    for number, element in BASIS.elements.items():
        assert sum(shell.moment(shell, 0) for shell in element.free_atom) == pytest.approx(number, abs=1e-10)


def test_overlaps_and_charges_agree_with_pyscf() -> None:
    np.testing.assert_allclose(overlap_matrix(AMMONIUM, BASIS), AUXILIARY.intor("int1e_ovlp"), atol=1e-12)
    nearly_constant = gto.mole.conc_mol(gto.fakemol_for_charges(np.zeros((1, 3)), 1e-13), AUXILIARY)
    value = (1e-13 / np.pi) ** 1.5  # that Gaussian has one electron
    integrals = nearly_constant.intor("int1e_ovlp")[0, 1:] / value
    electrons = BASIS.electrons(DENSITY.coefficients.numpy(), AMMONIUM.atomic_numbers).sum()
    assert electrons == pytest.approx(integrals @ COEFFICIENTS, abs=1e-6)


def test_the_potential_agrees_with_pyscf() -> None:
    points = POINTS[5:15]
    free = free_atoms(MOLECULE)
    expected = []
    for point in points / BOHR:
        nuclei = (MOLECULE.atom_charges() / np.linalg.norm(MOLECULE.atom_coords() - point, axis=1)).sum()
        with MOLECULE.with_rinv_origin(point):
            electrons = np.einsum("ij,ij->", MOLECULE.intor("int1e_rinv"), free)
        probe = gto.mole.conc_mol(gto.fakemol_for_charges(point[None], 1e14), AUXILIARY)
        deformation = probe.intor("int2c2e")[0, 1:] @ COEFFICIENTS
        expected.append((nuclei - electrons - deformation) * HARTREE)
    np.testing.assert_allclose(field_at(points, DENSITY, "potential"), expected, rtol=1e-7, atol=1e-6)


def test_coefficients_turn_as_pyscf_has_them() -> None:
    matrix = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]  # a reflection or a rotation
    turned = Structure(AMMONIUM.atomic_numbers, AMMONIUM.positions @ matrix.T, charge=1)
    rows = turned_rows(DENSITY.coefficients.numpy(), matrix)
    coefficients = BASIS.from_rows(rows, turned.atomic_numbers) * BOHR**1.5
    auxiliary = df.make_auxmol(build_molecule(turned, ORBITALS), FITTING)
    after = dft.numint.eval_ao(auxiliary, POINTS @ matrix.T / BOHR) @ coefficients
    before = dft.numint.eval_ao(AUXILIARY, POINTS / BOHR) @ COEFFICIENTS
    np.testing.assert_allclose(after, before, atol=1e-10)


def test_elements_with_too_many_shells_are_refused() -> None:
    with pytest.raises(
        ValueError, match="shells of Br in `def2-universal-jkfit` must ascend from s to g, with at most"
    ):
        density_basis(ORBITALS, FITTING, [35])
