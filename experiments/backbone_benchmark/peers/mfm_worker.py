"""mfm's worker: trains with `mfm.training`, predicts with `mfm.evaluation`, times the model itself."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric
from worker_protocol import read_job, serve, write_account

import mfm
from mfm.checkpoint import load_model, read_provenance
from mfm.config import load_config
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure, build_graph, collate
from mfm.model import Domain, MFMModel, build_model
from mfm.training.experiment import optimizer_step
from mfm.training.recipe import RunConfig
from mfm.training.run import train

RECIPE = Path(__file__).parents[1] / "mfm.yaml"
FIDELITY = "reference"
ENERGY, FORCES = f"energy_{FIDELITY}", f"forces_{FIDELITY}"


def configuration(job: dict[str, Any]) -> RunConfig:
    """The recipe with the job's data, budget and seed."""
    folder = job["folder"]
    rate = [f"optimizer.lr={job['learning_rate']}"] if job["learning_rate"] else []
    return load_config(
        RunConfig,
        RECIPE,
        [
            f"data={{train: '{folder}/train.h5', valid_fraction: 0, test_fraction: 0}}",
            f"stages=[{{name: train, max_minutes: {job['cpu_seconds'] / 60 or 1.0}}}]",
            f"seed={job['seed']}",
            f"output='{folder}/mfm'",
            "device=cpu",
            f"model.backbone.cutoff={job['cutoff']}",
            *rate,
            *job["overrides"],
        ],
    )


def train_and_predict(job: dict[str, Any]) -> dict[str, Any]:
    """Train for the budget and write predictions."""
    config, folder = configuration(job), Path(job["folder"])
    # of an earlier benchmark in a folder that is kept
    shutil.rmtree(folder / "mfm", ignore_errors=True)
    wall, started = time.perf_counter(), time.process_time()
    result = train(config)
    whole = {"cpu_seconds_with_preparation": time.process_time() - started, "wall_seconds": time.perf_counter() - wall}
    clock = read_provenance(folder / "mfm" / "stage-train.mfm")["clock"]
    model = load_model(result.checkpoint)
    for name in job["tests"]:
        found = list(predict_structures(model, read_structures(folder / f"{name}.npz")))
        energies = np.array([float(prediction[ENERGY]) for prediction in found])
        forces = np.concatenate([prediction[FORCES] for prediction in found])
        np.savez(folder / f"mfm_{name}.npz", energies=energies, forces=forces)
    return {
        **account_of(model, config),
        "learning_rate": config.optimizer.lr,
        "batch_size": config.batch.structures,
        "steps": int(clock["step"]),
        "cpu_seconds": clock["seconds"],
        **whole,
    }


def read_structures(path: Path) -> list[Structure]:
    """Structures of an archive that the benchmark wrote."""
    with np.load(path) as archive:
        data = {name: archive[name] for name in archive.files}
    ends = np.cumsum(data["n_atoms"])
    return [
        Structure(data["numbers"][end - n : end], data["positions"][end - n : end], cell, pbc)
        for end, n, cell, pbc in zip(ends, data["n_atoms"], data["cell"], data["pbc"], strict=True)
    ]


def account_of(model: MFMModel, config: RunConfig) -> dict[str, Any]:
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {
            "torch": torch.__version__, "torch-geometric": torch_geometric.__version__, "mfm": mfm.__version__,
        },
        "settings": config.model.backbone.model_dump(),
    }  # fmt: skip


def speed_calls(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[str, str], Callable[[], Any]]]:
    """Account, and what is timed for each system."""
    config = configuration(job)
    structures = {name: read_structures(Path(job["folder"]) / f"{name}.npz") for name in job["tests"]}
    numbers = {int(z) for found in structures.values() for structure in found for z in structure.atomic_numbers}
    domain = Domain(
        references={FIDELITY: dict.fromkeys(sorted(numbers), 0.0)}, levels={FIDELITY: LevelOfTheory("none")}
    )
    model = build_model(config.model, domain, job["seed"]).eval().requires_grad_(False)

    def calls(system: str, kind: str) -> Callable[[], Any]:
        labels = (ENERGY, FORCES) if kind == "train" else ()
        graphs = [
            build_graph(s, model.cutoff, {ENERGY: np.zeros(()), FORCES: np.zeros((len(s), 3))}, labels)
            for s in structures[system]
        ]
        batch = collate(graphs)
        if kind == "train":
            trained = build_model(config.model, domain, job["seed"]).train()
            return optimizer_step(trained, config.optimizer, batch, [FORCES])
        return lambda: model(batch, derivatives=[FORCES])

    return account_of(model, config), calls


if __name__ == "__main__":
    given = read_job()
    if given["mode"] == "speed":
        serve(*speed_calls(given))
    else:
        write_account(given, train_and_predict(given))
