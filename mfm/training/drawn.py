"""Forces of several levels at the cost of those of one: each structure of a batch learns those of one level at a time.

Forces are derivatives of the energy, and training differentiates them again. Every further level whose forces are
learned costs as much as the first, although all read the same features. The sum over structures of energies, each at a
level of its own, is differentiated in one pass.
"""

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch

from mfm.derivatives import CHOSEN
from mfm.graph import AtomicGraph
from mfm.properties import parse_task
from mfm.training.data import Graphs

__all__ = ["DrawnLevels"]

_HELD_SHARE = 0.25
"""Of the structures that carry them, those that learn forces of levels that are only to be held in their place."""


class DrawnLevels:
    """Graphs of a dataset, each with the forces and the stress of one of the levels that it has them of.

    Which level that is depends on seed, epoch and number only, and stands in the field that
    :func:`mfm.derivatives.derivatives_of` looks for. Labels of the others are NaN, as if they were missing, so that
    terms of the loss are means over fewer structures. A structure with forces of one level always learns these.

    Parameters
    ----------
    dataset : Graphs
    derivatives : sequence of str
        Tasks that are forces or stress, of two levels at least.
    held : collection of str
        Fidelities that are drawn less often where a structure has forces of others too.
    seed : int
    """

    def __init__(self, dataset: Graphs, derivatives: Sequence[str], held: Collection[str], seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        # in the order of derivatives_of
        self._levels = sorted({parse_task(name).fidelity for name in derivatives})
        self._names = {level: [n for n in derivatives if parse_task(n).fidelity == level] for level in self._levels}
        self._held = frozenset(held)

    def batch(self, items: Sequence[int], epoch: int) -> list[AtomicGraph]:
        """Graphs of some records as they are in an epoch."""
        graphs = self._dataset.batch(items, epoch)
        return [self._graph(graph, item, epoch) for graph, item in zip(graphs, items, strict=True)]

    def _graph(self, clean: AtomicGraph, item: int, epoch: int) -> AtomicGraph:
        # the last number tells these draws from others that are made with the same seed
        drawn = np.random.default_rng((self._seed, epoch, item, 1)).random()
        # of this epoch's graph and never kept: displaced structures have fewer forces in one epoch than in another
        chances = np.cumsum(self._shares(clean))
        chosen = min(int(np.searchsorted(chances, drawn, side="right")), len(self._levels) - 1)
        graph = copy.copy(clean)
        graph[CHOSEN] = torch.tensor([chosen])
        for number, level in enumerate(self._levels):
            if number != chosen:
                for name in self._names[level]:
                    graph[name] = torch.full_like(clean[name], float("nan"))
        return graph

    def _shares(self, graph: AtomicGraph) -> np.ndarray:
        """How often each level is drawn for a structure; evenly if it has none of them."""
        having = [any(bool(torch.isfinite(graph[n]).any()) for n in self._names[level]) for level in self._levels]
        is_held = np.array([level in self._held for level in self._levels])
        held, asked = np.array(having) & is_held, np.array(having) & ~is_held
        share = _HELD_SHARE if asked.any() else 1.0
        shares = share * held / max(held.sum(), 1) + (1.0 - share * held.any()) * asked / max(asked.sum(), 1)
        return shares if shares.any() else np.full(len(having), 1.0 / len(having))
