"""What the charge state says about electric fields: dipole, polarisation, Born effective charges, enthalpy."""

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.longrange.latent import LongRange
from mfm.nn.charge_state import Charges
from mfm.nn.moments import nuclear_charge_centres, polarisation, sum_over_atoms

__all__ = [
    "NEED_DIPOLES",
    "PER_ATOM",
    "QUANTITIES",
    "born_effective_charges",
    "check_polarisation",
    "dipole",
    "energy_in_field",
    "quantity",
]

QUANTITIES = ("charges", "dipole", "born_effective_charges", "energy_long_range", "energy_field", "charge_residual")
"""What can be asked of a model beside energies and their derivatives."""
PER_ATOM = ("charges", "born_effective_charges")
"""Those with a row per atom; the others have one per structure."""
NEED_DIPOLES = ("dipole", "born_effective_charges")
"""Those that need the dipoles of the charge transfers."""
_PERPENDICULAR = 1e-6
"""Cosine below which a field counts as normal to a lattice vector: cells may be in float32."""


def dipole(state: Charges, graph: AtomicGraph) -> Tensor:
    """Dipole moment about the nuclear charge centre, in e Å; NaN for structures with any periodicity.

    The dipole of an ion depends on the origin; that of a periodic structure on the choice of the cell.

    Returns
    -------
    (n_structures, 3), float64
    """
    net = sum_over_atoms(state.charges[:, :1], graph)
    moments = polarisation(state, graph) - net * nuclear_charge_centres(graph)
    return moments.masked_fill(graph.pbc.any(dim=1, keepdim=True), float("nan"))


def born_effective_charges(moments: Tensor, positions: Tensor) -> Tensor:
    """∂P_a/∂r_ib of every atom, from three backward passes.

    Parameters
    ----------
    moments : (n_structures, 3), e Å
        From :func:`mfm.nn.moments.polarisation`.
    positions : (n_atoms, 3), Å
        Those the polarisation was computed from; they must require a gradient.

    Returns
    -------
    (n_atoms, 3, 3), e
        Rows are components of the polarisation, columns of the displacement. They add up to the total charge times the
        unit matrix.
    """
    rows = [torch.autograd.grad(moments[:, axis].sum(), positions, retain_graph=True)[0].detach() for axis in range(3)]
    return torch.stack(rows, dim=1)


def check_polarisation(graph: AtomicGraph, has_own_charges: bool, field: Tensor | None = None) -> None:
    """Refuse polarisations of periodic structures whose slopes depend on how the cell is written.

    Charge that neighbours pass on moves along vectors between them. What atoms hold of their own, and their shares of
    a net charge, changes here and is balanced all over the cell: how far such charge moved, and so what it does to the
    polarisation, depends on the images chosen (several e of a Born effective charge between a cell and its double).

    Parameters
    ----------
    graph : AtomicGraph
    has_own_charges : bool
        Whether atoms have charges beside what neighbours pass on and the shares of a net charge.
    field : (n_structures, 3), V/Å, optional
        Only the polarisation along it is needed; along directions that are not periodic there are no images. Without,
        all components are.

    Raises
    ------
    ValueError
        If a structure of the batch is periodic along the field, or at all, and has own charges or a net charge.
    """
    repeats = graph.pbc
    if field is not None:
        lengths = torch.linalg.vector_norm(graph.cell, dim=2) * torch.linalg.vector_norm(field, dim=1, keepdim=True)
        along = torch.bmm(graph.cell.double(), field.double().unsqueeze(2)).squeeze(2)
        repeats = repeats & (along.abs() > _PERPENDICULAR * lengths)
    ambiguous = repeats.any(dim=1)
    if not has_own_charges:
        ambiguous = ambiguous & (graph.charge != 0)
    if not bool(ambiguous.any()):
        return
    where = int(ambiguous.nonzero()[0])
    charge = int(graph.charge[where])
    what = "Born effective charges" if field is None else "the energy in an electric field along a periodic direction"
    cause, advice = (
        ("its atoms have charges of their own (`long_range.own_charges`)", "Train without `own_charges`")
        if has_own_charges
        else (f"its net charge of {charge:+d} e is shared by all atoms", "Give the cell no net charge")
    )
    raise ValueError(
        f"{what} must not depend on how the cell is written, but would for structure {where} of the batch, with `pbc`"
        f" {graph.pbc[where].tolist()}: {cause}, so charge moves between atoms that are no neighbours. {advice},"
        " or ask for a molecule (`pbc` False)"
    )


def energy_in_field(moments: Tensor, field: Tensor) -> Tensor:
    """−P · F: what a uniform electric field adds to the energy.

    Energies with it are electric enthalpies: forces and stress are their derivatives, so dynamics in a field conserves
    them.

    Parameters
    ----------
    moments : (n_structures, 3), e Å
        The polarisation that is reported, about the origin.
    field : (n_structures, 3), V/Å

    Returns
    -------
    (n_structures,), eV
    """
    return -(moments * field.double()).sum(dim=1)


def quantity(name: str, far: LongRange, graph: AtomicGraph) -> Tensor:
    """One of :data:`QUANTITIES`.

    Returns
    -------
    tensor
        charges (n_atoms,) e; dipole (n_structures, 3) e Å; born_effective_charges (n_atoms, 3, 3) e; energy_long_range
        and energy_field (n_structures,) eV, the latter −P·F, zero without a field; charge_residual (n_structures,) e,
        what the atoms' own charges lack to the total charge.
    """
    if name == "charges":
        return far.state.charges[:, 0]
    if name == "dipole":
        return dipole(far.state, graph)
    if name == "born_effective_charges":
        return born_effective_charges(polarisation(far.state, graph), graph.positions)
    if name == "energy_field":
        return torch.zeros_like(far.energies) if far.in_field is None else far.in_field
    return far.energies if name == "energy_long_range" else far.state.residual
