"""Forces and stress: derivatives of the summed energy, here and nowhere else."""

import copy

import torch
from torch import Tensor

from mfm.graph import AtomicGraph

__all__ = ["differentiable", "forces_and_stress"]


def differentiable(graph: AtomicGraph, with_strain: bool) -> tuple[AtomicGraph, Tensor | None]:
    """Copy of a graph whose positions (and cell) can be differentiated.

    Parameters
    ----------
    with_strain : bool
        Whether positions and cell shall depend on a symmetric strain, as the stress needs.

    Returns
    -------
    graph : AtomicGraph
        Shares everything but positions and cell with the one given.
    strain : (n_structures, 3, 3) or None
        Zeros; the energy's derivative with respect to it is the stress times the volume.
    """
    moved = copy.copy(graph)
    positions = graph.positions.detach().requires_grad_(True)
    moved.positions = positions
    if not with_strain:
        return moved, None
    strain = torch.zeros_like(graph.cell).requires_grad_(True)
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    per_atom = symmetric.index_select(0, graph.batch)
    moved.unstrained_positions = positions
    moved.positions = positions + torch.bmm(positions.unsqueeze(1), per_atom).squeeze(1)
    moved.cell = graph.cell + torch.bmm(graph.cell, symmetric)
    return moved, strain


def forces_and_stress(
    energies: Tensor, graph: AtomicGraph, strain: Tensor | None, create_graph: bool, retain_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """Forces and, with a strain, the stress.

    Parameters
    ----------
    energies : (n_structures,), eV
    graph, strain
        As :func:`differentiable` returned them.
    create_graph : bool
        Whether the result will be differentiated again, as in training.
    retain_graph : bool
        Whether other energies of the same forward pass follow.

    Returns
    -------
    forces : (n_atoms, 3), eV/Å
    stress : (n_structures, 3, 3), eV/Å³, or None
        dE/dε over the volume, positive when the cell wants to shrink; NaN where a structure is not periodic in all
        three directions, since it has no volume.
    """
    if strain is None:
        (gradient,) = torch.autograd.grad(
            energies.sum(), graph.positions, create_graph=create_graph, retain_graph=retain_graph or create_graph
        )
        return -gradient, None
    gradient, virial = torch.autograd.grad(
        energies.sum(),
        (graph.unstrained_positions, strain),
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
    )
    has_volume = graph.pbc.all(dim=1)
    volume = torch.where(has_volume, torch.linalg.det(graph.cell.detach()).abs(), 1.0)
    stress = virial / volume[:, None, None]
    # NaN is put in after the division: dividing by it would send it into the gradient of a batch's other structures
    return -gradient, stress.masked_fill(~has_volume[:, None, None], float("nan"))
