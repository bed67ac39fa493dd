"""Deformation density in an auxiliary Gaussian basis: Δρ = ρ − Σ_A ρ_A (free atoms) ≈ Σ_P c_P χ_P.

The coefficients minimise the Coulomb self-energy of what is left, with the charge and the dipole exact:

    ⎡ J   Cᵀ ⎤ ⎡  c ⎤   ⎡ b ⎤     J_PQ = (P|Q),   b_P = Σ_μν ΔD_μν (μν|P),   ΔD = D − D⁰
    ⎣ C   0  ⎦ ⎣ −λ ⎦ = ⎣ t ⎦     C: charge and dipole of each χ_P,   t: those of Δρ,   ∫ Δρ = −Q

The free atoms are spherical, with fractional occupations, in the orbital basis of the molecule (PySCF's
``init_guess_by_atom``). Without them the core, which no auxiliary basis describes, would dominate the error.
Components follow PySCF and :mod:`mfm.nn.harmonics`: p is (x, y, z), l ≥ 2 runs m = −l … l. Atomic units.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from pyscf import df, dft, gto, scf

__all__ = ["DensityFit", "auxiliary_blocks", "fit_deformation_density", "free_atoms"]

_Y00, _Y1 = np.sqrt(1 / (4 * np.pi)), np.sqrt(3 / (4 * np.pi))
_BLOCK_BYTES = 2**28
"""Memory for three-centre integrals at a time."""


class DensityFit(NamedTuple):
    """Result of :func:`fit_deformation_density`."""

    coefficients: np.ndarray
    """(n_functions,), atoms in order, shells of an atom as :mod:`mfm.labelling.density_basis` has them."""
    error: float
    """NMAE: ∫ |fitted ρ − ρ| / ∫ ρ in percent, free atoms included, all electrons."""
    baseline: float
    """The same for the free atoms alone, percent."""
    dipole_error: float
    """Largest component of the fitted minus the exact dipole, e bohr."""


def fit_deformation_density(
    molecule: gto.Mole, density: np.ndarray, fitting_basis: str, grid_level: int = 3
) -> DensityFit:
    """Fit the deformation density of a molecule.

    Parameters
    ----------
    molecule : pyscf.gto.Mole
    density : (n_orbitals, n_orbitals)
        Density matrix of all electrons.
    fitting_basis : str
        Auxiliary basis, such as ``def2-universal-jkfit``.
    grid_level : int
        Grid on which the error of the fit is measured.

    Returns
    -------
    DensityFit
    """
    auxiliary = df.make_auxmol(molecule, fitting_basis)
    free = free_atoms(molecule)
    difference = density - free
    metric = auxiliary.intor("int2c2e")
    moments = _moments_of_functions(auxiliary)  # (4, n_functions)
    target = np.concatenate(
        [
            [np.einsum("ij,ij->", molecule.intor_symmetric("int1e_ovlp"), difference)],
            np.einsum("xij,ij->x", molecule.intor_symmetric("int1e_r", comp=3), difference),
        ]
    )
    factor = scipy.linalg.cho_factor(metric)
    free_fit = scipy.linalg.cho_solve(factor, _coulomb_projection(molecule, auxiliary, difference))
    response = scipy.linalg.cho_solve(factor, moments.T)  # (n_functions, 4)
    # least squares: the four conditions of a single atom of s functions depend on each other
    multipliers = np.linalg.lstsq(moments @ response, target - moments @ free_fit, rcond=1e-10)[0]
    coefficients = free_fit + response @ multipliers
    error, baseline = _errors(molecule, auxiliary, (density, free), coefficients, grid_level)
    dipole_error = float(np.abs(moments[1:] @ coefficients - target[1:]).max())
    return DensityFit(coefficients, error, baseline, dipole_error)


def free_atoms(molecule: gto.Mole) -> np.ndarray:
    """Density matrix (n_orbitals, n_orbitals) of the spherical free atoms."""
    with warnings.catch_warnings():
        # PySCF 2.14 calls a function of its own that it has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        free = np.asarray(scf.hf.init_guess_by_atom(molecule))
    return free if free.ndim == 2 else free[0] + free[1]


def _moments_of_functions(auxiliary: gto.Mole) -> np.ndarray:
    """∫ χ_P and ∫ (x, y, z) χ_P about the coordinate origin, (4, n_functions): s and p functions only."""
    moments = np.zeros((4, auxiliary.nao_nr()))
    offsets = auxiliary.ao_loc_nr()
    for shell in range(auxiliary.nbas):
        degree = auxiliary.bas_angular(shell)
        if degree > 1:
            continue
        exponents, contraction = auxiliary.bas_exp(shell), auxiliary._libcint_ctr_coeff(shell)
        for k in range(contraction.shape[1]):
            start = offsets[shell] + k * (2 * degree + 1)
            if degree == 0:
                charge = _Y00 * (contraction[:, k] * (np.pi / exponents) ** 1.5).sum()
                moments[0, start] = charge
                moments[1:, start] = charge * auxiliary.bas_coord(shell)
            else:
                # ∫ x² exp(−α r²) = (π/α)^(3/2) / (2 α)
                value = _Y1 * (contraction[:, k] * (np.pi / exponents) ** 1.5 / (2 * exponents)).sum()
                moments[1:, start : start + 3] = value * np.eye(3)
    return moments


def auxiliary_blocks(molecule: gto.Mole, auxiliary: gto.Mole) -> Iterator[tuple[slice, np.ndarray]]:
    """Integrals (μν|P), (n_orbitals, n_orbitals, n), in blocks of auxiliary functions P."""
    offsets = auxiliary.ao_loc_nr()
    n_orbitals = molecule.nao_nr()
    per_block = max(int(_BLOCK_BYTES // (8 * n_orbitals**2)), 32)
    start = 0
    while start < auxiliary.nbas:
        stop = max(int(np.searchsorted(offsets, offsets[start] + per_block, side="right")) - 1, start + 1)
        slices = (0, molecule.nbas, 0, molecule.nbas, start, stop)
        integrals = df.incore.aux_e2(molecule, auxiliary, intor="int3c2e", aosym="s1", shls_slice=slices)
        yield slice(int(offsets[start]), int(offsets[stop])), integrals
        start = stop


def _coulomb_projection(molecule: gto.Mole, auxiliary: gto.Mole, difference: np.ndarray) -> np.ndarray:
    """b_P = Σ_μν ΔD_μν (μν|P)."""
    blocks = auxiliary_blocks(molecule, auxiliary)
    return np.concatenate([np.einsum("ijp,ij->p", integrals, difference) for _, integrals in blocks])


def _errors(
    molecule: gto.Mole, auxiliary: gto.Mole, densities: tuple[np.ndarray, np.ndarray], coefficients: Any, level: int
) -> tuple[float, float]:
    """NMAE of fit plus free atoms, and of the free atoms alone, percent."""
    grid = dft.gen_grid.Grids(molecule)
    grid.level = level
    grid.build()
    integrator = dft.numint.NumInt()
    exact, free = (integrator.get_rho(molecule, matrix, grid) for matrix in densities)
    electrons = (grid.weights * exact).sum()
    fitted = np.zeros_like(exact)
    for start in range(0, len(fitted), 20000):
        part = slice(start, start + 20000)
        fitted[part] = dft.numint.eval_ao(auxiliary, grid.coords[part]) @ coefficients
    errors = [100 * (grid.weights * np.abs(left)).sum() / electrons for left in (free + fitted - exact, free - exact)]
    return float(errors[0]), float(errors[1])
