"""Units of the loss: how large labels, and gaps between levels, are in the training set."""

from collections.abc import Mapping

import numpy as np

from mfm.data.store import Store
from mfm.data.targets import label_target
from mfm.heads import TaskConfig
from mfm.heads.joins import electronic
from mfm.properties import PROPERTIES, parse_task, task_name
from mfm.training.data import disagreement

__all__ = ["gap_scales", "label_gaps", "label_scales"]

_SMALLEST_GAP = 1e-3
"""Gap, eV per atom or in units of the label's size, below which two levels count as equal: nothing is gained by
resolving less."""


def gap_scales(
    store: Store, tasks: Mapping[str, TaskConfig], references: Mapping[str, Mapping[int, float]]
) -> dict[str, float]:
    """Joined energy → root mean square gap to its base, eV per atom, where structures carry both energies."""
    found = {}
    for name, task in tasks.items():
        if task.base is not None and parse_task(name).property == "energy":
            fidelity, base = parse_task(name).fidelity, parse_task(task.base).fidelity
            if (size := disagreement(store, fidelity, base, references)) > 0:
                found[name] = max(size, _SMALLEST_GAP)
    return found


def label_scales(store: Store, tasks: Mapping[str, TaskConfig]) -> dict[str, float]:
    """Task → root mean square component of its labels, in the property's unit; 1 if all are zero.

    Of electronic tasks and of the Hessian-vector products of energies. Per atom if the property grows with the number
    of atoms, as errors of it count then.
    """
    found = {}
    products = [task_name("hessian_product", parse_task(name).fidelity) for name in tasks if name.startswith("energy_")]
    for name in (*electronic(tasks), *products):
        if store.coverage(name).any():
            found[name] = _rms(_targets(store, name)) or 1.0
    return found


def label_gaps(store: Store, tasks: Mapping[str, TaskConfig]) -> dict[str, float]:
    """Anchored electronic task → root mean square gap to its base, where structures carry both labels."""
    found = {}
    for name, task in electronic(tasks).items():
        if task.anchor is None:
            continue
        paired = store.subset(store.coverage(name) & store.coverage(task.anchor))
        if len(paired):
            one, other = (_targets(paired, which) for which in (name, task.anchor))
            found[name] = max(_rms(one - other), _SMALLEST_GAP * (_rms(other) or 1.0))
    return found


def _targets(store: Store, task: str) -> np.ndarray:
    values = label_target(task, store.values(task))
    if PROPERTIES[parse_task(task).property].grows:
        n_atoms = store.n_atoms[store.coverage(task)]
        values = values / n_atoms.reshape(-1, *[1] * (values.ndim - 1))
    return values


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
