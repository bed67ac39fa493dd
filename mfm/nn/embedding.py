"""Total charge and spin as input to atoms."""

import torch
from torch import Tensor, nn

from mfm.graph import AtomicGraph

__all__ = ["StateEmbedding"]


class StateEmbedding(nn.Module):
    """Adds each atom's share of the total charge and of the unpaired electrons to its features.

    Atom i of a structure with charge Q gets the share Q f_i / Σ_j f_j with f > 0 learned per element, and likewise
    for the unpaired electrons. Shares, unlike a global embedding of Q, are size-consistent: two distant copies of
    an ion give each atom what it had in one. Neutral closed-shell structures are not touched at all, and the map
    starts at zero.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.log_weights = nn.Embedding(119, 2)
        self.output = nn.Linear(2, n_channels, bias=False)
        nn.init.zeros_(self.log_weights.weight)
        nn.init.zeros_(self.output.weight)

    def forward(self, graph: AtomicGraph) -> Tensor:
        """(n_atoms, n_channels)."""
        weights = torch.exp(self.log_weights(graph.atomic_numbers))  # (n_atoms, 2)
        totals = weights.new_zeros(graph.n_structures, 2).index_add(0, graph.batch, weights)
        per_structure = torch.stack([graph.charge, graph.multiplicity - 1.0], dim=1) / totals
        return self.output(weights * per_structure.index_select(0, graph.batch))
