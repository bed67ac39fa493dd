"""Figures: learning curves and parity plots. No global matplotlib state is touched."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.evaluation.metrics import Prediction, errors, report_unit
from mfm.properties import PROPERTIES, parse_task

__all__ = [
    "draw_overlaid_curves",
    "draw_overlaid_parity",
    "new_figure",
    "plot_learning_curves",
    "plot_parity",
    "thinned",
]

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
    shown = thinned(target, _MOST_POINTS)
    low, high = float(target.min()), float(target.max())
    margin = 0.05 * (high - low) or 1.0
    axis.plot([low - margin, high + margin], [low - margin, high + margin], color="0.6", linewidth=0.8)
    axis.plot(target[shown], predicted[shown], ".", markersize=3, alpha=0.5, color="C0", rasterized=True)
    unit = PROPERTIES[parse_task(task).property].unit
    axis.set_xlabel(f"label ({unit})")
    axis.set_ylabel(f"prediction ({unit})")
    found, report = errors(task, prediction), report_unit(task)
    text = f"MAE {found[f'mae_{report.suffix}']:.2f}\nRMSE {found[f'rmse_{report.suffix}']:.2f} {report.symbol}"
    axis.annotate(f"{text}\nn = {int(found['count'])}", (0.04, 0.96), xycoords="axes fraction", va="top", fontsize=8)
    axis.set_title(task, fontsize=9)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most so many values, evenly over the array."""
    return np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64)


def draw_overlaid_curves(runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> bytes:
    """PNG image with a panel per metric and, in each, a curve per run.

    Parameters
    ----------
    runs : mapping of run to metric to (step, value) pairs
        Not all empty.
    """
    metrics = list(dict.fromkeys(metric for curves in runs.values() for metric in curves))
    figure, axes = new_figure(len(metrics), columns=3)
    for axis, metric in zip(axes, metrics, strict=True):
        positive = True
        for number, (name, curves) in enumerate(runs.items()):
            if metric in curves:
                steps, values = np.array(curves[metric], dtype=np.float64).T
                positive = positive and bool((values > 0).all())
                marker = "." if len(steps) < 60 else ""
                axis.plot(steps, values, color=f"C{number % 10}", linewidth=1.0, marker=marker, label=name)
        if positive:
            axis.set_yscale("log")
        axis.set_title(metric, fontsize=8)
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    return _with_legend(figure, axes)


def draw_overlaid_parity(tasks: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> bytes:
    """PNG image with a panel per task and, in each, the points of every run.

    Parameters
    ----------
    tasks : mapping of task to run to (labels, predictions)
        In the unit of the property.
    """
    figure, axes = new_figure(len(tasks), columns=3)
    for axis, (task, runs) in zip(axes, tasks.items(), strict=True):
        labels = np.concatenate([target for target, _ in runs.values()])
        axis.axline((float(labels.min()), float(labels.min())), slope=1, color="0.6", linewidth=0.8)
        for number, (name, (target, predicted)) in enumerate(runs.items()):
            axis.plot(target, predicted, ".", label=name, color=f"C{number % 10}", alpha=0.5, markersize=3)
        unit = PROPERTIES[parse_task(task).property].unit
        axis.set_xlabel(f"label ({unit})")
        axis.set_ylabel(f"prediction ({unit})")
        axis.set_title(task, fontsize=9)
    return _with_legend(figure, axes)


def _with_legend(figure: Figure, axes: Sequence[Axes]) -> bytes:
    """PNG image of a figure with one legend for all panels, below them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=8, ncols=3)
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    return image.getvalue()
