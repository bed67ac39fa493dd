"""Real spherical harmonics of unit vectors, and quadrature on the sphere.

Order within a degree: l = 1 is (x, y, z); l ≥ 2 runs m = −l … l about z. This is PySCF's order, so that
density coefficients need no permutation. Normalisation: the squares of one degree sum to 2 l + 1.
"""

import functools

import numpy as np
import torch
from scipy.integrate import lebedev_rule
from scipy.special import sph_harm_y
from torch import Tensor, nn

__all__ = ["SphericalHarmonics", "degrees", "real_harmonics", "second_degree_matrices", "sphere_quadrature"]


def real_harmonics(points: np.ndarray, max_degree: int) -> np.ndarray:
    """Real spherical harmonics by their definition, for tables and tests.

    Parameters
    ----------
    points : (n, 3)
        Unit vectors.

    Returns
    -------
    (n, (max_degree + 1)²)
    """
    theta = np.arccos(np.clip(points[:, 2], -1.0, 1.0))
    phi = np.arctan2(points[:, 1], points[:, 0])
    columns = []
    for degree in range(max_degree + 1):
        orders = range(-degree, degree + 1) if degree != 1 else (1, -1, 0)
        for order in orders:
            value = sph_harm_y(degree, abs(order), theta, phi)
            # the Condon–Shortley phase of the complex harmonics is taken out again
            sign = np.sqrt(2.0) * (-1.0) ** order
            real = value.real if order == 0 else sign * (value.real if order > 0 else value.imag)
            columns.append(np.sqrt(4.0 * np.pi) * real)
    return np.stack(columns, axis=1)


def degrees(max_degree: int, min_degree: int = 0) -> list[int]:
    """Degree l of each component, in storage order: [0, 1, 1, 1, 2, …]."""
    return [degree for degree in range(min_degree, max_degree + 1) for _ in range(2 * degree + 1)]


def sphere_quadrature(max_degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Lebedev points (n, 3) and weights (n,), summing to 1, exact for polynomials up to `max_degree`."""
    order = next(o for o in (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31) if o >= max_degree)
    points, weights = lebedev_rule(order)
    return points.T, weights / weights.sum()


@functools.cache
def second_degree_matrices() -> np.ndarray:
    """Symmetric traceless matrices M_m with Y_2m(r̂) = r̂ᵀ M_m r̂: (5, 3, 3).

    They turn the five components of a degree-2 feature into a Cartesian tensor that transforms as one.
    """
    points, weights = sphere_quadrature(4)
    values = real_harmonics(points, 2)[:, 4:]
    # the average of (r̂ᵀ M r̂) r̂ r̂ᵀ over directions is 2/15 M for a symmetric traceless M
    return np.asarray(7.5 * np.einsum("p,pm,pa,pb->mab", weights, values, points, points))


@functools.cache
def _raising_matrix(degree: int) -> np.ndarray:
    """Matrix that takes Y_l ⊗ r̂ to Y_{l+1}: the coupling coefficients of l, 1 and l + 1, by exact quadrature."""
    points, weights = sphere_quadrature(2 * degree + 2)
    table = real_harmonics(points, degree + 1)
    products = table[:, degree**2 : (degree + 1) ** 2, None] * points[:, None, :]
    products = products.reshape(len(points), -1)
    target = table[:, (degree + 1) ** 2 :]
    coupling = products.T @ (weights[:, None] * target)
    scale = (products @ coupling * target).sum() / (target**2).sum()
    return coupling / scale


class SphericalHarmonics(nn.Module):
    """Harmonics of degree 0 to `max_degree`, each degree raised from the one below it.

    Y_{l+1} is a fixed linear map of Y_l ⊗ r̂. This takes three tensor operations a degree, where written-out
    polynomials take dozens, and its derivatives of any order are matrix products too.
    """

    def __init__(self, max_degree: int) -> None:
        super().__init__()
        self.max_degree = max_degree
        for degree in range(1, max_degree):
            matrix = torch.as_tensor(_raising_matrix(degree))
            self.register_buffer(f"raise_{degree}", matrix, persistent=False)

    def forward(self, directions: Tensor) -> Tensor:
        """Harmonics of unit vectors.

        Parameters
        ----------
        directions : (n, 3)

        Returns
        -------
        (n, (max_degree + 1)²)
        """
        columns = [torch.ones_like(directions[:, :1])]
        if self.max_degree > 0:
            columns.append(3.0**0.5 * directions)
        for degree in range(1, self.max_degree):
            product = columns[-1].unsqueeze(2) * directions.unsqueeze(1)  # (n, 2l+1, 3)
            matrix = self.get_buffer(f"raise_{degree}")
            columns.append(product.flatten(1) @ matrix)
        return torch.cat(columns, dim=1)

    def solid(self, vectors: Tensor) -> Tensor:
        """Solid harmonics r^l Y_lm: polynomials, for vectors that stand in columns, which many points do fastest.

        Parameters
        ----------
        vectors : (3, n)
            Of any length.

        Returns
        -------
        ((max_degree + 1)², n)
        """
        rows = [torch.ones_like(vectors[:1])]
        if self.max_degree > 0:
            rows.append(3.0**0.5 * vectors)
        for degree in range(1, self.max_degree):
            product = rows[-1].unsqueeze(1) * vectors.unsqueeze(0)  # (2l+1, 3, n)
            rows.append(self.get_buffer(f"raise_{degree}").T @ product.flatten(0, 1))
        return torch.cat(rows)
