"""Training losses: squared errors of labels and of gaps between levels, each in its unit."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfm.density.whitening import orthonormal
from mfm.graph import AtomicGraph
from mfm.heads import TaskConfig
from mfm.properties import PROPERTIES, parse_task

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


def _rows(values: Tensor) -> Tensor:
    """(n, …) → (n, components)."""
    return values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)


def _labelled_errors(
    name: str, outputs: Mapping[str, Tensor], graph: AtomicGraph, base: str | None, scales: tuple[float, float | None]
) -> tuple[Tensor, Tensor]:
    """Errors (n_labelled, …) in their unit, and which rows they belong to.

    The gap's error in the gap's unit where both levels are labelled, else the error itself; per atom if values grow.
    """
    scale, gap_scale = scales
    row = PROPERTIES[parse_task(name).property]
    label = graph[name]
    present = torch.isfinite(_rows(label)).all(dim=1).nonzero().squeeze(1)
    error = _rows(outputs[name][present] - label[present])
    unit = torch.full_like(error[:, :1], scale)
    if gap_scale is not None and base is not None and base in outputs:
        base_label = _rows(graph[base][present])
        is_paired = torch.isfinite(base_label).all(dim=1, keepdim=True)
        base_error = _rows(outputs[base][present]) - base_label.nan_to_num()
        error = error - is_paired * base_error
        unit = unit.masked_fill(is_paired, gap_scale)
    if row.grows:
        unit = unit * graph.atoms_per_structure()[present].unsqueeze(1)
    if row.name == "density":
        whole = error.new_zeros(graph.n_atoms, error.shape[1]).index_copy(0, present, error)
        error = orthonormal(whole, graph, name).index_select(0, present)
    return error / unit, present


def loss_terms(
    outputs: Mapping[str, Tensor],
    graph: AtomicGraph,
    tasks: Mapping[str, TaskConfig],
    scale: float,
    gap_scales: Mapping[str, float] | None = None,
    label_scales: Mapping[str, float] | None = None,
) -> dict[str, LossTerm]:
    """Terms of the loss of one batch; a missing label has no part in value or gradient.

    Energies enter per atom, so that large structures do not dominate; forces are averaged within a structure
    first, for the same reason (Shoghi et al., ICLR 2024, arXiv:2310.16802), and so are charges and atomic dipoles, and
    the squared errors ∫ (Δρ − Δρ')² of densities. Electronic properties are in units of their own size: there is no
    common unit that would tell how much an error of a charge matters beside one of a dipole.

    An anchored or conditioned level learns the gap to its base, E_f − E_base, from structures that carry both labels,
    in units of the gaps' own size. From the energies alone it would see a gap of 0.1 eV through errors of the base of
    the same size, in units made for forces of several eV/Å, and the gap's slope, its only source of forces, would stay
    unknown. A level with forces of its own learns from these and from its energies themselves.

    Parameters
    ----------
    outputs : mapping of task to tensor
        As the model returned them; energies without references, like the batch's labels.
    graph : AtomicGraph
        Batch with labels, NaN where missing.
    tasks : mapping of task to TaskConfig
    scale : float
        Root mean square force component of the training set, eV/Å; unit of energies, forces and stress.
    gap_scales : mapping of joined task to float, optional
        Root mean square gap in the training set, of energies eV per atom. A task that is not named, or whose base is
        not among the outputs, learns its labels only.
    label_scales : mapping of task to float, optional
        Root mean square label in the training set, of electronic tasks and Hessian-vector products; 1 if not named.

    Returns
    -------
    dict
        Task → term, for each output that the batch has a label field for.
    """
    terms: dict[str, LossTerm] = {}
    for name, value in outputs.items():
        prop, fidelity = parse_task(name)
        label = graph[name]
        # masked by indexing, never by `where`: that would send NaN into the gradient
        if prop == "stress":
            present = torch.isfinite(label.flatten(1)).all(dim=1).nonzero().squeeze(1)
            volumes = torch.linalg.det(graph.cell[present]).abs()
            error = (value[present] - label[present]).flatten(1)
            error = error * (volumes / (graph.atoms_per_structure()[present] * scale))[:, None]
            weight = tasks[f"energy_{fidelity}"].stress_weight
        elif prop in ("forces", "hessian_product"):
            size = scale if prop == "forces" else (label_scales or {}).get(name, 1.0)
            error, present = _labelled_errors(name, outputs, graph, None, (size, None))
            energy = tasks[f"energy_{fidelity}"]
            weight = energy.forces_weight if prop == "forces" else energy.hessian_weight
        else:
            size = scale if prop == "energy" else (label_scales or {}).get(name, 1.0)
            scales = size, (gap_scales or {}).get(name)
            error, present = _labelled_errors(name, outputs, graph, tasks[name].base, scales)
            weight = tasks[name].weight
        if PROPERTIES[prop].per == "atom":
            total, count = _structure_means(error.square(), graph, present)
        else:
            total = error.square().mean(dim=1).sum()
            count = torch.full_like(total, len(error))
        # properties are float64 whatever the network is
        terms[name] = LossTerm(total.to(label.dtype), count.to(label.dtype), weight)
    return terms


def combine(terms: Mapping[str, LossTerm], reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Weighted sum of the terms' means.

    Parameters
    ----------
    reduce : callable, optional
        Sums a tensor over ranks. With it, counts are global, so that the ranks' losses and gradients add up to those
        that one rank would have for all their structures.
    """
    counts: Sequence[Tensor] = [term.count for term in terms.values()]
    if reduce is not None:
        counts = reduce(torch.stack(list(counts))).unbind()
    losses = [
        term.weight * term.total / count.clamp(min=1.0) for term, count in zip(terms.values(), counts, strict=True)
    ]
    return torch.stack(losses).sum()
