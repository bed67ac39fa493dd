"""Radial functions: Bessel basis and smooth cutoff."""

import math

import torch
from torch import Tensor, nn

__all__ = ["BesselBasis", "polynomial_cutoff"]


def polynomial_cutoff(distances: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Envelope that goes from 1 to 0 with `power` − 1 vanishing derivatives at the cutoff.

    Implements Eq. 8 of Gasteiger, Groß, Günnemann, ICLR 2020, arXiv:2003.03123.

    Parameters
    ----------
    distances : (n,), Å

    Returns
    -------
    (n,)
    """
    x = (distances / cutoff).clamp(max=1.0)
    a, b, c = (power + 1) * (power + 2) / 2, power * (power + 2), power * (power + 1) / 2
    return 1.0 - x**power * (a - x * (b - c * x))


class BesselBasis(nn.Module):
    """Radial Bessel functions times the smooth cutoff.

    Implements Eq. 7 of Gasteiger, Groß, Günnemann, ICLR 2020, arXiv:2003.03123:
    √(2/r_c) sin(n π r / r_c) / r, scaled to a mean square near one.
    """

    frequencies: Tensor

    def __init__(self, cutoff: float, n_basis: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        frequencies = torch.arange(1, n_basis + 1, dtype=torch.float64) * math.pi / cutoff
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """(n,) distances in Å → (n, n_basis)."""
        envelope = polynomial_cutoff(distances, self.cutoff) * (2.0**0.5) / distances
        return torch.sin(distances.unsqueeze(1) * self.frequencies) * envelope.unsqueeze(1)
