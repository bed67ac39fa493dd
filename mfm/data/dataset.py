"""Graphs of a store for a torch data loader."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mfm.data.references import residual_energies
from mfm.data.store import Store
from mfm.data.targets import label_target
from mfm.density.whitening import add_metric
from mfm.graph import AtomicGraph, build_graph
from mfm.properties import PROPERTIES, parse_task, task_name

__all__ = ["GraphDataset"]


class GraphDataset(Dataset[AtomicGraph]):
    """The records of a store as graphs with what a model learns.

    Energies are the labels minus the atomic references, subtracted in float64 before they become `dtype`; quadrupoles
    lose their trace; with densities comes the metric of their errors. A graph is built on its first use and kept,
    neighbours and all; do not change it in place.

    Parameters
    ----------
    store : Store
        The records, usually one part of a split.
    cutoff : float, Å
        Of the neighbour list.
    tasks : sequence of str
        Labels that every graph shall carry, NaN where the record has none; probes come with Hessian-vector products.
    references : mapping of fidelity to atomic number to eV
        What :func:`~mfm.data.references.fit_references` returned on the training part.
    dtype : torch.dtype
        Of positions and labels.
    cache : bool
        Whether to keep the graphs; a store larger than memory should not.

    Raises
    ------
    ValueError
        If an energy has no references, or an element of a labelled record has none. When a graph is built: if a
        periodic structure has a label that depends on the choice of its cell.
    """

    def __init__(
        self,
        store: Store,
        cutoff: float,
        tasks: Sequence[str],
        references: Mapping[str, Mapping[int, float]],
        dtype: torch.dtype = torch.float32,
        cache: bool = True,
    ) -> None:
        self.store = store
        # a Hessian-vector product is computed with the probe of its label
        products = [parse_task(task).fidelity for task in tasks if parse_task(task).property == "hessian_product"]
        self.tasks = [*tasks, *(task_name("probe", fidelity) for fidelity in products)]
        self._cutoff = cutoff
        self._dtype = dtype
        self._cache: dict[int, AtomicGraph] | None = {} if cache else None
        self._residuals: dict[str, np.ndarray] = {}
        for task in tasks:
            prop, fidelity = parse_task(task)
            if prop == "energy":
                if fidelity not in references:
                    raise ValueError(
                        f"`{task}` needs atomic references of `{fidelity}`, got only {', '.join(references) or 'none'};"
                        " fit them on the training part"
                    )
                self._residuals[task] = residual_energies(store, task, references[fidelity])

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, item: int) -> AtomicGraph:
        if self._cache is not None and item in self._cache:
            return self._cache[item]
        record = self.store[item]
        labels = {task: label_target(task, value) for task, value in record.labels.items() if task in self.tasks}
        for task in labels:
            if PROPERTIES[parse_task(task).property].isolated and record.structure.pbc.any():
                raise ValueError(
                    f"`{task}` must belong to a structure without periodicity, got `pbc`"
                    f" {record.structure.pbc.tolist()} for record {item}"
                    f" ({record.structure.formula}); set `pbc` to False or remove the label"
                )
        labels.update({task: np.asarray(self._residuals[task][item]) for task in self._residuals if task in labels})
        graph = build_graph(record.structure, self._cutoff, labels, self.tasks, dtype=self._dtype)
        for task in self.tasks:
            prop, fidelity = parse_task(task)
            if prop == "density":
                basis = self.store.card.density_bases[fidelity] if task in labels else None
                add_metric(graph, task, record.structure, basis)
        if self._cache is not None:
            self._cache[item] = graph
        return graph

    def __getitems__(self, items: Sequence[int]) -> list[AtomicGraph]:
        """Graphs of a batch."""
        return [self[item] for item in items]

    def batch(self, items: Sequence[int], epoch: int) -> list[AtomicGraph]:
        """Graphs of a batch, the same in every epoch."""
        return self.__getitems__(items)

    def force_rms(self, fidelity: str) -> float:
        """Root mean square of the force components at a fidelity, eV/Å; the scale of a model.

        Raises
        ------
        ValueError
            If no record carries forces at it.
        """
        forces = self.store.values(f"forces_{fidelity}") if f"forces_{fidelity}" in self.store.labels else np.empty(0)
        if forces.size == 0:
            raise ValueError(f"no record of {self.store!r} carries `forces_{fidelity}`; name a fidelity with forces")
        return float(np.sqrt(np.mean(np.square(forces))))
