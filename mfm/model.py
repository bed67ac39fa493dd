"""The model: one backbone, one energy head per fidelity, forces and stress by derivative."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mfm.backbones import BackboneConfig, Features, GauntConfig
from mfm.config import Config
from mfm.derivatives import differentiable, forces_and_stress
from mfm.fidelity import LevelOfTheory
from mfm.graph import AtomicGraph, Structure
from mfm.heads.energy import EnergyHead, TaskConfig
from mfm.longrange import LatentEwaldConfig, LongRange, LongRangeOfTasks
from mfm.longrange.response import NEED_DIPOLES, QUANTITIES, field_energy, quantity
from mfm.properties import parse_task

__all__ = ["Domain", "MFMModel", "ModelConfig", "build_model", "evaluation_order"]

_N_ELEMENTS = 119


class ModelConfig(Config):
    """Everything about a model that is chosen, not measured."""

    backbone: BackboneConfig = GauntConfig()
    """The shared representation."""
    tasks: dict[str, TaskConfig]
    """Energy tasks, such as ``energy_dft``, and how they are joined."""
    readout_channels: int = 64
    """Width of the hidden layer of an energy head."""
    long_range: LatentEwaldConfig | None = None
    """Energy beyond the cutoff, from charges; none if not given."""

    @pydantic.model_validator(mode="after")
    def _check_tasks(self) -> "ModelConfig":
        if not self.tasks:
            raise ValueError("`tasks` must name at least one energy, such as `energy_dft: {}`")
        for name, task in self.tasks.items():
            if parse_task(name).property != "energy":
                raise ValueError(f"task `{name}`: heads exist for `energy`; forces follow from it where labelled")
            if task.anchor and task.conditioned:
                raise ValueError(f"task `{name}`: give `anchor` or `conditioned`, not both")
            if task.base is not None and task.base not in self.tasks:
                raise ValueError(f"task `{name}` builds on `{task.base}`, which is not among {', '.join(self.tasks)}")
            if task.conditioned and self.tasks[task.conditioned].base is not None:
                raise ValueError(
                    f"task `{name}`: `conditioned` must name an independent task, not `{task.conditioned}`"
                )
        evaluation_order(self.tasks)
        return self


def evaluation_order(tasks: Mapping[str, TaskConfig]) -> list[str]:
    """Tasks, each after the one it builds on."""
    order: list[str] = []
    for name in tasks:
        chain: list[str] = []
        current: str | None = name
        while current is not None and current not in order:
            if current in chain:
                raise ValueError(f"tasks {' -> '.join([*chain, current])} build on one another in a circle")
            chain.append(current)
            current = tasks[current].base
        order.extend(reversed(chain))
    return order


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a model learned about its training data beyond weights; part of every checkpoint."""

    references: Mapping[str, Mapping[int, float]]
    """Fidelity → atomic number → reference energy, eV."""
    levels: Mapping[str, LevelOfTheory]
    """Fidelity → level of theory."""
    scale: float = 1.0
    """Root mean square force component of the training set, eV/Å; outputs are in units of it."""
    average_neighbours: float = 16.0
    """Mean number of neighbours within the cutoff."""
    charges: tuple[int, ...] = (0,)
    """Total charges seen."""
    multiplicities: tuple[int, ...] = (1,)
    """Spin multiplicities seen."""

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that every fidelity has a reference for."""
        known = [set(energies) for energies in self.references.values()]
        return sorted(set.intersection(*known)) if known else []

    def check(self, structure: Structure) -> None:
        """Refuse a structure outside of what the model was trained on.

        Raises
        ------
        ValueError
            For an element, charge or multiplicity that the training data did not hold.
        """
        unseen = sorted(set(structure.atomic_numbers.tolist()) - set(self.elements))
        if unseen:
            raise ValueError(
                f"{structure.formula} holds {', '.join(chemical_symbols[z] for z in unseen)}; this model knows"
                f" {', '.join(chemical_symbols[z] for z in self.elements)}. Train on data with those elements"
            )
        for name, value, seen in (
            ("charge", structure.charge, self.charges),
            ("multiplicity", structure.multiplicity, self.multiplicities),
        ):
            if value not in seen:
                raise ValueError(
                    f"{structure.formula} has {name} {value}; this model was trained on {name} in {sorted(seen)}."
                    f" Set it in `atoms.info`, or train on such data"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able mapping that :meth:`from_dict` reads back."""
        return {
            **dataclasses.asdict(self),
            "references": {f: {str(z): e for z, e in known.items()} for f, known in self.references.items()},
            "levels": {fidelity: dataclasses.asdict(level) for fidelity, level in self.levels.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Domain":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            references={f: {int(z): e for z, e in known.items()} for f, known in content["references"].items()},
            levels={f: LevelOfTheory.from_mapping(level) for f, level in content["levels"].items()},
            scale=content["scale"],
            average_neighbours=content["average_neighbours"],
            charges=tuple(content["charges"]),
            multiplicities=tuple(content["multiplicities"]),
        )


class MFMModel(nn.Module):
    """Energies at several fidelities from one shared representation.

    E_f = Σ_i [E0_f(Z_i) + s ε_f(h_i)], where ε_f has its own head (``independent``), is another fidelity's plus a
    correction (``anchor``), or another fidelity's head on features conditioned on f (``conditioned``).
    """

    def __init__(self, config: ModelConfig, domain: Domain) -> None:
        super().__init__()
        self.config = config
        self.domain = domain
        self.backbone = config.backbone.build()
        self.backbone.average_neighbours.fill_(domain.average_neighbours)
        self.order = evaluation_order(config.tasks)
        n_scalars = self.backbone.n_scalars
        self.heads = nn.ModuleDict(
            {
                name: EnergyHead(n_scalars, config.readout_channels, starts_at_zero=task.join == "anchor")
                for name, task in config.tasks.items()
                if task.join != "conditioned"
            }
        )
        self.conditions = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(self.backbone.condition_shape))
                for name, task in config.tasks.items()
                if task.join == "conditioned"
            }
        )
        self.long_range: LongRangeOfTasks | None = None
        if config.long_range is not None:
            self.long_range = LongRangeOfTasks(config.long_range, self.tasks, n_scalars, self.backbone.cutoff)
        # not a buffer: `.float()` would round it, and references must stay float64 until they are added
        self.references = self._reference_table()

    def _reference_table(self) -> Tensor:
        table = np.full((len(self.fidelities), _N_ELEMENTS), np.nan)
        for row, fidelity in enumerate(self.fidelities):
            if fidelity not in self.domain.references:
                raise ValueError(
                    f"no reference energies for fidelity `{fidelity}`, only for {', '.join(self.domain.references)};"
                    " fit them on the training data"
                )
            for number, energy in self.domain.references[fidelity].items():
                table[row, number] = energy
        return torch.as_tensor(table)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MFMModel":
        super()._apply(fn, recurse)
        self.references = self.references.to(next(self.parameters()).device)
        return self

    @property
    def tasks(self) -> list[str]:
        """Energy tasks, in the order of the configuration."""
        return list(self.config.tasks)

    @property
    def fidelities(self) -> list[str]:
        """Fidelities, in the order of the configuration."""
        return [parse_task(name).fidelity for name in self.config.tasks]

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
        """Energies without their references, and derivatives.

        Parameters
        ----------
        graph : AtomicGraph
            One structure or a batch, in the model's precision. With a field ``electric_field`` (n_structures, 3), V/Å,
            energies are electric enthalpies E − P·F, and derivatives follow.
        tasks : sequence of str, optional
            Energies wanted, by default all.
        derivatives : sequence of str
            Tasks such as ``forces_dft`` and ``stress_dft``. In training mode they can be differentiated again.
        quantities : sequence of str
            What the long-range part knows, such as ``charges_dft``; see :func:`mfm.longrange.response.quantity`.

        Returns
        -------
        dict
            Task → energies (n_structures,) eV, forces (n_atoms, 3) eV/Å, stress (n_structures, 3, 3) eV/Å³; and the
            quantities.

        Raises
        ------
        ValueError
            If the model does not have a task or a quantity, or no charges that a field could act on.
        """
        energy_names = self._check(self.tasks if tasks is None else tasks, derivatives)
        asked = self._split(quantities)
        energy_names += [f"energy_{fidelity}" for _, fidelity in asked.values()]
        with_strain = any(parse_task(name).property == "stress" for name in derivatives)
        strain = None
        if derivatives or any(kind == "born_effective_charges" for kind, _ in asked.values()):
            graph, strain = differentiable(graph, with_strain)
        has_field = graph.get("electric_field") is not None
        if has_field and self.long_range is None:
            raise ValueError("an electric field acts on charges, which this model has not; train it with `long_range`")
        with_dipoles = has_field or any(kind in NEED_DIPOLES for kind, _ in asked.values())
        energies, far = self._energies(graph, energy_names, with_dipoles)
        outputs = {name: energies[name] for name in (self.tasks if tasks is None else tasks)}
        for name, (kind, fidelity) in asked.items():
            outputs[name] = quantity(kind, far[f"energy_{fidelity}"], graph)
        wanted = {parse_task(name).fidelity for name in derivatives}
        for position, fidelity in enumerate(sorted(wanted)):
            forces, stress = forces_and_stress(
                energies[f"energy_{fidelity}"], graph, strain, self.training, position < len(wanted) - 1
            )
            for name, value in ((f"forces_{fidelity}", forces), (f"stress_{fidelity}", stress)):
                if name in derivatives and value is not None:
                    outputs[name] = value
        return outputs

    def predict(
        self,
        graph: AtomicGraph,
        tasks: Sequence[str] | None = None,
        derivatives: Sequence[str] = (),
        quantities: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """As :meth:`forward`, with total energies in float64 and everything detached."""
        training = self.training
        if training:  # switching walks through every module, which costs as much as a small molecule
            self.eval()
        try:
            outputs = {name: value.detach() for name, value in self(graph, tasks, derivatives, quantities).items()}
        finally:
            if training:
                self.train()
        per_atom = self.references[:, graph.atomic_numbers]  # (n_fidelities, n_atoms)
        totals = per_atom.new_zeros(per_atom.shape[0], graph.n_structures).index_add(1, graph.batch, per_atom)
        for row, name in enumerate(self.tasks):
            if name in outputs:
                outputs[name] = outputs[name].double() + totals[row]
        return outputs

    def condition_penalty(self) -> Tensor:
        """Mean square of the terms that set conditioned fidelities apart from their base."""
        values = [condition.square().mean() for condition in self.conditions.values()]
        return torch.stack(values).sum() if values else next(self.parameters()).new_zeros(())

    def _check(self, tasks: Sequence[str], derivatives: Sequence[str]) -> list[str]:
        needed = list(tasks)
        for name in derivatives:
            prop, fidelity = parse_task(name)
            if prop not in ("forces", "stress"):
                raise ValueError(f"`derivatives` may hold forces and stress of a fidelity, got `{name}`")
            needed.append(f"energy_{fidelity}")
        unknown = [name for name in needed if name not in self.config.tasks]
        if unknown:
            raise ValueError(f"this model has tasks {', '.join(self.tasks)}, got `{unknown[0]}`")
        return needed

    def _split(self, quantities: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Quantity and fidelity of each name."""
        known = {f"{kind}_{f}": (kind, f) for kind in QUANTITIES for f in self.fidelities} if self.long_range else {}
        for name in quantities:
            if name not in known:
                raise ValueError(
                    f"this model has quantities {', '.join(known) or '(no long-range part)'}, got `{name}`"
                )
        return {name: known[name] for name in quantities}

    def _energies(
        self, graph: AtomicGraph, names: Sequence[str], with_dipoles: bool
    ) -> tuple[dict[str, Tensor], dict[str, LongRange]]:
        """Energies of the tasks named and of those they build on, and their long-range parts."""
        needed = set(names)
        for name in reversed(self.order):
            anchor = self.config.tasks[name].anchor
            if name in needed and anchor is not None:
                needed.add(anchor)
        shared: Features | None = None
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
            shared = self.backbone(graph) if shared is None else shared
            value = self.heads[name](shared.scalars)
            atomic[name] = value if task.anchor is None else value + atomic[task.anchor]
        if self.long_range is not None and shared is not None:
            rest = [name for name in atomic if name not in far]
            far |= self.long_range(shared.scalars, graph, rest, with_dipoles)
        energies = {}
        for name, value in atomic.items():
            energy = value.new_zeros(graph.n_structures).index_add(0, graph.batch, value) * self.domain.scale
            if name in far:
                energy = energy + (far[name].energies - field_energy(far[name].state, graph)).to(energy.dtype)
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
