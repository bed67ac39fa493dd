"""Runs that two processes train together; started by ``test_ranks.py`` as ``two_ranks.py FOLDER RANK``.

Each case is a dataset and what it changes of the recipe of :mod:`tests.morse`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mfm.training.run as running
from mfm.config import validate
from mfm.data import DatasetCard, Record, Store
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.training.module import StageModule
from mfm.training.ranks import ALONE, Ranks
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from mfm.training.stage import Stage
from tests.morse import MOLECULES, TINY, geometry, morse_store, recipe

STEPS = [{"name": "all", "max_steps": 6}]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # one structure of 2 to 5 atoms per rank, every second without a label at `high`: all of that on one rank at times
    "anchored": ("morse", {"batch": {"structures": 1}}),
    "conditioned": (
        "morse",
        {
            "tasks": {"energy_low": {}, "energy_high": {"conditioned": "energy_low"}},
            "batch": {"structures": 1},
            "stages": STEPS,
            "optimizer": {"condition_penalty": 10.0},
        },
    ),
    "own_charges": (
        "morse",
        {
            "tasks": {"energy_low": {}, "energy_high": {}},
            "model": {
                "backbone": TINY,
                "readout_channels": 8,
                "long_range": {"name": "latent_ewald", "own_charges": True, "fidelities": "own"},
            },
            "batch": {"atoms": 10},
            "stages": STEPS,
            "optimizer": {"charge_penalty": 10.0},
        },
    ),
    "moments": (
        "polar",
        {
            "tasks": {
                "charges_low": {}, "dipole_low": {}, "quadrupole_low": {}, "polarizability_low": {},
                "dipole_high": {"anchor": "dipole_low"},
            },
            "model": {"backbone": {**TINY, "equivariant_degree": 2}, "readout_channels": 8},
            "batch": {"structures": 3},
            "stages": STEPS,
        },
    ),
    "stress": (
        "crystals",
        {"tasks": {"energy_low": {}}, "batch": {"structures": 2}, "stages": STEPS, "data": {"split": "random_frames"}},
    ),
    "noise": (
        "morse",
        {
            "stages": [
                {"name": "noise", "objective": "denoising", "epochs": 2},
                {"name": "all", "max_steps": 3},
            ],
            "batch": {"structures": 2},
        },
    ),
    # what all ranks do at the same step
    "minutes": ("morse", {"stages": [{"name": "all", "max_minutes": 0.015}]}),
    "steps": ("morse", {"stages": [{"name": "all", "max_steps": 9}]}),
}  # fmt: skip
"""Name → dataset and changes of the recipe."""
SIGNALLED = 4
"""Step at which the second rank alone is told to stop."""


def polar_store() -> Store:
    """Every moment at ``low``; at ``high`` the dipole of every second geometry."""
    rng = np.random.default_rng(0)
    records = []
    for name, numbers in MOLECULES.items():
        for frame in range(4):
            labels = {
                "charges_low": (charges := rng.normal(size=len(numbers))) - charges.mean(),
                "dipole_low": rng.normal(size=3),
                "quadrupole_low": (second := rng.normal(size=(3, 3))) + second.T,
                "polarizability_low": second @ second.T,
            }
            if frame % 2 == 0:
                labels["dipole_high"] = labels["dipole_low"] + 0.1 * rng.normal(size=3)
            records.append(Record(Structure(np.array(numbers), geometry(numbers, rng)), labels, name, "random"))
    levels = {level: LevelOfTheory(method=f"moments-{level}") for level in ("low", "high")}
    return Store.from_records(records, DatasetCard(name="polar", levels=levels))


def crystal_store() -> Store:
    """Cells of 1 to 4 atoms with energies and forces, every second with a stress."""
    rng = np.random.default_rng(0)
    records = []
    for frame in range(24):
        n_atoms = frame % 4 + 1
        cell = 4.0 * np.eye(3) + rng.normal(size=(3, 3)) * 0.1
        positions = (np.eye(4, 3)[:n_atoms] * 0.5) @ cell
        labels = {"energy_low": rng.normal(size=()), "forces_low": rng.normal(size=(n_atoms, 3))}
        if frame % 2 == 0:
            labels["stress_low"] = (stress := 0.1 * rng.normal(size=(3, 3))) + stress.T
        structure = Structure(np.full(n_atoms, 14), positions, cell, np.array([True] * 3))
        records.append(Record(structure, labels, "silicon", "random"))
    return Store.from_records(records, DatasetCard(name="crystals", levels={"low": LevelOfTheory(method="any")}))


DATA = {"morse": morse_store, "polar": polar_store, "crystals": crystal_store}


def config_of(case: str, folder: Path, output: str) -> RunConfig:
    """Configuration of a case; its data lie in `folder`."""
    data, changes = CASES[case]
    content = recipe(str(folder / f"{data}.h5"), str(folder / output), **{**changes, "dtype": "float64"})
    content["data"] = {**recipe(str(folder / f"{data}.h5"), "")["data"], **changes.get("data", {})}
    return validate(RunConfig, content)


def watched_train(config: RunConfig, ranks: Ranks = ALONE, **options: Any) -> tuple[bool, dict[str, Any]]:
    """Train; returns whether it finished, and the last stage's weights, average and clock."""
    stages: list[Stage] = []

    def build(*arguments: Any) -> Stage:
        stages.append(build_stage(*arguments))
        return stages[-1]

    build_stage = running.build_stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "build_stage", build)
        # figures take longer than all these runs together
        patch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
        patch.setattr(running, "plot_learning_curves", lambda *args, **kwargs: args[1].touch())
        finished = train(config, ranks=ranks, **options).finished
    stage = stages[-1]
    found = {
        "weights": stage.module.model.state_dict(),
        "average": stage.average.state_dict(),
        "clock": stage.clock.state_dict(),
    }
    return finished, found


def _stopped_and_resumed(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """The second rank is told to stop, both do, and go on together."""
    step = StageModule.training_step

    def training_step(module: StageModule, batch: Any, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        if module.clock.step == SIGNALLED and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageModule, "training_step", training_step)
        finished, found = watched_train(config, ranks)
    assert not finished
    assert found["clock"]["step"] == SIGNALLED
    ranks.wait()  # until the state is written
    finished, found = watched_train(config, ranks, resume=True)
    assert finished
    return found


def main(folder: Path, rank: int) -> None:
    """Train every case as one of two ranks and leave what came out in `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, rank)
    for case in CASES:
        _, found = watched_train(config_of(case, folder, f"two-{case}"), ranks)
        torch.save(found, folder / f"{case}-{rank}.pt")
    torch.save(_stopped_and_resumed(config_of("steps", folder, "two-stopped"), ranks), folder / f"stopped-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
