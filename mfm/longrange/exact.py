"""Exact sum in reciprocal space, for any mix of periodic structures in one batch.

With n_a the indices of a wave vector and s the fractional coordinates, e^{ik·r} = Π_a (cos + i sin)(2π n_a s_a). The
sums over atoms T = Σ_i q_i t_x t_y t_z, where each t is a cosine or a sine and all n_a ≥ 0, are one real matrix product
per structure and element, between the outer product of two short tables and the third. The structure factors of the
four octants that make a half space follow from the eight kinds of T by additions. Atoms come last in all tables, so
that products and sums over the other axes run over contiguous memory.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel
from mfm.longrange.lattice import Lattice, interaction, n_waves, wave_numbers_squared
from mfm.longrange.triple import triple_sum

__all__ = ["exact_sum"]

_SIGNS = [(1, *signs) for signs in itertools.product((1, -1), repeat=2)]
"""Of the indices in the four octants of a half space."""
_KINDS = list(itertools.product((0, 1), repeat=3))
"""Of the products of cosines (0) and sines (1)."""
_PHASES = [[1j ** sum(kind) * math.prod(s**k for s, k in zip(signs, kind, strict=True)) for kind in _KINDS]
           for signs in _SIGNS]  # fmt: skip
_WEIGHTS = [[phase.real for phase in row] for row in _PHASES] + [[phase.imag for phase in row] for row in _PHASES]
"""Of the kinds in the real parts of S in the four octants, then in the imaginary: the product of (c ± i s)."""


def exact_sum(kernel: Kernel, particles: Particles, lattice: Lattice, k_cutoff: float) -> Tensor:
    """½ Σ_{i,j} a_i a_j v_ij over all atoms and images, i = j included, without the neutralising background.

    Parameters
    ----------
    k_cutoff : float, Å⁻¹
        End of the sum in reciprocal space.

    Returns
    -------
    (n_structures,), eV
    """
    reach = n_waves(lattice, k_cutoff)
    n_structures = len(lattice.volume)
    # atoms of one structure with one width share a matrix product
    key = particles.structures * (particles.kinds.max() + 1) + particles.kinds
    keys, groups = torch.unique(key, return_inverse=True)
    order, counts = torch.argsort(groups, stable=True), torch.bincount(groups, minlength=len(keys))
    first_atoms = order.index_select(0, torch.cumsum(counts, 0) - counts)
    group_structures = particles.structures.index_select(0, first_atoms)

    waves = _half_space(lattice, reach, k_cutoff)
    inverse = lattice.inverse.index_select(0, group_structures)
    sums = _trigonometric_sums(particles, inverse, reach, _padding(groups, order, counts))
    factors = _structure_factors(sums, waves.octant, reach)  # (n_groups, n_channels, 2, n_waves)

    k_squared = waves.k_squared
    value = waves.multiplicity * interaction(kernel, lattice, k_squared, waves.indices, k_cutoff, particles.widths[0])
    spreads = particles.widths.index_select(0, first_atoms).square().unsqueeze(1)
    if len(keys) > n_structures:
        if kernel == "coulomb":
            gaussians = torch.exp(-0.25 * spreads * k_squared.index_select(0, group_structures))
            factors = factors * gaussians.to(factors.dtype)[:, None, None]
        total = factors.new_zeros(n_structures, *factors.shape[1:])
        factors = total.index_add(0, group_structures, factors)
    elif kernel == "coulomb":
        value = value * torch.exp(-0.5 * spreads * k_squared)
    power = factors.square().sum(dim=(1, 2))  # (n_structures, n_waves)
    return 0.5 * (value * power).sum(dim=1) / lattice.volume


class _Waves(NamedTuple):
    """A half space of wave vectors: an octant with n_a ≥ 0, four times with the signs of n_y and n_z."""

    octant: Tensor
    """(n_points, 3), int64."""
    indices: Tensor
    """(n_waves, 3), float64, n_waves = 4 n_points, the signs of n_y and n_z in the order ++, +−, −+, −−."""
    multiplicity: Tensor
    """(n_waves,): how many waves of the whole space each stands for."""
    k_squared: Tensor
    """(n_structures, n_waves), Å⁻²."""


def _half_space(lattice: Lattice, reach: tuple[int, int, int], k_cutoff: float) -> _Waves:
    """Points that are, with some of the signs, within the cutoff of some structure."""
    octant = torch.cartesian_prod(*(torch.arange(n + 1, device=lattice.cell.device) for n in reach))
    signs = torch.tensor(_SIGNS, dtype=torch.float64, device=octant.device)
    indices = signs.unsqueeze(1) * octant  # (4, n_points, 3)
    k_squared = wave_numbers_squared(lattice, indices.flatten(0, 1)).unflatten(1, (4, -1))
    inside = (k_squared.detach().amin(dim=(0, 1)) < k_cutoff**2).nonzero().squeeze(1)
    octant, indices = octant.index_select(0, inside), indices.index_select(1, inside)
    # where n_y or n_z is zero, octants share a wave
    is_zero = (octant == 0).double()
    multiplicity = (2.0 - is_zero[:, 0]) / ((1.0 + is_zero[:, 1]) * (1.0 + is_zero[:, 2]))
    k_squared = k_squared.index_select(2, inside).flatten(1)
    return _Waves(octant, indices.flatten(0, 1), multiplicity.repeat(4), k_squared)


def _padding(groups: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(n_groups, n_slots): atoms of each group, −1 where it has fewer."""
    sorted_groups = groups.index_select(0, order)
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order), device=order.device) - first.index_select(0, sorted_groups)
    table = order.new_full((len(counts), int(counts.max())), -1)
    table[sorted_groups, rank] = order
    return table


def _trigonometric_sums(particles: Particles, inverse: Tensor, reach: tuple[int, int, int], rows: Tensor) -> Tensor:
    """T for each group: (n_groups, n_channels, 2 n_z 2 n_x 2 n_y), cosine before sine on the axes of length 2.

    Parameters
    ----------
    inverse : (n_groups, 3, 3), Å⁻¹
        Inverse cell of each group's structure.
    rows : (n_groups, n_slots)
        Its atoms, −1 where a slot is empty.
    """
    n_groups, n_slots = rows.shape
    slots = rows.clamp(min=0).flatten()
    positions = particles.positions.index_select(0, slots).view(n_groups, n_slots, 3)
    # an empty slot holds another atom's phases, with amplitude zero
    amplitudes = particles.amplitudes.index_select(0, slots) * (rows >= 0).view(-1, 1)
    amplitudes = amplitudes.to(particles.precision).view(n_groups, n_slots, -1).transpose(1, 2)
    turns = torch.bmm(inverse.transpose(1, 2), positions.transpose(1, 2))  # (n_groups, 3, n_slots)
    first, second, third = (
        _Phases.apply(turns[:, axis], n, particles.precision) for axis, n in enumerate(reach)
    )  # (n_groups, 2 (n + 1), n_slots)
    weighted = (amplitudes.unsqueeze(2) * third.unsqueeze(1)).flatten(1, 2)
    return triple_sum(first, second, weighted).view(n_groups, amplitudes.shape[1], -1)


class _Phases(torch.autograd.Function):
    """(n_groups, n_slots) turns → cos 2πns before sin 2πns for n = 0 … `reach`: (n_groups, 2 (reach + 1), n_slots).

    Angles are reduced to half a turn in float64: a float32 of a large one has lost its last digits. The derivatives of
    the table are the table itself with halves exchanged.
    """

    @staticmethod
    def forward(ctx: Any, turns: Tensor, reach: int, precision: torch.dtype) -> Tensor:
        multiples = turns.unsqueeze(1) * torch.arange(reach + 1, device=turns.device).unsqueeze(1)
        angles = (2.0 * math.pi * (multiples - multiples.round())).to(precision)
        table = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
        ctx.save_for_backward(table)
        return table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        (cosines, sines), (of_cosines, of_sines) = table.chunk(2, dim=1), gradient.chunk(2, dim=1)
        speeds = 2.0 * math.pi * torch.arange(cosines.shape[1], device=table.device, dtype=table.dtype)
        slopes = speeds.unsqueeze(1) * (cosines * of_sines - sines * of_cosines)
        return slopes.sum(dim=1).double(), None, None


def _structure_factors(sums: Tensor, octant: Tensor, reach: tuple[int, int, int]) -> Tensor:
    """Real and imaginary part of S: (n_groups, n_channels, 2, n_waves).

    S = Σ q (c_x + i s_x)(c_y ± i s_y)(c_z ± i s_z).
    """
    n_x, n_y, n_z = (n + 1 for n in reach)
    strides = octant.new_tensor([2 * n_y, 1, 4 * n_x * n_y])
    # where each axis has its sines, from ccc to sss
    sines = octant.new_tensor(_KINDS) * octant.new_tensor([n_x, n_y, n_z])
    places = ((sines.unsqueeze(1) + octant) * strides).sum(dim=2).flatten()
    kinds = sums.flatten(0, 1).index_select(1, places).view(-1, 8, len(octant))
    weights = sums.new_tensor(_WEIGHTS).expand(len(kinds), 8, 8)
    return torch.bmm(weights, kinds).view(*sums.shape[:2], 2, -1)
