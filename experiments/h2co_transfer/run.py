"""CCSD(T)-F12 energies that formaldehyde needs, and what its forces gain from B3LYP.

B3LYP energies and forces on 3200 geometries, CCSD(T)-F12 energies (no forces) on n of them, 600 other geometries for
the test at both levels. One JSON file per cell; a cell that is there is not computed again.
"""

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.data import Record, open_dataset, write_store
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary

HERE = Path(__file__).parent
SIZES = (10, 25, 50, 100, 200)
JOINS = {
    "cc-only": {"energy_ccsdt": {}},
    "independent": {"energy_dft": {}, "energy_ccsdt": {}},
    "anchor": {"energy_dft": {}, "energy_ccsdt": {"anchor": "energy_dft"}},
    "conditioned": {"energy_dft": {}, "energy_ccsdt": {"conditioned": "energy_dft"}},
}
N_TRAIN, N_TEST = 3200, 600
SPLIT_SEED = 0
QUANTITIES = {"energy": ("energy_ccsdt", "mae_mev"), "forces": ("forces_ccsdt", "mae_mev_per_angstrom")}


class Plan(NamedTuple):
    """What the cells share."""

    work: Path
    results: Path
    dft_stage: dict[str, Any]
    joint_stage: dict[str, Any]
    alone_stage: dict[str, Any]
    settings: dict[str, Any]


class Cell(NamedTuple):
    """One trained model; a size of 0 is the B3LYP model that the joined ones start from."""

    join: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.join}-{self.size}-{self.seed}"


def main() -> int:
    """Train what is missing, then write the table and the figure."""
    options = parse_arguments()
    begin()
    plan = make_plan(options)
    write_data(plan.work, options.sizes)
    joins = [join for join in options.joins if join != "cc-only"]
    parents = [Cell("dft", 0, seed) for seed in range(options.seeds)] if joins else []
    cells = [Cell(join, n, seed) for seed in range(options.seeds) for n in options.sizes for join in options.joins]
    for batch in (parents, cells):
        missing = [cell for cell in batch if not (plan.results / f"{cell.name}.json").exists()]
        print(f"{len(missing)} of {len(batch)} models to train", flush=True)
        if options.workers == 1:
            for cell in missing:
                run_cell(plan, cell)
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            for cell, _ in zip(missing, pool.map(run_cell, [plan] * len(missing), missing), strict=True):
                print(f"{cell.name} done", flush=True)
    report(plan, options)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps of the B3LYP stage")
    parser.add_argument("--joint-steps", type=int, default=2000, help="optimiser steps of the joint stage")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of CCSD(T)-F12 energies")
    parser.add_argument("--joins", nargs="+", choices=JOINS, default=list(JOINS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="models trained at once, one thread each")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/h2co_transfer"), help="folder of data and models")
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.sizes, options.seeds = (10, 25), 1
    return options


def make_plan(options: argparse.Namespace) -> Plan:
    settings: dict[str, Any] = {"device": "cpu", "validations": 1, "batch": {"structures": 5}}
    if options.fast:
        settings |= {"tracking": "none", "model": {"backbone": TINY_BACKBONE}}
        options.steps = options.joint_steps = FAST_STEPS
    else:
        settings |= {"tracking": {"experiment": "h2co_transfer"}}
    # the coupled-cluster model alone is trained as long as the two stages of the others together
    lengths = [{"max_steps": n} for n in (options.steps, options.joint_steps, options.steps + options.joint_steps)]
    options.results.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    return Plan(
        options.work,
        options.results,
        {"name": "dft", "tasks": ["energy_dft"], **lengths[0]},
        {"name": "joint", "lr": 1e-3, **lengths[1]},
        {"name": "alone", **lengths[2]},
        settings,
    )


def write_data(work: Path, sizes: tuple[int, ...]) -> None:
    """Training sets with n coupled-cluster energies, nested, and the test set."""
    targets = {n: work / f"train-{n}.h5" for n in (0, *sizes)}
    if all(path.exists() for path in (*targets.values(), work / "test.h5")):
        return
    everything = open_dataset("benchmark:h2co_multifidelity")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(everything))
    train_rows, test_rows = order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_TEST]
    for n, path in targets.items():
        records = [
            keep(everything[int(row)], ["energy_dft", "forces_dft"] + (["energy_ccsdt"] if place < n else []))
            for place, row in enumerate(train_rows)
        ]
        write_store(path, records, everything.card)
        if n:
            alone = [keep(record, ["energy_ccsdt"]) for record in records[:n]]
            write_store(work / f"alone-{n}.h5", alone, everything.card)
    test = [keep(everything[int(row)], [f"{p}_{f}" for p in ("energy", "forces") for f in ("dft", "ccsdt")])
            for row in test_rows]  # fmt: skip
    write_store(work / "test.h5", test, everything.card)


def keep(record: Record, tasks: list[str]) -> Record:
    """The record with some of its labels only."""
    labels = {task: record.labels[task] for task in tasks}
    return Record(record.structure, labels, record.molecule, record.origin)


def run_cell(plan: Plan, cell: Cell) -> None:
    """Train and test one model; writes its JSON file last."""
    begin()  # once more, in a process of its own
    if cell.join == "dft":
        tasks, stage, data, parent = {"energy_dft": {}}, plan.dft_stage, "train-0", None
    elif cell.join == "cc-only":
        tasks, stage, data, parent = JOINS[cell.join], plan.alone_stage, f"alone-{cell.size}", None
    else:
        tasks, stage, data = JOINS[cell.join], plan.joint_stage, f"train-{cell.size}"
        parent = plan.work / f"dft-0-{cell.seed}" / "model.mfm"
    settings = dict(plan.settings)
    if parent is not None:
        settings["batch"] = {**settings["batch"], "ratios": {"dft": 3, "ccsdt": 1}}
        settings.pop("model", None)
    content = {
        "name": cell.name,
        "data": {"train": str(plan.work / f"{data}.h5"), "test": str(plan.work / "test.h5"), "valid_fraction": 0},
        "tasks": tasks,
        "stages": [stage],
        "seed": cell.seed,
        "output": str(plan.work / cell.name),
        **settings,
    }
    if not run_model(content, plan.results / f"{cell.name}.json", cell._asdict(), initial=parent):
        raise KeyboardInterrupt


def report(plan: Plan, options: argparse.Namespace) -> None:
    """Table and figure of the cells that are there."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(plan.results.glob("*-*-*.json"))]
    values: dict[tuple[str, str, int], list[float]] = {}
    for cell in cells:
        for quantity, (task, metric) in QUANTITIES.items():
            if task in cell["metrics"]:
                values.setdefault((quantity, cell["join"], cell["size"]), []).append(cell["metrics"][task][metric])
    lines = ["| n CCSD(T)-F12 energies | quantity | " + " | ".join(options.joins) + " |"]
    lines += ["|" + " --- |" * (2 + len(options.joins))]
    for quantity, unit in (("energy", "meV"), ("forces", "meV/Å")):
        for n in options.sizes:
            row = [values.get((quantity, join, n), []) for join in options.joins]
            lines.append(f"| {n} | {quantity} MAE, {unit} | " + " | ".join(summary(found, 2) for found in row) + " |")
    (plan.results / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(values, options, plan.results / "figure.png")


def draw(values: dict[tuple[str, str, int], list[float]], options: argparse.Namespace, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (quantity, unit) in enumerate((("energy", "meV"), ("forces", "meV/Å"))):
        axis = figure.add_subplot(1, 2, panel + 1)
        for join in options.joins:
            sizes = [n for n in options.sizes if (quantity, join, n) in values]
            found = [values[quantity, join, n] for n in sizes]
            if not found:
                continue
            axis.plot(sizes, [np.mean(row) for row in found], marker="o", label=join)
            axis.fill_between(sizes, [min(row) for row in found], [max(row) for row in found], alpha=0.2)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("number of CCSD(T)-F12 energies")
        axis.set_ylabel(f"CCSD(T)-F12 {quantity} MAE ({unit})")
        axis.grid(alpha=0.3, which="both")
        if panel == 0:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
