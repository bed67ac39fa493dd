"""What a transfer study found: errors, labels that a target error costs, where pre-training hurts, and the price."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from mfm.properties import task_name
from mfm.study.cells import Layout
from mfm.study.report import CONFIDENCE, Interval, mean_interval, provenance, table, write_pages
from mfm.transfer.plan import BASELINE, STRATEGIES, TransferConfig

__all__ = ["labels_needed", "write_report"]

_RESAMPLES = 2000
_SETS = {"metrics": "test", "out_of_distribution": "out of distribution"}


def labels_needed(errors: Mapping[int, Mapping[int, float]], target: float, seed: int = 0) -> Interval:
    """Labels at which the mean error over seeds falls to a target, with a bootstrap interval over seeds.

    Between two numbers of labels the error is taken to follow a power law. Infinite if it is not reached; the smallest
    number if that is good enough, so that the true one may lie below.

    Parameters
    ----------
    errors : mapping of int to mapping of int to float
        Number of labels to seed to error; only seeds that every number of labels has are used.
    target : float
        In the errors' unit.

    Raises
    ------
    ValueError
        If no seed has an error at every number of labels.
    """
    sizes, seeds = sorted(errors), _common_seeds(errors.values())
    if not seeds:
        raise ValueError(f"a seed must have an error at every number of labels ({sizes}), got none; train the rest")
    logarithms = np.log([[errors[n][k] for k in seeds] for n in sizes])
    curve = _crossing(sizes, logarithms.mean(axis=1).tolist(), math.log(target))
    if len(seeds) < 2:
        return Interval(curve, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(seeds), size=(_RESAMPLES, len(seeds)))
    found = [_crossing(sizes, logarithms[:, rows].mean(axis=1).tolist(), math.log(target)) for rows in drawn]
    low, high = np.quantile(found, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], method="inverted_cdf")
    return Interval(curve, float(low), float(high))


def _common_seeds(errors: Iterable[Mapping[int, float]]) -> list[int]:
    """Seeds that all have: a mean over others would differ by the seeds, and not by what is compared."""
    return sorted(set.intersection(*map(set, errors)))


def _crossing(sizes: Sequence[int], logarithms: Sequence[float], target: float) -> float:
    if logarithms[0] <= target:
        return float(sizes[0])
    for place in range(1, len(sizes)):
        before, after = logarithms[place - 1], logarithms[place]
        if after <= target:
            part = (before - target) / (before - after)
            return float(sizes[place - 1] * (sizes[place] / sizes[place - 1]) ** part)
    return math.inf


_DIGEST = "out_of_distribution_digest"


class Findings:
    """Results of the models of a study, by strategy and number of labels."""

    def __init__(self, config: TransferConfig, folder: Path) -> None:
        self.config = config
        self.cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.parents: dict[int, dict[str, Any]] = {}
        for cell in config.cells():
            path = Layout(folder).result(cell)
            if not path.exists():
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            if cell.n_labels:
                self.cells.setdefault((cell.strategy, cell.n_labels), []).append(found)
            else:
                self.parents[cell.seed] = found
        cells = [found for group in self.cells.values() for found in group]
        others = {str(found[_DIGEST]) for found in cells if _DIGEST in found}
        if len(others) > 1:
            raise ValueError(
                f"models of `{folder}` were tested out of distribution on different data, {', '.join(sorted(others))};"
                " `out_of_distribution` must stay the same file: remove the results of one, or name another folder"
            )

    def errors(self, part: str, quantity: str, strategy: str, n_labels: int) -> dict[int, float]:
        """Seed to error; empty where there is no such label."""
        task = task_name(quantity, self.config.high)
        metric = "mae_mev" if quantity == "energy" else "mae_mev_per_angstrom"
        cells = self.cells.get((strategy, n_labels), [])
        return {int(cell["seed"]): float(cell[part][task][metric]) for cell in cells if task in cell.get(part, {})}

    def curve(self, part: str, quantity: str, strategy: str) -> dict[int, dict[int, float]]:
        """Number of labels to seed to error, where there are any."""
        found = {n: self.errors(part, quantity, strategy, n) for n in self.config.labels}
        return {n: values for n, values in found.items() if values}

    def panels(self) -> list[tuple[str, str]]:
        """Test sets and quantities that there are results for."""
        asked = [(part, quantity) for part in _SETS for quantity in ("energy", "forces")]
        return [pair for pair in asked if any(self.curve(*pair, strategy) for strategy in self.config.strategies)]

    def seconds(self, strategy: str, n_labels: int) -> list[float]:
        """Time of training, that of the model they started from included."""
        parent = STRATEGIES[strategy].parent is not None
        return [
            cell["clock"]["seconds"] + (self.parents[cell["seed"]]["clock"]["seconds"] if parent else 0.0)
            for cell in self.cells.get((strategy, n_labels), [])
        ]

    def target(self, part: str, quantity: str) -> float | None:
        """Error whose price is asked for: the baseline's at most labels, or, for test energies, the stated one."""
        if self.config.target is not None and (part, quantity) == ("metrics", "energy"):
            return self.config.target
        curve = self.curve(part, quantity, BASELINE)
        most = self.config.labels[-1]
        seeds = _common_seeds(curve.values()) if most in curve else []
        return mean_interval([curve[most][seed] for seed in seeds]).value if seeds else None


def _unit(quantity: str) -> str:
    return "meV" if quantity == "energy" else "meV/Å"


def _error_table(found: Findings, part: str, quantity: str) -> str:
    config, rows = found.config, []
    for n in config.labels:
        row = [str(n)]
        for strategy in config.strategies:
            values = found.errors(part, quantity, strategy, n)
            some = f", {len(values)} of {config.seeds} seeds" if len(values) < config.seeds else ""
            row.append(mean_interval(list(values.values())).text(2) + some if values else "")
        rows.append(row)
    return table([f"labels of {config.high}", *config.strategies], rows)


def _price_table(found: Findings) -> str:
    rows = []
    for part, quantity in found.panels():
        target = found.target(part, quantity)
        if target is None:
            continue
        row = [f"{quantity}, {_SETS[part]}: {target:.2f} {_unit(quantity)}"]
        for strategy in found.config.strategies:
            curve = found.curve(part, quantity, strategy)
            whole = bool(curve) and bool(_common_seeds(curve.values()))
            row.append(_price(labels_needed(curve, target), found.config.labels) if whole else "")
        rows.append(row)
    return table(["target", *found.config.strategies], rows)


def _price(needed: Interval, labels: Sequence[int]) -> str:
    def one(value: float) -> str:
        if math.isinf(value):
            return f"> {labels[-1]}"
        return f"≤ {labels[0]}" if value <= labels[0] else f"{value:.0f}"

    if math.isnan(needed.low):
        return one(needed.value)
    return f"{one(needed.value)} ({one(needed.low)} to {one(needed.high)})"


def hurting(found: Findings) -> list[str]:
    """Where a strategy is worse than the high level alone, by Welch's test on the logarithms over seeds of both."""
    lines = []
    for part, quantity in found.panels():
        for strategy in found.config.strategies:
            for n in found.config.labels if strategy != BASELINE else ():
                pair = [found.errors(part, quantity, name, n) for name in (strategy, BASELINE)]
                seeds = _common_seeds(pair)
                mine, theirs = ([errors[seed] for seed in seeds] for errors in pair)
                if not seeds or np.mean(np.log(mine)) <= np.mean(np.log(theirs)):
                    continue
                factor = math.exp(float(np.mean(np.log(mine)) - np.mean(np.log(theirs))))
                where = (
                    f"`{strategy}`, {n} labels, {quantity}, {_SETS[part]}: {factor:.2f} times the error of `{BASELINE}`"
                )
                if len(seeds) < 2:
                    lines.append(f"{where} (one seed: no test)")
                    continue
                p = float(stats.ttest_ind(np.log(mine), np.log(theirs), equal_var=False).pvalue)
                lines.append(
                    f"{where}, {'**hurts**' if p < 1 - CONFIDENCE else 'within the noise of seeds'} (p = {p:.2g})"
                )
    return lines


def _cost_table(found: Findings) -> str:
    rows = []
    for strategy in found.config.strategies:
        seconds = [value for n in found.config.labels for value in found.seconds(strategy, n)]
        spent = f"{np.median(seconds):.0f}" if seconds else ""
        rows.append([strategy, STRATEGIES[strategy].description, spent])
    return table(["strategy", "what it does", "seconds of training"], rows)


def _stability_table(found: Findings) -> str:
    """Picoseconds survived, median and range over molecules and seeds."""
    rows = []
    for n in found.config.labels:
        row = [str(n)]
        for strategy in found.config.strategies:
            times = [time for cell in found.cells.get((strategy, n), []) for time in cell.get("stability_ps", [])]
            row.append(f"{np.median(times):.1f} ({min(times):.1f} to {max(times):.1f})" if times else "")
        rows.append(row)
    return table([f"labels of {found.config.high}", *found.config.strategies], rows)


def _draw(found: Findings, path: Path) -> None:
    panels = found.panels()
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (part, quantity) in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), place + 1)
        for k, strategy in enumerate(found.config.strategies):
            found_curve = found.curve(part, quantity, strategy)
            curve = {n: mean_interval(list(values.values())) for n, values in found_curve.items()}
            if not curve:
                continue
            axis.plot(list(curve), [i.value for i in curve.values()], "o-", color=f"C{k}", label=strategy, markersize=3)
            bands = [(i.low, i.high) for i in curve.values()]
            if not any(math.isnan(low) for low, _ in bands):
                axis.fill_between(list(curve), *np.transpose(bands), color=f"C{k}", alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel=f"labels of {found.config.high}")
        axis.set_ylabel(f"{quantity} MAE, {_unit(quantity)}")
        axis.set_title(_SETS[part], fontsize=9)
        axis.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def write_report(config: TransferConfig, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` (in one file, works offline) and the figure, from the models there are.

    Raises
    ------
    ValueError
        If there is no model yet.
    """
    found = Findings(config, folder)
    if not found.panels():
        raise ValueError(f"no model of `{config.name}` is finished in `{folder}`; run `mfm transfer` first")
    figure = folder / "report.png"
    _draw(found, figure)
    cells = [cell for group in found.cells.values() for cell in group]
    planned = len(config.labels) * len(config.strategies) * config.seeds
    sizes = ", ".join(map(str, sorted({cell["n_parameters"] for cell in cells})))
    sections: list[tuple[str, str]] = [
        (f"labels of {config.high} that a target error costs", _price_table(found)),
        *((f"{quantity} MAE, {_SETS[part]}, {_unit(quantity)}", _error_table(found, part, quantity))
          for part, quantity in found.panels()),
        ("where another level hurts", "\n".join(f"- {line}" for line in hurting(found)) or "Nowhere."),
        ("cost", _cost_table(found)),
    ]  # fmt: skip
    if config.stability is not None:
        title = f"picoseconds at {config.stability.temperature:g} K until a bond breaks"
        sections.insert(-1, (title, _stability_table(found)))
    preface = (
        f"{len(cells)} of {planned} models of {sizes} parameters, {config.seeds} seeds; means are geometric,"
        " intervals 95 %: Student's for errors, bootstrap over seeds for numbers of labels."
        f" {provenance(cells)}"
    )
    return write_pages(folder, config.name, preface, figure, sections)
