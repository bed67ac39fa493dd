"""Latent Ewald: a long-range energy from charges that are learned from energies and forces.

Implements the latent Ewald summation of Cheng, npj Comput. Mater. 11, 80 (2025), with charges that are conserved,
widths that are learned, and sums that are right for molecules, slabs and crystals alike.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from mfm.config import Config
from mfm.graph import AtomicGraph
from mfm.longrange.base import Particles
from mfm.longrange.energy import WIDEST_WAVE, long_range_energy
from mfm.nn.charge_state import Charges, ChargeState

__all__ = ["LatentEwald", "LatentEwaldConfig", "LongRange", "LongRangeOfTasks"]


_START = 0.27
"""Size of the charges before training, in that of MBIS charges. What they make of a molecule's energy at full size, the
short range has to unlearn first: six minutes of dipeptides end at 96 instead of 88 meV/Å."""


class LatentEwaldConfig(Config):
    """Settings of the long-range energy."""

    name: Literal["latent_ewald"] = "latent_ewald"
    fidelities: Literal["shared", "scaled", "own"] = "shared"
    """Whether all fidelities have the same charges and energy, the same charges with an energy times a learned factor
    each, or charges of their own."""
    own_charges: bool = False
    """Whether atoms have charges beside what neighbours pass on and the share of the total charge; needed where ions
    of opposite charge are far apart."""
    n_channels: int = pydantic.Field(1, gt=0)
    """Independent charges per atom; the first is the physical one."""
    smallest_width: float = pydantic.Field(1.0, gt=0.3)
    """Smallest σ of an element's charges, Å; sets how many waves a crystal needs."""
    largest_width: float = pydantic.Field(3.0, gt=0.3)
    """Largest σ of an element's charges, Å."""
    dispersion: bool = False
    """Whether to add a long-range −C6/r⁶ with learned positive coefficients."""
    mesh_above: int = pydantic.Field(1600, ge=0)
    """Periodic structures with more atoms are summed on a mesh: faster, with an error of 1e-4 of the force."""

    @pydantic.model_validator(mode="after")
    def _check_widths(self) -> "LatentEwaldConfig":
        if self.smallest_width >= self.largest_width:
            raise ValueError(
                f"`smallest_width` must be below `largest_width`, got {self.smallest_width} and {self.largest_width}"
            )
        return self

    def build(self, n_scalars: int, cutoff: float) -> "LatentEwald":
        """Make the module with fresh weights.

        Parameters
        ----------
        n_scalars : int
            Channels of the backbone's scalars.
        cutoff : float, Å
            Radius of the graph.
        """
        return LatentEwald(self, n_scalars, cutoff)


class LongRange(NamedTuple):
    """Long-range energy and the charges behind it."""

    energies: Tensor
    """(n_structures,), eV, float64."""
    state: Charges
    """The physical ones: channel 0 adds up to the total charge, whatever a fidelity makes of the energy."""
    in_field: Tensor | None = None
    """(n_structures,), eV, float64: −P·F of the polarisation reported, if there is a field."""


class LatentEwald(nn.Module):
    """Charges of a batch and their energy."""

    def __init__(self, config: LatentEwaldConfig, n_scalars: int, cutoff: float) -> None:
        super().__init__()
        self.config = config
        self.state = ChargeState(n_scalars, cutoff, config.n_channels, config.own_charges, start=_START)
        # σ = smallest + (largest − smallest) sigmoid(x): x = −2 starts at 1.24 Å between 1 and 3
        self.raw_widths = nn.Parameter(torch.full((119,), -2.0))
        if config.dispersion:
            # √C6 of second-row atoms is about 4 √(eV Å⁶) (Grimme et al., J. Chem. Phys. 132, 154104 (2010))
            self.log_dispersion = nn.Parameter(torch.full((119,), 1.0))
            self.dispersion = nn.Linear(n_scalars, 1, bias=False)
            nn.init.zeros_(self.dispersion.weight)

    def widths(self) -> Tensor:
        """(119,), Å: σ of every element."""
        config = self.config
        span = config.largest_width - config.smallest_width
        return config.smallest_width + span * torch.sigmoid(self.raw_widths.double())

    def forward(
        self, scalars: Tensor, graph: AtomicGraph, with_dipoles: bool = False, state: Charges | None = None
    ) -> LongRange:
        """Energy and charges from the backbone's scalars (n_atoms, n_scalars), and its charges if known already."""
        config = self.config
        k_cutoff = WIDEST_WAVE / config.smallest_width
        state = self.state(scalars, graph, with_dipoles) if state is None else state
        numbers, positions = graph.atomic_numbers, graph.positions.double()
        widths = self.widths().index_select(0, numbers)
        particles = Particles(state.charges, widths, positions, graph.batch, numbers, graph.positions.dtype)
        energies = long_range_energy("coulomb", particles, graph, k_cutoff, config.mesh_above)
        if config.dispersion:
            logarithms = self.log_dispersion.index_select(0, numbers) + self.dispersion(scalars).squeeze(1)
            amplitudes = torch.exp(logarithms.double()).unsqueeze(1)
            same = torch.full_like(widths, config.smallest_width)
            particles = Particles(amplitudes, same, positions, graph.batch, torch.zeros_like(numbers), scalars.dtype)
            energies = energies + long_range_energy("dispersion", particles, graph, k_cutoff, config.mesh_above)
        return LongRange(energies, state)


class LongRangeOfTasks(nn.Module):
    """Long-range energies of several energy tasks, with what they share computed once.

    Parameters
    ----------
    tasks : sequence of str
        Energy tasks of the model.
    n_scalars : int
        Channels of the backbone's scalars.
    cutoff : float, Å
        Radius of the graph.
    """

    def __init__(self, config: LatentEwaldConfig, tasks: Sequence[str], n_scalars: int, cutoff: float) -> None:
        super().__init__()
        self.fidelities = config.fidelities
        owners = tasks if config.fidelities == "own" else ["all"]
        self.owners = nn.ModuleDict({owner: config.build(n_scalars, cutoff) for owner in owners})
        self.factors = nn.ParameterDict()
        if config.fidelities == "scaled":
            self.factors.update({task: nn.Parameter(torch.ones(())) for task in tasks})

    def largest_width(self, elements: Sequence[int]) -> float:
        """Largest σ of some elements, Å, at any fidelity."""
        return max(float(owner.widths()[list(elements)].max()) for owner in self._owners())

    def _owners(self) -> list[LatentEwald]:
        return [owner for owner in self.owners.values() if isinstance(owner, LatentEwald)]

    @property
    def shared_state(self) -> ChargeState | None:
        """Where all energies have their charges from; None if each has its own."""
        if self.fidelities == "own":
            return None
        owner = self.owners["all"]
        assert isinstance(owner, LatentEwald)
        return owner.state

    def forward(
        self,
        scalars: Tensor,
        graph: AtomicGraph,
        tasks: Sequence[str],
        with_dipoles: bool = False,
        state: Charges | None = None,
    ) -> dict[str, LongRange]:
        """Long-range part of each of `tasks`, which all see the features `scalars` (n_atoms, n_scalars).

        `state`, if given, is what :attr:`shared_state` makes of these features.
        """
        if self.fidelities == "own":
            return {task: self.owners[task](scalars, graph, with_dipoles) for task in tasks}
        shared: LongRange = self.owners["all"](scalars, graph, with_dipoles, state)
        if self.fidelities == "shared":
            return dict.fromkeys(tasks, shared)
        # the square of the factor, as if charges were screened; those reported are not, since they must add up
        return {
            task: shared._replace(energies=self.factors[task].double().square() * shared.energies) for task in tasks
        }
