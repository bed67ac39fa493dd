"""PaiNN (Schütt et al., ICML 2021) of SchNetPack: 128 features, three layers."""

from typing import TypeVar

import torch.utils.data.dataloader
from peer_data import Batch, Facts
from peer_training import run_peer
from torch import Tensor

# the last release for Python 3.11 imports a name for annotations that torch 2.13 does not have any more
torch.utils.data.dataloader.T_co = TypeVar("T_co", covariant=True)

import schnetpack  # noqa: E402


class PaiNN:
    """PaiNN; see :class:`peer_training.Peer`. Outputs are in units of the force RMS, like those of the other peers."""

    learning_rate = 1e-3
    packages = ("schnetpack",)

    def __init__(self, facts: Facts) -> None:
        self.settings = {"n_atom_basis": 128, "n_interactions": 3, "n_rbf": 20}
        self._scale = facts.scale
        representation = schnetpack.representation.PaiNN(
            n_atom_basis=self.settings["n_atom_basis"],
            n_interactions=self.settings["n_interactions"],
            radial_basis=schnetpack.nn.GaussianRBF(n_rbf=self.settings["n_rbf"], cutoff=facts.cutoff),
            cutoff_fn=schnetpack.nn.CosineCutoff(facts.cutoff),
        )
        self.module = schnetpack.model.NeuralNetworkPotential(
            representation=representation,
            input_modules=[schnetpack.atomistic.PairwiseDistances()],
            output_modules=[
                schnetpack.atomistic.Atomwise(n_in=self.settings["n_atom_basis"], output_key="energy"),
                schnetpack.atomistic.Forces(energy_key="energy", force_key="forces"),
            ],
        )

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        senders, receivers = batch.edges
        found = self.module(
            {
                schnetpack.properties.Z: batch.numbers,
                schnetpack.properties.R: batch.positions.detach(),
                schnetpack.properties.cell: batch.cell,
                schnetpack.properties.pbc: batch.pbc,
                schnetpack.properties.idx_i: receivers,
                schnetpack.properties.idx_j: senders,
                schnetpack.properties.offsets: batch.offsets(),
                schnetpack.properties.idx_m: batch.frame,
                schnetpack.properties.n_atoms: batch.sizes,
            }
        )
        return found["energy"] * self._scale, found["forces"] * self._scale


if __name__ == "__main__":
    run_peer(PaiNN)
