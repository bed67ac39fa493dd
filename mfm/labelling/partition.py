"""MBIS: atomic charges and atomic dipoles from an electron density.

The minimal basis iterative stockholder scheme (Verstraelen et al., J. Chem. Theory Comput. 12, 3894
(2016), doi:10.1021/acs.jctc.6b00456) writes the pro-molecule as a sum of spherical exponential shells,

    ρ⁰_Ai(r) = N_Ai / (8π S_Ai³) exp(−|r − R_A| / S_Ai),      w_Ai = ρ⁰_Ai / Σ_Bj ρ⁰_Bj,

and iterates N_Ai = ∫ w_Ai ρ dr and S_Ai = ∫ w_Ai ρ |r − R_A| dr / (3 N_Ai) to self-consistency. Charges and
atomic dipoles reproduce the molecular dipole exactly: Σ_A (q_A R_A + μ_A) = μ.

Everything here is in atomic units (bohr, e); the caller converts.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["AtomicMultipoles", "mbis"]


class AtomicMultipoles(NamedTuple):
    """Result of :func:`mbis`, in atomic units."""

    charges: np.ndarray
    """(n_atoms,), e."""
    dipoles: np.ndarray
    """(n_atoms, 3), e bohr, about each nucleus."""
    n_iterations: int
    """Iterations to convergence."""


def _initial_shells(atomic_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atom of each shell, its population and its width (bohr): Table 1 of the paper, up to argon."""
    owners, populations, widths = [], [], []
    for atom, number in enumerate(atomic_numbers.tolist()):
        if not 1 <= number <= 18:
            raise ValueError(
                f"MBIS shells are defined for atomic numbers 1 to 18, got {number} at atom {atom};"
                " leave the charges of this structure out"
            )
        if number <= 2:
            shells = [(float(number), 0.5 if number == 1 else 0.25)]
        elif number <= 10:
            shells = [(2.0, 0.5 / number), (number - 2.0, 0.5)]
        else:
            shells = [(2.0, 0.5 / number), (8.0, 0.5 / np.sqrt(number)), (number - 10.0, 0.5)]
        for population, width in shells:
            owners.append(atom)
            populations.append(population)
            widths.append(width)
    return np.array(owners), np.array(populations), np.array(widths)


def mbis(
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    density: np.ndarray,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> AtomicMultipoles:
    """MBIS charges and atomic dipoles from a density on a grid.

    Parameters
    ----------
    atomic_numbers : (n_atoms,)
    positions : (n_atoms, 3), bohr
    points : (n_points, 3), bohr
    weights : (n_points,), bohr^3
        Quadrature weights.
    density : (n_points,), e bohr^-3
        Electron density, positive.
    tolerance : float, e
        Converged when no shell population changes by more.

    Returns
    -------
    AtomicMultipoles

    Raises
    ------
    ValueError
        If an element has no shells, or the iteration does not converge.
    """
    owners, populations, widths = _initial_shells(atomic_numbers)
    # tails below 1e-12 carry no charge at the tolerance asked for, and would divide 0 by 0
    keep = density > 1e-12
    points, electrons = points[keep], (weights * density)[keep]
    displacements = points[None, :, :] - positions[:, None, :]  # (n_atoms, n_points, 3)
    distances = np.linalg.norm(displacements, axis=-1)[owners]  # (n_shells, n_points)
    change, n_iterations = np.inf, 0
    while change >= tolerance:
        if n_iterations == max_iterations:
            raise ValueError(
                f"MBIS must converge to {tolerance:g} e within {max_iterations} iterations, got a last change of"
                f" {change:.1e} e; use a finer grid or leave the charges of this structure out"
            )
        shares = _shares(distances, populations, widths) * electrons
        updated = shares.sum(axis=1)
        widths = np.einsum("sp,sp->s", shares, distances) / (3 * updated)
        change = np.abs(updated - populations).max()
        populations = updated
        n_iterations += 1
    shares = _shares(distances, populations, widths) * electrons
    n_atoms = len(atomic_numbers)
    charges = atomic_numbers.astype(float)
    dipoles = np.zeros((n_atoms, 3))
    for shell, atom in enumerate(owners):
        charges[atom] -= shares[shell].sum()
        dipoles[atom] -= shares[shell] @ displacements[atom]
    return AtomicMultipoles(charges, dipoles, n_iterations)


def _shares(distances: np.ndarray, populations: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Stockholder weights of all shells at all points, (n_shells, n_points); they sum to one."""
    prefactors = populations / (8 * np.pi * widths**3)
    shells = prefactors[:, None] * np.exp(-distances / widths[:, None])
    # far from every nucleus all shells underflow together; the floor makes their share zero, not NaN
    return shells / np.maximum(shells.sum(axis=0), 1e-300)
