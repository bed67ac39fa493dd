"""Structures and the graphs that models eat.

A :class:`~mfm.structure.Structure` is geometry only. An :class:`AtomicGraph` adds the neighbours within a cutoff and
the labels of a training run. Conventions, used everywhere: cell rows are lattice vectors; row 0 of ``edge_index``
is the sender j, row 1 the receiver i, edges are sorted by receiver, and

    r_ij = positions[j] + unit_shifts @ cell − positions[i].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from mfm.properties import PROPERTIES, parse_task
from mfm.structure import Structure, neighbour_list

__all__ = ["AtomicGraph", "Structure", "build_graph", "collate", "neighbour_list"]


class AtomicGraph(Data):
    """A structure, or a batch of them, with neighbours and labels.

    Fields: ``positions`` (n_atoms, 3), ``atomic_numbers`` (n_atoms,), ``cell`` (n_structures, 3, 3), ``pbc``
    (n_structures, 3), ``charge`` and ``multiplicity`` (n_structures,), ``edge_index`` (2, n_edges),
    ``unit_shifts`` (n_edges, 3), ``batch`` (n_atoms,): structure of each atom, ``ptr`` (n_structures + 1,): first
    atom of each structure, and one field per label, named like its task, NaN where missing.
    """

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return int(self.cell.shape[0])

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures."""
        return int(self.positions.shape[0])

    def atoms_per_structure(self) -> Tensor:
        """(n_structures,), number of atoms of each structure."""
        return self.ptr[1:] - self.ptr[:-1]


def build_graph(
    structure: Structure,
    cutoff: float,
    labels: Mapping[str, np.ndarray] | None = None,
    label_names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    neighbours: tuple[np.ndarray, np.ndarray] | tuple[Tensor, Tensor] | None = None,
) -> AtomicGraph:
    """Graph of one structure.

    Parameters
    ----------
    cutoff : float, Å
    labels : mapping of task to value
        Values in mfm's units. Energies should have their references subtracted (in float64) beforehand.
    label_names : sequence of str
        Tasks the graph shall carry; those absent from `labels` become NaN of the right shape.
    neighbours : (edge_index, unit_shifts), optional
        What :func:`neighbour_list` returned, when it is already known; as tensors on any device.

    Raises
    ------
    ValueError
        If a label's shape is not that of its property.
    """
    n_atoms = len(structure)
    edge_index, shifts = neighbour_list(structure, cutoff) if neighbours is None else neighbours
    graph = AtomicGraph(
        positions=torch.as_tensor(structure.positions, dtype=dtype),
        atomic_numbers=torch.as_tensor(structure.atomic_numbers),
        cell=torch.as_tensor(structure.cell, dtype=dtype)[None],
        pbc=torch.as_tensor(structure.pbc)[None],
        charge=torch.tensor([structure.charge], dtype=dtype),
        multiplicity=torch.tensor([structure.multiplicity], dtype=dtype),
        edge_index=torch.as_tensor(edge_index),
        unit_shifts=torch.as_tensor(shifts, dtype=dtype),
        batch=torch.zeros(n_atoms, dtype=torch.int64),
        ptr=torch.tensor([0, n_atoms]),
    )
    given = labels or {}
    for name in label_names:
        row = PROPERTIES[parse_task(name).property]
        shape = (n_atoms if row.per == "atom" else 1, *row.shape)
        if name not in given:
            graph[name] = torch.full(shape, float("nan"), dtype=dtype)
            continue
        value = torch.as_tensor(np.asarray(given[name]), dtype=dtype)
        expected = shape if row.per == "atom" else row.shape
        if tuple(value.shape) != expected:
            raise ValueError(
                f"label `{name}` must have shape {expected}, got {tuple(value.shape)}, in {structure.formula};"
                " reshape it in the reader"
            )
        graph[name] = value.reshape(shape)
    return graph


def collate(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Batch of graphs: one concatenation per field, edges shifted to the atoms of the batch.

    Raises
    ------
    ValueError
        If there is no graph, or the graphs do not carry the same fields.
    """
    if not graphs:
        raise ValueError("a batch needs at least one graph, got none")
    stores: list[dict[str, Any]] = [graph.to_dict() for graph in graphs]
    names = stores[0].keys()
    for position, store in enumerate(stores):
        if store.keys() != names:
            odd = sorted(set(names) ^ set(store.keys()))
            raise ValueError(
                f"graphs of a batch must carry the same fields; graph {position} differs in {', '.join(odd)};"
                " build all of them with the same `label_names`"
            )
    device = stores[0]["positions"].device
    counts = torch.tensor([store["positions"].shape[0] for store in stores])
    structures = torch.tensor([store["cell"].shape[0] for store in stores])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(counts, 0)])
    first = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(structures, 0)])
    fields = {
        name: torch.cat([store[name] for store in stores])
        for name in names
        if name not in ("edge_index", "batch", "ptr")
    }
    edges = torch.tensor([store["edge_index"].shape[1] for store in stores])
    fields["edge_index"] = torch.cat([store["edge_index"] for store in stores], dim=1)
    fields["edge_index"] = fields["edge_index"] + torch.repeat_interleave(ptr[:-1], edges).to(device)
    fields["batch"] = torch.cat([store["batch"] for store in stores])
    fields["batch"] = fields["batch"] + torch.repeat_interleave(first[:-1], counts).to(device)
    starts = [store["ptr"][:-1] + int(offset) for store, offset in zip(stores, ptr[:-1], strict=True)]
    fields["ptr"] = torch.cat([*starts, ptr[-1:].to(device)])
    return AtomicGraph(**fields)
