import pytest
import torch
from torch import nn

from mfm.training.ema import WeightAverage


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def test_average_follows_the_closed_form():
    model = _model()
    average = WeightAverage(model, decay=0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight += 0.01 * step
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.state_dict()["weight"], expected, rtol=1e-13, atol=0)


def test_applied_gives_the_average_and_returns_the_weights_bit_by_bit():
    model = _model()
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight += torch.pi
    trained = model.weight.detach().clone()

    def fail_inside() -> None:
        with average.applied():
            assert torch.equal(model.weight, average.state_dict()["weight"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(model.weight, trained)


def test_frozen_parameters_are_not_averaged():
    model = _model()
    model.bias.requires_grad_(False)
    assert list(WeightAverage(model, decay=0.9).state_dict()) == ["weight"]


def test_state_survives_and_a_foreign_one_is_refused():
    model = _model()
    average, other = WeightAverage(model, decay=0.9), WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight += 1
    average.update(5)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.state_dict()["weight"], average.state_dict()["weight"])
    with pytest.raises(ValueError, match="differs in bias"):
        other.load_state_dict({"weight": model.weight})
    with pytest.raises(ValueError, match=r"must have shape \(2, 3\), got \(1,\)"):
        other.load_state_dict({"weight": torch.zeros(1), "bias": torch.zeros(2)})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_must_lie_in_range(decay):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        WeightAverage(_model(), decay)
