"""Metrics of a run, in a file that survives restarts, and beside it in the experiment tracker."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["History", "MetricSink"]


class MetricSink(Protocol):
    """What else receives metrics, such as a tracked run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Receive metrics of an optimiser step."""


class History:
    """JSON lines of ``{"stage": ..., "step": ..., "metrics": {...}}``, one per report.

    Parameters
    ----------
    path : Path
        Appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """Add a line; `step` counts within the stage."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, "metrics": dict(metrics)}) + "\n")

    def forget_after(self, stages: list[str], current: str, step: int) -> None:
        """Drop what a resumed run will report again: lines of `current` beyond `step`, and of stages not yet begun.

        Parameters
        ----------
        stages : list of str
            Finished stages.
        """
        kept = [
            line
            for line in self._lines()
            if line["stage"] in stages or (line["stage"] == current and line["step"] <= step)
        ]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def curves(self) -> tuple[dict[str, list[tuple[int, float]]], dict[str, int]]:
        """Metric → (step over all stages, value) pairs, and stage → its first step."""
        curves: dict[str, list[tuple[int, float]]] = {}
        first: dict[str, int] = {}
        last = 0
        for line in self._lines():
            offset = first.setdefault(line["stage"], last)
            last = offset + line["step"]
            for name, value in line["metrics"].items():
                curves.setdefault(name, []).append((last, value))
        return curves, first

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line]
