"""Dipole moments of the atoms about their nuclei, from features of degree 1."""

from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.heads.base import AtomicPart, AtomicTensor, Head, Moments, PartSetting

__all__ = ["HEAD", "AtomicDipoles", "atomic_dipoles"]


class AtomicDipoles(AtomicPart):
    """(n_atoms, 3), e Å: degree 1 stands in the order x, y, z."""

    degree = 1

    def __init__(self, setting: PartSetting) -> None:
        super().__init__()
        self.tensor = AtomicTensor(1, setting.n_scalars, setting.n_channels)

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, 3)."""
        dipoles: Tensor = self.tensor(scalars, equivariants)
        return dipoles


def atomic_dipoles(moments: Moments, graph: AtomicGraph) -> Tensor:
    """(n_atoms, 3), e Å."""
    return moments["atomic_dipoles"]


HEAD = Head(atomic_dipoles, {"atomic_dipoles": AtomicDipoles}, reads_charges=False)
