"""TensorNet (Simeon and De Fabritiis, NeurIPS 2023) of TorchMD-Net: 64 channels, two layers."""

from typing import Any

import torch
from peer_data import Batch, Facts
from peer_training import run_peer
from torch import Tensor, nn
from torchmdnet.models.model import create_model

_SETTINGS: dict[str, Any] = {
    "model": "tensornet",
    "embedding_dimension": 64,
    "num_layers": 2,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "equivariance_invariance_group": "O(3)",
    "output_model": "Scalar",
    "reduce_op": "add",
}


class _GivenNeighbours(nn.Module):
    """The benchmark's neighbours, in place of TorchMD-Net's own search, which compares all pairs on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: Batch

    def forward(self, positions: Tensor, frame: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Receivers and senders, distances, vectors from sender to receiver; every atom is a neighbour of itself."""
        senders, receivers = self.batch.edges
        vectors = positions[receivers] - positions[senders] - self.batch.offsets()
        atoms = torch.arange(len(positions))
        zeros = vectors.new_zeros(len(positions), 3)
        return (
            torch.stack([torch.cat([receivers, atoms]), torch.cat([senders, atoms])]),
            torch.cat([vectors.norm(dim=1), zeros[:, 0]]),
            torch.cat([vectors, zeros]),
        )


class TensorNet:
    """TensorNet; see :class:`peer_training.Peer`."""

    learning_rate = 1e-3
    packages = ("torchmd-net", "torch-geometric")

    def __init__(self, facts: Facts) -> None:
        self.settings = _SETTINGS
        arguments = {
            **_SETTINGS,
            "precision": 32,
            "cutoff_lower": 0.0,
            "cutoff_upper": facts.cutoff,
            "max_z": 128,
            "max_num_neighbors": 128,
            "atom_filter": -1,
            "prior_model": None,
            "derivative": True,
        }
        self.module = create_model(arguments, std=torch.tensor(facts.scale))
        self._neighbours = _GivenNeighbours()
        self.module.representation_model.distance = self._neighbours

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        self._neighbours.batch = batch
        energies, forces = self.module(
            batch.numbers, batch.positions.detach(), batch.frame, num_systems=len(batch.sizes)
        )
        return energies.view(-1), forces


if __name__ == "__main__":
    run_peer(TensorNet)
