"""What the scripts under experiments/ share: a model is trained once, can be resumed, and leaves one JSON file."""

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfm import tracking
from mfm.allocator import tune_allocator
from mfm.checkpoint import load_model, read_provenance
from mfm.config import validate
from mfm.graph import AtomicGraph
from mfm.losses import combine, loss_terms
from mfm.model import MFMModel
from mfm.training.ema import WeightAverage
from mfm.training.module import build_optimizer
from mfm.training.recipe import OptimizerConfig, RunConfig
from mfm.training.run import train

__all__ = [
    "FAST_STEPS", "TINY_BACKBONE", "add_run_options", "begin", "optimizer_step", "processor", "run_model",
    "run_settings", "summary", "write_json",
]  # fmt: skip

TINY_BACKBONE = {
    "n_layers": 1,
    "n_channels": 8,
    "n_product_channels": 8,
    "n_message_channels": 4,
    "n_transport_channels": 4,
}
"""Backbone of smoke runs."""
FAST_STEPS = 5
"""Optimiser steps of a stage in smoke runs."""


def begin() -> None:
    """Set up the process of an experiment: log on standard error, allocator, one thread."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("mfm").setLevel(logging.INFO)
    tune_allocator()
    torch.set_num_threads(1)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where models are trained and whether MLflow is told, for :func:`run_settings`."""
    parser.add_argument("--device", default="cpu", help="to train on: cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")


def run_settings(options: argparse.Namespace, experiment: str) -> dict[str, Any]:
    """Keys of a run that the options decide; smoke runs are recorded nowhere."""
    hidden = options.no_tracking or options.fast
    return {"device": options.device, "tracking": "none" if hidden else {"experiment": experiment}}


def run_model(
    content: Mapping[str, Any],
    path: Path,
    labels: Mapping[str, Any] | None = None,
    describe: Callable[[MFMModel], Mapping[str, Any]] | None = None,
    initial: Path | None = None,
) -> bool:
    """Train and test one model, or the rest of it; writes its JSON file last.

    Parameters
    ----------
    content : mapping
        The run, as :class:`mfm.training.recipe.RunConfig` takes it; it must name its `output`.
    path : Path
        File to write. If it is there already, nothing is trained.
    labels : mapping, optional
        What tells the model apart from others, such as its seed; written as it is.
    describe : callable, optional
        Gives more to write from the trained model.
    initial : Path, optional
        Checkpoint to start from.

    Returns
    -------
    bool
        Whether the model is finished; False if it was interrupted and can be resumed by the same call.
    """
    if path.exists():
        return True
    folder, commit = Path(content["output"]), tracking.code_version()
    config = validate(RunConfig, content)
    result = train(config, initial=initial, resume=(folder / "state.pt").exists())
    if not result.finished:
        return False
    model = load_model(result.checkpoint)
    stages = [read_provenance(folder / f"stage-{stage.name}.mfm") for stage in config.stages if not stage.skip]
    test = result.evaluations.get("test")
    found = {
        **(labels or {}),
        "metrics": {} if test is None else test.metrics,
        **({} if describe is None else describe(model)),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "clock": {key: sum(stage["clock"][key] for stage in stages) for key in ("step", "seconds")},
        "commit": commit,
        "processor": processor(),
        "device": stages[-1].get("device", ""),  # absent from stages of earlier versions
        "train_digest": stages[-1]["data"]["digest"],
        "test_digest": "" if test is None else test.digest,
    }
    write_json(path, found)
    return True


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1, default=float) + "\n", encoding="utf-8")
    os.replace(part, path)


def processor() -> str:
    """Name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def summary(found: list[float], digits: int = 1) -> str:
    """Mean and, of several, range.

    Examples
    --------
    >>> summary([1.0, 2.0])
    '1.5 (1.0 to 2.0)'
    >>> summary([1.0], 2)
    '1.00'
    """
    if not found:
        return ""
    mean = f"{np.mean(found):.{digits}f}"
    return mean + (f" ({min(found):.{digits}f} to {max(found):.{digits}f})" if len(found) > 1 else "")


def optimizer_step(
    model: MFMModel, config: OptimizerConfig, batch: AtomicGraph, derivatives: Sequence[str]
) -> Callable[[], None]:
    """What :class:`mfm.training.module.StageModule` does in a step, without Lightning around it, to be timed.

    Parameters
    ----------
    batch : AtomicGraph
        On the model's device, with labels.
    """
    optimizer = build_optimizer(model, config, config.lr)
    average = WeightAverage(model, config.ema)
    parameters = list(model.parameters())
    steps = iter(range(1, 2**62))

    def step() -> None:
        loss = combine(loss_terms(model(batch, derivatives=derivatives), batch, model.config.tasks, model.domain.scale))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        average.update(next(steps))

    return step
