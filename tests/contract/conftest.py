"""Models and structures that every contract is checked on."""

import numpy as np
import pytest
import torch

from mfm.backbones import BACKBONES
from mfm.config import Config
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.heads import HEADS
from mfm.longrange import LatentEwaldConfig
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from tests.densities import toy_basis

JOINS = {
    "independent": {"energy_low": {}, "energy_high": {}},
    "anchor": {"energy_low": {}, "energy_high": {"anchor": "energy_low"}},
    "conditioned": {"energy_low": {}, "energy_high": {"conditioned": "energy_low"}},
}
LONG_RANGE = {
    "local": None,
    "shared": LatentEwaldConfig(smallest_width=1.2),
    "scaled-ions": LatentEwaldConfig(fidelities="scaled", own_charges=True, smallest_width=1.2),
    "own-dispersion": LatentEwaldConfig(fidelities="own", n_channels=2, dispersion=True, smallest_width=1.2),
}
HEAD_JOINS = {
    "independent": {f"{prop}_{fidelity}": {} for prop in HEADS for fidelity in ("low", "high")},
    "anchor": {
        **{f"{prop}_low": {} for prop in HEADS},
        **{f"{prop}_high": {"anchor": f"{prop}_low"} for prop in HEADS},
    },
}
DTYPE = torch.float64


def make_model(
    backbone: type[Config],
    join: str | None,
    seed: int = 1,
    long_range: str = "local",
    head_join: str | None = None,
) -> MFMModel:
    """Small model whose weights are all random, those that start at zero included.

    Parameters
    ----------
    join, head_join : str, optional
        How energies and electronic properties of two fidelities are joined; without, there are none.
    """
    references = {
        "low": {1: -13.0, 6: -1030.0, 8: -2040.0, 11: -4400.0, 17: -12500.0},
        "high": {1: -13.5, 6: -1031.0, 8: -2042.0, 11: -4401.0, 17: -12502.0},
    }
    domain = Domain(
        references=references if join else {},
        levels={name: LevelOfTheory(name) for name in ("low", "high")},
        scale=1.7,
        average_neighbours=8.0,
        charges=(-1, 0, 1),
        multiplicities=(1, 2, 3),
        atomic_numbers=(1, 6, 8, 11, 17),
        density_bases=dict.fromkeys(("low", "high"), toy_basis(1, 6, 8, 11, 17)),
    )
    tasks = {**(JOINS[join] if join else {}), **(HEAD_JOINS[head_join] if head_join else {})}
    config = ModelConfig(backbone=backbone(cutoff=4.0), tasks=tasks, long_range=LONG_RANGE[long_range])
    model = build_model(config, domain, seed=seed, dtype=DTYPE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=DTYPE))
    return model.eval()


@pytest.fixture(params=[config.model_fields["name"].default for config in BACKBONES])
def backbone(request: pytest.FixtureRequest) -> type[Config]:
    """Each backbone of the list in turn."""
    return next(config for config in BACKBONES if config.model_fields["name"].default == request.param)


@pytest.fixture(
    params=[
        ("independent", "local"), ("anchor", "local"), ("conditioned", "local"),
        ("anchor", "shared"), ("independent", "scaled-ions"), ("conditioned", "own-dispersion"),
    ],
    ids="-".join,
)  # fmt: skip
def model(backbone: type[Config], request: pytest.FixtureRequest) -> MFMModel:
    """Each backbone with each way to join fidelities, with and without a long-range part."""
    return make_model(backbone, request.param[0], long_range=request.param[1])


@pytest.fixture(
    params=[
        (None, "local", "independent"), (None, "local", "anchor"), ("anchor", "shared", "anchor"),
        ("independent", "scaled-ions", "independent"), ("conditioned", "own-dispersion", "anchor"),
    ],
    ids=lambda given: "-".join(map(str, given)),
)  # fmt: skip
def electronic_model(backbone: type[Config], request: pytest.FixtureRequest) -> MFMModel:
    """Each backbone with every head at two fidelities, in each way to join them, without and with energies."""
    join, long_range, head_join = request.param
    return make_model(backbone, join, long_range=long_range, head_join=head_join)


@pytest.fixture
def molecule() -> Structure:
    """A charged, open-shell molecule without symmetry."""
    generator = np.random.default_rng(7)
    positions = np.array(
        [[0.0, 0.0, 0.0], [1.4, 0.1, 0.0], [2.0, 1.3, 0.2], [-0.5, 0.9, 0.3], [-0.5, -0.5, 0.8], [-0.4, -0.6, -0.8]]
    )
    return Structure(
        np.array([6, 6, 8, 1, 1, 1]), positions + 0.05 * generator.standard_normal((6, 3)), charge=1, multiplicity=3
    )


@pytest.fixture
def crystal() -> Structure:
    """A sheared, rattled cell of four ions, smaller than twice the cutoff."""
    generator = np.random.default_rng(8)
    cell = np.array([[5.1, 0.0, 0.0], [0.7, 4.8, 0.0], [-0.4, 0.9, 5.4]])
    fractions = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    positions = (fractions + 0.03 * generator.standard_normal((4, 3))) @ cell
    return Structure(np.array([11, 17, 17, 11]), positions, cell, np.ones(3, dtype=bool))
