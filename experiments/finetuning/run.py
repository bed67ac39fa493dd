"""What fine-tuning on fifty frames gives to the new level, and what it takes from the parent.

Trains a parent on GFN2-xTB and then on DFT (or takes a checkpoint), and fine-tunes it in several ways, equally long, on
frames of one molecule at a level that it does not know; beside it a model without a parent. Errors are those at the new
level, on the published test frames, and those at the parent's DFT level, before and after, on molecules that are held
out. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mfm.checkpoint import load_model
from mfm.data import open_dataset
from mfm.data.card import file_sha256
from mfm.evaluation.evaluate import evaluate
from mfm.model import MFMModel
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary, write_json

HERE = Path(__file__).parent
ARMS = ("scratch", "full", "readout", "frozen", "lora", "replay")
PARENT_DATA = "builtin:chno-mini"
KNOWN, KNOWN_FORCES = "energy_dft", "forces_dft"
"""What the parent must not forget."""
RATE = 1e-3
"""Learning rate of what starts from a parent; `scratch` has the default."""
RANK = 8
"""Of the corrections in `lora`."""
XTB_SHARE = 0.4
"""Part of the parent's time that goes to GFN2-xTB, as in experiments/chno_mini."""


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    models = [(arm, seed) for seed in options.seeds for arm in options.arms]
    missing = [(arm, seed) for arm, seed in models if not result(arm, seed, options).exists()]
    if missing:
        parent = find_parent(options)
        if parent is None:
            return 130
        for arm, seed in missing:
            if not run(arm, seed, parent, options):
                return 130
    table = report(options.results, options.fidelity)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=Path, metavar="CHECKPOINT", help=f"model with `{KNOWN}`, trained on chno-mini")
    parser.add_argument("--parent-minutes", type=float, default=10.0, help="CPU-minutes of a parent trained here")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU-minutes of every other model (default 4)")
    parser.add_argument("--train", default="benchmark:rmd17/ethanol_train_01")
    parser.add_argument("--test", default="benchmark:rmd17/ethanol_test_01")
    parser.add_argument("--fidelity", default="pbe", help="the new level, with energies and forces (default pbe)")
    parser.add_argument("--frames", type=int, default=50, help="frames to fine-tune on (default 50)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/finetuning"), help="folder of the models")
    parser.add_argument("--fast", action="store_true", help="a few steps of tiny models, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.frames, options.seeds = min(options.frames, 8), options.seeds[:1]
    return options


def result(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """File of one model's errors."""
    return options.results / f"{arm}-{seed}.json"


def find_parent(options: argparse.Namespace) -> Path | None:
    """Checkpoint of the parent, whose errors before fine-tuning are written; None if its training was interrupted.

    Raises
    ------
    SystemExit
        If the results there are belong to another parent, or the given one does not know the level.
    """
    path, checkpoint = options.results / "parent.json", options.parent or options.work / "parent" / "model.mfm"

    def more(model: MFMModel) -> dict[str, Any]:
        return {"checkpoint": file_sha256(checkpoint), **remembered(model)}

    if options.parent is None:
        if not run_model(parent_recipe(options), path, {"model": "parent"}, more):
            return None
    elif KNOWN not in (given := load_model(checkpoint)).tasks:
        raise SystemExit(f"`--parent` must have the task `{KNOWN}`, `{checkpoint}` has {', '.join(given.tasks)}")
    elif not path.exists():
        write_json(path, {"model": "parent", **more(given)})
    theirs = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
    if not checkpoint.is_file() or file_sha256(checkpoint) != theirs:
        raise SystemExit(
            f"`{path}` is of another parent than `{checkpoint}`; name that one with `--parent` or its folder with"
            " `--work`, or other `--results`"
        )
    return checkpoint


def parent_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """GFN2-xTB energies and forces first, then those of DFT, anchored to them."""
    shares = {"xtb": XTB_SHARE, "dft": 1.0 - XTB_SHARE}
    length = {
        level: {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.parent_minutes * share}
        for level, share in shares.items()
    }
    return {
        "name": "finetuning-parent",
        "data": {"train": PARENT_DATA, "valid_fraction": 0},
        # across molecules, energies tell what forces cannot
        "tasks": {"energy_xtb": {}, KNOWN: {"anchor": "energy_xtb", "weight": 10}},
        "model": {"backbone": TINY_BACKBONE if options.fast else {}},
        "stages": [
            {"name": "xtb", "tasks": ["energy_xtb"], **length["xtb"]},
            {"name": "dft", "tasks": [KNOWN], "lr": RATE, **length["dft"]},
        ],
        **common(0, options.work / "parent", options),
    }


def common(seed: int, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Settings that the parent and the others share."""
    return {
        "validations": 1,
        "seed": seed,
        "device": "cpu",
        "output": str(output),
        "tracking": "none" if options.fast else {"experiment": "finetuning"},
    }


def recipe(arm: str, seed: int, parent: MFMModel, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one arm; the seed also draws the frames."""
    new = f"energy_{options.fidelity}"
    length = {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes}
    data: dict[str, Any] = {"train": options.train, "test": options.test, "valid_fraction": 0}
    data |= {"n_train": options.frames, "seed": seed}
    content = {
        "name": f"finetuning-{arm}-{seed}",
        "batch": {"structures": 5},
        **common(seed, options.work / f"{arm}-{seed}", options),
    }
    if arm == "scratch":
        stage = {"name": "fit", **length}
        model = {"backbone": parent.config.backbone.model_dump()}
        return {**content, "data": data, "tasks": {new: {}}, "model": model, "stages": [stage]}
    last = parent.config.backbone.n_layers - 1
    how: dict[str, dict[str, Any]] = {
        "readout": {"trainable": [f"heads.{new}.*"]},
        "frozen": {"trainable": ["heads.*", f"backbone.layers.{last}.*"]},
        "lora": {"lora_rank": RANK},
    }
    if arm == "replay":
        # of all its labels, one in twenty would be of DFT, and the parent has left GFN2-xTB behind
        data["replay"] = {"data": PARENT_DATA, "structures": None, "tasks": [KNOWN]}
    # replayed energies count as much as they did for the parent
    tasks = {KNOWN: {"weight": parent.config.tasks[KNOWN].weight}, new: {"anchor": KNOWN}}
    stage = {"name": "tune", "tasks": [new], "lr": RATE, **how.get(arm, {}), **length}
    return {**content, "data": data, "tasks": tasks, "stages": [stage]}


def run(arm: str, seed: int, checkpoint: Path, options: argparse.Namespace) -> bool:
    """Train and test one model; returns whether it was finished."""
    content = recipe(arm, seed, load_model(checkpoint), options)
    labels = {"model": arm, "seed": seed, "frames": options.frames}
    initial = None if arm == "scratch" else checkpoint
    return run_model(content, result(arm, seed, options), labels, remembered, initial)


def remembered(model: MFMModel) -> dict[str, Any]:
    """Errors at the parent's level on the molecules that its dataset holds out; nothing if the model lacks it."""
    if KNOWN not in model.tasks:
        return {}
    store = open_dataset(PARENT_DATA)
    held_out = store.subset(np.isin(store.molecules, store.card.test_molecules) & store.coverage(KNOWN))
    return {"parent_level": evaluate(model, held_out, [KNOWN, KNOWN_FORCES]).metrics}


def report(results: Path, fidelity: str) -> str:
    """Markdown table, means and ranges over seeds."""
    parent = json.loads((results / "parent.json").read_text(encoding="utf-8"))
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*-*.json"))]
    energy, force = "mae_mev", "mae_mev_per_angstrom"

    def new(task: str, metric: str) -> Callable[[dict[str, Any]], list[float]]:
        return lambda cell: [cell["metrics"][task][metric]] if task in cell.get("metrics", {}) else []

    def kept(task: str, metric: str, ratio: bool = False) -> Callable[[dict[str, Any]], list[float]]:
        unit = parent["parent_level"][task][metric] if ratio else 1.0
        return lambda cell: [cell["parent_level"][task][metric] / unit] if "parent_level" in cell else []

    def clock(key: str, unit: float = 1.0) -> Callable[[dict[str, Any]], list[float]]:
        return lambda cell: [cell["clock"][key] / unit] if "clock" in cell else []

    columns = [
        (f"{fidelity} energy MAE, meV", 1, new(f"energy_{fidelity}", energy)),
        (f"{fidelity} force MAE, meV/Å", 1, new(f"forces_{fidelity}", force)),
        ("parent's DFT energy MAE, held-out molecules, meV", 1, kept(KNOWN, energy)),
        ("over that before", 3, kept(KNOWN, energy, ratio=True)),
        ("parent's DFT force MAE, meV/Å", 1, kept(KNOWN_FORCES, force)),
        ("over that before", 3, kept(KNOWN_FORCES, force, ratio=True)),
        ("steps", 0, clock("step")),
        ("CPU-minutes", 1, clock("seconds", 60.0)),
    ]
    lines = ["| | " + " | ".join(title for title, _, _ in columns) + " |", "|" + " --- |" * (1 + len(columns))]
    for arm, mine in [("parent", [parent]), *((arm, [c for c in cells if c["model"] == arm]) for arm in ARMS)]:
        texts = [summary([value for cell in mine for value in pick(cell)], digits) for _, digits, pick in columns]
        lines.append(f"| {arm} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
