"""Sums of triple products over atoms, blocked for the cache and differentiable any number of times."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["triple_sum"]

_BLOCK = 2**18
"""Numbers in a block of the outer product on a CPU, one megabyte in float32: faster than half of it, or than all at
once, for 32 cells of 96 atoms and for one of 1600. Blocks run over rows of the first table, not over structures."""


def triple_sum(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Σ_i x_i ⊗ y_i ⊗ z_i for each group of atoms.

    Parameters
    ----------
    first, second, third : (n_groups, n_x, n_atoms), (n_groups, n_y, n_atoms), (n_groups, n_z, n_atoms)

    Returns
    -------
    (n_groups, n_z, n_x n_y)
    """
    found: Tensor = _TripleSum.apply(first, second, third)
    return found


class _TripleSum(torch.autograd.Function):
    """The sum T; its derivatives are the three contractions of a tensor with two of the tables."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        ctx.save_for_backward(first, second, third)
        blocks = first.split(_rows_per_block(second), dim=1)
        return torch.cat([torch.bmm(third, _outer(rows, second).transpose(1, 2)) for rows in blocks], dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _Contractions.apply(*ctx.saved_tensors, gradient)
        return found


class _Contractions(torch.autograd.Function):
    """(Σ_yz G y z, Σ_xz G x z, Σ_xy G x y) of each atom: linear in G and in the tables, so are its derivatives."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, third: Tensor, tensor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(first, second, third, tensor)
        n_rows, n_y = _rows_per_block(second), second.shape[1]
        of_first, of_second, of_third = [], torch.zeros_like(second), torch.zeros_like(third)
        for rows, some in zip(first.split(n_rows, dim=1), tensor.split(n_rows * n_y, dim=2), strict=True):
            field = torch.bmm(some.transpose(1, 2), third).unflatten(1, (-1, n_y))  # (n_groups, n_rows, n_y, n_atoms)
            of_first.append((field * second.unsqueeze(1)).sum(dim=2))
            of_second += (field * rows.unsqueeze(2)).sum(dim=1)
            of_third += torch.bmm(some, _outer(rows, second))
        return torch.cat(of_first, dim=1), of_second, of_third

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, third, tensor = ctx.saved_tensors
        to_first, to_second, to_third = directions
        n_rows, n_y = _rows_per_block(second), second.shape[1]
        of_first, of_tensor, of_second, of_third = [], [], torch.zeros_like(second), torch.zeros_like(third)
        # out of place, so that autograd can differentiate this once more
        blocks = (first.split(n_rows, dim=1), to_first.split(n_rows, dim=1), tensor.split(n_rows * n_y, dim=2))
        for rows, to_rows, some in zip(*blocks, strict=True):
            planes = _outer(to_rows, second) + _outer(rows, to_second)
            of_tensor.append(
                torch.bmm(third, planes.transpose(1, 2)) + torch.bmm(to_third, _outer(rows, second).transpose(1, 2))
            )
            field = torch.bmm(some.transpose(1, 2), third).unflatten(1, (-1, n_y))
            change = torch.bmm(some.transpose(1, 2), to_third).unflatten(1, (-1, n_y))
            of_first.append((field * to_second.unsqueeze(1) + change * second.unsqueeze(1)).sum(dim=2))
            of_second = of_second + (field * to_rows.unsqueeze(2) + change * rows.unsqueeze(2)).sum(dim=1)
            of_third = of_third + torch.bmm(some, planes)
        return torch.cat(of_first, dim=1), of_second, of_third, torch.cat(of_tensor, dim=2)


def _outer(rows: Tensor, second: Tensor) -> Tensor:
    return (rows.unsqueeze(2) * second.unsqueeze(1)).flatten(1, 2)


def _rows_per_block(second: Tensor) -> int:
    """Rows of the first table whose products with all of the second are made at once."""
    return max(1, _BLOCK // max(second.numel(), 1)) if second.device.type == "cpu" else 2**31
