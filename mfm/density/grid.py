"""Atom-centred grids that integrate densities.

Becke's partition of space (J. Chem. Phys. 88, 2547 (1988)): Gauss-Chebyshev radii and Lebedev directions about each
atom, weighted by smooth cells that add up to one everywhere.
"""

import numpy as np
from ase.data import covalent_radii

from mfm.nn.harmonics import sphere_quadrature
from mfm.structure import Structure

__all__ = ["integration_grid"]


def integration_grid(structure: Structure, n_radial: int = 50, degree: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights that integrate a molecule's density to about 1e-4 of its electrons.

    Parameters
    ----------
    n_radial : int
        Radii about each atom.
    degree : int
        Degree of the harmonics that the directions integrate exactly.

    Returns
    -------
    points : (n_points, 3), Å
    weights : (n_points,), Å³
    """
    directions, angular = sphere_quadrature(degree)
    angles = np.arange(1, n_radial + 1) * np.pi / (n_radial + 1)
    x = np.cos(angles)
    points, weights = [], []
    for atom, (number, centre) in enumerate(zip(structure.atomic_numbers, structure.positions, strict=True)):
        # half of the atoms' radius, as Becke has it, but hydrogen's in full: half of the points lie within
        scale = float(covalent_radii[number]) * (1.0 if number == 1 else 0.5)
        radii = scale * (1.0 + x) / (1.0 - x)
        radial = np.pi / (n_radial + 1) * np.sin(angles) * 2.0 * scale / (1.0 - x) ** 2 * radii**2
        mine = centre + (radii[:, None, None] * directions).reshape(-1, 3)
        points.append(mine)
        weights.append(4.0 * np.pi * np.outer(radial, angular).ravel() * _cell(mine, structure.positions, atom))
    return np.concatenate(points), np.concatenate(weights)


def _cell(points: np.ndarray, centres: np.ndarray, atom: int) -> np.ndarray:
    """Share of each point (n_points,) that belongs to an atom."""
    if len(centres) == 1:
        return np.ones(len(points))
    distances = np.linalg.norm(points[:, None] - centres, axis=-1)  # (n_points, n_atoms)
    between = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.eye(len(centres))
    shares = np.ones_like(distances)
    for one in range(len(centres)):
        steps = (distances[:, one, None] - distances) / between[one]
        for _ in range(3):
            steps = 1.5 * steps - 0.5 * steps**3
        factors = 0.5 * (1.0 - steps)
        factors[:, one] = 1.0
        shares[:, one] = factors.prod(axis=1)
    return np.asarray(shares[:, atom] / shares.sum(axis=1))
