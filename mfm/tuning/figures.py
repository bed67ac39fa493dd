"""Figures of a search: history, importances, contours, Pareto front."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.tri import Triangulation

from mfm.evaluation.plots import new_figure
from mfm.tuning.space import Choice, Interval
from mfm.tuning.study import TrialRecord

__all__ = ["plot_contour", "plot_front", "plot_history", "plot_importances"]


def plot_history(records: Sequence[TrialRecord], objectives: Sequence[str], path: Path) -> None:
    """Draw each objective over the number of the trial, with the best so far; other ends are ticks on the axis."""
    figure, axes = new_figure(len(objectives), columns=2)
    complete = [record for record in records if record.state == "complete"]
    for column, (axis, name) in enumerate(zip(axes, objectives, strict=True)):
        numbers = [record.number for record in complete]
        values = np.array([record.values[column] for record in complete])
        axis.plot(numbers, values, "o", markersize=4, label="complete")
        axis.plot(numbers, np.minimum.accumulate(values), drawstyle="steps-post", linewidth=1.0, label="best so far")
        for state, colour in (("pruned", "C1"), ("failed", "C3")):
            ended = [record.number for record in records if record.state == state]
            if ended:
                bottom = axis.get_xaxis_transform()
                axis.plot(ended, np.zeros(len(ended)), "|", color=colour, transform=bottom, label=state, clip_on=False)
        if (values > 0).all():
            axis.set_yscale("log")
        axis.set_xlabel("trial")
        axis.set_title(name, fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def plot_importances(importances: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the share of each setting in the variance of each objective.

    Parameters
    ----------
    importances : mapping of objective to setting to share
    """
    figure, axes = new_figure(len(importances), columns=2)
    for axis, (name, shares) in zip(axes, importances.items(), strict=True):
        settings = list(shares)[::-1]
        axis.barh(settings, [shares[setting] for setting in settings])
        axis.set_xlabel("share of the variance")
        axis.set_title(name, fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=150)


def plot_contour(
    records: Sequence[TrialRecord],
    objective: tuple[int, str],
    settings: tuple[str, str],
    searched: Mapping[str, Interval | Choice],
    path: Path,
) -> None:
    """Draw an objective over two settings: a point per complete trial, and contours between them.

    Parameters
    ----------
    objective : (column, name)
    settings : two dotted keys
    searched : mapping of dotted key to Interval or Choice
        Says how the axes are divided.
    """
    column, name = objective
    complete = [record for record in records if record.state == "complete" and set(settings) <= record.settings.keys()]
    values = np.array([record.values[column] for record in complete])
    figure, (axis,) = new_figure(1, columns=1)
    x, y = (_positions(complete, key, searched[key]) for key in settings)
    if _spread(x, y):
        axis.tricontourf(Triangulation(x, y), values, levels=12, cmap="viridis_r", alpha=0.6)
    points = axis.scatter(x, y, c=values, cmap="viridis_r", edgecolors="black", linewidths=0.5, s=22)
    figure.colorbar(points, ax=axis)
    axis.margins(0.05)
    _label(axis, "x", settings[0], searched[settings[0]])
    _label(axis, "y", settings[1], searched[settings[1]])
    axis.set_title(name, fontsize=8)
    figure.savefig(path, dpi=150)


def plot_front(records: Sequence[TrialRecord], front: Sequence[int], objectives: Sequence[str], path: Path) -> None:
    """Draw every further objective against the first; trials that no other beats are numbered and joined."""
    complete = [record for record in records if record.state == "complete"]
    figure, axes = new_figure(len(objectives) - 1, columns=2)
    for column, axis in enumerate(axes, start=1):
        axis.plot([r.values[0] for r in complete], [r.values[column] for r in complete], "o", color="0.7", markersize=4)
        best = sorted((r for r in complete if r.number in front), key=lambda record: record.values)
        line = "o-" if len(objectives) == 2 else "o"
        axis.plot([r.values[0] for r in best], [r.values[column] for r in best], line, markersize=5, linewidth=1.0)
        for record in best:
            point = record.values[0], record.values[column]
            axis.annotate(str(record.number), point, textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set_xlabel(objectives[0], fontsize=8)
        axis.set_ylabel(objectives[column], fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _positions(records: Sequence[TrialRecord], key: str, setting: Interval | Choice) -> np.ndarray:
    """Where trials lie along an axis: the logarithm of a logarithmic range, the place of an option."""
    found: list[Any] = [record.settings[key] for record in records]
    if isinstance(setting, Choice):
        return np.array([setting.options.index(value) for value in found], dtype=np.float64)
    return np.log10(found) if setting.log else np.array(found, dtype=np.float64)


def _spread(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the points span a plane: contours need triangles."""
    points = np.unique(np.stack([x, y], axis=1), axis=0)
    if len(points) < 4:
        return False
    scaled = (points - points.mean(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-300)
    return bool(np.linalg.matrix_rank(scaled, tol=1e-3) == 2)


def _label(axis: Axes, which: str, key: str, setting: Interval | Choice) -> None:
    text = f"log10 {key}" if isinstance(setting, Interval) and setting.log else key
    axis.set(**{f"{which}label": text})
    if isinstance(setting, Choice):
        names = [option if isinstance(option, str) else json.dumps(option) for option in setting.options]
        axis.set(**{f"{which}ticks": range(len(names)), f"{which}ticklabels": names})
