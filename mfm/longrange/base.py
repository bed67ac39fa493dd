"""What is summed: particles with amplitudes and Gaussian widths."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Particles"]


class Particles(NamedTuple):
    """Atoms of some structures, as the sums see them; all floating-point fields in float64."""

    amplitudes: Tensor
    """(n_atoms, n_channels): charges in e, or √C6 in √(eV Å⁶). Channels do not interact, their energies are added."""
    widths: Tensor
    """(n_atoms,), Å: σ of the atom's Gaussian in the convention of :mod:`mfm.longrange.kernels`."""
    positions: Tensor
    """(n_atoms, 3), Å."""
    structures: Tensor
    """(n_atoms,), structure of each atom, not decreasing."""
    kinds: Tensor
    """(n_atoms,), integers: atoms of one kind have one width."""
    precision: torch.dtype = torch.float64
    """In which the exact sum multiplies the phases of a structure's atoms; everything else is in float64."""

    def select(self, atoms: Tensor, structures: Tensor) -> "Particles":
        """Some of the atoms, with their structures renumbered."""
        amplitudes, widths, positions, kinds = (
            field.index_select(0, atoms) for field in (self.amplitudes, self.widths, self.positions, self.kinds)
        )
        return Particles(amplitudes, widths, positions, structures, kinds, self.precision)
