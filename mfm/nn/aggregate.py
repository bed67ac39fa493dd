"""Padded neighbour lists: sums over neighbours as batched matrix products."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PaddedNeighbours", "pad_neighbours"]


class PaddedNeighbours(NamedTuple):
    """Edges laid out as a table with one row per atom and one column per neighbour slot."""

    slots: Tensor
    """(n_edges,), position of each edge in the flattened (n_atoms × n_slots) table."""
    senders: Tensor
    """(n_atoms × n_slots,), neighbour in each slot; the atom itself where the slot is empty."""
    n_slots: int
    """Largest number of neighbours of an atom."""

    def pad(self, values: Tensor) -> Tensor:
        """Spread (n_edges, m) values over the table, zeros in empty slots: (n_atoms, n_slots, m)."""
        if values.shape[0] == self.senders.shape[0]:  # every slot is taken, in order
            return values.view(-1, self.n_slots, values.shape[1])
        table = values.new_zeros(self.senders.shape[0], values.shape[1])
        return table.index_copy(0, self.slots, values).view(-1, self.n_slots, values.shape[1])


def pad_neighbours(edge_index: Tensor, n_atoms: int) -> PaddedNeighbours:
    """Lay out edges that are sorted by receiver.

    Parameters
    ----------
    edge_index : (2, n_edges)
        Senders, receivers.
    """
    senders, receivers = edge_index[0], edge_index[1]
    counts = torch.bincount(receivers, minlength=n_atoms)
    n_slots = max(int(counts.max()), 1) if n_atoms else 1
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(receivers), device=receivers.device) - first[receivers]
    slots = receivers * n_slots + rank
    table = torch.arange(n_atoms, device=senders.device).repeat_interleave(n_slots)
    return PaddedNeighbours(slots, table.index_copy(0, slots, senders), n_slots)
