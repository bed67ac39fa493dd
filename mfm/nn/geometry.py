"""Edge vectors."""

import torch
from torch import Tensor

from mfm.graph import AtomicGraph

__all__ = ["edge_vectors"]


def edge_vectors(graph: AtomicGraph) -> Tensor:
    """Vectors from receiver to sender, periodic images included, differentiable in positions and cell.

    Returns
    -------
    (n_edges, 3), Å
    """
    senders, receivers = graph.edge_index[0], graph.edge_index[1]
    vectors = graph.positions.index_select(0, senders) - graph.positions.index_select(0, receivers)
    if bool(graph.pbc.any()):
        cells = graph.cell.index_select(0, graph.batch.index_select(0, receivers))
        vectors = vectors + torch.bmm(graph.unit_shifts.unsqueeze(1), cells).squeeze(1)
    return vectors
