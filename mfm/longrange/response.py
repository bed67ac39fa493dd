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
    "dipole",
    "field_energy",
    "quantity",
]

QUANTITIES = ("charges", "dipole", "born_effective_charges", "energy_long_range", "charge_residual")
"""What can be asked of a model beside energies and their derivatives."""
PER_ATOM = ("charges", "born_effective_charges")
"""Those with a row per atom; the others have one per structure."""
NEED_DIPOLES = ("dipole", "born_effective_charges")
"""Those that need the dipoles of the charge transfers."""


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


def field_energy(state: Charges, graph: AtomicGraph) -> Tensor:
    """P · F: what a uniform electric field takes from the energy, (n_structures,) in eV.

    Zero without a field ``electric_field`` of the graph, (n_structures, 3) in V/Å. Energies minus this are electric
    enthalpies: forces and stress are their derivatives, so dynamics in a field conserves them.
    """
    field = graph.get("electric_field")
    if field is None:
        return state.charges.new_zeros(graph.n_structures)
    return (polarisation(state, graph) * field.double()).sum(dim=1)


def quantity(name: str, far: LongRange, graph: AtomicGraph) -> Tensor:
    """One of :data:`QUANTITIES`.

    Returns
    -------
    tensor
        charges (n_atoms,) e; dipole (n_structures, 3) e Å; born_effective_charges (n_atoms, 3, 3) e; energy_long_range
        (n_structures,) eV; charge_residual (n_structures,) e, what the atoms' own charges lack to the total charge.
    """
    if name == "charges":
        return far.state.charges[:, 0]
    if name == "dipole":
        return dipole(far.state, graph)
    if name == "born_effective_charges":
        return born_effective_charges(polarisation(far.state, graph), graph.positions)
    return far.energies if name == "energy_long_range" else far.state.residual
