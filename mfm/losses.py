"""Training losses: squared errors of energies per atom, forces and stress, in units of the model's scale."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.heads.energy import TaskConfig
from mfm.properties import parse_task

__all__ = ["LossTerm", "combine", "loss_terms"]


class LossTerm(NamedTuple):
    """One term of the loss, before it is divided by the number of structures that carry the label."""

    total: Tensor
    """Sum over labelled structures."""
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which nobody calls on a loss
    """Number of labelled structures."""
    weight: float


def _structure_means(squares: Tensor, graph: AtomicGraph, present: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over structures of the mean over atoms of `squares` (n_present_atoms, …), and the number of structures."""
    per_atom = squares.flatten(1).mean(dim=1)
    owners = graph.batch[present]
    sizes = graph.atoms_per_structure().to(per_atom.dtype)[owners]
    labelled = torch.zeros_like(graph.charge).index_fill(0, owners, 1.0)
    return (per_atom / sizes).sum(), labelled.sum()


def loss_terms(
    outputs: Mapping[str, Tensor], graph: AtomicGraph, tasks: Mapping[str, TaskConfig], scale: float
) -> dict[str, LossTerm]:
    """Terms of the loss of one batch; a missing label has no part in value or gradient.

    Energies enter per atom, so that large structures do not dominate; forces are averaged within a structure
    first, for the same reason (Shoghi et al., ICLR 2024, arXiv:2310.16802).

    Parameters
    ----------
    outputs : mapping of task to tensor
        As the model returned them; energies without references, like the batch's labels.
    graph : AtomicGraph
        Batch with labels, NaN where missing.
    tasks : mapping of energy task to TaskConfig
    scale : float
        Root mean square force component of the training set, eV/Å.

    Returns
    -------
    dict
        Task → term, for each output that the batch has a label field for.
    """
    terms: dict[str, LossTerm] = {}
    for name, value in outputs.items():
        prop, fidelity = parse_task(name)
        task = tasks[f"energy_{fidelity}"]
        label = graph[name]
        # masked by indexing, never by `where`: that would send NaN into the gradient
        if prop == "forces":
            present = torch.isfinite(label).all(dim=1).nonzero().squeeze(1)
            squares = ((value[present] - label[present]) / scale).square()
            total, count = _structure_means(squares, graph, present)
            terms[name] = LossTerm(total, count, task.forces_weight)
            continue
        present = torch.isfinite(label.view(len(label), -1)).all(dim=1).nonzero().squeeze(1)
        error = value[present] - label[present]
        sizes = graph.atoms_per_structure()[present].to(error.dtype)
        if prop == "energy":
            squares, weight = (error / (sizes * scale)).square(), task.weight
        else:
            volumes = torch.linalg.det(graph.cell[present]).abs()
            squares = (error.flatten(1) * (volumes / (sizes * scale))[:, None]).square().mean(dim=1)
            weight = task.stress_weight
        terms[name] = LossTerm(squares.sum(), torch.full_like(squares.sum(), len(present)), weight)
    return terms


def combine(
    terms: Mapping[str, LossTerm], reduce: Callable[[Tensor], Tensor] | None = None, n_ranks: int = 1
) -> Tensor:
    """Weighted sum of the terms' means.

    Parameters
    ----------
    reduce : callable, optional
        Sums a tensor over ranks. With it, counts are global, so that several ranks give the gradient that one rank
        would give for all their structures; gradients are then expected to be averaged over ranks.
    n_ranks : int
        Number of ranks.
    """
    losses = []
    for term in terms.values():
        count = term.count if reduce is None else reduce(term.count)
        losses.append(term.weight * n_ranks * term.total / count.clamp(min=1.0))
    return torch.stack(losses).sum()
