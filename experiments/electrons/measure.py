"""What a density looks like and what it costs: pictures, time of a step and of a point."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfm.data import Store
from mfm.data.dataset import GraphDataset
from mfm.density.evaluator import density_at
from mfm.density.fields import field_at
from mfm.evaluation.density_plots import plot_slice
from mfm.graph import AtomicGraph, collate
from mfm.losses import combine, loss_terms
from mfm.model import MFMModel, ModelConfig, build_model
from mfm.potential import Potential
from mfm.properties import parse_task
from mfm.training.data import fit_domain
from mfm.training.scales import label_scales


def draw(model: MFMModel, store: Store, fidelity: str, start: Path) -> None:
    """Pictures of the largest molecule: what bonding has changed, and what the prediction is off, ten times as dark."""
    record = max(store, key=lambda record: len(record.structure))
    density = Potential(model, torch.device("cpu")).density(record.structure, fidelity)
    label = torch.as_tensor(record.labels[f"density_{fidelity}"])
    off = density._replace(coefficients=density.coefficients - label)
    start.parent.mkdir(parents=True, exist_ok=True)
    for name, what, limit in (("deformation", density, 0.5), ("error", off, 0.05)):
        plot_slice(
            start.with_name(f"{start.name}-{name}.png"),
            record.structure,
            lambda points, what=what: field_at(points, what, "deformation"),
            "deformation",
            limit=limit,
            name=name,
        )


def step_ratio(model: MFMModel, store: Store, fidelity: str, repeats: int = 7) -> dict[str, float]:
    """Time of a training step with all heads over that with energy and forces alone, and over that without density."""
    mine = [task for task in model.tasks if parse_task(task).fidelity == fidelity]
    sets = {"energy": [f"energy_{fidelity}"], "all": mine}
    sets["without density"] = [task for task in mine if not task.startswith("density")]
    steps = {name: step_of(model, store, tasks, fidelity) for name, tasks in sets.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    best = {name: float(np.median(found)) for name, found in times.items()}
    return {name: best[name] / best["energy"] for name in ("all", "without density")} | {"seconds": best["energy"]}


def step_of(model: MFMModel, store: Store, tasks: Sequence[str], fidelity: str) -> Any:
    """A training step of such a model with some tasks, anchored to none, on eight structures, without the optimiser."""
    alone = {name: model.config.tasks[name].model_copy(update={"anchor": None}) for name in tasks}
    content = {**model.config.model_dump(), "tasks": {name: task.model_dump() for name, task in alone.items()}}
    config = ModelConfig.model_validate(content)
    trained = build_model(config, fit_domain(store, alone, model.cutoff), 0, model.dtype)
    derivatives = [f"forces_{fidelity}"]
    dataset = GraphDataset(store, model.cutoff, [*tasks, *derivatives], trained.domain.references, model.dtype)
    rows = np.random.default_rng(0).permutation(len(store))[:8]
    batch: AtomicGraph = collate([dataset[int(row)] for row in rows])
    sizes = label_scales(store, alone)

    def step() -> None:
        trained.zero_grad()
        outputs = trained(batch, tasks, derivatives)
        combine(loss_terms(outputs, batch, alone, trained.domain.scale, None, sizes)).backward()

    step()
    return step


def throughput(model: MFMModel, store: Store, fidelity: str) -> float:
    """Points times atoms per second at which a density is evaluated, float64."""
    record = max(store, key=lambda record: len(record.structure))
    density = Potential(model, torch.device("cpu")).density(record.structure, fidelity)
    points = torch.as_tensor(np.random.default_rng(0).normal(scale=2.0, size=(20000, 3)))
    times = []
    with torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            density_at(points, density)
            times.append(time.process_time() - start)
    return len(points) * len(record.structure) / min(times)
