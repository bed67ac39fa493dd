"""What a task is, and what heads of electronic properties are made of.

A head of an electronic property is a record (:class:`Head`): a function from quantities of atoms to the property, and
the modules that learn those quantities. The quantities belong to a fidelity, not to a head, so that the dipole, the
quadrupole and the charges of one fidelity are those of the same electrons.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.config import Config
from mfm.density.basis import DensityBasis
from mfm.graph import AtomicGraph

__all__ = ["AtomicPart", "AtomicTensor", "Head", "Moments", "PartSetting", "TaskConfig"]


class TaskConfig(Config):
    """How one task is joined to the others and how much its errors count."""

    anchor: str | None = None
    """Task of the same property that this one is added to: E = E_anchor + Δ with Δ zero at the start of training."""
    conditioned: str | None = None
    """Energies only: task whose head this one shares, with its own zero-initialised terms inside the backbone."""
    weight: float = pydantic.Field(1.0, ge=0)
    """Weight of the squared error: of energies per atom, of other properties in units of the labels' size."""
    forces_weight: float = pydantic.Field(1.0, ge=0)
    """Energies only: weight of the squared force error where the fidelity has forces."""
    stress_weight: float = pydantic.Field(1.0, ge=0)
    """Energies only: weight of the squared stress error (times volume per atom) where the fidelity has stresses."""
    hessian_weight: float = pydantic.Field(1.0, ge=0)
    """Energies only: weight of the squared error of Hessian-vector products, in units of their size, where the
    fidelity has them (:mod:`mfm.training.distillation`)."""

    @property
    def base(self) -> str | None:
        """The task this one is joined to; None if independent."""
        return self.anchor or self.conditioned

    @property
    def join(self) -> str:
        """``independent``, ``anchor`` or ``conditioned``."""
        if self.anchor:
            return "anchor"
        return "conditioned" if self.conditioned else "independent"


Moments = Mapping[str, Tensor]
"""Quantities of the atoms at one fidelity: ``charges`` (n_atoms,), e, float64, and what the parts of heads learn."""


class PartSetting(NamedTuple):
    """What a learned quantity is made for."""

    n_scalars: int
    """Channels of the scalar features."""
    n_channels: int
    """Channels of the equivariant features."""
    degree: int
    """Highest degree of the equivariant features."""
    cutoff: float
    """Radius of the graphs, Å."""
    density_basis: DensityBasis | None = None
    """Basis of the fidelity's densities, if it has any."""
    is_correction: bool = False
    """Whether it is added to that of another fidelity."""


class AtomicPart(nn.Module):
    """A learned quantity of atoms, zero before training; made as ``part(PartSetting(…))``."""

    degree: int
    """Degree of the equivariant features it needs; 0 if none."""

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """Quantity of every atom from the features, see :class:`mfm.backbones.Features`."""
        raise NotImplementedError


class Head(NamedTuple):
    """One electronic property as a function of quantities of atoms."""

    evaluate: Callable[[Moments, AtomicGraph], Tensor]
    """Property of the atoms or structures of a batch."""
    parts: Mapping[str, type[AtomicPart]] = {}
    """What is learned for it. Heads of one fidelity that name the same part share it."""
    reads_charges: bool = True
    """Whether it depends on the charges."""


class AtomicTensor(nn.Module):
    """A tensor of one degree on each atom: equivariant features mixed, gated by scalars, and summed.

    Zero before training, and zero on an atom without neighbours, whose features have no direction.

    Parameters
    ----------
    degree : int
        l; the tensor has 2 l + 1 components.
    n_scalars, n_channels : int
        Channels of the scalar and of the equivariant features.
    n_hidden : int
        Mixed channels.
    """

    def __init__(self, degree: int, n_scalars: int, n_channels: int, n_hidden: int = 32) -> None:
        super().__init__()
        self.first, self.last = degree**2 - 1, (degree + 1) ** 2 - 1
        self.mix = nn.Linear(n_channels, n_hidden, bias=False)
        self.gate = nn.Linear(n_scalars, n_hidden)
        self.output = nn.Parameter(torch.zeros(n_hidden))

    def forward(self, scalars: Tensor, equivariants: Tensor) -> Tensor:
        """(n_atoms, n_scalars) and ((L + 1)² − 1, n_atoms, n_channels) → (n_atoms, 2 l + 1)."""
        mixed = self.mix(equivariants[self.first : self.last])  # (2 l + 1, n_atoms, n_hidden)
        weights = self.output * (1.0 + functional.silu(self.gate(scalars)))
        return (mixed * weights).sum(dim=2).T
