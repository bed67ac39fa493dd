"""Lattices of periodic structures and the wave vectors of their sums.

A structure periodic in two directions is a slab. It is summed in a cell of our own, whose third vector is normal to
the other two, with the interaction truncated at half its length (Rozzi et al., Phys. Rev. B 73, 205119 (2006); Sohier
et al., Phys. Rev. B 96, 075448 (2017)): exact, not just in the limit of a large vacuum, and whatever the third
vector of the structure's cell is.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel, fourier, smooth_window
from mfm.units import COULOMB_CONSTANT

__all__ = [
    "SLAB_MARGIN",
    "Lattice",
    "check_periodicity",
    "fractional",
    "interaction",
    "make_lattice",
    "n_waves",
    "wave_numbers_squared",
]

SLAB_MARGIN = 7.0
"""Room beside a slab in units of the largest width; what is cut off decays as erfc(7/√2) = 3e-12."""


class Lattice(NamedTuple):
    """Cells to sum in, one per periodic structure, in float64."""

    cell: Tensor
    """(n_structures, 3, 3), Å, rows are vectors; for a slab, its normal direction is last."""
    inverse: Tensor
    """(n_structures, 3, 3), Å⁻¹."""
    volume: Tensor
    """(n_structures,), Å³, positive for left-handed cells too."""
    is_slab: Tensor
    """(n_structures,), bool."""

    def select(self, structures: Tensor) -> "Lattice":
        """Those of some structures."""
        return Lattice(*(field.index_select(0, structures) for field in self))


def check_periodicity(pbc: Tensor, cell: Tensor) -> None:
    """Refuse what cannot be summed.

    Parameters
    ----------
    pbc : (n_structures, 3), bool
    cell : (n_structures, 3, 3), Å

    Raises
    ------
    ValueError
        If a structure is periodic in one direction only, or periodic without a cell.
    """
    n_periodic = pbc.sum(dim=1)
    if bool((n_periodic == 1).any()):
        where = int((n_periodic == 1).nonzero()[0])
        raise ValueError(
            f"long-range sums exist for 0, 2 and 3 periodic directions; structure {where} of the batch has `pbc`"
            f" {pbc[where].tolist()}. Make a wire periodic in all directions, with vacuum around it"
        )
    lengths = torch.linalg.vector_norm(cell, dim=2)
    lost = (pbc & (lengths < 1e-6)).any(dim=1)
    if bool(lost.any()):
        where = int(lost.nonzero()[0])
        raise ValueError(
            f"structure {where} of the batch has `pbc` {pbc[where].tolist()} but the cell {cell[where].tolist()};"
            " give a vector for each periodic direction, or set `pbc` to False"
        )


def make_lattice(particles: Particles, cell: Tensor, pbc: Tensor, slab_length: Tensor | None = None) -> Lattice:
    """Cells to sum periodic structures in.

    Parameters
    ----------
    particles : Particles
        Positions and widths set the room that slabs need.
    cell : (n_structures, 3, 3), Å, float64
    pbc : (n_structures, 3), bool
        Two or three of each row are true.
    slab_length : (n_structures,), Å, optional
        Of the third vector of the slabs' cells, used where it is long enough. Energies do not depend on it, but meshes
        do: a run in which it stays the same does not jump as atoms move along the normal.
    """
    is_slab = ~pbc.all(dim=1)
    if bool(is_slab.any()):
        # periodic directions first, in their order
        order = torch.argsort((~pbc).to(torch.int64), dim=1, stable=True)
        cell = cell.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
        normal = torch.linalg.cross(cell[:, 0], cell[:, 1])
        normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        heights = (particles.positions * normal.index_select(0, particles.structures)).sum(dim=1).detach()
        lowest = heights.new_full((len(pbc),), -math.inf)
        top, bottom = (lowest.scatter_reduce(0, particles.structures, x, "amax") for x in (heights, -heights))
        length = 2.0 * (top + bottom + SLAB_MARGIN * particles.widths.detach().max())
        if slab_length is not None:
            length = torch.maximum(length, slab_length)
        third = torch.where(is_slab[:, None], normal * length[:, None], cell[:, 2])
        cell = torch.stack([cell[:, 0], cell[:, 1], third], dim=1)
    return Lattice(cell, torch.linalg.inv(cell), torch.linalg.det(cell).abs(), is_slab)


def fractional(positions: Tensor, structures: Tensor, lattice: Lattice) -> Tensor:
    """(n_atoms, 3), coordinates in units of the lattice vectors, not wrapped."""
    inverse = lattice.inverse.index_select(0, structures)
    return torch.bmm(positions.unsqueeze(1), inverse).squeeze(1)


def n_waves(lattice: Lattice, k_cutoff: float) -> tuple[int, int, int]:
    """Largest index per axis of any wave vector within the cutoff: |n_a| = |k · a|/2π ≤ k_c |a|/2π."""
    lengths = torch.linalg.vector_norm(lattice.cell.detach(), dim=2)
    largest = torch.floor(lengths.amax(dim=0) * (k_cutoff / (2.0 * math.pi)))
    first, second, third = (int(n) for n in largest.tolist())
    return first, second, third


def wave_numbers_squared(lattice: Lattice, indices: Tensor) -> Tensor:
    """|k|² of k = 2π n · (cell⁻¹)ᵀ, from the metric of the reciprocal lattice.

    Parameters
    ----------
    indices : (n_waves, 3), float64

    Returns
    -------
    (n_structures, n_waves), Å⁻²
    """
    metric = (2.0 * math.pi) ** 2 * lattice.inverse.transpose(1, 2) @ lattice.inverse
    first, second, third = indices.unbind(1)
    monomials = torch.stack(
        [first**2, second**2, third**2, 2.0 * first * second, 2.0 * first * third, 2.0 * second * third]
    )
    return metric[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)] @ monomials


def interaction(
    kernel: Kernel, lattice: Lattice, k_squared: Tensor, indices: Tensor, k_cutoff: float | None, width: Tensor
) -> Tensor:
    """Fourier transform of the interaction on a lattice, with the window in reciprocal space.

    Parameters
    ----------
    k_squared : (n_structures, n_waves), Å⁻²
    indices : (n_waves, 3), float64
        Of the wave vectors.
    k_cutoff : float, Å⁻¹, or None
        End of the window in reciprocal space; None for no window.
    width : (), Å
        Width common to all atoms, for dispersion.

    Returns
    -------
    (n_structures, n_waves)
    """
    value = fourier(kernel, k_squared, width)
    if kernel == "coulomb" and bool(lattice.is_slab.any()):
        value = torch.where(lattice.is_slab[:, None], _truncated(lattice, value, k_squared, indices), value)
    return value if k_cutoff is None else value * smooth_window(k_squared, k_cutoff)


def _truncated(lattice: Lattice, value: Tensor, k_squared: Tensor, indices: Tensor) -> Tensor:
    """The transform of 1/r cut off at |z| = R = L/2, at k_z = 2π n/L: 4π/k² (1 − (−1)ⁿ e^{−k∥ R}).

    Where k∥ = 0 it is that of −2π |z|, so the energy of a charged slab is that of charged sheets without a background.
    """
    length = torch.linalg.vector_norm(lattice.cell[:, 2], dim=1).unsqueeze(1)
    # the third vector is normal to the others, and its wave vectors to theirs
    along_squared = k_squared - (2.0 * math.pi / length * indices[:, 2]) ** 2
    is_zero = (indices[:, :2] == 0).all(dim=1)
    along = torch.where(is_zero, 1.0, along_squared.clamp(min=1e-12)).sqrt().masked_fill(is_zero, 0.0)
    sign = 1.0 - 2.0 * torch.remainder(indices[:, 2], 2.0)
    at_origin = -0.5 * math.pi * COULOMB_CONSTANT * length**2 * (indices == 0).all(dim=1)
    return value * (1.0 - sign * torch.exp(-0.5 * along * length)) + at_origin
