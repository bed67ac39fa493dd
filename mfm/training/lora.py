"""Low-rank corrections of a backbone's matrices (LoRA): few parameters train, and none remain.

W becomes W + A B with A (n, r) and B (r, m), B zero at the start, as in Hu et al., ICLR 2022 (arXiv:2106.09685).
Equivariant maps hold one matrix per degree and get one pair per degree, so they stay equivariant. When the stage ends
the corrections are added to the matrices: the model has the weights and the cost it had before.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mfm.nn.linear import DegreewiseLinear

__all__ = ["add_low_rank", "merge_low_rank"]

_WEIGHT = "weight"


class _LowRank(nn.Module):
    """W → W + A B over the last two dimensions."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *batch, n, m = weight.shape
        r = min(rank, n, m)
        # A B is as large as B: with unit columns in A the usual learning rates hold
        self.left = nn.Parameter(torch.randn(*batch, n, r, dtype=weight.dtype, device=weight.device) * n**-0.5)
        self.right = nn.Parameter(torch.zeros(*batch, r, m, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right


def _maps(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Linear | DegreewiseLinear)]


def add_low_rank(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone and give each of its linear maps a correction of low rank, zero at first.

    Maps that have one already keep it. Random numbers come from torch's global generator.

    Parameters
    ----------
    rank : int
        At most; a smaller matrix gets its own size.
    """
    backbone.requires_grad_(False)
    for part in _maps(backbone):
        if not parametrize.is_parametrized(part, _WEIGHT):
            weight: Tensor = part.weight  # type: ignore[assignment]
            parametrize.register_parametrization(part, _WEIGHT, _LowRank(weight, rank))
        for correction in part.parametrizations[_WEIGHT]:  # type: ignore[index]
            correction.requires_grad_(True)


def merge_low_rank(backbone: nn.Module) -> None:
    """Add all corrections to their matrices and take them away; parameters have their old names again."""
    for part in _maps(backbone):
        if parametrize.is_parametrized(part, _WEIGHT):
            parametrize.remove_parametrizations(part, _WEIGHT, leave_parametrized=True)
            # torch puts it last, and the state of an optimiser goes by the order of parameters
            for name in [name for name in part._parameters if name != _WEIGHT]:
                part._parameters[name] = part._parameters.pop(name)
    backbone.requires_grad_(True)
