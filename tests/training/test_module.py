"""Clipping of gradients by what gradients were."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mfm.training.ema import WeightAverage
from mfm.training.module import StageModule, Targets
from mfm.training.recipe import OptimizerConfig
from mfm.training.schedule import Budget, Clock


@pytest.fixture
def clipped() -> Callable[[float], float]:
    """Clips a gradient of a given length at twice the running average; returns what is left of it."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    budget, clock = Budget("steps", 1000), Clock()
    average = WeightAverage(model, 0.9)
    config = OptimizerConfig(clip=2.0)
    module = StageModule(model, Targets([], []), lambda *_: None, optimizer, config, budget, average, clock)

    def clip(length: float) -> float:
        model.weight.grad = torch.full((1, 1), length)
        assert float(module._clip()) == pytest.approx(length)
        clock.advance(10)
        return float(model.weight.grad)

    return clip


def test_a_long_gradient_is_cut_to_a_multiple_of_those_before(clipped: Callable[[float], float]) -> None:
    assert [clipped(1.0) for _ in range(20)] == [pytest.approx(1.0)] * 20
    assert clipped(1000.0) == pytest.approx(2.0)
    # and hardly moves the yardstick
    assert clipped(1000.0) < 2.2


def test_batches_without_a_gradient_are_no_yardstick(clipped: Callable[[float], float]) -> None:
    """Otherwise a stage whose first batch lacks the label that trains would never start."""
    assert clipped(0.0) == 0.0
    assert clipped(3.0) == pytest.approx(3.0)
    for _ in range(100):
        clipped(0.0)
    assert clipped(3.0) == pytest.approx(3.0)


def test_the_yardstick_follows_gradients_that_grow(clipped: Callable[[float], float]) -> None:
    clipped(1e-3)
    left = [clipped(1.0) for _ in range(400)]
    assert left[0] < 0.01
    assert left[-1] == pytest.approx(1.0)
