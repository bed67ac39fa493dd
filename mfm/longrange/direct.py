"""Sum over all pairs of an isolated structure."""

import torch
from torch import Tensor

from mfm.longrange.base import Particles
from mfm.longrange.kernels import Kernel, pair_potential

__all__ = ["all_pairs", "direct_sum"]


def all_pairs(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair i < j of atoms of one structure, for structures whose atoms follow one another.

    Parameters
    ----------
    counts : (n_structures,)
        Number of atoms of each structure.

    Returns
    -------
    first, second : (n_pairs,)
    """
    ends = torch.repeat_interleave(torch.cumsum(counts, 0), counts)  # (n_atoms,)
    atoms = torch.arange(len(ends), device=counts.device)
    partners = ends - atoms - 1
    first = torch.repeat_interleave(atoms, partners)
    start = torch.cumsum(partners, 0) - partners
    second = first + 1 + torch.arange(len(first), device=counts.device) - start.index_select(0, first)
    return first, second


def direct_sum(kernel: Kernel, particles: Particles, n_structures: int) -> Tensor:
    """Σ_{i<j} a_i a_j v_ij(r_ij), without images.

    Returns
    -------
    (n_structures,), eV
    """
    amplitudes, positions, structures = particles.amplitudes, particles.positions, particles.structures
    first, second = all_pairs(torch.bincount(structures, minlength=n_structures))
    vectors = positions.index_select(0, first) - positions.index_select(0, second)
    squares = particles.widths.square()
    pair_widths = (0.5 * (squares.index_select(0, first) + squares.index_select(0, second))).sqrt()
    value = pair_potential(kernel, torch.linalg.vector_norm(vectors, dim=1), pair_widths)
    product = (amplitudes.index_select(0, first) * amplitudes.index_select(0, second)).sum(dim=1)
    return positions.new_zeros(n_structures).index_add(0, structures.index_select(0, first), product * value)
