"""MACE (Batatia et al., NeurIPS 2022): 64 scalar and 64 vector channels, two layers, correlation 3."""

import torch
from mace.modules import ScaleShiftMACE, interaction_classes
from peer_data import Batch, Facts
from peer_training import run_peer
from torch import Tensor

# isort: split
# after MACE, which makes its release of e3nn loadable under torch 2.6 and later
from e3nn import o3


class Mace:
    """MACE with the defaults of its command line; see :class:`peer_training.Peer`."""

    learning_rate = 1e-2
    packages = ("mace-torch", "e3nn")

    def __init__(self, facts: Facts) -> None:
        self.settings = {
            "hidden_irreps": "64x0e + 64x1o", "max_ell": 3, "correlation": 3, "num_interactions": 2, "num_bessel": 8,
        }  # fmt: skip
        self._elements = torch.tensor(facts.elements)
        block = interaction_classes["RealAgnosticResidualInteractionBlock"]
        self.module = ScaleShiftMACE(
            r_max=facts.cutoff,
            num_bessel=self.settings["num_bessel"],
            num_polynomial_cutoff=5,
            max_ell=self.settings["max_ell"],
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=self.settings["num_interactions"],
            num_elements=len(facts.elements),
            hidden_irreps=o3.Irreps(self.settings["hidden_irreps"]),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=torch.zeros(1, len(facts.elements)).numpy(),
            avg_num_neighbors=facts.average_neighbours,
            atomic_numbers=facts.elements,
            correlation=self.settings["correlation"],
            gate=torch.nn.functional.silu,
            atomic_inter_scale=facts.scale,
            atomic_inter_shift=0.0,
        )

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        data = {
            "positions": batch.positions.detach(),
            "node_attrs": (batch.numbers[:, None] == self._elements).float(),
            "edge_index": batch.edges,
            # MACE's edges point from sender to receiver, so the translation counts the other way
            "shifts": -batch.offsets(),
            "unit_shifts": -batch.shifts,
            "cell": batch.cell.reshape(-1, 3),
            "batch": batch.frame,
            "ptr": batch.first,
        }
        found = self.module(data, training=training, compute_force=True)
        return found["energy"], found["forces"]


if __name__ == "__main__":
    run_peer(Mace)
