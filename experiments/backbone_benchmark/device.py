"""mfm's model on an accelerator and on one core of the processor beside it, from one molecule to thousands of atoms.

    python experiments/backbone_benchmark/device.py --json OUT

Times are medians of wall time, the device idle before and after each call. A step of training is a whole optimiser
step on a batch that lies on the device. A step of dynamics is ASE's, with the calculator and its neighbour list.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from systems import speed_systems, water

from mfm.allocator import tune_allocator
from mfm.backbones import GauntConfig
from mfm.calculator import MFMCalculator
from mfm.fidelity import LevelOfTheory
from mfm.graph import AtomicGraph, Structure, build_graph, collate
from mfm.heads import TaskConfig
from mfm.longrange import LatentEwaldConfig
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from mfm.tracking import code_version
from mfm.training.experiment import optimizer_step, processor, write_json
from mfm.training.recipe import OptimizerConfig

ENERGY, FORCES = "energy_dft", "forces_dft"
_CALLS_SECONDS = 1.0
"""Time that a figure may take, after three calls to warm up."""
_MOST_CALLS = 50


def main() -> int:
    """Time everything on each device and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    parser.add_argument("--largest", type=int, default=24, help="molecules of water along an edge of the largest cell")
    parser.add_argument("--slowest", type=float, default=10.0, help="s; larger systems are left out after such a call")
    options = parser.parse_args()
    if "cuda" in options.devices and not torch.cuda.is_available():
        parser.error("`--devices cuda` needs a CUDA device, and PyTorch finds none")
    tune_allocator()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "commit": code_version(), "torch": torch.__version__, "processor": processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }  # fmt: skip
    for name in options.devices:
        device = torch.device(name)
        found[name] = {
            "evaluate": evaluations(device, options.largest, options.slowest, long_range=False),
            "evaluate_long_range": evaluations(device, options.largest, options.slowest, long_range=True),
            "train": training(device, options.slowest),
            "dynamics": dynamics(device, options.slowest),
        }
        write_json(options.json, found)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


def model_for(long_range: bool) -> MFMModel:
    """The default backbone with random weights, float32."""
    numbers = (1, 6, 7, 8, 9, 16)
    domain = Domain(references={"dft": dict.fromkeys(numbers, 0.0)}, levels={"dft": LevelOfTheory("none")})
    config = ModelConfig(
        backbone=GauntConfig(cutoff=5.0),
        tasks={ENERGY: TaskConfig()},
        long_range=LatentEwaldConfig() if long_range else None,
    )
    return build_model(config, domain, seed=0)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Median wall time of a call, s."""
    times: list[float] = []
    for _ in range(3):
        call()
    while len(times) < 3 or (sum(times) < _CALLS_SECONDS and len(times) < _MOST_CALLS):
        _finish(device)
        started = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluations(device: torch.device, largest: int, slowest: float, long_range: bool) -> list[dict[str, Any]]:
    """Energies with forces: small molecules, a batch of them, and water in ever larger cells."""
    model = model_for(long_range).eval().requires_grad_(False).to(device)
    systems = {name: found for name, found in speed_systems().items() if name in ("ethanol", "batch64x20")}
    systems |= {f"water{3 * edge**3}": [water(edge)] for edge in (4, 6, 12, 18, 24, 32) if edge <= largest}
    rows = []
    for name, structures in systems.items():
        batch = _batch(structures, model).to(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(lambda batch=batch: model(batch, derivatives=[FORCES]), device)
        row = {"system": name, "n_atoms": batch.n_atoms, "seconds": seconds}
        if device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(row)
        _say(f"{device.type} {'long range ' if long_range else ''}{name}: {1e3 * seconds:.2f} ms")
        if seconds > slowest / 5:
            break
    return rows


def training(device: torch.device, slowest: float) -> list[dict[str, Any]]:
    """Whole optimiser steps on batches of a molecule of 27 atoms."""
    rows = []
    for count in (16, 64, 256, 1024):
        molecule = speed_systems()["train16x27"]
        structures = [molecule[i % len(molecule)] for i in range(count)]
        model = model_for(long_range=False).train().to(device)
        batch = _batch(structures, model, labelled=True).to(device)
        seconds = timed(optimizer_step(model, OptimizerConfig(), batch, [FORCES]), device)
        rows.append({"structures": count, "seconds": seconds, "structures_per_second": count / seconds})
        _say(f"{device.type} training, {count} structures: {1e3 * seconds:.1f} ms")
        if seconds > slowest / 20:
            break
    return rows


def dynamics(device: torch.device, slowest: float) -> list[dict[str, Any]]:
    """Steps of molecular dynamics through ASE."""
    rows = []
    for name, structure in (
        ("ethanol", speed_systems()["ethanol"][0]),
        ("water648", water(6)),
        ("water5184", water(12)),
    ):
        atoms = structure.to_ase()
        atoms.calc = MFMCalculator(model_for(long_range=False).eval(), device=str(device))
        integrator = VelocityVerlet(atoms, 0.5 * units.fs)
        seconds = timed(lambda integrator=integrator: integrator.run(1), device)
        rows.append({"system": name, "n_atoms": len(atoms), "seconds": seconds})
        _say(f"{device.type} dynamics, {name}: {1e3 * seconds:.2f} ms a step")
        if seconds > slowest / 50:
            break
    return rows


def _batch(structures: list[Structure], model: MFMModel, labelled: bool = False) -> AtomicGraph:
    names = (ENERGY, FORCES) if labelled else ()
    return collate(
        [
            build_graph(
                s, model.cutoff, {ENERGY: np.zeros(()), FORCES: np.zeros((len(s), 3))} if labelled else {}, names
            )
            for s in structures
        ]
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
