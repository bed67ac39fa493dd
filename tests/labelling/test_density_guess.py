"""A fitted density as the start of an SCF."""

import numpy as np
import pytest
from pyscf import dft

from mfm.density.evaluator import MolecularDensity
from mfm.graph import Structure
from mfm.labelling.density_basis import density_basis
from mfm.labelling.density_fit import fit_deformation_density
from mfm.labelling.density_guess import initial_guess
from mfm.labelling.molecule import build_molecule
from mfm.units import BOHR

ORBITALS, FITTING = "def2-svp", "def2-universal-jkfit"
FORMALDEHYDE = Structure(
    np.array([6, 8, 1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.21], [0.94, 0.0, -0.59], [-0.94, 0.0, -0.59]])
)
METHYL = Structure(np.array([6, 1, 1, 1]), np.array([[0, 0, 0], [1.08, 0, 0], [-0.54, 0.93, 0], [-0.54, -0.93, 0.0]]))


@pytest.mark.parametrize(("structure", "saved"), [(FORMALDEHYDE, 1), (METHYL, 0)], ids=["H2CO", "CH3"])
def test_fewer_cycles_to_the_same_energy(structure: Structure, saved: int) -> None:
    """Of the radical, which has one spin density too few in the guess, no more cycles."""
    molecule = build_molecule(structure, ORBITALS)
    cycles: list[int] = []

    def solve(guess: np.ndarray | None) -> object:
        solver = (dft.UKS if molecule.spin else dft.RKS)(molecule, xc="pbe0").density_fit(auxbasis=FITTING)
        solver.grids.level, solver.conv_tol = 1, 1e-9
        solver.callback = lambda found: cycles.append(found["cycle"])
        solver.kernel(dm0=guess)
        return solver

    plain = solve(None)
    default, density = len(cycles), plain.make_rdm1()
    fit = fit_deformation_density(molecule, density if density.ndim == 2 else density.sum(axis=0), FITTING)
    basis = density_basis(ORBITALS, FITTING, structure.atomic_numbers.tolist())
    rows = basis.to_rows(fit.coefficients * BOHR**-1.5, structure.atomic_numbers)
    cycles.clear()
    helped = solve(initial_guess(molecule, MolecularDensity.of(structure, rows, basis)))
    assert len(cycles) <= default - saved
    assert helped.e_tot == pytest.approx(plain.e_tot, abs=1e-8)


def test_a_guess_for_another_molecule() -> None:
    basis = density_basis(ORBITALS, FITTING, [1, 6, 8])
    density = MolecularDensity.of(METHYL, np.zeros((4, 128)), basis)
    with pytest.raises(ValueError, match="`density` must be one of the molecule's atoms, in its order and at its"):
        initial_guess(build_molecule(FORMALDEHYDE, ORBITALS), density)
