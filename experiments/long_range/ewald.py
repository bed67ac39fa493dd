"""Energy and forces of periodic point charges by the textbook Ewald sum, independent of mfm's sums."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erfc

from mfm.units import COULOMB_CONSTANT

__all__ = ["Ewald", "repulsion"]


class Ewald(NamedTuple):
    """Sum for a cubic cell.

    Parameters
    ----------
    length : float, Å
    tolerance : float
        What is left of the weights where the two sums end.
    """

    length: float
    tolerance: float = 1e-10

    def __call__(self, positions: np.ndarray, charges: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy, eV, and forces, eV/Å, of charges in e that add up to zero.

        Real space ends at the nearest images, at half the cell.
        """
        reach = math.sqrt(-math.log(self.tolerance))
        width = 2.0 * reach / self.length  # erfc(width L/2) and e^{−k²/(4 width²)} both end at the tolerance
        near_energy, near_forces = self._near(positions, charges, width)
        far_energy, far_forces = self._far(positions, charges, width, 2.0 * width * reach)
        own = width / math.sqrt(math.pi) * np.sum(charges**2)
        return COULOMB_CONSTANT * (near_energy + far_energy - own), COULOMB_CONSTANT * (near_forces + far_forces)

    def _near(self, positions: np.ndarray, charges: np.ndarray, width: float) -> tuple[float, np.ndarray]:
        vectors, distances, inside = nearest_images(positions, self.length)
        inside = inside & (distances < 0.5 * self.length)
        products = np.outer(charges, charges) * inside
        screened = erfc(width * distances) / distances
        slopes = screened + 2.0 * width / math.sqrt(math.pi) * np.exp(-((width * distances) ** 2))
        forces = np.einsum("ij,ijk->ik", products * slopes / distances**2, vectors)
        return 0.5 * float(np.sum(products * screened)), forces

    def _far(
        self, positions: np.ndarray, charges: np.ndarray, width: float, k_cutoff: float
    ) -> tuple[float, np.ndarray]:
        unit = 2.0 * math.pi / self.length
        n = math.floor(k_cutoff / unit)
        axis = np.arange(-n, n + 1)
        indices = np.stack(np.meshgrid(axis[n:], axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        squares = (indices**2).sum(axis=1)
        kept = (squares > 0) & (squares <= (k_cutoff / unit) ** 2)
        indices, k_squared = indices[kept], unit**2 * squares[kept]
        weights = (1.0 + (indices[:, 0] > 0)) * np.exp(-k_squared / (4.0 * width**2)) / k_squared
        table = np.exp(1j * unit * positions[:, None] * axis[:, None])  # (n_atoms, 2 n + 1, 3)
        first, second, third = (table[:, n + indices[:, place], place] for place in range(3))
        phases = first * second * third  # (n_atoms, n_waves)
        factors = charges @ phases
        scale = 2.0 * math.pi / self.length**3
        energy = scale * float(np.sum(weights * np.abs(factors) ** 2))
        pull = np.imag(np.conj(phases) * factors)  # of e^{ik(r_j − r_i)}: minus the slope along each wave
        forces = -2.0 * scale * unit * charges[:, None] * ((pull * weights) @ indices)
        return energy, forces


def nearest_images(positions: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors r_i − r_j to the nearest images, their lengths (1 for i = j), and where i ≠ j."""
    vectors = positions[:, None] - positions[None]
    vectors -= length * np.round(vectors / length)
    distances = np.linalg.norm(vectors, axis=2)
    inside = ~np.eye(len(positions), dtype=bool)
    return vectors, np.where(inside, distances, 1.0), inside


def repulsion(positions: np.ndarray, length: float, strength: float, cutoff: float) -> tuple[float, np.ndarray]:
    """Σ B (1/r⁶ − 1/c⁶)² over pairs within the cutoff c: r⁻¹² with a smooth end.

    Parameters
    ----------
    strength : float, eV Å¹²
    cutoff : float, Å
        At most half the cell.

    Returns
    -------
    energy, eV; forces (n_atoms, 3), eV/Å
    """
    vectors, distances, inside = nearest_images(positions, length)
    inside = inside & (distances < cutoff)
    inverse = 1.0 / distances**2
    rest = (inverse**3 - cutoff**-6) * inside
    energy = 0.5 * strength * float(np.sum(rest**2))
    slopes = 12.0 * strength * rest * inverse**2 * inverse**2  # −dE/dr / r
    return energy, np.einsum("ij,ijk->ik", slopes, vectors)
