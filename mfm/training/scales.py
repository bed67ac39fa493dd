"""Units of the loss: how large labels, and gaps between levels, are in the training set."""

from collections.abc import Collection, Mapping

import numpy as np

from mfm.data.store import Store
from mfm.data.targets import label_target
from mfm.density.metric import overlap_matrix
from mfm.heads import TaskConfig
from mfm.heads.joins import electronic
from mfm.properties import PROPERTIES, parse_task, task_name
from mfm.training.data import disagreement

__all__ = ["gap_scales", "label_gaps", "label_scales"]

_SMALLEST_GAP = 1e-3
"""Gap, eV per atom or in units of the label's size, below which two levels count as equal: nothing is gained by
resolving less."""
_SAMPLED = 100
"""Structures whose overlap integrals tell the size of densities, and whose extent that of moments of charges."""
_ORDERS = {"dipole": 1, "quadrupole": 2}
"""Moment to the power of the positions in it."""


def gap_scales(
    store: Store,
    tasks: Mapping[str, TaskConfig],
    references: Mapping[str, Mapping[int, float]],
    derivatives: Collection[str] = (),
) -> dict[str, float]:
    """Joined energy → root mean square gap to its base, eV per atom, where structures carry both energies.

    Levels whose forces are among the derivatives that are learned have none: these tell the slope of the gap, and
    energies that are learned through the gap alone would be no better than the base's.
    """
    found = {}
    for name, task in tasks.items():
        fidelity = parse_task(name).fidelity
        if task.base is None or parse_task(name).property != "energy" or task_name("forces", fidelity) in derivatives:
            continue
        if (size := disagreement(store, fidelity, parse_task(task.base).fidelity, references)) > 0:
            found[name] = max(size, _SMALLEST_GAP)
    return found


def label_scales(store: Store, tasks: Mapping[str, TaskConfig]) -> dict[str, float]:
    """Task → root mean square component of its labels, in the property's unit; 1 if all are zero.

    Of electronic tasks and of the Hessian-vector products of energies. Per atom if the property grows with the number
    of atoms, as errors of it count then. Dipoles and quadrupoles whose fidelity has charges are in larger units, see
    :func:`_moment_size`.
    """
    found = {}
    products = [task_name("hessian_product", parse_task(name).fidelity) for name in tasks if name.startswith("energy_")]
    for name in (*electronic(tasks), *products):
        if store.coverage(name).any():
            found[name] = _moment_size(store, name) or 1.0
    return found


def label_gaps(store: Store, tasks: Mapping[str, TaskConfig]) -> dict[str, float]:
    """Anchored electronic task → root mean square gap to its base, where structures carry both labels."""
    found = {}
    for name, task in electronic(tasks).items():
        if task.anchor is None:
            continue
        paired = store.subset(store.coverage(name) & store.coverage(task.anchor))
        if len(paired):
            base = _size(paired, task.anchor)
            found[name] = max(_size(paired, name, task.anchor), _SMALLEST_GAP * (base or 1.0))
    return found


def _size(store: Store, task: str, base: str | None = None) -> float:
    """Root mean square component of the labels of a task, less those of its base if one is named."""
    if parse_task(task).property == "density":
        return _density_size(store, task, base)
    values = _targets(store, task)
    return _rms(values if base is None else values - _targets(store, base))


def _moment_size(store: Store, task: str) -> float:
    """Size of labels; of moments the geometric mean of it and of what independent charges would give, if that is more.

    A moment adds up what all charges are off, times their distances to its origin: a small share of each charge is a
    large share of the moment of a large molecule, in which most cancels. In units of the moment itself its error stays
    an order of magnitude above those of all else that is learned, and has training to itself: on dipeptides forces are
    then a third worse, and charges by two thirds. In units of independent charges it is learned last, since what
    charges are off is not independent: neighbours make up for each other. Gaps have units of their own: two levels can
    part the electrons among atoms in other ways and agree on the dipole.
    """
    size = _size(store, task)
    return float(np.sqrt(size * max(size, _moment_of_charges(store, task))))


def _moment_of_charges(store: Store, task: str) -> float:
    """Root mean square component of a moment of charges as large as the labels' and independent of each other.

    Returns
    -------
    float
        In the unit of the moment; 0 for other properties and where no structure has such charges.
    """
    order, charges = _ORDERS.get(parse_task(task).property, 0), task_name("charges", parse_task(task).fidelity)
    both = store.coverage(task) & store.coverage(charges)
    if not order or not both.any():
        return 0.0
    labelled = store.subset(both)
    rows = np.unique(np.linspace(0, len(labelled) - 1, min(len(labelled), _SAMPLED)).astype(int))
    sums = []
    for structure in (labelled[int(row)].structure for row in rows):
        moments = structure.positions - structure.atomic_numbers @ structure.positions / structure.atomic_numbers.sum()
        if order == 2:
            moments = label_target(task, moments[:, :, None] * moments[:, None, :])
        sums.append(np.square(moments).sum(axis=0).mean())
    return _rms(labelled.values(charges)) * float(np.sqrt(np.mean(sums)))


def _density_size(store: Store, task: str, base: str | None) -> float:
    """The same for densities, component of orthonormal functions: √(∫ Δρ² per number that a row of an atom holds)."""
    labelled = np.flatnonzero(store.coverage(task))
    rows = labelled[np.unique(np.linspace(0, len(labelled) - 1, min(len(labelled), _SAMPLED)).astype(int))]
    basis, squares = store.card.density_bases[parse_task(task).fidelity], []
    for record in (store[int(row)] for row in rows):
        values = record.labels[task] if base is None else record.labels[task] - record.labels[base]
        coefficients = basis.from_rows(values, record.structure.atomic_numbers)
        squares.append(coefficients @ overlap_matrix(record.structure, basis) @ coefficients / values.size)
    return float(np.sqrt(np.mean(squares)))


def _targets(store: Store, task: str) -> np.ndarray:
    values = label_target(task, store.values(task))
    if PROPERTIES[parse_task(task).property].grows:
        n_atoms = store.n_atoms[store.coverage(task)]
        values = values / n_atoms.reshape(-1, *[1] * (values.ndim - 1))
    return values


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
