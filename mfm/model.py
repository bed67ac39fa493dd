"""The model: one backbone, one energy head per fidelity, forces and stress by derivative."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import pydantic
import torch
from torch import Tensor, nn

from mfm.backbones import BackboneConfig, Features, GauntConfig
from mfm.config import Config
from mfm.derivatives import derivatives_of, differentiable
from mfm.domain import Domain
from mfm.graph import AtomicGraph
from mfm.heads import HEADS, TaskConfig
from mfm.heads.base import PartSetting
from mfm.heads.electrons import ElectronicHeads
from mfm.heads.energy import EnergyHead
from mfm.heads.joins import check_tasks, electronic, evaluation_order
from mfm.longrange import LatentEwaldConfig, LongRange, LongRangeOfTasks
from mfm.longrange.response import (
    NEED_DIPOLES,
    QUANTITIES,
    born_effective_charges,
    check_polarisation,
    energy_in_field,
    quantity,
)
from mfm.nn.charge_state import Charges, ChargeState
from mfm.nn.moments import polarisation
from mfm.properties import PROPERTIES, parse_task
from mfm.requests import energies_needed, refuse_isolated, split_quantities

__all__ = ["NOISE", "Domain", "MFMModel", "ModelConfig", "build_model"]

NOISE = "noise"
"""What a model with a denoiser can be asked for beside its tasks, see :mod:`mfm.training.denoising`."""


class ModelConfig(Config):
    """Everything about a model that is chosen, not measured."""

    backbone: BackboneConfig = GauntConfig()
    """The shared representation."""
    tasks: dict[str, TaskConfig]
    """What is predicted, such as ``energy_dft`` and ``dipole_dft``, and how fidelities are joined."""
    readout_channels: int = 64
    """Width of the hidden layer of an energy head."""
    long_range: LatentEwaldConfig | None = None
    """Energy beyond the cutoff, from charges; none if not given."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        check_tasks(self.tasks, self.backbone.equivariant_degree)
        if self.long_range is not None and not any(parse_task(name).property == "energy" for name in self.tasks):
            raise ValueError("`long_range` adds to energies, but no task is one; leave it out")
        return self


class _Shared(NamedTuple):
    """What tasks that are not conditioned share in one pass."""

    features: Features | None
    state: Charges | None

    def pair(self) -> tuple[Tensor, Tensor]:
        """Scalars and equivariants."""
        assert self.features is not None
        assert self.features.equivariants is not None
        return self.features.scalars, self.features.equivariants


class MFMModel(nn.Module):
    """Energies and electronic properties at several fidelities from one shared representation.

    E_f = Σ_i [E0_f(Z_i) + s ε_f(h_i)], where ε_f has its own head (``independent``), is another fidelity's plus a
    correction (``anchor``), or another fidelity's head on features conditioned on f (``conditioned``). Charges,
    multipole moments and the long-range energy have one charge state, see :mod:`mfm.heads.electrons`.
    """

    def __init__(self, config: ModelConfig, domain: Domain) -> None:
        super().__init__()
        self.config = config
        self.domain = domain
        electrons = electronic(config.tasks)
        energies = {name: task for name, task in config.tasks.items() if name not in electrons}
        self.backbone = config.backbone.build(with_equivariants=bool(electrons))
        self.backbone.average_neighbours.fill_(domain.average_neighbours)
        self.order = evaluation_order(energies)
        n_scalars, cutoff = self.backbone.n_scalars, self.backbone.cutoff
        self.heads = nn.ModuleDict(
            {
                name: EnergyHead(n_scalars, config.readout_channels, starts_at_zero=task.join == "anchor")
                for name, task in energies.items()
                if task.join != "conditioned"
            }
        )
        self.conditions = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(self.backbone.condition_shape))
                for name, task in energies.items()
                if task.join == "conditioned"
            }
        )
        self.long_range: LongRangeOfTasks | None = None
        if config.long_range is not None:
            self.long_range = LongRangeOfTasks(config.long_range, list(energies), n_scalars, cutoff)
        self.electrons: ElectronicHeads | None = None
        self.charge_state: ChargeState | None = None
        if electrons:
            degree = config.backbone.equivariant_degree
            setting = PartSetting(n_scalars, self.backbone.n_equivariants, degree, cutoff)
            self.electrons = ElectronicHeads(electrons, setting, domain.density_bases)
            if self.electrons.has_charges and (self.long_range is None or self.long_range.shared_state is None):
                self.charge_state = ChargeState(n_scalars, cutoff)
        # not a buffer: `.float()` would round it, and references must stay float64 until they are added
        table = domain.reference_table([parse_task(name).fidelity for name in self.energies])
        self.references = torch.as_tensor(table)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MFMModel":
        super()._apply(fn, recurse)
        self.references = self.references.to(next(self.parameters()).device)
        return self

    @property
    def tasks(self) -> list[str]:
        """What the model predicts, in the order of the configuration."""
        return list(self.config.tasks)

    @property
    def energies(self) -> list[str]:
        """Tasks that are energies."""
        return [name for name in self.config.tasks if parse_task(name).property == "energy"]

    @property
    def fidelities(self) -> list[str]:
        """Fidelities, in the order of the configuration."""
        return list(dict.fromkeys(parse_task(name).fidelity for name in self.config.tasks))

    def properties(self, fidelity: str) -> list[str]:
        """What can be had at a fidelity beside energy, forces and stress, as tasks or as quantities."""
        found = [prop for prop in HEADS if f"{prop}_{fidelity}" in self.config.tasks]
        if self.long_range is not None and f"energy_{fidelity}" in self.config.tasks:
            found += [kind for kind in QUANTITIES if kind not in found]
        elif self.electrons is not None and self.electrons.has_dipole(fidelity):
            found += [kind for kind in NEED_DIPOLES if kind not in found]
        return found

    @property
    def elements(self) -> list[int]:
        """Atomic numbers the model can handle."""
        return self.domain.elements

    @property
    def cutoff(self) -> float:
        """Radius of the graphs the model needs, Å."""
        return self.backbone.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(
        self,
        graph: AtomicGraph,
        tasks: Sequence[str] | None = None,
        derivatives: Sequence[str] = (),
        quantities: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Energies without their references, electronic properties, and derivatives.

        Parameters
        ----------
        graph : AtomicGraph
            One structure or a batch, in the model's precision. With a field ``electric_field`` (n_structures, 3), V/Å,
            energies are electric enthalpies E − P·F with the dipole P that is reported at each fidelity, about the
            origin, and derivatives follow.
        tasks : sequence of str, optional
            Those wanted, by default all.
        derivatives : sequence of str
            Tasks such as ``forces_dft``, ``stress_dft`` and ``hessian_product_dft``; the last needs the field
            ``probe_dft`` (n_atoms, 3), Å. In training mode they can be differentiated again.
        quantities : sequence of str
            What :meth:`properties` lists, such as ``charges_dft``: the task of that name if there is one, else what the
            long-range part knows; see :func:`mfm.longrange.response.quantity`.

        Returns
        -------
        dict
            Task → energies (n_structures,) eV, forces (n_atoms, 3) eV/Å, stress (n_structures, 3, 3) eV/Å³, products
            of Hessians (n_atoms, 3) eV/Å, properties as :data:`mfm.properties.PROPERTIES` has them, NaN for structures
            that cannot have them; and the quantities.

        Raises
        ------
        ValueError
            If the model does not have a task or a quantity, or no charges that a field could act on, or see
            :func:`mfm.longrange.response.check_polarisation`.
        """
        asked = self.tasks if tasks is None else tasks
        direct = list(dict.fromkeys([*asked, *(name for name in quantities if name in self.config.tasks)]))
        with_noise = NOISE in direct and "denoiser" in self._modules
        direct = [name for name in direct if not (with_noise and name == NOISE)]
        having = {fidelity: self.properties(fidelity) for fidelity in self.fidelities}
        extras = split_quantities([name for name in quantities if name not in self.config.tasks], having)
        energy_names = energies_needed(direct, derivatives, self.tasks)
        energy_names += [f"energy_{fidelity}" for kind, fidelity in extras.values() if self._is_latent(kind, fidelity)]
        with_strain = any(parse_task(name).property == "stress" for name in derivatives)
        strain = None
        if derivatives or any(kind == "born_effective_charges" for kind, _ in extras.values()):
            graph, strain = differentiable(graph, with_strain)
        has_field = self._check_polarisations(graph, energy_names, extras.values())
        with_dipoles = has_field or any(kind in NEED_DIPOLES for kind, _ in extras.values())
        electronic_names = [name for name in direct if parse_task(name).property != "energy"]
        shared = _Shared(None, None)
        with_moments = has_field and self.electrons is not None
        bare = any(name not in self.conditions for name in energy_names)
        if electronic_names or extras or with_noise or with_moments or bare:
            with_charges = bool(electronic_names or extras or (energy_names and self.long_range is not None))
            shared = self._shared(graph, with_charges, with_dipoles)
        energies, far = self._energies(graph, energy_names, with_dipoles, shared)
        outputs = {name: energies[name] for name in direct if name in energies}
        outputs |= self._electronic(graph, electronic_names, shared)
        if with_noise:
            outputs[NOISE] = self.get_submodule("denoiser")(shared.features)
        for name, (kind, fidelity) in extras.items():
            if self._is_latent(kind, fidelity):
                outputs[name] = quantity(kind, far[f"energy_{fidelity}"], graph)
            else:
                outputs[name] = self._from_parts(kind, graph, fidelity, shared)
        return outputs | derivatives_of(energies, graph, strain, derivatives, self.training)

    def predict(
        self,
        graph: AtomicGraph,
        tasks: Sequence[str] | None = None,
        derivatives: Sequence[str] = (),
        quantities: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """As :meth:`forward`, with total energies in float64 and everything detached.

        Without `tasks`, all that the structures can have.

        Raises
        ------
        ValueError
            As :meth:`forward`, and if what only molecules have is asked for where a structure is periodic.
        """
        if bool(graph.pbc.any()):
            if tasks is None:
                tasks = [name for name in self.tasks if not PROPERTIES[parse_task(name).property].isolated]
            refuse_isolated([*tasks, *(name for name in quantities if name in self.config.tasks)])
        training = self.training
        if training:  # switching walks through every module, which costs as much as a small molecule
            self.eval()
        try:
            outputs = {name: value.detach() for name, value in self(graph, tasks, derivatives, quantities).items()}
        finally:
            if training:
                self.train()
        per_atom = self.references[:, graph.atomic_numbers]  # (n_energies, n_atoms)
        totals = per_atom.new_zeros(per_atom.shape[0], graph.n_structures).index_add(1, graph.batch, per_atom)
        for row, name in enumerate(self.energies):
            if name in outputs:
                outputs[name] = outputs[name].double() + totals[row]
        return outputs

    def condition_penalty(self) -> Tensor:
        """Mean square of the terms that set conditioned fidelities apart from their base."""
        values = [condition.square().mean() for condition in self.conditions.values()]
        return torch.stack(values).sum() if values else next(self.parameters()).new_zeros(())

    def _is_latent(self, kind: str, fidelity: str) -> bool:
        """Whether the long-range part answers, not a head."""
        has_dipole = self.electrons is not None and self.electrons.has_dipole(fidelity)
        return not (kind in NEED_DIPOLES and has_dipole)

    def _check_polarisations(
        self, graph: AtomicGraph, energy_names: Sequence[str], extras: Collection[tuple[str, str]]
    ) -> bool:
        """Refuse fields and Born effective charges that the model has not; returns whether there is a field."""
        born = [self._has_own_charges(fidelity) for kind, fidelity in extras if kind == "born_effective_charges"]
        if born:
            check_polarisation(graph, any(born))
        field = graph.get("electric_field")
        if field is None:
            return False
        if self.long_range is None:
            raise ValueError("an electric field acts on charges, which this model has not; train it with `long_range`")
        if energy_names:
            own = any(self._has_own_charges(parse_task(name).fidelity) for name in energy_names)
            check_polarisation(graph, own, field)
        return True

    def _has_own_charges(self, fidelity: str) -> bool:
        """Whether the polarisation of a fidelity holds charges beside what neighbours pass on and shares of the net."""
        if self.long_range is None or self.config.long_range is None or not self.config.long_range.own_charges:
            return False
        return self._is_latent("dipole", fidelity) or self.long_range.shared_state is not None

    def _shared(self, graph: AtomicGraph, with_charges: bool, with_dipoles: bool) -> "_Shared":
        """Features without a condition and the charge state made of them."""
        features = self.backbone(graph)
        if not with_charges:
            return _Shared(features, None)
        state = self.charge_state if self.long_range is None else self.long_range.shared_state or self.charge_state
        return _Shared(features, None if state is None else state(features.scalars, graph, with_dipoles))

    def _electronic(self, graph: AtomicGraph, names: Sequence[str], shared: "_Shared") -> dict[str, Tensor]:
        """Electronic tasks; NaN where a periodic structure cannot have them."""
        if not names:
            return {}
        assert self.electrons is not None
        outputs: dict[str, Tensor] = self.electrons(shared.pair(), graph, shared.state, names)
        return outputs

    def _from_parts(self, kind: str, graph: AtomicGraph, fidelity: str, shared: "_Shared") -> Tensor:
        """Dipole or polar tensors of a fidelity's charges and atomic dipoles."""
        if kind == "dipole":
            name = f"dipole_{fidelity}"
            return self._electronic(graph, [name], shared)[name]
        return born_effective_charges(self._polarisation(graph, fidelity, shared), graph.positions)

    def _polarisation(
        self, graph: AtomicGraph, fidelity: str, shared: "_Shared", latent: Charges | None = None
    ) -> Tensor:
        """Dipole reported at a fidelity, but about the origin, (n_structures, 3), e Å: of a head if it has one.

        `latent` is the charge state of the long-range energy at the fidelity, which answers if there is no head.
        """
        if self.electrons is not None and self.electrons.has_dipole(fidelity):
            assert shared.state is not None
            return self.electrons.polarisation(shared.pair(), graph, shared.state, fidelity)
        assert latent is not None
        return polarisation(latent, graph)

    def _energies(
        self, graph: AtomicGraph, names: Sequence[str], with_dipoles: bool, shared: "_Shared"
    ) -> tuple[dict[str, Tensor], dict[str, LongRange]]:
        """Energies of the tasks named and of those they build on, and their long-range parts."""
        needed = set(names)
        for name in reversed(self.order):
            anchor = self.config.tasks[name].anchor
            if name in needed and anchor is not None:
                needed.add(anchor)
        atomic: dict[str, Tensor] = {}
        far: dict[str, LongRange] = {}
        for name in self.order:
            if name not in needed:
                continue
            task = self.config.tasks[name]
            if task.conditioned is not None:
                features = self.backbone(graph, condition=self.conditions[name])
                atomic[name] = self.heads[task.conditioned](features.scalars)
                if self.long_range is not None:
                    far |= self.long_range(features.scalars, graph, [name], with_dipoles)
                continue
            assert shared.features is not None
            value = self.heads[name](shared.features.scalars)
            atomic[name] = value if task.anchor is None else value + atomic[task.anchor]
        rest = [name for name in atomic if name not in far]
        if self.long_range is not None and shared.features is not None and rest:
            far |= self.long_range(shared.features.scalars, graph, rest, with_dipoles, shared.state)
        return self._totals(graph, atomic, far, shared)

    def _totals(
        self, graph: AtomicGraph, atomic: dict[str, Tensor], far: dict[str, LongRange], shared: "_Shared"
    ) -> tuple[dict[str, Tensor], dict[str, LongRange]]:
        """Sums over atoms with the long-range parts and, in a field, what it adds; and these parts."""
        field = graph.get("electric_field")
        energies = {}
        for name, value in atomic.items():
            energy = value.new_zeros(graph.n_structures).index_add(0, graph.batch, value) * self.domain.scale
            if name in far:
                added = far[name].energies
                if field is not None:
                    moments = self._polarisation(graph, parse_task(name).fidelity, shared, far[name].state)
                    in_field = energy_in_field(moments, field)
                    far[name] = far[name]._replace(in_field=in_field)
                    added = added + in_field
                energy = energy + added.to(energy.dtype)
            energies[name] = energy
        return energies, far


def build_model(config: ModelConfig, domain: Domain, seed: int, dtype: torch.dtype = torch.float32) -> MFMModel:
    """A fresh model; the caller's random state is left as it was.

    Parameters
    ----------
    seed : int
        Of the initial weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MFMModel(config, domain).to(dtype)
