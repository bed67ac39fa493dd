"""What denoising beside labels gives: the same training without it, conditioned on forces, and on the model's features.

Trains DFT energies and forces of molecules for equal numbers of optimiser steps, and tests on molecules that no model
has seen. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfm.study.report import table
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
ENERGY, FORCES = "energy_dft", "forces_dft"
BASELINE = "off"
ARMS: dict[str, dict[str, Any] | None] = {
    BASELINE: None,
    "forces": {"condition": "forces"},
    "self": {"condition": "self"},
}
"""Arm to `auxiliary_denoising` of its stage."""


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    for seed in options.seeds:
        for arm in options.arms:
            content = recipe(arm, seed, options)
            if not run_model(content, options.results / f"{content['name']}.json", {"arm": arm, "seed": seed}):
                return 130
    text = report(options.results)
    (options.results / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of every model (default 3000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--train", default="builtin:chno-mini", help="dataset with energy_dft and forces_dft")
    parser.add_argument("--test", help="dataset to test on (default: the molecules that the training set holds out)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/auxiliary_denoising"), help="folder of the models")
    add_run_options(parser)
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.steps, options.seeds = FAST_STEPS, options.seeds[:1]
    return options


def recipe(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one model, as ``mfm train`` would read it."""
    name = f"{arm}-{seed}"
    return {
        "name": name,
        "data": {"train": options.train, "test": options.test, "valid_fraction": 0},
        # across molecules, energies tell what forces cannot
        "tasks": {ENERGY: {"weight": 10.0}},
        "model": {"backbone": TINY_BACKBONE if options.fast else {}},
        "stages": [{"name": "fit", "max_steps": options.steps, "auxiliary_denoising": ARMS[arm]}],
        "validations": 1,
        "seed": seed,
        "output": str(options.work / name),
        **run_settings(options, "auxiliary_denoising"),
    }


def report(results: Path) -> str:
    """Markdown: errors of the arms, and those of forces over the ones of the same seed without denoising."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*-*.json"))]
    alone = {cell["seed"]: force_error(cell) for cell in cells if cell["arm"] == BASELINE}

    def ratio(cell: dict[str, Any]) -> float | None:
        return force_error(cell) / alone[cell["seed"]] if cell["seed"] in alone else None

    rows: list[tuple[str, int, Callable[[dict[str, Any]], float | None]]] = [
        ("energy, MAE, meV", 0, lambda cell: cell["metrics"][ENERGY]["mae_mev"]),
        ("energy, MAE, meV/atom", 1, lambda cell: cell["metrics"][ENERGY]["mae_mev_per_atom"]),
        ("forces, MAE, meV/Å", 1, force_error),
        (f"forces over `{BASELINE}` with the same seed", 3, ratio),
        ("minutes of training", 1, lambda cell: cell["clock"]["seconds"] / 60),
        ("optimiser steps", 0, lambda cell: cell["clock"]["step"]),
    ]
    lines = []
    for title, digits, pick in rows:
        values = [[pick(cell) for cell in cells if cell["arm"] == arm] for arm in ARMS]
        lines.append([title, *(summary([v for v in some if v is not None], digits) for some in values)])
    return table(["", *ARMS], lines) + "\n"


def force_error(cell: dict[str, Any]) -> float:
    """Mean absolute error of the forces, meV/Å."""
    return float(cell["metrics"][FORCES]["mae_mev_per_angstrom"])


if __name__ == "__main__":
    sys.exit(main())
