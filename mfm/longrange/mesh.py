"""Smooth particle mesh sum for large periodic structures (Essmann et al., J. Chem. Phys. 103, 8577 (1995)).

Everything is done in fractional coordinates and the weight of a wave vector uses the true k of the lattice, so
triclinic cells are as accurate as orthorhombic ones. Splines of order 5 have three continuous derivatives: forces
can be trained on.
"""

import math

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel
from mfm.longrange.lattice import Lattice, fractional, interaction, wave_numbers_squared

__all__ = ["ORDER", "mesh_shapes", "mesh_sum"]

ORDER = 5
"""Points per axis that a particle is spread over."""
_AT_GRID_POINTS = (115.0 / 192.0, 19.0 / 96.0, 1.0 / 384.0)
"""The spline's values at 0, ±1, ±2."""


def mesh_shapes(cell: Tensor, spacing: float) -> list[tuple[int, int, int]]:
    """Points along each lattice vector, products of 2, 3 and 5, for a spacing of at most `spacing`.

    Parameters
    ----------
    cell : (n_structures, 3, 3), Å
    spacing : float, Å

    Raises
    ------
    ValueError
        If a cell has fewer points along a vector than the spline spans.
    """
    lengths = torch.linalg.vector_norm(cell.detach(), dim=2)
    shapes = [tuple(_smooth_number(math.ceil(x / spacing)) for x in row) for row in lengths.tolist()]
    for shape, row in zip(shapes, lengths.tolist(), strict=True):
        if min(shape) < ORDER:
            raise ValueError(
                f"a mesh needs at least {ORDER} points along each lattice vector, got {shape} for lengths"
                f" {', '.join(f'{x:.2f}' for x in row)} Å; use the exact sum (`model.long_range.mesh_above`)"
            )
    return [(a, b, c) for a, b, c in shapes]


def _smooth_number(least: int) -> int:
    """Smallest number ≥ `least` without a prime factor above 5: transforms of such lengths are fast."""
    number = max(least, 1)
    while True:
        rest = number
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1


def mesh_sum(kernel: Kernel, particles: Particles, lattice: Lattice, shape: tuple[int, int, int]) -> Tensor:
    """½ Σ_{i,j} a_i a_j v_ij as :func:`mfm.longrange.exact.exact_sum` gives it, up to the error of the mesh.

    Parameters
    ----------
    shape : three int
        Points of the mesh along each lattice vector, for all structures of the call.

    Returns
    -------
    (n_structures,), eV
    """
    n_structures, n_channels = len(lattice.volume), particles.amplitudes.shape[1]
    key = particles.structures * (particles.kinds.max() + 1) + particles.kinds
    keys, groups = torch.unique(key, return_inverse=True)
    density = _spread(particles, groups, len(keys), lattice, shape)
    factors = torch.fft.rfftn(density, dim=(2, 3, 4)).flatten(2)  # (n_groups, n_channels, n_waves)

    indices, multiplicity = _wave_indices(shape, density.device)
    k_squared = wave_numbers_squared(lattice, indices)
    if kernel == "coulomb":
        members = torch.zeros_like(keys).scatter(0, groups, torch.arange(len(groups), device=groups.device))
        group_structures = particles.structures.index_select(0, members)
        spreads = particles.widths.index_select(0, members).square().unsqueeze(1)
        factors = factors * torch.exp(-0.25 * spreads * k_squared.index_select(0, group_structures)).unsqueeze(1)
        if len(keys) > n_structures:
            total = factors.new_zeros(n_structures, *factors.shape[1:])
            factors = total.index_add(0, group_structures, factors)
    power = (factors.real.square() + factors.imag.square()).view(n_structures, n_channels, -1).sum(dim=1)
    value = interaction(kernel, lattice, k_squared, indices, None, particles.widths[0])
    return 0.5 * (multiplicity * value * power / _interpolation(indices, shape)).sum(dim=1) / lattice.volume


def _spline(offsets: Tensor) -> Tensor:
    """Weights of the five points around each particle.

    Parameters
    ----------
    offsets : (n, 3)
        Distance to the nearest grid point, between −½ and ½.

    Returns
    -------
    (n, 3, 5)
    """
    square = offsets.square()
    near = [(55.0 + a * (20.0 - a * (120.0 - a * (80.0 - 16.0 * a)))) / 96.0 for a in (1.0 + offsets, 1.0 - offsets)]
    far = [(1.0 - 2.0 * offsets) ** 4 / 384.0, (1.0 + 2.0 * offsets) ** 4 / 384.0]
    middle = 115.0 / 192.0 - square * (0.625 - 0.25 * square)
    return torch.stack([far[0], near[0], middle, near[1], far[1]], dim=2)


def _spread(
    particles: Particles, groups: Tensor, n_groups: int, lattice: Lattice, shape: tuple[int, int, int]
) -> Tensor:
    """(n_groups, n_channels, *shape): amplitudes on the mesh."""
    sizes = torch.tensor(shape, device=groups.device)
    scaled = fractional(particles.positions, particles.structures, lattice) * sizes
    nearest = torch.round(scaled.detach())
    weights = _spline(scaled - nearest)  # (n_atoms, 3, 5)
    steps = torch.arange(-2, 3, device=groups.device)
    points = torch.remainder(nearest.to(torch.int64).unsqueeze(2) + steps, sizes.unsqueeze(1))  # (n_atoms, 3, 5)
    plane = (points[:, 0].unsqueeze(2) * shape[1] + points[:, 1].unsqueeze(1)).flatten(1) * shape[2]
    cells = (plane.unsqueeze(2) + points[:, 2].unsqueeze(1)).flatten(1)  # (n_atoms, 125)
    cells = cells + groups.unsqueeze(1) * math.prod(shape)
    flat = (weights[:, 0].unsqueeze(2) * weights[:, 1].unsqueeze(1)).flatten(1)
    flat = (flat.unsqueeze(2) * weights[:, 2].unsqueeze(1)).flatten(1)
    n_channels = particles.amplitudes.shape[1]
    meshes = []
    for channel in range(n_channels):
        values = flat * particles.amplitudes[:, channel : channel + 1]
        empty = values.new_zeros(n_groups * math.prod(shape))
        meshes.append(empty.index_add(0, cells.flatten(), values.flatten()).view(n_groups, *shape))
    return torch.stack(meshes, dim=1)


def _wave_indices(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(n_waves, 3) indices in the order of a real transform, and how many waves each stands for."""
    axes = [torch.round(torch.fft.fftfreq(n, device=device, dtype=torch.float64) * n) for n in shape[:2]]
    axes.append(torch.arange(shape[2] // 2 + 1, device=device, dtype=torch.float64))
    indices = torch.cartesian_prod(*axes)
    multiplicity = 1.0 + (indices[:, 2] > 0)
    # the highest wave of an even mesh is its own negative only up to a phase: it carries no usable information
    sizes = torch.tensor(shape, device=device)
    return indices, multiplicity * (2 * indices.abs() < sizes).all(dim=1)


def _interpolation(indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(n_waves,): square of the factor by which spreading weakens each wave."""
    angles = 2.0 * math.pi * indices / torch.tensor(shape, device=indices.device, dtype=torch.float64)
    zero, one, two = _AT_GRID_POINTS
    return (zero + 2.0 * one * torch.cos(angles) + 2.0 * two * torch.cos(2.0 * angles)).prod(dim=1).square()
