"""A small model of two fidelities with random weights, for tests of what is built around models."""

import torch

from mfm.backbones import GauntConfig
from mfm.fidelity import LevelOfTheory
from mfm.heads import TaskConfig
from mfm.longrange import LatentEwaldConfig
from mfm.model import Domain, MFMModel, ModelConfig, build_model

CUTOFF = 4.0


def tiny_model(
    tasks: dict[str, TaskConfig] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    long_range: LatentEwaldConfig | None = None,
) -> MFMModel:
    """Hydrogen, carbon, oxygen at `dft` and, anchored to it, `ccsdt`; the correction is made non-zero."""
    backbone = GauntConfig(
        cutoff=CUTOFF,
        n_channels=8,
        n_product_channels=8,
        max_degree=2,
        equivariant_degree=1,
        n_radial=4,
        n_message_channels=4,
        n_transport_channels=4,
    )
    domain = Domain(
        references={"dft": {1: -13.6, 6: -1036.1, 8: -2043.2}, "ccsdt": {1: -13.5, 6: -1035.0, 8: -2041.9}},
        levels={
            "dft": LevelOfTheory(method="wB97M", basis="def2-TZVPPD", dispersion="D3(BJ)"),
            "ccsdt": LevelOfTheory(method="CCSD(T)", basis="cc-pVTZ", frozen_core=True),
        },
        scale=1.3,
        charges=(0, 1),
        multiplicities=(1, 2),
    )
    chosen = tasks or {"energy_dft": TaskConfig(), "energy_ccsdt": TaskConfig(anchor="energy_dft")}
    config = ModelConfig(backbone=backbone, tasks=chosen, readout_channels=8, long_range=long_range)
    model = build_model(config, domain, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [model.heads] if model.long_range is None else [model.heads, model.long_range]
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            # heads that start at zero would make two fidelities alike
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(dtype))
    return model
