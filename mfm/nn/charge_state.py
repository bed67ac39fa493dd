"""Atomic charges that add up to the total charge: the one source for long-range energy, dipole and density."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.graph import AtomicGraph
from mfm.nn.aggregate import neighbour_table
from mfm.nn.electronegativity import ELECTRONEGATIVITY
from mfm.nn.radial import BesselBasis

__all__ = ["ChargeState", "Charges"]

_SMALLEST_SHARE = 1e-3
"""So that the shares of the atoms can always be normalised."""
_CHARGE_PER_PAULING, _BOND_LENGTH = 0.75, 0.95
"""Transfers at the start: 0.75 e per difference of electronegativity times e^{−r²/2ℓ²}, ℓ = 0.95 Å. In dipeptides such
charges have the size of MBIS charges and an R² of 0.83 with them before anything is learned."""
_OWN_PER_PAULING, _NEUTRAL = 0.3, 2.5
"""Own charges at the start: 0.3 e per difference of electronegativity to that of carbon."""


class Charges(NamedTuple):
    """Charge state of a batch, in float64."""

    charges: Tensor
    """(n_atoms, n_channels), e. Channel 0 adds up to the total charge of each structure, the others to zero."""
    transfer_dipoles: Tensor | None
    """(n_atoms, 3), e Å: −½ Σ_j t_ij r_ij of channel 0, if it was asked for. Summed over a structure and added to
    Σ_i q⁰_i r_i it is the dipole moment; it holds differences of positions only, so it is right in a crystal too."""
    own_charges: Tensor
    """(n_atoms,), e: q⁰, what is left of channel 0 without the transfers: zero in a neutral structure unless atoms
    have charges of their own."""
    residual: Tensor
    """(n_structures,), e: total charge minus the atoms' own charges, which the shares distribute."""

    def corrected(self, correction: "Charges") -> "Charges":
        """Physical channel of these charges plus that of a correction, which adds up to zero."""
        dipoles = None
        if self.transfer_dipoles is not None and correction.transfer_dipoles is not None:
            dipoles = self.transfer_dipoles + correction.transfer_dipoles
        return Charges(
            self.charges[:, :1] + correction.charges[:, :1],
            dipoles,
            self.own_charges + correction.own_charges,
            self.residual,
        )


class ChargeState(nn.Module):
    """Charges from invariant features, conserved between neighbours and in total.

    q_i = Σ_j t_ij + m_i + f_i/Σ_k f_k (Q − Σ_k m_k). Neighbours pass charge to each other: t_ij = −t_ji vanishes at the
    cutoff, so a fragment without neighbours in the next one keeps its charge exactly, and a neutral one feels nothing
    of what the charges of the others add up to. The total charge Q goes to the atoms by learned positive shares f, as
    in AIMNet2 (Anstine et al., Chem. Sci. 16, 10228 (2025)). Atoms get charges m of their own only if asked to: where
    ions of opposite charge are far apart, neither Q nor the neighbours tell which is which.

    Parameters
    ----------
    n_scalars : int
        Channels of the features.
    cutoff : float
        Distance over which atoms pass charge, Å.
    n_channels : int
        Independent charges per atom.
    with_own_charges : bool
        Whether atoms have charges of their own, m.
    n_terms : int
        Terms of t_ij = Σ_m φ_m(r_ij) (a_im b_jm − a_jm b_im), each with its own radial function.
    is_correction : bool
        Whether these charges are to be added to those of another state: they add up to zero whatever the total charge,
        and are zero before training.
    start : float
        Size of the transfers before training, in that of MBIS charges.
    """

    def __init__(
        self,
        n_scalars: int,
        cutoff: float,
        n_channels: int = 1,
        with_own_charges: bool = False,
        n_terms: int = 4,
        is_correction: bool = False,
        start: float = 1.0,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_channels, self.n_terms = cutoff, n_channels, n_terms
        self.basis = BesselBasis(cutoff, n_terms)
        self.donors = nn.Linear(n_scalars, n_channels * n_terms, bias=False)
        self.acceptors = nn.Linear(n_scalars, n_channels * n_terms, bias=False)
        self.shares = None if is_correction else nn.Linear(n_scalars, 1, bias=False)
        # b = 1 at the start: charge then flows along differences of a, of electronegativity. Energies do not tell the
        # sign of all charges, and from charges of zero they are slow to tell anything
        self.pulls = nn.Parameter(torch.zeros(len(ELECTRONEGATIVITY), n_channels, n_terms))
        nn.init.zeros_(self.acceptors.weight)
        if self.shares is None:
            nn.init.zeros_(self.donors.weight)
        else:
            pauling = torch.tensor(ELECTRONEGATIVITY).unsqueeze(1)
            self.pulls.data[:, 0] = -start * _CHARGE_PER_PAULING * pauling * _bond_function(cutoff, n_terms)
            nn.init.normal_(self.donors.weight, std=0.1 * n_scalars**-0.5)
            nn.init.zeros_(self.shares.weight)
        self.own_hidden = self.own_output = None
        if with_own_charges:
            self.own_hidden = nn.Linear(n_scalars, 32, bias=False)
            self.own_output = nn.Linear(32, n_channels, bias=False)
            nn.init.zeros_(self.own_output.weight)
            # not zero: charges near zero make no field, so little tells in which direction ions should grow
            self.own_elements = nn.Parameter(torch.zeros(len(ELECTRONEGATIVITY), n_channels))
            self.own_elements.data[:, 0] = _OWN_PER_PAULING * (_NEUTRAL - torch.tensor(ELECTRONEGATIVITY))

    def forward(self, scalars: Tensor, graph: AtomicGraph, with_dipoles: bool = False) -> Charges:
        """Charges of all atoms from their features (n_atoms, n_scalars); their dipoles if asked for."""
        transferred, transfer_dipoles = self._transfers(scalars, graph, with_dipoles)
        own = self._own_charges(scalars, graph.atomic_numbers).double()
        shape = (graph.n_structures, self.n_channels)
        total = own.new_zeros(shape)
        if self.shares is not None:
            total[:, 0] = graph.charge.double()
        residual = total - own.new_zeros(shape).index_add(0, graph.batch, own)
        # rounding makes transfers add up to some 1e-8 e; exact neutrality keeps distant fragments from seeing it
        correction = residual - own.new_zeros(shape).index_add(0, graph.batch, transferred)
        shares = own.new_ones(len(own), 1)
        if self.shares is not None:
            shares = functional.softplus(self.shares(scalars).double()) + _SMALLEST_SHARE
        shares = shares / shares.new_zeros(graph.n_structures, 1).index_add(0, graph.batch, shares)[graph.batch]
        own = own + shares * correction.index_select(0, graph.batch)
        return Charges(transferred + own, transfer_dipoles, own[:, 0], residual[:, 0])

    def _own_charges(self, scalars: Tensor, atomic_numbers: Tensor) -> Tensor:
        if self.own_hidden is None or self.own_output is None:
            return scalars.new_zeros(len(scalars), self.n_channels)
        own: Tensor = self.own_output(functional.silu(self.own_hidden(scalars)))
        return own + self.own_elements.index_select(0, atomic_numbers)

    def _transfers(self, scalars: Tensor, graph: AtomicGraph, with_dipoles: bool) -> tuple[Tensor, Tensor | None]:
        """Σ_j t_ij (n_atoms, n_channels) and −½ Σ_j t_ij r_ij of channel 0 (n_atoms, 3)."""
        table = neighbour_table(graph, self.cutoff)
        n_atoms, n_slots, n_channels = graph.n_atoms, table.n_slots, self.n_channels
        radial = self.basis(torch.linalg.vector_norm(table.vectors, dim=1)).view(n_atoms, n_slots, 1, self.n_terms)
        donors = self.pulls.index_select(0, graph.atomic_numbers).flatten(1) + self.donors(scalars)
        mine = torch.cat([donors, 1.0 + self.acceptors(scalars)], dim=1)
        theirs = radial * table.gather(mine).view(n_atoms, n_slots, 2 * n_channels, self.n_terms)
        donors, acceptors = mine.view(n_atoms, 2 * n_channels, self.n_terms).split(n_channels, dim=1)

        def combine(weighted: Tensor) -> Tensor:
            their_donors, their_acceptors = weighted.split(n_channels, dim=1)
            return (donors * their_acceptors - acceptors * their_donors).sum(dim=2)

        transferred = combine(theirs.sum(dim=1)).double()
        if not with_dipoles:
            return transferred, None
        vectors = table.vectors.view(n_atoms, n_slots, 1, 1, 3)
        moments = [combine((theirs * vectors[..., axis]).sum(dim=1))[:, 0].double() for axis in range(3)]
        return transferred, -0.5 * torch.stack(moments, dim=1)


def _bond_function(cutoff: float, n_terms: int) -> Tensor:
    """e^{−r²/2ℓ²} in the basis √2 sin(k_m r)/r, k_m = mπ/c: (n_terms,) coefficients (√π/c) ℓ³ k_m e^{−k_m²ℓ²/2}."""
    k = math.pi / cutoff * torch.arange(1, n_terms + 1)
    return math.sqrt(math.pi) / cutoff * _BOND_LENGTH**3 * k * torch.exp(-0.5 * (_BOND_LENGTH * k) ** 2)
