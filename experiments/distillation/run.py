"""A student at a third of its teacher's cost: from labels, from the teacher, and from the teacher's Hessian as well.

Trains a teacher on labels, lets it label its training frames, and trains students of one smaller size, equally long, on
the labels, on the teacher's energies and forces, and on its Hessian-vector products beside them. Errors are those
against the labels of the test frames. One JSON file per model; a model that is there is not trained again.
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

from mfm.checkpoint import load_model
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.evaluation.evaluate import evaluate
from mfm.graph import build_graph, collate
from mfm.model import MFMModel
from mfm.training.distillation import Copies, Questions, model_teacher, write_distilled
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary, write_json

HERE = Path(__file__).parent
STUDENT = {"n_channels": 32, "n_product_channels": 32, "max_degree": 2, "equivariant_degree": 1, "n_radial": 6}
"""Backbone of the students; what it leaves of the cost is measured."""
PLAIN, SCRATCH = "plain", "labels"
TAUGHT = "teacher"
TAUGHT_TESTS = 200
"""Test frames on which a student's Hessian-vector products are compared with the teacher's."""


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    options.work.mkdir(parents=True, exist_ok=True)
    files = write_frames(options)
    teacher = options.work / "teacher" / "model.mfm"
    content = recipe("teacher", str(files["train"]), options.fidelity, options.teacher_minutes, 0, options)
    if not run_model(content, options.results / "teacher.json", {"model": "teacher"}, against(files["test"], options)):
        return 130
    taught = write_taught(files, teacher, options)
    for seed in options.seeds:
        for arm in [SCRATCH, PLAIN, *(f"hessian-{weight:g}" for weight in options.hessian_weights)]:
            if not train_student(arm, seed, files, taught, options):
                return 130
    students = options.work / f"{PLAIN}-{options.seeds[0]}" / "model.mfm"
    write_json(options.results / "cost.json", cost(teacher, students, files["test"], options.rounds))
    table = report(options.results)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="benchmark:rmd17/ethanol_train_01")
    parser.add_argument("--test", default="benchmark:rmd17/ethanol_test_01")
    parser.add_argument("--fidelity", default="pbe", help="level of the labels (default pbe)")
    parser.add_argument("--frames", type=int, default=950, help="frames to train on (default 950)")
    parser.add_argument("--copies", type=int, default=0, help="displaced copies of each that the teacher labels too")
    parser.add_argument("--teacher-minutes", type=float, default=60.0, help="CPU-minutes (default 60)")
    parser.add_argument("--student-minutes", type=float, default=20.0, help="CPU-minutes of each student (default 20)")
    parser.add_argument("--hessian-weights", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="timings of each model (default 15)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"), help="folder of the models")
    parser.add_argument("--fast", action="store_true", help="a few steps of tiny models, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.frames, options.seeds, options.rounds = min(options.frames, 8), options.seeds[:1], 1
    return options


def write_frames(options: argparse.Namespace) -> dict[str, Path]:
    """Energies and forces of one level: the frames drawn for training, and all for testing."""
    files = {part: options.work / f"{part}.h5" for part in ("train", "test")}
    for part, source in (("train", options.train), ("test", options.test)):
        if files[part].exists():
            continue
        store = open_dataset(source)
        names = [f"{kind}_{options.fidelity}" for kind in ("energy", "forces")]
        store = store.subset(np.all([store.coverage(name) for name in names], axis=0))
        count = min(len(store), options.frames) if part == "train" or options.fast else len(store)
        chosen = np.sort(np.random.default_rng(0).permutation(len(store))[:count])
        card = DatasetCard(name=part, levels={options.fidelity: store.card.levels[options.fidelity]})
        records = [
            Record(record.structure, {name: record.labels[name] for name in names}, record.molecule)
            for record in store.subset(chosen)
        ]
        Store.from_records(records, card).write(files[part])
    return files


def write_taught(files: dict[str, Path], checkpoint: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The same frames with the teacher's labels, the training frames also displaced."""
    taught = {part: options.work / f"taught-{part}.h5" for part in files}
    teacher = model_teacher(load_model(checkpoint, dtype=torch.float64))
    card = DatasetCard(name="taught", levels={TAUGHT: teacher.level}, references={TAUGHT: dict(teacher.references)})
    for part, path in taught.items():
        if path.exists():
            continue
        store = open_dataset(files[part])
        store = store if part == "train" else store.subset(np.arange(min(TAUGHT_TESTS, len(store))))
        write_distilled(path, teacher, store, card, Questions(1, Copies(options.copies if part == "train" else 0)))
    return taught


def recipe(
    name: str, train: str, fidelity: str, minutes: float, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """A run of one stage without validation."""
    backbone = TINY_BACKBONE if options.fast else {} if name == "teacher" else STUDENT
    length = {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": minutes}
    return {
        "name": name,
        "data": {"train": train, "valid_fraction": 0, "test_fraction": 0, "split": "random_frames"},
        "tasks": {f"energy_{fidelity}": {}},
        "model": {"backbone": backbone},
        "stages": [{"name": "learn", **length}],
        "optimizer": {"lr": 6e-3},
        "batch": {"structures": 5},
        "seed": seed,
        "device": "cpu",
        "output": str(options.work / name),
        "tracking": "none",
    }


def train_student(
    arm: str, seed: int, files: dict[str, Path], taught: dict[str, Path], options: argparse.Namespace
) -> bool:
    """Train and test one student; returns whether it was finished."""
    name = f"{arm}-{seed}"
    if arm == SCRATCH:
        content = recipe(name, str(files["train"]), options.fidelity, options.student_minutes, seed, options)
    else:
        content = recipe(name, str(taught["train"]), TAUGHT, options.student_minutes, seed, options)
        weight = 0.0 if arm == PLAIN else float(arm.removeprefix("hessian-"))
        content["tasks"] = {f"energy_{TAUGHT}": {"hessian_weight": weight}}
        content["data"]["test"] = str(taught["test"])
    labels = {"model": arm, "seed": seed}
    return run_model(content, options.results / f"{name}.json", labels, against(files["test"], options))


def against(test: Path, options: argparse.Namespace) -> Callable[[MFMModel], dict[str, Any]]:
    """Errors against the labels of the test frames, whatever the model calls its level."""

    def describe(model: MFMModel) -> dict[str, Any]:
        (level,) = model.fidelities
        card = DatasetCard(name="test", levels=model.domain.levels)
        records = [
            Record(
                record.structure,
                {f"{kind}_{level}": record.labels[f"{kind}_{options.fidelity}"] for kind in ("energy", "forces")},
            )
            for record in open_dataset(test)
        ]
        found = evaluate(model, Store.from_records(records, card)).metrics
        return {"against_labels": {kind: found[f"{kind}_{level}"] for kind in ("energy", "forces")}}

    return describe


def cost(teacher: Path, student: Path, test: Path, rounds: int) -> dict[str, Any]:
    """Processor time of energies with forces, of one structure and of 64, taken in turn."""
    store = open_dataset(test)
    found: dict[str, Any] = {}
    for count in (1, 64):
        structures = [store[k % len(store)].structure for k in range(count)]
        seconds: dict[str, list[float]] = {"teacher": [], "student": []}
        models = {"teacher": load_model(teacher), "student": load_model(student)}
        for number in range(rounds + 1):
            for name, model in models.items():
                graph = collate([build_graph(each, model.cutoff, dtype=model.dtype) for each in structures])
                (level,) = model.fidelities
                start = time.process_time()
                for _ in range(max(1, 32 // count)):
                    model.predict(graph, [f"energy_{level}"], [f"forces_{level}"])
                if number:  # the first warms up
                    seconds[name].append((time.process_time() - start) / max(1, 32 // count))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        found[f"structures_{count}"] = {**medians, "ratio": medians["student"] / medians["teacher"]}
    return found


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    teacher = json.loads((results / "teacher.json").read_text(encoding="utf-8"))
    timing = json.loads((results / "cost.json").read_text(encoding="utf-8"))
    arms: dict[str, list[dict[str, Any]]] = {"teacher": [teacher]}
    for path in sorted(results.glob("*-*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        arms.setdefault(cell["model"], []).append(cell)
    best = teacher["against_labels"]["forces"]["mae_mev_per_angstrom"]

    def taught(cell: dict[str, Any], task: str) -> list[float]:
        return [cell["metrics"][task]["mae_mev_per_angstrom"]] if task in cell["metrics"] else []

    columns: list[tuple[str, Callable[[dict[str, Any]], list[float]]]] = [
        ("forces against labels, MAE, meV/Å", lambda c: [c["against_labels"]["forces"]["mae_mev_per_angstrom"]]),
        ("of the teacher's accuracy, %",
         lambda c: [100 * best / c["against_labels"]["forces"]["mae_mev_per_angstrom"]]),
        ("energies against labels, MAE, meV", lambda c: [c["against_labels"]["energy"]["mae_mev"]]),
        ("forces against the teacher", lambda c: taught(c, f"forces_{TAUGHT}")),
        ("Hessian products against the teacher, meV/Å", lambda c: taught(c, f"hessian_product_{TAUGHT}")),
        ("CPU-minutes", lambda c: [c["clock"]["seconds"] / 60]),
        ("steps", lambda c: [c["clock"]["step"]]),
    ]  # fmt: skip
    lines = ["| | " + " | ".join(title for title, _ in columns) + " |", "|" + " --- |" * (1 + len(columns))]
    for arm, cells in arms.items():
        values = [summary([value for cell in cells for value in pick(cell)]) for _, pick in columns]
        lines.append(f"| {arm} | " + " | ".join(values) + " |")
    ratios = [f"{timing[f'structures_{n}']['ratio']:.2f} for {n} at once" for n in (1, 64)]
    return "\n".join(lines) + f"\n\nCost of a student's energies and forces, in the teacher's: {', '.join(ratios)}.\n"


if __name__ == "__main__":
    sys.exit(main())
