"""Exact sum in reciprocal space, for any mix of periodic structures in one batch.

With n_a the indices of a wave vector and s the fractional coordinates, e^{ik·r} = Π_a (cos + i sin)(2π n_a s_a). The
sums over atoms T = Σ_i q_i t_x t_y t_z, where each t is a cosine or a sine and all n_a ≥ 0, are one real matrix product
per structure and element, between the outer product of two short tables and the third. The structure factors of the
four octants that make a half space follow from the eight kinds of T by additions.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel
from mfm.longrange.lattice import Lattice, fractional, interaction, n_waves, wave_numbers_squared

__all__ = ["exact_sum"]


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

    angles = 2.0 * math.pi * fractional(particles.positions, particles.structures, lattice)
    products = _trigonometric_sums(particles, angles, reach, _padding(groups, order, counts)).double()
    factors = _octants(products)  # (2, n_groups, n_channels, n_waves)

    indices, multiplicity = _half_space(reach, angles.device)
    k_squared = wave_numbers_squared(lattice, indices)
    group_structures = particles.structures.index_select(0, first_atoms)
    value = multiplicity * interaction(kernel, lattice, k_squared, indices, k_cutoff, particles.widths[0])
    spreads = particles.widths.index_select(0, first_atoms).square().unsqueeze(1)
    if len(keys) > n_structures:
        if kernel == "coulomb":
            factors = factors * torch.exp(-0.25 * spreads * k_squared.index_select(0, group_structures)).unsqueeze(1)
        total = factors.new_zeros(2, n_structures, *factors.shape[2:])
        factors = total.index_add(1, group_structures, factors)
    elif kernel == "coulomb":
        value = value * torch.exp(-0.5 * spreads * k_squared)
    power = factors.square().sum(dim=(0, 2))  # (n_structures, n_waves)
    return 0.5 * (value * power).sum(dim=1) / lattice.volume


def _half_space(reach: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of a half space, (n_waves, 3), in the order of :func:`_octants`, and how many waves each stands for.

    The four octants differ in the signs of n₂ and n₃; where one of these is zero, octants share a wave.
    """
    axes = [torch.arange(n + 1, device=device, dtype=torch.float64) for n in reach]
    octant = torch.cartesian_prod(*axes)
    signs = torch.tensor([[1.0, y, z] for y in (1.0, -1.0) for z in (1.0, -1.0)], device=device, dtype=torch.float64)
    multiplicity = (1.0 + (octant[:, 0] > 0)) / ((1.0 + (octant[:, 1] == 0)) * (1.0 + (octant[:, 2] == 0)))
    return (signs[:, None] * octant).flatten(0, 1), multiplicity.repeat(4)


def _padding(groups: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(n_groups, n_slots): atoms of each group, −1 where it has fewer."""
    sorted_groups = groups.index_select(0, order)
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order), device=order.device) - first.index_select(0, sorted_groups)
    table = order.new_full((len(counts), int(counts.max())), -1)
    table[sorted_groups, rank] = order
    return table


def _trigonometric_sums(particles: Particles, angles: Tensor, reach: tuple[int, int, int], rows: Tensor) -> Tensor:
    """T for each group: (n_groups, n_channels, 2, n_x, 2, n_y, 2, n_z), cosine before sine on the axes of length 2."""
    amplitudes = particles.amplitudes.to(particles.precision)
    (n_groups, n_slots), n_channels = rows.shape, amplitudes.shape[1]
    tables = []
    for axis, n in enumerate(reach):
        # of angles within one turn: a float32 of a large one has lost its last digits
        turns = torch.remainder(angles[:, axis : axis + 1], 2.0 * math.pi) * torch.arange(n + 1, device=angles.device)
        phases = turns.to(particles.precision)
        tables.append(torch.cat([torch.cos(phases), torch.sin(phases)], dim=1))  # (n_atoms, 2 (n + 1))
    first, second, third = tables
    weighted = (amplitudes.unsqueeze(2) * third.unsqueeze(1)).flatten(1)  # (n_atoms, n_channels 2 n_z)
    if n_groups > 1:
        slots = rows.clamp(min=0).flatten()
        first, second = first.index_select(0, slots), second.index_select(0, slots)
        # an empty slot holds another atom's phases, with amplitude zero
        weighted = weighted.index_select(0, slots) * (rows >= 0).to(weighted.dtype).view(-1, 1)
    plane = _OuterProduct.apply(first, second).view(n_groups, n_slots, -1)
    sums = torch.bmm(weighted.view(n_groups, n_slots, -1).transpose(1, 2), plane)
    n_x, n_y, n_z = (n + 1 for n in reach)
    return sums.view(n_groups, n_channels, 2, n_z, 2, n_x, 2, n_y).permute(0, 1, 4, 5, 6, 7, 2, 3)


class _OuterProduct(torch.autograd.Function):
    """(n, a), (n, b) → (n, a, b). Derivatives by matrix products: those of a broadcast product fill more tables."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return first.unsqueeze(2) * second.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        of_first = torch.bmm(gradient, second.unsqueeze(2)).squeeze(2)
        return of_first, torch.bmm(first.unsqueeze(1), gradient).squeeze(1)


def _octants(sums: Tensor) -> Tensor:
    """Real and imaginary part of the structure factors: (2, n_groups, n_channels, 4 n_x n_y n_z).

    S = Σ q (c_x + i s_x)(c_y ± i s_y)(c_z ± i s_z), the signs in the order ++, +−, −+, −−.
    """
    kinds = sums.permute(2, 4, 6, 0, 1, 3, 5, 7).flatten(5).flatten(0, 2)  # (8, n_groups, n_channels, n_x n_y n_z)
    ccc, ccs, csc, css, scc, scs, ssc, sss = kinds.unbind(0)
    # pairs that change sign together, so that the four octants share their sums
    even, odd = (ccc - css, ccc + css), (ssc + scs, ssc - scs)
    real = [even[0] - odd[0], even[1] - odd[1], even[1] + odd[1], even[0] + odd[0]]
    flat, tilted = (scc - sss, scc + sss), (csc + ccs, csc - ccs)
    imaginary = [flat[0] + tilted[0], flat[1] + tilted[1], flat[1] - tilted[1], flat[0] - tilted[0]]
    return torch.stack([torch.cat(real, dim=2), torch.cat(imaginary, dim=2)])
