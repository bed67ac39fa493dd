"""Static polarizability of a molecule, as a sum over atoms."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.graph import AtomicGraph
from mfm.heads.base import AtomicPart, AtomicTensor, Head, Moments, PartSetting
from mfm.nn.harmonics import second_degree_matrices
from mfm.nn.moments import sum_over_atoms

__all__ = ["HEAD", "AtomicPolarizabilities", "polarizability"]


class AtomicPolarizabilities(AtomicPart):
    """(n_atoms, 3, 3), e² Å²/eV: a value of the element, an isotropic change of it, and a traceless tensor.

    An atom without neighbours keeps the value of its element and is isotropic.
    """

    degree = 2
    matrices: Tensor
    unit: Tensor

    def __init__(self, setting: PartSetting, n_hidden: int = 32) -> None:
        super().__init__()
        self.tensor = AtomicTensor(2, setting.n_scalars, setting.n_channels)
        self.hidden = nn.Linear(setting.n_scalars, n_hidden, bias=False)
        self.output = nn.Linear(n_hidden, 1, bias=False)
        nn.init.zeros_(self.output.weight)
        self.elements = nn.Parameter(torch.zeros(119))
        self.register_buffer("matrices", torch.as_tensor(second_degree_matrices()), persistent=False)
        self.register_buffer("unit", torch.eye(3), persistent=False)

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, 3, 3)."""
        isotropic = self.output(functional.silu(self.hidden(scalars))).squeeze(1)
        isotropic = isotropic + self.elements.index_select(0, graph.atomic_numbers)
        anisotropic = torch.einsum("nm,mab->nab", self.tensor(scalars, equivariants), self.matrices)
        return isotropic[:, None, None] * self.unit + anisotropic


def polarizability(moments: Moments, graph: AtomicGraph) -> Tensor:
    """(n_structures, 3, 3), e² Å²/eV, float64."""
    return sum_over_atoms(moments["atomic_polarizabilities"], graph)


HEAD = Head(polarizability, {"atomic_polarizabilities": AtomicPolarizabilities}, reads_charges=False)
