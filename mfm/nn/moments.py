"""Sums of charges and positions: origins, totals, polarisation."""

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.nn.charge_state import Charges

__all__ = ["nuclear_charge_centres", "polarisation", "relative_positions", "sum_over_atoms", "traceless"]


def sum_over_atoms(values: Tensor, graph: AtomicGraph) -> Tensor:
    """(n_atoms, …) → (n_structures, …), in float64."""
    return torch.zeros(
        (graph.n_structures, *values.shape[1:]), dtype=torch.float64, device=values.device
    ).index_add(0, graph.batch, values.double())  # fmt: skip


def nuclear_charge_centres(graph: AtomicGraph) -> Tensor:
    """Σ Z_i r_i / Σ Z_i: the origin of the multipole moments, (n_structures, 3), Å, float64."""
    numbers = graph.atomic_numbers.double().unsqueeze(1)
    return sum_over_atoms(numbers * graph.positions, graph) / sum_over_atoms(numbers, graph)


def relative_positions(graph: AtomicGraph) -> Tensor:
    """(n_atoms, 3), Å, float64: positions about the nuclear charge centre of their structure."""
    return graph.positions.double() - nuclear_charge_centres(graph).index_select(0, graph.batch)


def traceless(tensors: Tensor) -> Tensor:
    """(…, 3, 3) without the part that is a multiple of the unit matrix."""
    trace = tensors.diagonal(dim1=-2, dim2=-1).sum(-1)
    unit = torch.eye(3, dtype=tensors.dtype, device=tensors.device)
    return tensors - trace[..., None, None] / 3.0 * unit


def polarisation(state: Charges, graph: AtomicGraph) -> Tensor:
    """Dipole moment of each structure, or of its cell, in e Å.

    Charge that neighbours pass on contributes −½ Σ_ij t_ij r_ij, which holds differences of positions only and is the
    same whatever cell an atom is written in. What is left, the atoms' own charges and shares q⁰ of a net charge, counts
    as Σ_i q⁰_i r_i with the positions as they are given. In a periodic structure that depends on the images chosen, and
    so do its slopes: :func:`mfm.longrange.response.check_polarisation` refuses them.

    Parameters
    ----------
    state : Charges
    graph : AtomicGraph
        The one the charges were computed for.

    Returns
    -------
    (n_structures, 3), float64
        About the origin.

    Raises
    ------
    ValueError
        If the charges were computed without the dipoles of their transfers.
    """
    if state.transfer_dipoles is None:
        raise ValueError("a polarisation needs the dipoles of the charge transfers; compute the charges `with_dipoles`")
    return sum_over_atoms(state.transfer_dipoles + state.own_charges.unsqueeze(1) * graph.positions.double(), graph)
