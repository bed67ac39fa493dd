"""Denoising beside the learning of labels: some structures of a batch are displaced, and the model told from where.

Off equilibrium many structures could have become the displaced one. So the model is given the forces of the structure
as it was (Liao, Smidt, Shuaibi, Das, TMLR 2024, arXiv:2403.09549): it predicts the displacement of the atoms that were
moved, the energy the structure had before, and the forces of the atoms that were not moved. What it is given enters the
first layer of the backbone, on moved atoms only; everywhere else, and after the stage, there is nothing to add.

Without forces, the model can be given its own features of the structure as it was.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfm.data.dataset import GraphDataset
from mfm.graph import AtomicGraph, neighbour_list
from mfm.losses import LossTerm, combine
from mfm.model import NOISE, MFMModel
from mfm.nn.harmonics import SphericalHarmonics
from mfm.nn.linear import DegreewiseLinear
from mfm.properties import PROPERTIES, parse_task
from mfm.training.denoising import add_denoiser, denoising_term, remove_denoiser, visible_part
from mfm.training.module import Losses

__all__ = [
    "AuxiliaryLoss",
    "DisplacedDataset",
    "Displacement",
    "WithDenoising",
    "add_conditioner",
    "remove_conditioner",
]

_FORCES, _ORIGIN = "conditioning_forces", "original_positions"
_JITTER = 0.005
"""Å; displacement of the structure whose features condition, so that it is no lookup of the labelled one."""


class Conditioner(nn.Module):
    """What an atom is told, as equivariant features (degrees 1 … L) that enter the first layer.

    Forces as arsinh |F| times Y_lm of their direction, in units of the model's scale, or features of the same shape;
    then one matrix per degree without bias, so that zero stays zero. The matrices start at zero: what is told grows as
    it helps.

    Parameters
    ----------
    n_in, n_out : int
        Channels given and made.
    degree : int
        L.
    """

    def __init__(self, n_in: int, n_out: int, degree: int) -> None:
        super().__init__()
        self.harmonics = SphericalHarmonics(degree)
        self.mix = DegreewiseLinear(n_in, n_out, degree, 1)
        nn.init.zeros_(self.mix.weight)

    def of_forces(self, forces: Tensor) -> Tensor:
        """(n_atoms, 3) → ((L + 1)² − 1, n_atoms, n_out)."""
        sizes = torch.linalg.vector_norm(forces, dim=1, keepdim=True)
        # products of three features would turn the large force of a bumped atom into infinities; so only its logarithm
        harmonics = self.harmonics(forces / sizes.clamp(min=1e-12))[:, 1:] * torch.asinh(sizes)
        made: Tensor = self.mix(harmonics.T.unsqueeze(2).to(forces.dtype))
        return made

    def forward(self, features: Tensor) -> Tensor:
        """((L + 1)² − 1, n_atoms, n_in) → ((L + 1)² − 1, n_atoms, n_out)."""
        # likewise: what the last layer makes comes back into the first one and would feed its own growth. So it is at
        # most of size one, in a form whose derivatives exist where there is nothing
        made: Tensor = self.mix(features * torch.rsqrt(1.0 + features.square().sum(dim=0, keepdim=True)))
        return made


def add_conditioner(model: MFMModel, condition: Literal["forces", "self"]) -> None:
    """Give a model a head for noise and what it is conditioned with; a model that has them keeps them.

    Random numbers come from torch's global generator.
    """
    add_denoiser(model)
    if "conditioner" not in model._modules:
        n = model.backbone.n_equivariants
        made = Conditioner(1 if condition == "forces" else n, n, model.config.backbone.equivariant_degree)
        model.conditioner = made.to(next(model.parameters()).device, model.dtype)


def remove_conditioner(model: MFMModel) -> None:
    """Undo :func:`add_conditioner`."""
    remove_denoiser(model)
    if "conditioner" in model._modules:
        del model.conditioner


@dataclasses.dataclass(frozen=True)
class Displacement:
    """How structures are displaced."""

    condition: Literal["forces", "self"]
    share: float
    """Of the structures of an epoch."""
    atoms: float
    """Of the atoms of such a structure."""
    sigma: float
    """Å, standard deviation of every coordinate."""


class DisplacedDataset:
    """Graphs of a dataset, some of them displaced; which and how depends on seed, epoch and number only.

    A displaced graph keeps its energies, and the forces of atoms that did not move; every other label is NaN, since it
    is not that of the new positions. All graphs have the fields ``noise`` (n_atoms, 3), in units of the displacement,
    NaN where an atom did not move, and what conditions: ``conditioning_forces`` (n_atoms, 3), zero where an atom did
    not move, or ``original_positions`` (n_atoms, 3).

    Parameters
    ----------
    dataset : GraphDataset
    cutoff : float, Å
    displacement : Displacement
    seed : int
    """

    def __init__(self, dataset: GraphDataset, cutoff: float, displacement: Displacement, seed: int) -> None:
        self._dataset, self._cutoff, self._how, self._seed = dataset, cutoff, displacement, seed
        self._forces = [task for task in dataset.tasks if parse_task(task).property == "forces"]

    def batch(self, items: Sequence[int], epoch: int) -> list[AtomicGraph]:
        """Graphs of some records as they are in an epoch."""
        return [self._graph(item, epoch) for item in items]

    def _graph(self, item: int, epoch: int) -> AtomicGraph:
        clean = self._dataset[item]
        graph, rng = copy.copy(clean), np.random.default_rng((self._seed, epoch, item))
        graph[NOISE] = torch.full_like(clean.positions, float("nan"))
        forces = self._known_forces(clean)
        if self._how.condition == "forces":
            graph[_FORCES] = torch.zeros_like(clean.positions)
        else:
            graph[_ORIGIN] = clean.positions
        displaced = rng.random() < self._how.share
        if not displaced or (self._how.condition == "forces" and forces is None):
            return graph
        n_atoms = clean.n_atoms
        moved = np.sort(rng.permutation(n_atoms)[: max(1, round(self._how.atoms * n_atoms))])
        noise = rng.normal(size=(len(moved), 3))
        structure = self._dataset.store[item].structure
        positions = structure.positions.copy()
        positions[moved] += self._how.sigma * noise
        if len(moved) == n_atoms:  # no atom is left that tells where the structure was
            noise = visible_part(noise, positions, periodic=bool(structure.pbc.any()))
        self._mask_labels(graph, clean, moved)
        structure = dataclasses.replace(structure, positions=positions)
        edges, shifts = neighbour_list(structure, self._cutoff)
        graph.positions = torch.as_tensor(positions, dtype=clean.positions.dtype)
        graph.edge_index, graph.unit_shifts = torch.as_tensor(edges), torch.as_tensor(shifts, dtype=clean.cell.dtype)
        graph[NOISE][moved] = torch.as_tensor(noise, dtype=clean.positions.dtype)
        if self._how.condition == "forces":
            assert forces is not None
            graph[_FORCES][moved] = forces[moved]
        else:
            jitter = torch.as_tensor(_JITTER * rng.normal(size=positions.shape), dtype=clean.positions.dtype)
            graph[_ORIGIN] = clean.positions + jitter
        return graph

    def _known_forces(self, graph: AtomicGraph) -> Tensor | None:
        """Forces of the first level that has them."""
        return next((graph[task] for task in self._forces if bool(torch.isfinite(graph[task]).all())), None)

    def _mask_labels(self, graph: AtomicGraph, clean: AtomicGraph, moved: np.ndarray) -> None:
        for task in self._dataset.tasks:
            prop = parse_task(task).property
            if prop == "energy":
                continue
            label = clean[task].clone()
            label[moved if PROPERTIES[prop].name == "forces" else slice(None)] = float("nan")
            graph[task] = label


class WithDenoising(nn.Module):
    """A model that is told what conditions its denoising, and asked for the noise beside everything else."""

    def __init__(self, model: MFMModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, graph: AtomicGraph, tasks: Sequence[str], derivatives: Sequence[str] = (), quantities: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """As the model, and ``noise`` (n_atoms, 3)."""
        told = copy.copy(graph)
        told["node_equivariants"] = self._conditions(graph)
        outputs: dict[str, Tensor] = self.model(told, [*tasks, NOISE], derivatives, quantities)
        return outputs

    def _conditions(self, graph: AtomicGraph) -> Tensor:
        conditioner = self.model.get_submodule("conditioner")
        assert isinstance(conditioner, Conditioner)
        forces = graph.get(_FORCES)
        if forces is not None:
            return conditioner.of_forces(forces / self.model.domain.scale)
        original = copy.copy(graph)
        # with the neighbours of the displaced atoms: those that differ are so far away that they weigh nothing
        original.positions = graph[_ORIGIN]
        equivariants = self.model.backbone(original).equivariants
        assert equivariants is not None
        moved = torch.isfinite(graph[NOISE]).all(dim=1).to(equivariants.dtype)
        told: Tensor = conditioner(equivariants * moved[None, :, None])
        return told


class AuxiliaryLoss:
    """Losses of the labels, and that of the noise with a weight that falls linearly to zero.

    Parameters
    ----------
    losses : callable
        Of the labels.
    weight : float
        At the start of the stage.
    progress : callable
        Fraction of the stage that is done.
    reduction : callable, optional
        Sums over ranks.
    """

    def __init__(
        self,
        losses: Losses,
        weight: float,
        progress: Callable[[], float],
        reduction: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._losses, self._weight, self._progress, self._reduction = losses, weight, progress, reduction

    def __call__(self, outputs: Mapping[str, Tensor], graph: AtomicGraph) -> tuple[Tensor, Mapping[str, LossTerm]]:
        """What is minimised, and its terms."""
        total, terms = self._losses({name: value for name, value in outputs.items() if name != NOISE}, graph)
        weight = self._weight * max(0.0, 1.0 - self._progress())
        noise = {NOISE: denoising_term(outputs[NOISE], graph, weight)}
        return total + combine(noise, self._reduction), {**terms, **noise}
