"""Backbones beyond what energies show: equivariant features, settings that are refused."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mfm.backbones import BACKBONES, GauntConfig
from mfm.config import Config, validate
from mfm.graph import Structure, build_graph
from mfm.nn.harmonics import degrees, real_harmonics


def rotation_of_harmonics(matrix: np.ndarray, max_degree: int) -> np.ndarray:
    """Matrix D with Y(R r) = D Y(r), from values at enough points."""
    points = np.random.default_rng(0).normal(size=(100, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before, after = real_harmonics(points, max_degree), real_harmonics(points @ matrix.T, max_degree)
    return np.linalg.lstsq(before, after, rcond=None)[0].T


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda config: config.model_fields["name"].default)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
def test_equivariant_features_turn_like_harmonics(backbone: type[Config], sign: float) -> None:
    torch.manual_seed(0)
    model = backbone(cutoff=4.0).build(with_equivariants=True).double()
    positions = np.random.default_rng(1).uniform(0, 3, size=(6, 3))
    matrix = sign * Rotation.random(random_state=2).as_matrix()
    numbers = np.array([8, 1, 1, 6, 1, 6])
    features = [
        model(build_graph(Structure(numbers, x), 4.0, dtype=torch.float64)) for x in (positions, positions @ matrix.T)
    ]
    torch.testing.assert_close(features[1].scalars, features[0].scalars, rtol=0, atol=1e-10)
    max_degree = int(max(degrees(4)[: len(features[0].equivariants) + 1]))
    turn = torch.as_tensor(rotation_of_harmonics(matrix, max_degree)[1:, 1:])
    expected = torch.einsum("mk,knc->mnc", turn, features[0].equivariants)
    torch.testing.assert_close(features[1].equivariants, expected, rtol=0, atol=1e-10)
    assert features[0].equivariants.abs().amax(dim=(1, 2)).min() > 1e-4


def test_every_parameter_of_an_energy_backbone_is_used() -> None:
    torch.manual_seed(0)
    model = GauntConfig().build().double()
    positions = np.random.default_rng(1).uniform(0, 3, size=(6, 3))
    graph = build_graph(Structure(np.array([8, 1, 1, 6, 1, 6]), positions, charge=1), 5.0, dtype=torch.float64)
    model(graph).scalars.square().sum().backward()
    # the weights of the shares of charge start behind a map that is zero
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == ["state.log_weights.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"equivariant_degree": 4}, "`equivariant_degree` must be at most `max_degree`, got 4 above 3"),
        ({"n_layers": 0}, "`n_layers`: Input should be greater than 0, got 0"),
        ({"cutof": 4.0}, "`cutof`: unknown key; did you mean `cutoff`"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(GauntConfig, settings)
