"""A predicted density as the start of a PySCF calculation."""

import numpy as np
import scipy.linalg
import torch
from pyscf import df, dft, gto

from mfm.density.evaluator import MolecularDensity, density_at
from mfm.labelling.density_fit import auxiliary_blocks, free_atoms
from mfm.units import BOHR

__all__ = ["initial_guess"]

_FUNCTIONAL = "lda,vwn"
"""Exchange and correlation of the guess, which need nothing but the density; the calculation has its own."""


def initial_guess(molecule: gto.Mole, density: MolecularDensity, grid_level: int = 1) -> np.ndarray:
    """Density matrix to start an SCF from: the orbitals in the potential of a given density.

    The Kohn-Sham matrix of the density is diagonalised once (Harris, Phys. Rev. B 31, 1770 (1985)), with the local
    density approximation whatever the functional of the calculation.

    Parameters
    ----------
    molecule : pyscf.gto.Mole
        In any orbital basis. Atoms in the order of the density.
    density : MolecularDensity
        Predicted, see :meth:`mfm.potential.Potential.density`, or labelled.
    grid_level : int
        PySCF's grid for exchange and correlation.

    Returns
    -------
    (n_orbitals, n_orbitals), or for an open shell (2, n_orbitals, n_orbitals)
        The ``dm0`` of ``kernel``.

    Raises
    ------
    ValueError
        If the atoms of the two differ.
    """
    numbers = density.atomic_numbers.cpu().numpy()
    positions = density.positions.cpu().numpy() / BOHR
    same = np.array_equal(numbers, [gto.charge(molecule.atom_symbol(k)) for k in range(molecule.natm)])
    if not same or np.abs(positions - molecule.atom_coords()).max() > 1e-4:
        raise ValueError(
            "`density` must be one of the molecule's atoms, in its order and at its positions; predict it for this"
            " geometry"
        )
    fock = molecule.intor_symmetric("int1e_kin") + molecule.intor_symmetric("int1e_nuc")
    fock = fock + _repulsion(molecule, density, numbers) + _exchange_correlation(molecule, density, grid_level)
    _, orbitals = scipy.linalg.eigh(fock, molecule.intor_symmetric("int1e_ovlp"))
    alpha, beta = (orbitals[:, :count] @ orbitals[:, :count].T for count in molecule.nelec)
    return np.asarray(alpha + beta if molecule.spin == 0 else np.stack([alpha, beta]))


def _repulsion(molecule: gto.Mole, density: MolecularDensity, numbers: np.ndarray) -> np.ndarray:
    """Coulomb matrix: of the free atoms from their density matrix, of the deformation from its coefficients."""
    basis = density.basis
    atoms = df.DF(molecule, auxbasis=basis.name).get_jk(free_atoms(molecule), hermi=1, with_k=False)[0]
    auxiliary = df.make_auxmol(molecule, basis.name)
    coefficients = basis.from_rows(density.coefficients.cpu().numpy(), numbers) * BOHR**1.5
    total = np.asarray(atoms)
    for functions, integrals in auxiliary_blocks(molecule, auxiliary):
        total = total + integrals @ coefficients[functions]
    return total


def _exchange_correlation(molecule: gto.Mole, density: MolecularDensity, grid_level: int) -> np.ndarray:
    grid = dft.gen_grid.Grids(molecule)
    grid.level = grid_level
    grid.build()
    places = torch.as_tensor(grid.coords * BOHR, device=density.positions.device)
    with torch.no_grad():
        values = density_at(places, density).cpu().numpy() * BOHR**3
    potential = dft.libxc.eval_xc(_FUNCTIONAL, values.clip(min=0.0), deriv=1)[1][0]
    total = np.zeros((molecule.nao_nr(),) * 2)
    for start in range(0, len(values), 20000):
        part = slice(start, start + 20000)
        orbitals = dft.numint.eval_ao(molecule, grid.coords[part])
        total += orbitals.T @ (orbitals * (grid.weights[part] * potential[part])[:, None])
    return total
