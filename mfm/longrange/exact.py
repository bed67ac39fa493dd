"""Exact sum in reciprocal space, for any mix of periodic structures in one batch.

With n_a the three indices of a wave vector and s the fractional coordinates, e^{ik·r} = Π_a e^{2πi n_a s_a}: three
small tables of phases per atom. The structure factor S(n₁, n₂, n₃) = Σ_i q_i e₁(n₁) e₂(n₂) e₃(n₃) is then one matrix
product per structure and element, between the first table and the outer product of the other two.
"""

import math

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel
from mfm.longrange.lattice import Lattice, fractional, interaction, n_waves, wave_vectors

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
    n_first, n_second, n_third = n_waves(lattice, k_cutoff)
    n_structures = len(lattice.volume)
    # atoms of one structure with one width share a matrix product
    key = particles.structures * (particles.kinds.max() + 1) + particles.kinds
    keys, groups = torch.unique(key, return_inverse=True)
    order, counts = torch.argsort(groups, stable=True), torch.bincount(groups, minlength=len(keys))
    first_atoms = order.index_select(0, torch.cumsum(counts, 0) - counts)
    group_structures = particles.structures.index_select(0, first_atoms)

    angles = 2.0 * math.pi * fractional(particles.positions, particles.structures, lattice)
    first = _phases(angles[:, 0], torch.arange(n_first + 1, device=angles.device))
    second = _phases(angles[:, 1], torch.arange(-n_second, n_second + 1, device=angles.device))
    third = _phases(angles[:, 2], torch.arange(-n_third, n_third + 1, device=angles.device))
    rows = _padding(groups, order, counts)
    factors = _structure_factors(particles.amplitudes, first, second, third, rows)

    indices = _half_space(n_first, n_second, n_third, angles.device)
    waves = wave_vectors(lattice, indices)
    if kernel == "coulomb":
        k_squared = waves.square().sum(dim=2).index_select(0, group_structures)
        spreads = particles.widths.index_select(0, first_atoms).square().unsqueeze(1)
        factors = factors * torch.exp(-0.25 * spreads * k_squared).unsqueeze(1)
    if len(keys) > n_structures:
        total = factors.new_zeros(2, n_structures, *factors.shape[2:])
        factors = total.index_add(1, group_structures, factors)
    power = factors.square().sum(dim=(0, 2))  # (n_structures, n_waves)
    # waves with n₁ > 0 stand for themselves and their negatives
    multiplicity = 1.0 + (indices[:, 0] > 0)
    value = interaction(kernel, lattice, waves, indices, k_cutoff, particles.widths[0])
    return 0.5 * (multiplicity * value * power).sum(dim=1) / lattice.volume


def _half_space(n_first: int, n_second: int, n_third: int, device: torch.device) -> Tensor:
    """(n_waves, 3): all indices with n₁ ≥ 0."""
    axes = (
        torch.arange(n_first + 1, device=device),
        torch.arange(-n_second, n_second + 1, device=device),
        torch.arange(-n_third, n_third + 1, device=device),
    )
    return torch.cartesian_prod(*axes)


def _phases(angles: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of n θ: (n_atoms, n_orders) each."""
    phases = angles.unsqueeze(1) * orders
    return torch.cos(phases), torch.sin(phases)


def _padding(groups: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(n_groups, n_slots): atoms of each group, −1 where it has fewer."""
    sorted_groups = groups.index_select(0, order)
    rank = torch.arange(len(order), device=order.device) - (torch.cumsum(counts, 0) - counts).index_select(
        0, sorted_groups
    )
    table = order.new_full((len(counts), int(counts.max())), -1)
    table[sorted_groups, rank] = order
    return table


def _structure_factors(
    amplitudes: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    third: tuple[Tensor, Tensor],
    rows: Tensor,
) -> Tensor:
    """Real and imaginary part of S for each group: (2, n_groups, n_channels, n_waves)."""
    (n_groups, n_slots), n_channels = rows.shape, amplitudes.shape[1]
    (cos_y, sin_y), (cos_z, sin_z) = second, third
    cos_yz = (cos_y.unsqueeze(2) * cos_z.unsqueeze(1) - sin_y.unsqueeze(2) * sin_z.unsqueeze(1)).flatten(1)
    sin_yz = (sin_y.unsqueeze(2) * cos_z.unsqueeze(1) + cos_y.unsqueeze(2) * sin_z.unsqueeze(1)).flatten(1)
    weighted = torch.cat(first, dim=1).unsqueeze(1) * amplitudes.unsqueeze(2)  # (n_atoms, n_channels, 2 n_x)
    left = weighted.flatten(1)
    right = torch.cat([cos_yz, sin_yz], dim=1)
    if n_groups > 1:
        slots = rows.clamp(min=0).flatten()
        # an empty slot holds another atom's phases with amplitude zero
        mask = (rows >= 0).to(left.dtype).view(-1, 1)
        left = left.index_select(0, slots) * mask
        right = right.index_select(0, slots)
    left, right = left.view(n_groups, n_slots, -1), right.view(n_groups, n_slots, -1)
    product = torch.bmm(left.transpose(1, 2), right)  # (n_groups, n_channels 2 n_x, 2 n_yz)
    n_x, n_yz = first[0].shape[1], cos_yz.shape[1]
    product = product.view(n_groups, n_channels, 2, n_x, 2, n_yz)
    real = product[:, :, 0, :, 0] - product[:, :, 1, :, 1]
    imaginary = product[:, :, 0, :, 1] + product[:, :, 1, :, 0]
    return torch.stack([real.flatten(2), imaginary.flatten(2)])
