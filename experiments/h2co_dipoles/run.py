"""The number of CCSD(T)-F12 dipoles of formaldehyde that a model needs, alone and on top of B3LYP.

Trains models of n CCSD(T)-F12 dipoles: alone, after B3LYP dipoles of all training geometries, and after B3LYP dipoles,
energies and forces; all with the same number of optimiser steps. Tests on 600 geometries that no model has seen at
either level. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.study.report import mean_interval, table
from mfm.training.data import prepare_data
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary, write_json
from mfm.training.recipe import DataConfig
from mfm.transfer.report import labels_needed
from mfm.units import DEBYE

HERE = Path(__file__).parent
LOW, HIGH = "dipole_dft", "dipole_ccsdt"
BASELINE = "scratch"
ARMS = {BASELINE: (), "anchor": (LOW,), "anchor+energies": (LOW, "energy_dft")}
"""Arm to the tasks of the low level that it learns first; forces come with the energies."""
TEST_FRACTION = 0.15
"""600 of the 4001 geometries, those of the study in experiments/h2co_transfer."""
LOW_SHARE, HIGH_SHARE, RATE = 0.75, 0.25, 1e-3
"""Part of the steps that goes to the low level first; share of a batch with a label of the high level, and learning
rate, afterwards: as in studies of `mfm transfer`."""
BAR = 0.01
"""Mean absolute error, D, whose price in labels is asked for."""
COMPONENT, LENGTH = "mae_millidebye", "mean_length_millidebye"
TITLES = {COMPONENT: "MAE per component, D", LENGTH: "mean length of the error vector, D"}
Curve = dict[int, dict[int, float]]
"""Number of labels to seed to error, D."""


class Cell(NamedTuple):
    """One model; without labels of the high level it is what others of its arm and seed start from."""

    arm: str
    n_labels: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.arm.replace('+', '-')}-{self.n_labels}-{self.seed}"

    @property
    def data(self) -> str:
        """Name of its training data, which other arms share."""
        return f"train-{self.n_labels}-{self.seed if self.n_labels else 0}.h5"

    @property
    def parent(self) -> "Cell | None":
        """The model it starts from."""
        return self._replace(n_labels=0) if ARMS[self.arm] and self.n_labels else None


def main() -> int:
    """Train what is missing, then write table and figure."""
    options = parse_arguments()
    begin()
    wanted = list(cells(options))
    write_data(wanted, options)
    write_json(options.results / "levels.json", compare_levels(open_dataset(options.work / "data" / "test.h5")))
    for cell in wanted:
        start = None if cell.parent is None else options.work / cell.parent.name / "model.mfm"
        if not run_model(recipe(cell, options), options.results / f"{cell.name}.json", cell._asdict(), initial=start):
            return 130
    text = report(options.results)
    (options.results / "table.md").write_text(text, encoding="utf-8")
    draw(read(options.results), options.results / "dipoles.png")
    print(text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="benchmark:h2co_multifidelity", help=f"dataset with {LOW} and {HIGH}")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of a model, those at B3LYP included")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 5, 10, 25, 50, 100, 200], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/h2co_dipoles"), help="folder of data and models")
    parser.add_argument("--fast", action="store_true", help="a few steps of a few tiny models, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.steps, options.labels, options.seeds = 4 * FAST_STEPS, options.labels[:2], options.seeds[:1]
    return options


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Every model, each after the one it starts from."""
    for seed in options.seeds:
        for arm in options.arms:
            for n_labels in ([0] if ARMS[arm] else []) + sorted(options.labels):
                yield Cell(arm, n_labels, seed)


def write_data(wanted: list[Cell], options: argparse.Namespace) -> None:
    """Training sets with n dipoles of the high level each, nested, and the test set; what is there is kept.

    All training geometries keep their labels of the low level. The high level has dipoles alone.
    """
    folder = options.work / "data"
    missing = {cell.data: cell for cell in wanted if not (folder / cell.data).exists()}
    if not missing and (folder / "test.h5").exists():
        return
    division = {"train": options.data, "split": "random_frames", "test_fraction": TEST_FRACTION, "valid_fraction": 0}
    parts = prepare_data(DataConfig.model_validate(division), [LOW, HIGH])
    assert parts.test is not None
    labelled = np.flatnonzero(parts.train.coverage(HIGH))
    most = max(cell.n_labels for cell in wanted)
    if most > len(labelled):
        raise SystemExit(f"--labels asks for {most} dipoles, the training part has {len(labelled)}")
    folder.mkdir(parents=True, exist_ok=True)
    low = {task for tasks in ARMS.values() for task in tasks} | {"forces_dft"}
    for name, cell in missing.items():
        chosen = np.random.default_rng(cell.seed).permutation(labelled)[: cell.n_labels]
        keep(parts.train, low, set(chosen.tolist())).write(folder / name)
    keep(parts.test, {LOW}, set(range(len(parts.test)))).write(folder / "test.h5")


def keep(store: Store, tasks: set[str], with_high: set[int]) -> Store:
    """Records with some of their labels, and with the high level's dipole in the given rows."""
    records = []
    for row, record in enumerate(store):
        wanted = tasks | ({HIGH} if row in with_high else set())
        labels = {task: value for task, value in record.labels.items() if task in wanted}
        records.append(Record(record.structure, labels, record.molecule, record.origin))
    levels = {fidelity: store.card.levels[fidelity] for fidelity in ("dft", "ccsdt")}
    return Store.from_records(records, DatasetCard(name=store.card.name, levels=levels))


def compare_levels(test: Store) -> dict[str, Any]:
    """Errors of the low level's dipoles as dipoles of the high one, D: as they are, and times the best factor.

    The factor is fitted to the test labels themselves, so that no factor does better in the mean square.
    """
    both = test.subset(test.coverage(LOW) & test.coverage(HIGH))
    low, high = both.values(LOW) / DEBYE, both.values(HIGH) / DEBYE
    factor = float(np.sum(low * high) / np.sum(low * low))

    def errors(guess: np.ndarray) -> dict[str, float]:
        difference = 1e3 * (guess - high)
        return {
            COMPONENT: float(np.abs(difference).mean()),
            LENGTH: float(np.linalg.norm(difference, axis=1).mean()),
        }

    return {
        "count": len(both),
        "length_debye": float(np.linalg.norm(high, axis=1).mean()),
        "factor": factor,
        "plain": errors(low),
        "scaled": errors(factor * low),
    }


def recipe(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one model, as ``mfm train`` would read it."""
    low: dict[str, dict[str, Any]] = {task: {} for task in ARMS[cell.arm]}
    first = round(LOW_SHARE * options.steps)
    batch: dict[str, Any] = {"structures": 5}
    if cell.n_labels == 0:
        tasks, stage = low, {"name": "low", "max_steps": first}
    elif cell.parent is None:
        tasks, stage = {HIGH: {}}, {"name": "high", "max_steps": options.steps}
    else:
        tasks = {**low, HIGH: {"anchor": LOW}}
        stage = {"name": "both", "lr": RATE, "max_steps": options.steps - first}
        batch["ratios"] = {"dft": 1.0 - HIGH_SHARE, "ccsdt": HIGH_SHARE}
    folder = options.work / "data"
    return {
        "name": cell.name,
        "data": {"train": str(folder / cell.data), "test": str(folder / "test.h5"), "valid_fraction": 0},
        "tasks": tasks,
        # a model that starts from another one has its representation
        **({"model": {"backbone": TINY_BACKBONE}} if options.fast and cell.parent is None else {}),
        "stages": [stage],
        "batch": batch,
        "validations": 1,
        "seed": cell.seed,
        "device": "cpu",
        "output": str(options.work / cell.name),
        "tracking": "none" if options.fast else {"experiment": "h2co_dipoles"},
    }


def read(results: Path) -> list[dict[str, Any]]:
    """What became of the models that are finished."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*-*.json"))]


def curve(found: list[dict[str, Any]], arm: str, metric: str) -> Curve:
    """Errors of an arm at the high level, in the order of the numbers of labels."""
    values: Curve = {}
    for cell in sorted(found, key=lambda cell: cell["n_labels"]):
        if cell["arm"] == arm and cell["n_labels"]:
            values.setdefault(cell["n_labels"], {})[cell["seed"]] = cell["metrics"][HIGH][metric] / 1e3
    return values


def report(results: Path) -> str:
    """Markdown: errors by arm and number of labels, what errors cost in labels, and what B3LYP says itself."""
    found = read(results)
    arms = [arm for arm in ARMS if curve(found, arm, COMPONENT)]
    curves = {metric: {arm: curve(found, arm, metric) for arm in arms} for metric in TITLES}
    sections = []
    for metric, title in TITLES.items():
        sizes = sorted({n for values in curves[metric].values() for n in values})
        rows = [[str(n), *(summary(list(curves[metric][arm].get(n, {}).values()), 4) for arm in arms)] for n in sizes]
        sections.append(table([f"CCSD(T)-F12 dipoles; {title}", *arms], rows))
    prices = [[name, *(price(curves[metric][arm], target) for arm in arms)] for name, metric, target in targets(curves)]
    sections.append(table(["CCSD(T)-F12 dipoles that an error costs", *arms], prices))
    sections.append(table(["cost of a model", *arms], costs(found, arms)))
    levels = json.loads((results / "levels.json").read_text(encoding="utf-8"))
    rows = [
        [name, *(f"{levels[key][metric] / 1e3:.4f}" for metric in TITLES)]
        for name, key in (("as they are", "plain"), (f"times {levels['factor']:.4f}", "scaled"))
    ]
    sections.append(table([f"B3LYP dipoles of the {levels['count']} test geometries", *TITLES.values()], rows))
    return "\n\n".join([*sections, f"Mean length of a CCSD(T)-F12 dipole: {levels['length_debye']:.3f} D."]) + "\n"


def targets(curves: dict[str, dict[str, Curve]]) -> Iterator[tuple[str, str, float]]:
    """Errors whose price is asked for: title, metric, D. The baseline's is the geometric mean over its seeds."""
    yield f"{TITLES[COMPONENT]}: {BAR:.4f}", COMPONENT, BAR
    for metric, title in TITLES.items():
        alone = curves[metric].get(BASELINE)
        if alone:
            most = max(alone)
            reached = mean_interval(list(alone[most].values())).value
            yield f"{title}: {reached:.4f}, as `{BASELINE}` with {most}", metric, reached


def price(errors: Curve, target: float) -> str:
    """Labels that an error costs, with the bootstrap interval over seeds; empty if no seed has every number of them."""
    if not errors or not set.intersection(*map(set, errors.values())):
        return ""
    least, most = min(errors), max(errors)
    # the error that a mean is asked to reach may be that mean, and differ from it in the last bit
    needed = labels_needed(errors, target * (1.0 + 1e-9))
    shown = [
        f"> {most}" if math.isinf(value) else f"≤ {least}" if value <= least else f"{value:.0f}"
        for value in (needed.value, needed.low, needed.high)
        if not math.isnan(value)
    ]
    return shown[0] if len(shown) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def costs(found: list[dict[str, Any]], arms: list[str]) -> list[list[str]]:
    """Steps and CPU-minutes of the models of each arm, what they start from included in full."""
    clocks = {Cell(cell["arm"], cell["n_labels"], cell["seed"]): cell["clock"] for cell in found}

    def spent(arm: str, key: str) -> list[float]:
        models = [cell for cell in clocks if cell.arm == arm and cell.n_labels]
        return [clocks[cell][key] + (clocks[cell.parent][key] if cell.parent else 0) for cell in models]

    return [
        ["optimiser steps", *(summary(spent(arm, "step"), 0) for arm in arms)],
        ["CPU-minutes", *(summary([value / 60 for value in spent(arm, "seconds")], 2) for arm in arms)],
    ]


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Mean errors over the number of labels, with their ranges over seeds, on logarithmic axes."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (metric, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        for arm in ARMS:
            errors = {n: list(values.values()) for n, values in curve(found, arm, metric).items()}
            if errors:
                means = np.array([np.mean(values) for values in errors.values()])
                low, high = (np.array([f(values) for values in errors.values()]) for f in (min, max))
                axis.errorbar(list(errors), means, [means - low, high - means], fmt="o-", ms=3, capsize=2, label=arm)
        if metric == COMPONENT:
            axis.axhline(BAR, color="grey", linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="CCSD(T)-F12 dipoles", ylabel=title)
        axis.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
