"""Polar dipeptides: energies and forces with and without long range, and dipoles and charges that nobody taught.

Trains on the energies and forces of the 495 published training frames, tests on the 55 published validation frames,
which are used for nothing else. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mfm.data import Store, open_dataset
from mfm.evaluation.predict import predict_structures
from mfm.model import MFMModel
from mfm.training.experiment import (
    FAST_STEPS,
    TINY_BACKBONE,
    add_run_options,
    begin,
    run_model,
    run_settings,
    summary,
)

HERE = Path(__file__).parent
BACKBONE = {"cutoff": 4.0}
"""Å, as published."""
LONG_RANGE: dict[str, dict[str, Any] | None] = {"long-range": {}, "short-range": None}


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    test = open_dataset(options.test)
    for seed in options.seeds:
        for name in options.models:
            path = options.results / f"dipeptides-{name}-{seed}.json"
            labels = {"model": name, "seed": seed}
            if not run_model(recipe(name, seed, options), path, labels, lambda model: describe(model, test)):
                return 130
    table = report(options.results)
    (options.results / "dipeptides.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes per model, of processor time on the CPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=LONG_RANGE, default=list(LONG_RANGE))
    parser.add_argument("--train", default="benchmark:spice_dipeptides/train", help="dataset to learn from")
    parser.add_argument("--test", default="benchmark:spice_dipeptides/val", help="dataset to test on")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/long_range"), help="folder of the models")
    add_run_options(parser)
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    return parser.parse_args()


def recipe(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run, as ``mfm train`` would read it."""
    stage = {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes}
    backbone = TINY_BACKBONE if options.fast else BACKBONE
    return {
        "name": f"dipeptides-{name}-{seed}",
        "data": {"train": options.train, "test": options.test, "valid_fraction": 0},
        # errors per atom are small numbers beside those of forces
        "tasks": {"energy_dft": {"weight": 10.0}},
        "model": {"long_range": LONG_RANGE[name], "backbone": backbone},
        "stages": [{"name": "fit", **stage}],
        "batch": {"structures": 4},
        "validations": 1,
        "seed": seed,
        "output": str(options.work / f"dipeptides-{name}-{seed}"),
        **run_settings(options, "long_range"),
    }


def describe(model: MFMModel, test: Store) -> dict[str, Any]:
    """Dipoles and charges of the model against labels it has not seen, up to the sign that energies do not tell."""
    if model.long_range is None:
        return {}
    structures = [record.structure for record in test]
    names = ["dipole_dft", "charges_dft"]
    predictions = list(predict_structures(model, structures, forces=False, quantities=names))
    found = {}
    for name in names:
        predicted = np.concatenate([prediction[name].ravel() for prediction in predictions])
        target = np.concatenate([record.labels[name].ravel() for record in test])
        found[name] = agreement(predicted, target)
    return found


def agreement(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """R² as predicted and times the factor that fits best; its sign is what energies leave open."""
    scale = float(predicted @ target / max(predicted @ predicted, 1e-30))
    spread = float(np.sum((target - target.mean()) ** 2))
    signed = np.copysign(1.0, scale) * predicted
    return {
        "r2": 1.0 - float(np.sum((signed - target) ** 2)) / spread,
        "r2_scaled": 1.0 - float(np.sum((scale * predicted - target) ** 2)) / spread,
        "scale": scale,
        "rmse": float(np.sqrt(np.mean((signed - target) ** 2))),
    }


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("dipeptides-*.json"))]
    cells = {name: [cell for cell in found if cell["model"] == name] for name in LONG_RANGE}

    def unseen(name: str, key: str) -> Any:
        return lambda cell: cell[name][key] if name in cell else None

    rows = [
        ("energy, RMSE, meV/atom", 2, lambda c: c["metrics"]["energy_dft"]["rmse_mev_per_atom"]),
        ("energy, MAE, meV/atom", 2, lambda c: c["metrics"]["energy_dft"]["mae_mev_per_atom"]),
        ("forces, RMSE, meV/Å", 1, lambda c: c["metrics"]["forces_dft"]["rmse_mev_per_angstrom"]),
        ("forces, MAE, meV/Å", 1, lambda c: c["metrics"]["forces_dft"]["mae_mev_per_angstrom"]),
        ("dipole components, R²", 3, unseen("dipole_dft", "r2")),
        ("dipole components, R² after a common factor", 3, unseen("dipole_dft", "r2_scaled")),
        ("that factor", 2, unseen("dipole_dft", "scale")),
        ("MBIS charges, R²", 3, unseen("charges_dft", "r2")),
        ("MBIS charges, R² after a common factor", 3, unseen("charges_dft", "r2_scaled")),
        ("that factor ", 2, unseen("charges_dft", "scale")),
        ("minutes of training", 1, lambda c: c["clock"]["seconds"] / 60),
        ("optimiser steps", 0, lambda c: c["clock"]["step"]),
    ]
    lines = ["| | " + " | ".join(cells) + " |", "|" + " --- |" * (1 + len(cells))]
    for title, digits, pick in rows:
        columns = [summary([x for x in map(pick, some) if x is not None], digits) for some in cells.values()]
        lines.append(f"| {title} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
