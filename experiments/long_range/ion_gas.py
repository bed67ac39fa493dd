"""A hot fluid of ions of charge ±1 e: charges recovered from energies and forces alone.

128 ions interact as point charges, summed by an Ewald sum of its own, and repel each other as r⁻¹². The model is told
elements, energies and forces. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ewald import Ewald, repulsion

from mfm.data import DatasetCard, Record, open_dataset, write_store
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.model import MFMModel
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary

HERE = Path(__file__).parent
LONG_RANGE: dict[str, dict[str, Any] | None] = {"long-range": {"own_charges": True}, "short-range": None}
BACKBONE = {"n_layers": 1}
"""Ions see those within the cutoff and no further: a second layer would hide what the long range is for."""
REPULSION = 4.4e4
"""eV Å¹²: two opposite ions are at rest at 2.6 Å."""
REPULSION_CUTOFF = 5.0
TEMPERATURE = 0.3
"""eV."""
SAMPLING_TOLERANCE = 1e-4
"""Of the Ewald sum that moves the ions; that of the labels has 1e-8."""
POSITIVE, NEGATIVE = 11, 17
NEAR = ["backbone.*", "heads.*"]
"""Parameters of all but the long range."""


class Box(NamedTuple):
    """A cubic cell on whose body-centred lattice the ions start."""

    n_cells: int
    """Lattice cells along an edge; two ions in each."""

    @property
    def length(self) -> float:
        """Edge, Å: 0.031 ions per Å³, as in molten salts."""
        return 4.0 * self.n_cells

    @property
    def charges(self) -> np.ndarray:
        """Of all ions, e."""
        return np.repeat([1.0, -1.0], self.n_cells**3)


def main() -> int:
    """Make the data, train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    write_data(options)
    test = open_dataset(options.work / "ions-test.h5")
    for seed in options.seeds:
        for name in options.models:
            path = options.results / f"ion-gas-{name}-{options.n_train}-{seed}.json"
            labels = {"model": name, "n_train": options.n_train, "seed": seed}
            if not run_model(recipe(name, seed, options), path, labels, lambda model: describe(model, test)):
                return 130
    table = report(options.results)
    (options.results / "ion-gas.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="CPU-minutes per model")
    parser.add_argument("--n-train", type=int, default=900)
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=LONG_RANGE, default=list(LONG_RANGE))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/long_range"), help="folder of data and models")
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    options.box, options.steps_before = Box(4), 200
    if options.fast:
        options.box, options.steps_before, options.n_train, options.n_test = Box(2), 0, 4, 2
    return options


def write_data(options: argparse.Namespace) -> None:
    """Frames of one trajectory each for training and test, labelled; kept in the work folder."""
    card = DatasetCard(
        name="ion_gas",
        description="Point charges of 1 e that repel each other as r⁻¹²",
        levels={"exact": LevelOfTheory(method="Ewald sum and repulsion")},
        energy_zero="separate ions",
    )
    options.work.mkdir(parents=True, exist_ok=True)
    for seed, (name, n) in enumerate((("test", options.n_test), (f"train-{options.n_train}", options.n_train))):
        path = options.work / f"ions-{name}.h5"
        if not path.exists():
            frames = trajectory(options.box, n, seed, options.steps_before)
            write_store(path, [label(options.box, positions) for positions in frames], card)


def trajectory(box: Box, n_frames: int, seed: int, steps_before: int, steps_between: int = 5) -> list[np.ndarray]:
    """Positions along Langevin dynamics with all masses 30 u, frames 25 fs apart."""
    rng = np.random.default_rng(seed)
    time_step, friction, mass = 5.0, 0.01, 30.0 * 103.6427  # fs, 1/fs, eV fs²/Å²
    charges, length = box.charges, box.length
    ewald = Ewald(length, SAMPLING_TOLERANCE)

    def forces_at(positions: np.ndarray) -> np.ndarray:
        return ewald(positions, charges)[1] + repulsion(positions, length, REPULSION, cutoff_of(box))[1]

    axis = 4.0 * np.arange(box.n_cells)
    corners = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = np.concatenate([corners, corners + 2.0])
    thermal = math.sqrt(TEMPERATURE / mass)
    velocities = thermal * rng.standard_normal(positions.shape)
    decay = math.exp(-friction * time_step)
    forces, frames = forces_at(positions), []
    for step in range(steps_before + n_frames * steps_between):
        velocities += 0.5 * time_step * forces / mass
        positions = positions + 0.5 * time_step * velocities
        velocities = decay * velocities + thermal * math.sqrt(1.0 - decay**2) * rng.standard_normal(positions.shape)
        positions = positions + 0.5 * time_step * velocities
        forces = forces_at(positions)
        velocities += 0.5 * time_step * forces / mass
        if step >= steps_before and (step - steps_before) % steps_between == steps_between - 1:
            frames.append(positions % length)
    return frames


def cutoff_of(box: Box) -> float:
    return min(REPULSION_CUTOFF, 0.5 * box.length)


def label(box: Box, positions: np.ndarray) -> Record:
    """A frame with the energy and forces of its point charges."""
    far_energy, far_forces = Ewald(box.length, 1e-8)(positions, box.charges)
    near_energy, near_forces = repulsion(positions, box.length, REPULSION, cutoff_of(box))
    structure = Structure(
        np.where(box.charges > 0, POSITIVE, NEGATIVE), positions, np.eye(3) * box.length, np.ones(3, dtype=bool)
    )
    labels = {"energy_exact": np.array(far_energy + near_energy), "forces_exact": far_forces + near_forces}
    return Record(structure, labels, molecule="ions", origin="langevin")


def recipe(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run, as ``mfm train`` would read it."""
    shares = {"near": 0.7, "all": 0.3}
    length = {
        stage: {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes * share}
        for stage, share in shares.items()
    }
    backbone = TINY_BACKBONE if options.fast else BACKBONE
    data = {"train": f"ions-train-{options.n_train}.h5", "test": "ions-test.h5"}
    return {
        "name": f"ion-gas-{name}-{options.n_train}-{seed}",
        "data": {**{part: str(options.work / file) for part, file in data.items()}, "valid_fraction": 0},
        "tasks": {"energy_exact": {}},
        "model": {"long_range": LONG_RANGE[name], "backbone": backbone},
        "stages": [
            # the fit that training starts from knows the charges; they would only follow what the near part lacks
            {"name": "near", "trainable": NEAR, **length["near"]},
            {"name": "all", "lr": 3e-4, **length["all"]},
        ],
        "batch": {"structures": 1},
        "validations": 1,
        "seed": seed,
        "device": "cpu",
        "output": str(options.work / f"ion-gas-{name}-{options.n_train}-{seed}"),
        "tracking": "none" if options.fast else {"experiment": "long_range"},
    }


def describe(model: MFMModel, test: Any) -> dict[str, Any]:
    """How the model's charges compare with the true ones, up to the common sign that energies do not tell."""
    forces = np.concatenate([record.labels["forces_exact"] for record in test])
    found: dict[str, Any] = {"forces_rms_ev_per_angstrom": float(np.sqrt(np.mean(forces**2)))}
    if model.long_range is None:
        return found
    structures = [record.structure for record in test]
    predictions = predict_structures(model, structures, forces=False, quantities=["charges_exact"])
    charges = np.concatenate([prediction["charges_exact"] for prediction in predictions])
    true = np.concatenate([np.where(structure.atomic_numbers == POSITIVE, 1.0, -1.0) for structure in structures])
    charges = charges * np.sign(charges @ true)
    found["charges"] = {
        "r2": 1.0 - float(np.sum((charges - true) ** 2) / np.sum((true - true.mean()) ** 2)),
        "mae_e": float(np.abs(charges - true).mean()),
        "mean_positive_e": float(charges[true > 0].mean()),
        "mean_negative_e": float(charges[true < 0].mean()),
    }
    return found


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("ion-gas-*.json"))]
    rows = [
        ("forces, MAE, meV/Å", 1, lambda c: c["metrics"]["forces_exact"]["mae_mev_per_angstrom"]),
        ("forces, RMSE, meV/Å", 1, lambda c: c["metrics"]["forces_exact"]["rmse_mev_per_angstrom"]),
        ("RMS of the forces, meV/Å", 0, lambda c: 1e3 * c["forces_rms_ev_per_angstrom"]),
        ("energy, MAE, meV/atom", 3, lambda c: c["metrics"]["energy_exact"]["mae_mev_per_atom"]),
        ("charges, R²", 5, lambda c: c["charges"]["r2"] if "charges" in c else None),
        ("charges, MAE, e", 4, lambda c: c["charges"]["mae_e"] if "charges" in c else None),
        ("CPU-minutes", 1, lambda c: c["clock"]["seconds"] / 60),
        ("optimiser steps", 0, lambda c: c["clock"]["step"]),
    ]  # fmt: skip
    columns = list(dict.fromkeys((cell["model"], cell["n_train"]) for cell in cells))
    lines = ["| | " + " | ".join(f"{name}, {n} frames" for name, n in columns) + " |"]
    lines += ["|" + " --- |" * (1 + len(columns))]
    for title, digits, pick in rows:
        found = [[pick(cell) for cell in cells if (cell["model"], cell["n_train"]) == column] for column in columns]
        texts = [summary([x for x in values if x is not None], digits) for values in found]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
