"""Forces, stress, Hessian-vector products: derivatives of the summed energy, here and nowhere else."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.properties import parse_task, task_name

__all__ = ["CHOSEN", "DERIVATIVES", "derivatives_of", "differentiable", "forces_and_stress", "hessian_product"]

DERIVATIVES = ("forces", "stress", "hessian_product")
"""Properties that are derivatives of an energy."""
CHOSEN = "derivative_level"
"""Field of a graph, (n_structures,): number of the one level whose energy is differentiated, among the sorted ones."""


def derivatives_of(
    energies: Mapping[str, Tensor], graph: AtomicGraph, strain: Tensor | None, names: Sequence[str], training: bool
) -> dict[str, Tensor]:
    """Derivatives by name, such as ``forces_dft``.

    Parameters
    ----------
    energies : mapping of task to (n_structures,), eV
        Of one forward pass.
    graph, strain
        As :func:`differentiable` returned them. A Hessian is multiplied with the graph's field ``probe_{fidelity}``;
        where that is NaN, so that there is nothing to compare the product with, with zero. With a field
        :data:`CHOSEN` each structure has the forces and the stress of one of the levels, whatever the name says: one
        pass for all of them, for training that asks each structure for one.
    names : sequence of str
        Tasks whose property is one of :data:`DERIVATIVES`.
    training : bool
        Whether the result will be differentiated again.

    Raises
    ------
    ValueError
        If a Hessian-vector product is asked for of a graph without probe.
    """
    outputs: dict[str, Tensor] = {}
    fidelities = sorted({parse_task(name).fidelity for name in names})
    chosen = graph.get(CHOSEN)
    if chosen is not None and len(fidelities) > 1:
        energy = torch.stack([energies[f"energy_{fidelity}"] for fidelity in fidelities]).gather(0, chosen[None])[0]
        forces, stress = forces_and_stress(energy, graph, strain, training, retain_graph=False)
        both = {"forces": forces, "stress": stress}
        return {name: value for name in names if (value := both[parse_task(name).property]) is not None}
    for position, fidelity in enumerate(fidelities):
        wanted = [name for name in names if parse_task(name).fidelity == fidelity]
        product = f"hessian_product_{fidelity}"
        again = training or product in wanted
        follows = position < len(fidelities) - 1
        forces, stress = forces_and_stress(energies[f"energy_{fidelity}"], graph, strain, again, follows)
        found = {f"forces_{fidelity}": forces, f"stress_{fidelity}": stress}
        if product in wanted:
            probe = graph.get(task_name("probe", fidelity))
            if probe is None:
                raise ValueError(f"`{product}` needs a field `probe_{fidelity}` of the graph, which is not there")
            found[product] = hessian_product(forces, graph, probe.nan_to_num(), training)
        outputs |= {name: value for name, value in found.items() if name in wanted and value is not None}
    return outputs


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


def hessian_product(forces: Tensor, graph: AtomicGraph, probe: Tensor, create_graph: bool) -> Tensor:
    """Hessian of the energy times a displacement of all atoms, by one more backward pass.

    H v = ∂(v · ∂E/∂r)/∂r: what differentiates a number costs as much as the number, whatever the number of atoms
    (Pearlmutter, Neural Comput. 6, 147 (1994)).

    Parameters
    ----------
    forces : (n_atoms, 3), eV/Å
        With a graph of their own, from :func:`forces_and_stress`.
    graph : AtomicGraph
        As :func:`differentiable` returned it.
    probe : (n_atoms, 3), Å
    create_graph : bool
        Whether the result will be differentiated again.

    Returns
    -------
    (n_atoms, 3), eV/Å
    """
    strained = graph.get("unstrained_positions")
    positions = graph.positions if strained is None else strained
    (slope,) = torch.autograd.grad((forces * probe).sum(), positions, create_graph=create_graph, retain_graph=True)
    return -slope
