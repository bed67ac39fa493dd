"""Basis of a density from PySCF: the fitting basis of each element, and its free atom at a level of theory."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from pyscf import df, gto

from mfm.density.basis import DensityBasis, ElementBasis, Shell
from mfm.labelling.density_fit import free_atoms
from mfm.units import BOHR

__all__ = ["density_basis"]

_EMPTY = 1e-12
"""Electrons per orbital of a free atom below which it is left out."""


def density_basis(orbital_basis: str, fitting_basis: str, atomic_numbers: Iterable[int]) -> DensityBasis:
    """Basis of densities that :func:`mfm.labelling.density_fit.fit_deformation_density` fits.

    Parameters
    ----------
    orbital_basis : str
        Of the level of theory: free atoms are spherical Hartree-Fock atoms in it, as PySCF's ``init_guess_by_atom`` has
        them.
    fitting_basis : str
        Of the deformation.

    Raises
    ------
    ValueError
        If an element has more shells than :data:`mfm.density.basis.SLOTS`, as those beyond argon do.
    """
    elements = {}
    for number in sorted({int(z) for z in atomic_numbers}):
        # electrons do not matter here, only functions do
        atom = gto.M(atom=[(number, (0.0, 0.0, 0.0))], basis=orbital_basis, spin=number % 2, verbose=0)
        shells = [shell for _, shell in _shells(df.make_auxmol(atom, fitting_basis))]
        elements[number] = ElementBasis(tuple(shells), _free_atom(atom))
    return DensityBasis(fitting_basis, elements)


def _shells(molecule: gto.Mole) -> list[tuple[int, Shell]]:
    """Contracted radial functions of a molecule of one atom, in Å, with the place of their first component."""
    found, offsets = [], molecule.ao_loc_nr()
    for index in range(molecule.nbas):
        degree = molecule.bas_angular(index)
        exponents = molecule.bas_exp(index) / BOHR**2
        for k, weights in enumerate(molecule._libcint_ctr_coeff(index).T):
            scaled = weights * BOHR ** (-1.5 - degree)
            shell = Shell(degree, tuple(exponents.tolist()), tuple(scaled.tolist()))
            found.append((int(offsets[index]) + k * (2 * degree + 1), shell))
    return found


def _free_atom(atom: gto.Mole) -> tuple[Shell, ...]:
    """Natural orbitals of the radial density matrix: their squares add up to the free atom's density."""
    density: Any = free_atoms(atom)
    shells = _shells(atom)
    orbitals = []
    for degree in sorted({shell.degree for _, shell in shells}):
        mine = [(place, shell) for place, shell in shells if shell.degree == degree]
        places = [place for place, _ in mine]
        # spherical: all components of a degree have the same matrix, and their squares add up to (2 l + 1) / 4π
        values, vectors = np.linalg.eigh(density[np.ix_(places, places)])
        exponents = np.concatenate([shell.exponents for _, shell in mine])
        for value, vector in zip(values[::-1], vectors.T[::-1], strict=True):
            weights = np.concatenate([c * np.array(shell.weights) for c, (_, shell) in zip(vector, mine, strict=True)])
            weights = weights * np.sqrt(max(value, 0.0) * (2 * degree + 1))
            orbital = _merged(degree, exponents, weights)
            if orbital.moment(orbital, 0) > _EMPTY:
                orbitals.append(orbital)
    return tuple(orbitals)


def _merged(degree: int, exponents: np.ndarray, weights: np.ndarray) -> Shell:
    """Shell in which every exponent stands once."""
    distinct, owner = np.unique(exponents, return_inverse=True)
    summed = np.bincount(owner, weights=weights)
    return Shell(degree, tuple(distinct[::-1].tolist()), tuple(summed[::-1].tolist()))
