"""Products of equivariant features on a grid over the sphere.

Features of degree 0 … L are the expansion coefficients of a function on the sphere. Two of them are coupled
by evaluating both functions on a quadrature grid, multiplying point by point, and projecting back: two matrix
products and one multiplication instead of a sum over Clebsch–Gordan paths. With a grid that is exact for the
degrees involved the result is the Gaunt tensor product of Luo, Chen, Krishnapriyan, ICLR 2024,
arXiv:2401.10216, without error, so equivariance is exact.
"""

import torch
from torch import Tensor, nn

from mfm.nn.harmonics import real_harmonics, sphere_quadrature

__all__ = ["SphereGrid"]


class SphereGrid(nn.Module):
    """Change of basis between harmonic coefficients and values on a grid.

    Parameters
    ----------
    degree_in : int
        Highest degree of the functions that are multiplied.
    degree_out : int
        Highest degree of the product that is kept.
    order : int
        Number of functions that will be multiplied before projecting.
    """

    evaluation: Tensor
    mean: Tensor
    projection: Tensor

    def __init__(self, degree_in: int, degree_out: int, order: int) -> None:
        super().__init__()
        points, weights = sphere_quadrature(order * degree_in + degree_out)
        projection = (weights[:, None] * real_harmonics(points, degree_out)).T
        # coefficients of unit variance give grid values of unit variance, so that products stay of order one
        evaluation = real_harmonics(points, degree_in) / (degree_in + 1)
        self.register_buffer("evaluation", torch.as_tensor(evaluation), persistent=False)
        self.register_buffer("mean", torch.as_tensor(projection[:1].copy()), persistent=False)
        self.register_buffer("projection", torch.as_tensor(projection[1:].copy()), persistent=False)

    def to_grid(self, coefficients: Tensor) -> Tensor:
        """((degree_in + 1)², n_atoms, C) → (n_points, n_atoms, C)."""
        return (self.evaluation @ coefficients.flatten(1)).view(-1, *coefficients.shape[1:])

    def invariant(self, values: Tensor) -> Tensor:
        """Degree 0 of a function: (n_points, n_atoms, C) → (n_atoms, C)."""
        return (self.mean @ values.flatten(1)).view(values.shape[1:])

    def equivariant(self, values: Tensor) -> Tensor:
        """Degrees 1 … degree_out of a function: (n_points, n_atoms, C) → ((degree_out + 1)² − 1, n_atoms, C)."""
        return (self.projection @ values.flatten(1)).view(-1, *values.shape[1:])
