"""Tracked runs side by side: settings that differ, errors per fidelity, spread over seeds; as text and as one page."""

import dataclasses
import html
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm import tracking
from mfm.properties import parse_task

__all__ = ["Comparison", "Table", "compare"]

_LABELS = ("name", "output", "tracking")
"""Parameters that name a run rather than set it."""
_MOST_PANELS = 12


class Table(NamedTuple):
    """Cells with a heading; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def to_text(self) -> str:
        """Aligned columns."""
        cells = [self.header, *self.rows]
        widths = [min(max(len(row[column]) for row in cells), 60) for column in range(len(self.header))]
        lines = ["  ".join(cell[:60].ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def to_html(self) -> str:
        """A heading and a table."""
        lines = [f"<h2>{html.escape(self.title)}</h2>", "<table>"]
        for row, tag in [(self.header, "th"), *((row, "td") for row in self.rows)]:
            lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
        return "\n".join([*lines, "</table>"])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found."""

    tables: list[Table]
    figures: dict[str, bytes]
    """Title to a PNG image."""

    def to_text(self) -> str:
        """The tables."""
        return "\n\n".join(table.to_text() for table in self.tables)

    def to_html(self) -> str:
        """The tables and the figures as one page that needs nothing from elsewhere."""
        parts = [table.to_html() for table in self.tables]
        for title, image in self.figures.items():
            parts.append(f'<h2>{html.escape(title)}</h2>\n<img alt="{html.escape(title)}" src="{_embedded(image)}">')
        return _PAGE.format(body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison of runs</title><style>
body {{ font: 14px/1.4 sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid #ccc; padding: 2px 10px; text-align: left; }}
td {{ font-variant-numeric: tabular-nums; }} img {{ max-width: 100%; }}
</style></head><body>
<h1>Comparison of runs</h1>
{body}
</body></html>
"""


def _embedded(image: bytes) -> str:
    return f"data:image/png;base64,{b64encode(image).decode()}"


def compare(
    keys: Sequence[str], directory: str | Path = tracking.DEFAULT_DIRECTORY, every: bool = False, figures: bool = False
) -> Comparison:
    """Compare tracked runs; differences are to the first.

    Parameters
    ----------
    keys : sequence of str
        Folders or names of runs, or the first characters of their ids.
    directory : path
        Folder of runs, where ``MFM_TRACKING_URI`` names none.
    every : bool
        Also list parameters that agree, and training metrics.
    figures : bool
        Also draw learning curves and, from what finished runs recorded of their predictions, parity plots.

    Raises
    ------
    ValueError
        If a run is not found, or the store cannot be read.
    """
    location = tracking.locate(directory)
    store = tracking.open_store(location)
    runs = tracking.read_runs(store, keys)
    names = [f"{run.name} {run.id[:8]}" for run in runs]
    tables = [_settings(runs, names, every), *_errors(runs, names, every), *_spread(runs)]
    drawn: dict[str, bytes] = {}
    if figures:
        drawn |= _draw_curves(store, runs, names)
        drawn |= _draw_parity(store, runs, names)
    return Comparison([table for table in tables if table.rows], drawn)


def _settings(runs: Sequence[tracking.RunRecord], names: list[str], every: bool) -> Table:
    rows = [["status", *(run.status for run in runs)]]
    for kind in ("tags", "params"):
        for key in sorted(set().union(*(getattr(run, kind) for run in runs))):
            values = [getattr(run, kind).get(key, "-") for run in runs]
            if every or (len(set(values)) > 1 and key.split(".")[0] not in _LABELS):
                rows.append([key, *values])
    return Table("Settings" if every else "Settings that differ", ["", *names], rows)


def _errors(runs: Sequence[tracking.RunRecord], names: list[str], every: bool) -> list[Table]:
    """A table per fidelity, and one of training metrics if they are wanted."""
    groups: dict[str, list[str]] = {}
    for metric in sorted(set().union(*(run.metrics for run in runs))):
        fidelity = _fidelity(metric)
        if fidelity or every:
            groups.setdefault(fidelity, []).append(metric)
    tables = []
    for fidelity, metrics in sorted(groups.items(), key=lambda item: (not item[0], item[0])):
        rows = [[metric, *_with_differences([run.metrics.get(metric) for run in runs])] for metric in metrics]
        title = f"Errors at {fidelity}, and differences to the first run" if fidelity else "Other metrics"
        tables.append(Table(title, ["", *names], rows))
    return tables


def _fidelity(metric: str) -> str:
    """Fidelity of a validation or test error; empty for other metrics."""
    split, _, rest = metric.partition("/")
    task = rest.partition("/")[0]
    return parse_task(task).fidelity if split in ("val", "test") and "_" in task else ""


def _with_differences(values: Sequence[float | None]) -> list[str]:
    first, cells = values[0], []
    for number, value in enumerate(values):
        if value is None:
            cells.append("-")
        elif number == 0 or first is None:
            cells.append(f"{value:.3f}")
        else:
            cells.append(f"{value:.3f} ({value - first:+.3f})")
    return cells


def _spread(runs: Sequence[tracking.RunRecord]) -> list[Table]:
    """A table per group of runs that only their seed sets apart."""
    groups: dict[tuple[tuple[str, str], ...], list[tracking.RunRecord]] = {}
    for run in runs:
        settings = {key: value for key, value in run.params.items() if key.split(".")[0] not in (*_LABELS, "seed")}
        settings["data digest"] = run.tags.get("mfm.data", "")
        settings["init"] = run.tags.get("mfm.init", "")
        groups.setdefault(tuple(sorted(settings.items())), []).append(run)
    tables = []
    for group in groups.values():
        if len({run.params.get("seed") for run in group}) < 2:
            continue
        rows = []
        for metric in sorted(set.intersection(*(set(run.metrics) for run in group))):
            values = [run.metrics[metric] for run in group]
            if _fidelity(metric) and not metric.endswith("/count"):
                cells = [np.mean(values), np.std(values, ddof=1), min(values), max(values)]
                rows.append([metric, *(f"{value:.3f}" for value in cells)])
        title = f"Over {len(group)} seeds: {', '.join(f'{run.name} {run.id[:8]}' for run in group)}"
        tables.append(Table(title, ["", "mean", "standard deviation", "smallest", "largest"], rows))
    return tables


def _draw_curves(store: tracking.Store, runs: Sequence[tracking.RunRecord], names: list[str]) -> dict[str, bytes]:
    """Learning curves of the loss and of one validation error per task."""
    from mfm.evaluation.plots import draw_overlaid_curves

    known = set().union(*(run.metrics for run in runs))
    wanted = [metric for metric in sorted(known) if metric.startswith("val/") and "/mae_" in metric]
    # an energy has its error per atom too, which is the one that compares
    wanted = [metric for metric in wanted if f"{metric}_per_atom" not in known]
    curves = {
        name: tracking.read_curves(store, run, ["train/loss", *wanted][:_MOST_PANELS])
        for name, run in zip(names, runs, strict=True)
    }
    if not any(curves.values()):
        return {}
    return {"Learning curves": draw_overlaid_curves(curves)}


def _draw_parity(store: tracking.Store, runs: Sequence[tracking.RunRecord], names: list[str]) -> dict[str, bytes]:
    """A parity plot per split and fidelity with every run that recorded its predictions."""
    # torch and matplotlib take seconds to import: a table does not wait for them
    from mfm.evaluation.evaluate import read_points
    from mfm.evaluation.plots import draw_overlaid_parity

    figures: dict[str, dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}
    for name, run in zip(names, runs, strict=True):
        for path in store.files(run.id):
            if not path.endswith("_parity.npz"):
                continue
            split = path.removesuffix("_parity.npz")
            with tempfile.TemporaryDirectory(prefix="mfm-") as folder:
                points = read_points(store.fetch(f"{run.artifacts}/{path}", Path(folder)))
            for task, found in points.items():
                title = f"Parity, {split}, {parse_task(task).fidelity}"
                figures.setdefault(title, {}).setdefault(task, {})[name] = found
    return {title: draw_overlaid_parity(tasks) for title, tasks in sorted(figures.items())}
