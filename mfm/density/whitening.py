"""Coefficients of orthonormal functions: where a density's errors are measured, in the metric of its overlaps.

What depends on the geometry is computed once, when a structure becomes a graph, and travels with it in three fields per
task: the root of the overlap matrix, where its functions stand in the rows of coefficients, and how many they are.
"""

import numpy as np
import torch
from torch import Tensor

from mfm.density.basis import DensityBasis
from mfm.density.metric import metric_root
from mfm.graph import AtomicGraph
from mfm.structure import Structure

__all__ = ["add_metric", "orthonormal"]


def add_metric(graph: AtomicGraph, task: str, structure: Structure, basis: DensityBasis | None) -> None:
    """Give the graph of one structure the metric of a density's label; nothing in it if `basis` is None: no label."""
    root = np.zeros((0, 0)) if basis is None else metric_root(structure, basis)
    places = np.zeros(0, dtype=np.int64) if basis is None else basis.positions_of(structure.atomic_numbers)
    graph[f"{task}_metric"] = torch.as_tensor(root.reshape(-1), dtype=graph.positions.dtype)
    graph[f"{task}_places"] = torch.as_tensor(places)
    graph[f"{task}_sizes"] = torch.tensor([len(places)])


def orthonormal(rows: Tensor, graph: AtomicGraph, task: str) -> Tensor:
    """Coefficients with respect to Löwdin's orthonormal functions, whose squares add up to ∫ Δρ² of a structure.

    Parameters
    ----------
    rows : (n_atoms, DENSITY_WIDTH), e
        Of a batch; structures without a label of the task may hold anything.
    graph : AtomicGraph
        With the fields of :func:`add_metric`.

    Returns
    -------
    (n_atoms, DENSITY_WIDTH), e
        In the precision of the metric; zero in structures without a label.
    """
    metric, places = graph[f"{task}_metric"], graph[f"{task}_places"]
    sizes = graph[f"{task}_sizes"].tolist()
    starts = (graph.ptr[:-1] * rows.shape[1]).repeat_interleave(graph[f"{task}_sizes"])
    values = rows.reshape(-1).index_select(0, starts + places).to(metric.dtype)
    roots = metric.split([size * size for size in sizes])
    turned = [
        root.view(size, size) @ mine for root, mine, size in zip(roots, values.split(sizes), sizes, strict=True) if size
    ]
    found = torch.zeros(rows.numel(), dtype=metric.dtype, device=rows.device)
    return found.index_copy(0, starts + places, torch.cat([*turned, values[:0]])).view_as(rows)
