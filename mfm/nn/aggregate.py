"""Padded neighbour table: one row per atom, one column per neighbour slot.

With it, sums over neighbours are batched matrix products or plain sums over an axis, and no scatter is needed in
the forward pass or in derivatives of any order. That is fast, and deterministic on a GPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfm.graph import AtomicGraph

__all__ = ["NeighbourTable", "neighbour_table"]


class NeighbourTable(NamedTuple):
    """Edges of a graph, laid out in rows of equal length."""

    senders: Tensor
    """(n_atoms × n_slots,), neighbour in each slot; the atom itself where the slot is empty."""
    partners: Tensor
    """(n_atoms × n_slots,), a permutation of the slots: row i of it lists the slots in which atom i is the sender."""
    vectors: Tensor
    """(n_atoms × n_slots, 3), Å, from receiver to sender; (cutoff, 0, 0) in an empty slot."""
    n_slots: int
    """Largest number of neighbours of an atom."""

    def gather(self, values: Tensor) -> Tensor:
        """Values of the senders: (n_atoms, m) → (n_atoms × n_slots, m). In empty slots: of the atom itself.

        Its derivative assumes that empty slots get no gradient, which holds because every radial function is zero
        there.
        """
        return _Gather.apply(values, self.senders, self.partners)


class _Gather(torch.autograd.Function):
    """Rows of the senders. The derivative, a sum over the slots that hold an atom, is a permutation and a row sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, senders: Tensor, partners: Tensor) -> Tensor:
        ctx.save_for_backward(senders, partners)
        ctx.n_atoms = values.shape[0]
        return values.index_select(0, senders)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Collect.apply(gradient, *ctx.saved_tensors, ctx.n_atoms), None, None


class _Collect(torch.autograd.Function):
    """Transpose of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, senders: Tensor, partners: Tensor, n_atoms: int) -> Tensor:
        ctx.save_for_backward(senders, partners)
        return values.index_select(0, partners).view(n_atoms, -1, values.shape[1]).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Gather.apply(gradient, *ctx.saved_tensors), None, None, None


def neighbour_table(graph: AtomicGraph, cutoff: float) -> NeighbourTable:
    """Lay out the edges of a graph, and their vectors, differentiable in positions and cell.

    Parameters
    ----------
    graph : AtomicGraph
        With every pair in both directions, edges sorted by receiver.
    cutoff : float, Å
        Length of the vectors in empty slots.
    """
    senders, receivers = graph.edge_index[0], graph.edge_index[1]
    n_atoms = graph.n_atoms
    bounds = torch.searchsorted(receivers, torch.arange(n_atoms + 1, device=receivers.device))
    first, counts = bounds[:-1], torch.diff(bounds)
    # the one time that the processor waits for the device
    most, is_periodic = torch.stack([counts.max(), graph.pbc.any().to(counts.dtype)]).tolist()
    n_slots = max(most, 1)
    rank = torch.arange(len(receivers), device=receivers.device) - first.index_select(0, receivers)
    slots = receivers * n_slots + rank
    every_slot = torch.arange(n_atoms * n_slots, device=senders.device)
    table = (every_slot // n_slots).index_copy(0, slots, senders)
    # pairs come in both directions, so an atom is sender as often as receiver: sorted by sender, edges fill the rows
    partners = every_slot.index_copy(0, slots, slots.index_select(0, torch.argsort(senders, stable=True)))

    padding = graph.positions.new_tensor([cutoff, 0.0, 0.0]).repeat(n_atoms * n_slots, 1)
    constant = padding.index_fill(0, slots, 0.0)
    if is_periodic:
        cells = graph.cell.index_select(0, graph.batch.index_select(0, receivers))
        translations = torch.bmm(graph.unit_shifts.unsqueeze(1), cells).squeeze(1)
        constant = constant.index_copy(0, slots, translations)
    layout = NeighbourTable(table, partners, constant, n_slots)
    relative = layout.gather(graph.positions).view(n_atoms, n_slots, 3) - graph.positions.unsqueeze(1)
    return layout._replace(vectors=relative.view(-1, 3) + constant)
