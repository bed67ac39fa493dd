"""Training losses: squared errors of energies per atom, gaps between levels, forces and stress, each in its unit."""

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


def _energy_squares(
    name: str, outputs: Mapping[str, Tensor], graph: AtomicGraph, task: TaskConfig, scales: tuple[float, float | None]
) -> Tensor:
    """Squared errors per atom of the structures with a label, the gap instead of the energy where both are labelled."""
    scale, gap_scale = scales
    label = graph[name]
    present = torch.isfinite(label).nonzero().squeeze(1)
    error = outputs[name][present] - label[present]
    unit = torch.full_like(error, scale)
    if gap_scale is not None and task.anchor is not None and task.anchor in outputs:
        base_label = graph[task.anchor][present]
        is_paired = torch.isfinite(base_label)
        base_error = outputs[task.anchor][present] - base_label.nan_to_num()
        error = error - is_paired * base_error
        unit = unit.masked_fill(is_paired, gap_scale)
    return (error / (unit * graph.atoms_per_structure()[present])).square()


def loss_terms(
    outputs: Mapping[str, Tensor],
    graph: AtomicGraph,
    tasks: Mapping[str, TaskConfig],
    scale: float,
    gap_scales: Mapping[str, float] | None = None,
) -> dict[str, LossTerm]:
    """Terms of the loss of one batch; a missing label has no part in value or gradient.

    Energies enter per atom, so that large structures do not dominate; forces are averaged within a structure
    first, for the same reason (Shoghi et al., ICLR 2024, arXiv:2310.16802).

    An anchored level learns the gap to its base, E_f − E_base, from structures that carry both labels, in units of the
    gaps' own size. From the energies alone it would see a gap of 0.1 eV through errors of the base of the same size,
    in units made for forces of several eV/Å, and the gap's slope, its only source of forces, would stay unknown.

    Parameters
    ----------
    outputs : mapping of task to tensor
        As the model returned them; energies without references, like the batch's labels.
    graph : AtomicGraph
        Batch with labels, NaN where missing.
    tasks : mapping of energy task to TaskConfig
    scale : float
        Root mean square force component of the training set, eV/Å.
    gap_scales : mapping of anchored task to float, optional
        Root mean square gap per atom in the training set, eV. A task that is not named, or whose base is not among
        the outputs, learns energies only.

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
        if prop == "energy":
            weight, squares = (
                task.weight,
                _energy_squares(name, outputs, graph, task, (scale, (gap_scales or {}).get(name))),
            )
        else:
            weight = task.stress_weight
            present = torch.isfinite(label.flatten(1)).all(dim=1).nonzero().squeeze(1)
            volumes = torch.linalg.det(graph.cell[present]).abs()
            error = (value[present] - label[present]).flatten(1)
            squares = (error * (volumes / (graph.atoms_per_structure()[present] * scale))[:, None]).square().mean(dim=1)
        terms[name] = LossTerm(squares.sum(), torch.full_like(squares.sum(), len(squares)), weight)
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
