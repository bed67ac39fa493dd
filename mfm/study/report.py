"""Reports of studies: intervals over seeds, tables, and one page that works offline."""

import base64
import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["CONFIDENCE", "Interval", "mean_interval", "provenance", "table", "write_pages"]

CONFIDENCE = 0.95
"""Of all intervals."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1) -> str:
        """As it stands in a table."""
        if math.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def mean_interval(values: Sequence[float]) -> Interval:
    """Geometric mean of errors over seeds, with Student's interval of their logarithms; none for a single seed.

    Examples
    --------
    >>> mean_interval([1.0, 2.0, 4.0]).text(2)
    '2.00 (0.36 to 11.19)'
    """
    logarithms = np.log(np.asarray(values, dtype=float))
    mean = float(logarithms.mean())
    if len(logarithms) < 2:
        return Interval(math.exp(mean), math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logarithms) - 1) * stats.sem(logarithms))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def provenance(cells: Sequence[Mapping[str, Any]]) -> str:
    """What made the models of a report; a grid that was stopped may name several versions or machines."""
    made = {
        key: ", ".join(sorted({str(cell[key]) for cell in cells})) for key in ("commit", "test_digest", "processor")
    }
    return f"Commit {made['commit']}, test data {made['test_digest']}, {made['processor']}."


def write_pages(folder: Path, name: str, preface: str, figure: Path, sections: Sequence[tuple[str, str]]) -> list[Path]:
    """Write ``report.md`` and ``report.html``; the page holds the figure.

    Parameters
    ----------
    figure : Path
        PNG in the folder.
    sections : sequence of (title, text)
        Texts are a table, a list or a paragraph in Markdown.

    Returns
    -------
    list of Path
        Markdown, page, figure.
    """
    markdown, page = folder / "report.md", folder / "report.html"
    body = "\n\n".join(f"## {title[0].upper()}{title[1:]}\n\n{text}" for title, text in sections)
    markdown.write_text(f"# {name}\n\n{preface}\n\n![errors]({figure.name})\n\n{body}\n", encoding="utf-8")
    page.write_text(_page(name, preface, figure, sections), encoding="utf-8")
    return [markdown, page, figure]


def _page(name: str, preface: str, figure: Path, sections: Sequence[tuple[str, str]]) -> str:
    image = base64.b64encode(figure.read_bytes()).decode("ascii")
    parts = [f"<h2>{html.escape(title[0].upper() + title[1:])}</h2>{_to_html(text)}" for title, text in sections]
    style = "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(name)}</title><style>{style}</style>'
        f"<h1>{html.escape(name)}</h1><p>{html.escape(preface)}</p>"
        f'<img style="max-width:100%" alt="errors" src="data:image/png;base64,{image}">{"".join(parts)}'
    )


def _to_html(text: str) -> str:
    """A table or a list of the report as HTML."""
    lines = text.splitlines()
    if lines[0].startswith("|"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if " --- " not in line]
        cells = ["".join(f"<{'td' if k else 'th'}>{_inline(c)}</{'td' if k else 'th'}>" for c in row)
                 for k, row in enumerate(rows)]  # fmt: skip
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
    if lines[0].startswith("- "):
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    return html.escape(text).replace("**hurts**", "<b>hurts</b>").replace("`", "")
