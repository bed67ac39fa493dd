"""Bias-free linear maps, one per degree."""

import torch
from torch import Tensor, nn

from mfm.nn.harmonics import degrees

__all__ = ["DegreewiseLinear"]


class DegreewiseLinear(nn.Module):
    """Mixes the channels of equivariant features with one matrix per degree.

    Parameters
    ----------
    min_degree, max_degree : int
        Degrees the features hold, in the order of :func:`mfm.nn.harmonics.degrees`.
    """

    selection: Tensor

    def __init__(self, n_in: int, n_out: int, max_degree: int, min_degree: int = 0) -> None:
        super().__init__()
        n_degrees = max_degree - min_degree + 1
        self.weight = nn.Parameter(torch.randn(n_degrees, n_in, n_out) * n_in**-0.5)
        of_component = torch.tensor(degrees(max_degree, min_degree)) - min_degree
        selection = torch.nn.functional.one_hot(of_component, n_degrees).double()
        self.register_buffer("selection", selection, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n_components, n_atoms, n_in) → (n_components, n_atoms, n_out)."""
        # a product with a one-hot matrix, because its derivative is a product too; that of indexing is a slow scatter
        weight = (self.selection @ self.weight.flatten(1)).view(-1, *self.weight.shape[1:])
        return torch.bmm(features, weight)
