"""NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022)): 64 features, l = 1, three layers, in eager mode."""

import torch
from ase.data import chemical_symbols
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from peer_data import Batch, Facts
from peer_training import run_peer
from torch import Tensor


class NequIP:
    """NequIP; see :class:`peer_training.Peer`. Positions are float64 and the network float32, as in its own trainer."""

    learning_rate = 1e-2
    packages = ("nequip", "e3nn")

    def __init__(self, facts: Facts) -> None:
        set_global_state()
        self.settings = {"num_layers": 3, "l_max": 1, "parity": False, "num_features": 64}
        types = torch.full((119,), -1)
        types[torch.tensor(facts.elements)] = torch.arange(len(facts.elements))
        self._types = types
        self.module = NequIPGNNModel(
            seed=facts.seed,
            model_dtype="float32",
            r_max=facts.cutoff,
            type_names=[chemical_symbols[z] for z in facts.elements],
            avg_num_neighbors=facts.average_neighbours,
            per_type_energy_scales=facts.scale,
            per_type_energy_shifts=0.0,
            **self.settings,
        )

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        data = {
            "pos": batch.positions.double(),
            "atom_types": self._types[batch.numbers],
            # NequIP's first row is the receiver
            "edge_index": batch.edges.flip(0),
        }
        if bool(batch.pbc.any()):
            data |= {"cell": batch.cell.double(), "edge_cell_shift": batch.shifts.double()}
        if len(batch.sizes) > 1:
            data |= {"batch": batch.frame, "num_atoms": batch.sizes}
        found = self.module(data)
        return found["total_energy"].view(-1).float(), found["forces"].float()


if __name__ == "__main__":
    run_peer(NequIP)
