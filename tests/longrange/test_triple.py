"""Sums of triple products and their derivatives, in blocks."""

import pytest
import torch

from mfm.longrange import triple


@pytest.mark.parametrize("block", [1, 100, 2**18])
def test_triple_sum_in_blocks_and_its_three_derivatives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triple, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(2, n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 2, 3)]
    expected = torch.einsum("gxi,gyi,gzi->gzxy", *tables).flatten(2)
    assert torch.allclose(triple.triple_sum(*tables), expected, atol=1e-13)
    assert torch.autograd.gradcheck(triple.triple_sum, tables)
    assert torch.autograd.gradgradcheck(triple.triple_sum, tables)

    def curvature(*tables: torch.Tensor) -> torch.Tensor:
        power = triple.triple_sum(*tables).square().sum()
        slopes = torch.autograd.grad(power, tables, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), tables, create_graph=True)[1]

    assert torch.autograd.gradcheck(curvature, tables)
