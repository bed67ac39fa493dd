"""Figures: learning curves and parity plots. No global matplotlib state is touched."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.evaluation.metrics import Prediction, errors, report_unit
from mfm.properties import PROPERTIES, parse_task

__all__ = ["new_figure", "plot_learning_curves", "plot_parity"]

_PANEL = 3.2
"""Inches."""
_MOST_POINTS = 20_000
"""Points a parity panel draws; more only make the file large."""


def new_figure(n_panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure that only files show, and its panels in rows of so many columns."""
    columns = min(columns, n_panels)
    rows = math.ceil(n_panels / columns)
    figure = Figure(figsize=(_PANEL * 1.15 * columns, _PANEL * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, panel + 1) for panel in range(n_panels)]


def plot_learning_curves(
    history: Mapping[str, Sequence[tuple[int, float]]], path: Path, boundaries: Mapping[str, int] | None = None
) -> None:
    """Draw each metric over the optimiser steps, on logarithmic axes.

    Parameters
    ----------
    history : mapping of metric name to (step, value) pairs
        One panel per metric.
    path : Path
        File to write; the ending decides the format.
    boundaries : mapping of stage name to its first step, optional
        Drawn as vertical lines.

    Raises
    ------
    ValueError
        If there is no metric.
    """
    if not history:
        raise ValueError("learning curves need at least one metric, got none; train with a validation set")
    figure, axes = new_figure(len(history), columns=3)
    for axis, (name, points) in zip(axes, history.items(), strict=True):
        steps, values = np.array(points, dtype=np.float64).T
        axis.plot(steps, values, color="C0", linewidth=1.2, marker="." if len(steps) < 60 else "")
        if (values > 0).all():
            axis.set_yscale("log")
        for stage, first in (boundaries or {}).items():
            axis.axvline(first, color="0.7", linewidth=0.8)
            axis.annotate(stage, (first, 0.98), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top")
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_parity(predictions: Mapping[str, Prediction], path: Path, title: str = "") -> None:
    """Draw prediction against label, a panel per task, with the error distribution as inset numbers.

    Parameters
    ----------
    predictions : mapping of task to Prediction
    path : Path
        File to write.

    Raises
    ------
    ValueError
        If no task has a label.
    """
    shown = {task: prediction for task, prediction in predictions.items() if len(prediction.target)}
    if not shown:
        raise ValueError("a parity plot needs labels, got none; check that the file has the model's fidelities")
    figure, axes = new_figure(len(shown), columns=2)
    for axis, (task, prediction) in zip(axes, shown.items(), strict=True):
        _parity_panel(axis, task, prediction)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _parity_panel(axis: Axes, task: str, prediction: Prediction) -> None:
    target, predicted = prediction.target.reshape(-1), prediction.predicted.reshape(-1)
    stride = max(1, len(target) // _MOST_POINTS)
    low, high = float(target.min()), float(target.max())
    margin = 0.05 * (high - low) or 1.0
    axis.plot([low - margin, high + margin], [low - margin, high + margin], color="0.6", linewidth=0.8)
    axis.plot(target[::stride], predicted[::stride], ".", markersize=3, alpha=0.5, color="C0", rasterized=True)
    unit = PROPERTIES[parse_task(task).property].unit
    axis.set_xlabel(f"label ({unit})")
    axis.set_ylabel(f"prediction ({unit})")
    found, report = errors(task, prediction), report_unit(task)
    text = f"MAE {found[f'mae_{report.suffix}']:.2f}\nRMSE {found[f'rmse_{report.suffix}']:.2f} {report.symbol}"
    axis.annotate(f"{text}\nn = {int(found['count'])}", (0.04, 0.96), xycoords="axes fraction", va="top", fontsize=8)
    axis.set_title(task, fontsize=9)
