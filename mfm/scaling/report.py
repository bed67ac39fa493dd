"""What a scaling study found: errors on the grid, the laws they follow, and what the laws cannot say."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.evaluation.metrics import report_unit
from mfm.properties import parse_task
from mfm.scaling.fit import Law, intervals, is_identifiable
from mfm.scaling.plan import ScalingConfig
from mfm.study.cells import Layout
from mfm.study.report import Interval, mean_interval, provenance, table, write_pages

__all__ = ["Findings", "write_report"]

_AXES = ("parameters", "structures")
_SYMBOLS = {"parameters": "α", "structures": "β"}
_FEWEST_VALUES, _LEAST_RANGE = 5, 100.0
"""Values of an axis, and ratio of its ends, below which an exponent is a description, not a prediction."""
_FURTHER = 10.0


class Point(NamedTuple):
    """Models that differ in the seed only."""

    size: str
    n_parameters: int
    n_structures: int
    steps: int
    seconds: float
    """Geometric mean of the training time."""
    errors: tuple[float, ...]
    """Of the seeds."""

    @property
    def mean(self) -> float:
        """Geometric mean of the errors."""
        return float(np.exp(np.mean(np.log(self.errors))))


class Findings:
    """Results of the models of a study."""

    def __init__(self, config: ScalingConfig, folder: Path) -> None:
        self.config = config
        self.cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for cell in config.cells():
            path = Layout(folder).result(cell)
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                self.cells.setdefault((cell.size, cell.n_structures, cell.steps), []).append(found)

    @property
    def tasks(self) -> list[str]:
        """What there are test errors of."""
        return list(dict.fromkeys(task for cells in self.cells.values() for cell in cells for task in cell["metrics"]))

    def points(self, task: str) -> list[Point]:
        """Errors of a task by size, structures and steps."""
        found = []
        for (size, n_structures, steps), cells in self.cells.items():
            errors = tuple(cell["metrics"][task][_metric(task)] for cell in cells if task in cell["metrics"])
            if errors:
                seconds = float(np.exp(np.mean([math.log(cell["clock"]["seconds"]) for cell in cells])))
                found.append(Point(size, cells[0]["n_parameters"], n_structures, steps, seconds, errors))
        return found

    def longest(self, task: str) -> list[Point]:
        """Those trained longest, of which the law of parameters and structures is made."""
        points = self.points(task)
        most = max(point.steps for point in points)
        return [point for point in points if point.steps == most]


def _metric(task: str) -> str:
    name = f"mae_{report_unit(task).suffix}"
    return f"{name}_per_atom" if parse_task(task).property == "energy" else name


def _unit(task: str) -> str:
    symbol = report_unit(task).symbol
    return f"{symbol}/atom" if parse_task(task).property == "energy" else symbol


class Fit(NamedTuple):
    """A law and where it holds."""

    axes: tuple[str, ...]
    points: list[Point]
    law: Law
    intervals: list[Interval]
    """Of the floor, the exponents, and the errors with ten times as much of each axis."""
    misfit: float
    """Root mean square of the logarithm of the errors over the law."""


def _columns(points: Sequence[Point], axes: Sequence[str]) -> np.ndarray:
    values: dict[str, list[float]] = {
        "parameters": [point.n_parameters for point in points],
        "structures": [point.n_structures for point in points],
        "seconds": [point.seconds for point in points],
    }
    return np.array([values[axis] for axis in axes], dtype=float).T


def fit_points(points: list[Point], axes: Sequence[str]) -> Fit | None:
    """Law of the axes that have three values at least, at the largest value of the others; None if there is none."""
    for axis in axes:
        column = _columns(points, [axis])[:, 0]
        if len(np.unique(column)) < 3 and len(axes) > 1:
            kept = [point for point, value in zip(points, column, strict=True) if value == column.max()]
            return fit_points(kept, [other for other in axes if other != axis])
    x = _columns(points, axes)
    if not is_identifiable(x):
        return None
    ends = [x.max(axis=0) * np.where(np.arange(len(axes)) == k, _FURTHER, 1.0) for k in range(len(axes))]

    def quantities(law: Law) -> list[float]:
        return [law.floor, *law.exponents, *law(np.array(ends)).tolist()]

    law, found = intervals(x, [point.errors for point in points], quantities)
    misfit = float(np.sqrt(np.mean(np.square(np.log(law(x)) - np.log([point.mean for point in points])))))
    return Fit(tuple(axes), points, law, found, misfit)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no cheaper one beats, by training time."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: point.seconds):
        if not best or point.mean < best[-1].mean:
            best.append(point)
    return best


def _grid_table(found: Findings, task: str) -> str:
    points = {(point.size, point.n_structures): point for point in found.longest(task)}
    rows = []
    for size in found.config.sizes:
        own = [point for (name, _), point in points.items() if name == size]
        if own:
            cells = [points.get((size, n)) for n in found.config.structures]
            texts = ["" if cell is None else mean_interval(cell.errors).text(2) for cell in cells]
            rows.append([f"{size}, {own[0].n_parameters:,} parameters", *texts])
    return table(["size", *(f"{n} structures" for n in found.config.structures)], rows)


def _law_table(fits: dict[str, Fit | None]) -> str:
    rows = []
    for task, fit in fits.items():
        if fit is None:
            rows.append([task, "too few points", "", "", "", "", ""])
            continue
        floor, *rest = fit.intervals
        exponents = dict(zip(fit.axes, rest[: len(fit.axes)], strict=True))
        further = dict(zip(fit.axes, rest[len(fit.axes) :], strict=True))
        cells = [exponents[axis].text(2) if axis in exponents else "" for axis in _AXES]
        cells += [further[axis].text(2) if axis in further else "" for axis in _AXES]
        rows.append([f"{task}, {_unit(task)}", floor.text(2), *cells, f"{100 * fit.misfit:.0f} %"])
    header = ["error", "L∞", "α of parameters", "β of structures"]
    return table([*header, *(f"with {_FURTHER:.0f} times the {axis}" for axis in _AXES), "misfit"], rows)


def _compute_table(found: Findings, fits: dict[str, Fit | None]) -> str:
    rows = []
    for task, fit in fits.items():
        for point in frontier(found.points(task)):
            rows.append(
                [f"{task}, {_unit(task)}", f"{point.seconds:.0f}", mean_interval(point.errors).text(2),
                 f"{point.size}, {point.n_structures} structures, {point.steps} steps"]
            )  # fmt: skip
        if fit is not None:
            floor, exponent, further = fit.intervals
            rows.append(
                [f"{task}: law", "", f"L∞ {floor.text(2)}, γ {exponent.text(2)}",
                 f"{further.text(2)} with {_FURTHER:.0f} times the time"]
            )  # fmt: skip
    return table(["error", "seconds of training", "least error", "by"], rows)


def cautions(found: Findings) -> list[str]:
    """Why exponents may not hold beyond the grid."""
    lines = []
    for task in found.tasks[:1]:
        points = found.longest(task)
        for axis in _AXES:
            values = np.unique(_columns(points, [axis]))
            if len(values) < _FEWEST_VALUES or values[-1] < _LEAST_RANGE * values[0]:
                lines.append(
                    f"{axis}: {len(values)} values over a factor of {values[-1] / values[0]:.0f}; an exponent that"
                    f" predicts needs {_FEWEST_VALUES} over {_LEAST_RANGE:.0f}"
                )
    if found.config.seeds < 2:
        lines.append("one seed: no intervals")
    lines.append("training time is that of this machine; exponents belong to this architecture and these data")
    return lines


def _lines(axis: Axes, fit: Fit, along: str) -> None:
    """The law along an axis, for each value of the other."""
    place = fit.axes.index(along)
    x = _columns(fit.points, fit.axes)
    others = np.unique(np.delete(x, place, axis=1), axis=0) if len(fit.axes) > 1 else np.empty((1, 0))
    grid = np.geomspace(x[:, place].min(), x[:, place].max(), 50)
    for other in others:
        values = np.insert(np.tile(other, (len(grid), 1)), place, grid, axis=1)
        axis.plot(grid, fit.law(values), color="0.6", linewidth=0.8, zorder=0)


def _draw(found: Findings, laws: dict[str, Fit | None], compute: dict[str, Fit | None], path: Path) -> None:
    figure = Figure(figsize=(11.0, 3.2 * len(found.tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, task in enumerate(found.tasks):
        panels = [figure.add_subplot(len(found.tasks), 3, 3 * row + k + 1) for k in range(3)]
        for axis, along in zip(panels, (*_AXES, "seconds"), strict=True):
            points = found.points(task) if along == "seconds" else found.longest(task)
            groups = [f"{p.n_structures} structures" if along == "parameters" else p.size for p in points]
            for k, group in enumerate(dict.fromkeys(groups)):
                own = [point for point, name in zip(points, groups, strict=True) if name == group]
                means = [point.mean for point in own]
                axis.plot(_columns(own, [along])[:, 0], means, "o", color=f"C{k}", label=group, markersize=4)
            fit = compute[task] if along == "seconds" else laws[task]
            if fit is not None and along in fit.axes:
                _lines(axis, fit, along)
            axis.set(xscale="log", yscale="log", xlabel="seconds of training" if along == "seconds" else along)
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=7)
        panels[0].set_ylabel(f"{task} MAE, {_unit(task)}")
    figure.savefig(path, dpi=130)


def write_report(config: ScalingConfig, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` (in one file, works offline) and the figure, from the models there are.

    Raises
    ------
    ValueError
        If there is no model yet.
    """
    found = Findings(config, folder)
    if not found.tasks:
        raise ValueError(f"no model of `{config.name}` is finished in `{folder}`; run `mfm scaling` first")
    laws = {task: fit_points(found.longest(task), _AXES) for task in found.tasks}
    compute = {task: fit_points(frontier(found.points(task)), ["seconds"]) for task in found.tasks}
    figure = folder / "report.png"
    _draw(found, laws, compute, figure)
    sections = [
        ("laws L = L∞ + a N^−α + b D^−β", _law_table(laws)),
        *((f"{task} MAE, {_unit(task)}, longest training", _grid_table(found, task)) for task in found.tasks),
        ("compute: the least error for its time", _compute_table(found, compute)),
        ("what this cannot say", "\n".join(f"- {line}" for line in cautions(found))),
    ]
    cells = [cell for group in found.cells.values() for cell in group]
    preface = (
        f"{len(cells)} of {len(config.cells())} models, {config.seeds} seeds; means are geometric, intervals 95 %:"
        " Student's for errors, bootstrap over seeds for laws, which are fitted to logarithms at the longest training."
        f" {provenance(cells)}"
    )
    return write_pages(folder, config.name, preface, figure, sections)
