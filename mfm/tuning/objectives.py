"""What is minimised: validation errors of tasks, and the cost of a prediction."""

import difflib
from collections.abc import Sequence

import numpy as np
import torch

from mfm.data.store import Store
from mfm.evaluation.evaluate import batched, evaluable, evaluate, labelled_rows, model_graphs
from mfm.evaluation.metrics import report_unit
from mfm.heads.joins import evaluation_order
from mfm.model import MFMModel
from mfm.properties import parse_task, task_name
from mfm.training.data import RunData
from mfm.training.recipe import RunConfig
from mfm.training.schedule import Clock

__all__ = ["COST", "check_objectives", "default_objective", "measure", "microseconds_per_atom"]

COST = "cost/microseconds_per_atom"
"""Time of energies and forces at the highest level, per atom of a batch."""
_REPEATS = 7
_MOST_ATOMS = 256


def default_objective(config: RunConfig) -> str:
    """Error per atom of the energy that builds on all others; without energies, the error of the last task."""
    known = _known(config)
    return next((name for name in known if name.endswith("_per_atom") and name != COST), known[0])


def check_objectives(names: Sequence[str], config: RunConfig, data: RunData) -> None:
    """Check that a run will give every objective.

    Raises
    ------
    ValueError
        If one is unknown or named twice, or the validation set has no labels for it.
    """
    known = _known(config)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"an objective must be one of {', '.join(known)}, got `{name}`{hint}")
    if len(set(names)) < len(names):
        raise ValueError(f"objectives must differ, got {', '.join(names)}")
    if data.valid is None:
        raise ValueError(
            "tuning compares trials on a validation set, but the recipe keeps none: set `data.valid_fraction`"
            " (on the command line or in the space) or `data.valid`"
        )
    for name in names:
        task = name.split("/")[1]
        if name != COST and not (task in data.valid.labels and data.valid.coverage(task).any()):
            raise ValueError(
                f"objective `{name}` needs labels of `{task}` in the validation set, which has"
                f" {', '.join(data.valid.labels) or 'none'}"
            )


def _known(config: RunConfig) -> list[str]:
    names = []
    for task in reversed(evaluation_order(config.model.tasks)):
        prop, fidelity = parse_task(task)
        labels = [task_name(kind, fidelity) for kind in ("energy", "forces", "stress")] if prop == "energy" else [task]
        for label in labels:
            suffix = report_unit(label).suffix
            ends = [f"{suffix}_per_atom", suffix] if label == task_name("energy", fidelity) else [suffix]
            names += [f"val/{label}/{kind}_{end}" for end in ends for kind in ("mae", "rmse")]
    return [*names, COST]


def measure(model: MFMModel, data: RunData) -> dict[str, float]:
    """Errors on the whole validation set, named ``val/task/quantity_unit``, and :data:`COST`."""
    assert data.valid is not None
    metrics = evaluate(model, data.valid).flat("val")
    return {**metrics, COST: microseconds_per_atom(model, data.valid)}


def microseconds_per_atom(model: MFMModel, store: Store) -> float:
    """Time of energies and forces at the level that builds on all others, in µs per atom: a median of several.

    Of a model without energies, the time of all its tasks. Processor time on the CPU, so that other work on the machine
    hardly counts; wall time elsewhere.

    Parameters
    ----------
    store : Store
        A batch of at most 256 atoms is made from records spread over it.
    """
    last = [task for task in evaluation_order(model.config.tasks) if task in model.energies][-1:]
    tasks = last or model.tasks
    forces = [task_name("forces", parse_task(task).fidelity) for task in last]
    direct, derivatives = evaluable(model, store)
    rows = labelled_rows(store, [*direct, *derivatives])
    few = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ATOMS)).astype(np.int64))]
    spread = np.random.default_rng(0).permutation(few)
    device = next(model.parameters()).device
    batch = next(batched(model_graphs(model, store.subset(spread), direct), _MOST_ATOMS)).to(device)
    was_training = model.training
    model.eval()
    times = []
    try:
        for _ in range(_REPEATS + 1):
            clock = Clock(device.type)
            with torch.enable_grad():
                model(batch, tasks, forces)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock.seconds())
    finally:
        model.train(was_training)
    # the first call also allocates
    return 1e6 * float(np.median(times[1:])) / batch.n_atoms
