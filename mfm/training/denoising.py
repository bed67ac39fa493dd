"""Denoising: a model learns, without any label, how structures are pulled back when their atoms are displaced.

Gaussian noise is added to the positions, neighbours are found anew, and a vector head predicts the noise (Zaidi et al.,
ICLR 2023, arXiv:2206.00133). For structures that are distributed as exp(−E/kT) the best prediction is −σ/kT times the
force of the smoothed distribution (Vincent, Neural Comput. 23, 1661 (2011)): what is learned is a force field.

The part of the noise that moves or turns the whole structure cannot be seen by an equivariant model. It is taken out of
the target; left in, the loss could not fall below 2/N of the noise's variance for a molecule of N atoms.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mfm.backbones.base import Features
from mfm.data.geometry_index import GeometryIndex
from mfm.data.opening import open_dataset
from mfm.data.store import Store
from mfm.graph import AtomicGraph, Structure, build_graph
from mfm.heads.base import AtomicTensor
from mfm.losses import LossTerm
from mfm.model import NOISE, MFMModel
from mfm.training.data import RunData

__all__ = [
    "DEFAULT_NOISE",
    "NoisyDataset",
    "add_denoiser",
    "denoising_term",
    "remove_denoiser",
    "structures_to_denoise",
    "visible_part",
]

logger = logging.getLogger(__name__)

DEFAULT_NOISE = 0.04
"""Å; about what thermal motion displaces atoms by (Zaidi et al.)."""


def visible_part(noise: np.ndarray, positions: np.ndarray, periodic: bool = False) -> np.ndarray:
    """Noise without what moves or, for a molecule, turns all atoms together.

    Parameters
    ----------
    noise, positions : (n_atoms, 3)
        The positions tell which displacements are a rotation: of all displacements those along ω × r.

    Returns
    -------
    (n_atoms, 3)
        The projection of the noise; 3 n_atoms − 6 directions of it are free (− 5 for a linear molecule, − 3 in a
        crystal).
    """
    left = noise - noise.mean(axis=0)
    if periodic or len(noise) < 2:
        return left
    centred = positions - positions.mean(axis=0)
    # displacements of the atoms by a unit rotation about each axis, (3 n_atoms, 3)
    turns = np.stack([np.cross(axis, centred).ravel() for axis in np.eye(3)], axis=1)
    amplitudes, *_ = np.linalg.lstsq(turns, left.ravel(), rcond=1e-6)
    return np.asarray(left - (turns @ amplitudes).reshape(left.shape))


class NoisyDataset:
    """Graphs of a store's structures with noise that is drawn anew in every epoch.

    The noise of a structure depends on seed, epoch and its number only, so that a resumed run sees what it would have
    seen.

    Parameters
    ----------
    store : Store
    cutoff : float, Å
        Of the neighbour lists, which are those of the displaced atoms.
    sigma : float, Å
        Standard deviation of every coordinate.
    seed : int
    dtype : torch.dtype
    """

    def __init__(self, store: Store, cutoff: float, sigma: float, seed: int, dtype: torch.dtype) -> None:
        self._store, self._cutoff, self._sigma, self._seed, self._dtype = store, cutoff, sigma, seed, dtype
        self._structures: dict[int, Structure] = {}

    def batch(self, items: Sequence[int], epoch: int) -> list[AtomicGraph]:
        """Graphs of some structures with the noise of an epoch, which stands in the field ``noise``."""
        return [self._graph(item, epoch) for item in items]

    def _graph(self, item: int, epoch: int) -> AtomicGraph:
        if item not in self._structures:
            self._structures[item] = self._store[item].structure
        structure = self._structures[item]
        noise = np.random.default_rng((self._seed, epoch, item)).normal(size=(len(structure), 3))
        moved = dataclasses.replace(structure, positions=structure.positions + self._sigma * noise)
        graph = build_graph(moved, self._cutoff, dtype=self._dtype)
        target = visible_part(noise, moved.positions, periodic=bool(structure.pbc.any()))
        graph[NOISE] = torch.as_tensor(target, dtype=self._dtype)
        return graph


class Denoiser(nn.Module):
    """Vector per atom from the backbone's features of degree 1, in units of the noise."""

    def __init__(self, n_scalars: int, n_channels: int) -> None:
        super().__init__()
        self.tensor = AtomicTensor(1, n_scalars, n_channels)

    def forward(self, features: Features) -> Tensor:
        """(n_atoms, 3)."""
        assert features.equivariants is not None
        noise: Tensor = self.tensor(features.scalars, features.equivariants)
        return noise


def add_denoiser(model: MFMModel) -> None:
    """Give a model a head for noise, and its backbone the equivariant features that the head reads, if it lacks them.

    A model that has one keeps it. Random numbers come from torch's global generator.
    """
    if "denoiser" not in model._modules:
        model.backbone.add_equivariants()
        denoiser = Denoiser(model.backbone.n_scalars, model.backbone.n_equivariants)
        model.denoiser = denoiser.to(next(model.parameters()).device, model.dtype)


def remove_denoiser(model: MFMModel) -> None:
    """Take away what :func:`add_denoiser` gave."""
    if "denoiser" in model._modules:
        del model.denoiser
        if model.electrons is None:
            model.backbone.remove_equivariants()


def denoising_term(predicted: Tensor, graph: AtomicGraph, weight: float = 1.0) -> LossTerm:
    """Squared error of the noise, averaged over the displaced atoms of each structure, summed over structures.

    A model that has learned nothing has 1, the variance of the noise, less the share of the part that is taken out.
    Atoms that were not displaced have NaN in the field :data:`~mfm.model.NOISE`.
    """
    present = torch.isfinite(graph[NOISE]).all(dim=1).nonzero().squeeze(1)
    squares = (predicted[present] - graph[NOISE][present]).square().mean(dim=1)
    owners = graph.batch[present]
    sizes = torch.zeros_like(graph.charge).index_add(0, owners, torch.ones_like(squares))
    return LossTerm((squares / sizes[owners]).sum(), (sizes > 0).sum().to(squares.dtype), weight)


def structures_to_denoise(data: RunData, source: str | None, origins: Sequence[str] | None = None) -> Store:
    """Records whose structures a stage denoises: those of the training part, or of another dataset.

    Of another dataset, what it or the run holds out is left out: whole molecules, or, where the run itself has a
    molecule on both sides, its geometries. Elements that no label tells anything of are left out too.

    Parameters
    ----------
    source : str, optional
        Another dataset.
    origins : sequence of str, optional
        Only structures that were made in one of these ways.

    Raises
    ------
    ValueError
        If an origin is unknown or nothing is left.
    """
    where = "the training part" if source is None else f"`{source}`"
    whole = data.train if data.structures is None else data.structures
    store = whole if source is None else _not_held_out(open_dataset(source), data, source)
    if origins is not None:
        unknown = sorted(set(origins) - set(store.origins.tolist()))
        if unknown:
            known = ", ".join(sorted(set(store.origins.tolist()) - {""})) or "none"
            raise ValueError(f"`origins` must be of those that {where} has, {known}; got `{unknown[0]}`")
        store = store.subset(np.flatnonzero(np.isin(store.origins, list(origins))))
    elements = store.elements
    foreign = [column for column, element in enumerate(elements) if element not in data.train.elements]
    usable = ~(store.composition(elements)[:, foreign] > 0).any(axis=1)
    if not usable.any():
        raise ValueError(f"{where} has no structure of the training labels' elements; name other `structures`")
    if not usable.all():
        logger.info("%d structures have elements without labels and are not denoised", int((~usable).sum()))
    return store if usable.all() else store.subset(np.flatnonzero(usable))


def _not_held_out(store: Store, data: RunData, source: str) -> Store:
    parts = [part for part in (data.valid, data.test) if part is not None]
    tested = {name for part in parts for name in part.molecules.tolist()} - {""}
    shared = tested & set(data.train.molecules.tolist())
    away = set(store.card.test_molecules) | set(data.train.card.test_molecules) | tested - shared
    kept = ~np.isin(store.molecules, sorted(away - {""}))
    if any(part.molecules[row] in shared | {""} for part in parts for row in range(len(part))):
        index = GeometryIndex()
        for number, structure in enumerate(itertools.chain.from_iterable(part.structures() for part in parts)):
            index.add(structure, number)
        kept &= ~np.array([bool(index.find(structure)) for structure in store.structures()], dtype=bool)
    if not kept.any():
        raise ValueError(f"all of `{source}` is held out by the run; name other `structures` to denoise")
    return store.subset(np.flatnonzero(kept))
