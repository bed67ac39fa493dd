"""Traceless quadrupole moment of a molecule: charges, atomic dipoles and atomic quadrupoles."""

import torch
from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.heads.atomic_dipoles import AtomicDipoles
from mfm.heads.base import AtomicPart, AtomicTensor, Head, Moments, PartSetting
from mfm.nn.harmonics import second_degree_matrices
from mfm.nn.moments import relative_positions, sum_over_atoms, traceless

__all__ = ["HEAD", "AtomicQuadrupoles", "quadrupole"]


class AtomicQuadrupoles(AtomicPart):
    """(n_atoms, 3, 3), e Å², symmetric and traceless."""

    degree = 2
    matrices: Tensor

    def __init__(self, setting: PartSetting) -> None:
        super().__init__()
        self.tensor = AtomicTensor(2, setting.n_scalars, setting.n_channels)
        self.register_buffer("matrices", torch.as_tensor(second_degree_matrices()), persistent=False)

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, 3, 3)."""
        return torch.einsum("nm,mab->nab", self.tensor(scalars, equivariants), self.matrices)


def quadrupole(moments: Moments, graph: AtomicGraph) -> Tensor:
    """Σ q_i x_i x_iᵀ + Σ (μ_i x_iᵀ + x_i μ_iᵀ) + Σ Θ_i without its trace, x_i = r_i − c.

    About the nuclear charge centre c also where the dipole is zero and another origin would do.

    Returns
    -------
    (n_structures, 3, 3), e Å², float64
    """
    positions = relative_positions(graph)
    mixed = moments["atomic_dipoles"].unsqueeze(2) * positions.unsqueeze(1)
    per_atom = moments["charges"][:, None, None] * positions.unsqueeze(2) * positions.unsqueeze(1)
    per_atom = per_atom + mixed + mixed.transpose(1, 2)
    return traceless(sum_over_atoms(per_atom, graph)) + sum_over_atoms(moments["atomic_quadrupoles"], graph)


HEAD = Head(quadrupole, {"atomic_dipoles": AtomicDipoles, "atomic_quadrupoles": AtomicQuadrupoles})
