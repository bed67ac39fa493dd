"""What a search leaves: table, figures, the best settings as run files, a summary."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mfm.config import validate
from mfm.training.recipe import RunConfig
from mfm.tuning.figures import plot_contour, plot_front, plot_history, plot_importances
from mfm.tuning.objectives import COST
from mfm.tuning.study import Study, TrialRecord
from mfm.tuning.worker import Search, trial_name

__all__ = ["Results", "describe", "write_results"]


@dataclasses.dataclass(frozen=True)
class Results:
    """A search as far as it has come."""

    search: Search
    records: Sequence[TrialRecord]
    front: Sequence[int]
    """Trials that no other beats in every objective; with one objective, the best."""
    importances: Mapping[str, Mapping[str, float]]
    """Objective → setting → share of the variance; without objectives that have too few trials."""
    recipes: Mapping[int, Path]
    """Trial of :attr:`front` → run file that reproduces it."""
    files: Sequence[Path]
    """All that was written."""

    @property
    def n_ended(self) -> int:
        """Number of trials that have ended, in whatever way: it grows whenever a search that was stopped goes on."""
        return sum(record.state not in ("waiting", "running") for record in self.records)

    @property
    def metrics(self) -> dict[str, float]:
        """Number of trials by state, and the smallest value of each objective."""
        states = ("complete", "pruned", "failed", "running", "waiting")
        counts = {f"trials/{state}": float(self._count(state)) for state in states}
        complete = [record for record in self.records if record.state == "complete"]
        if not complete:
            return counts
        best = {f"best/{name}": min(r.values[k] for r in complete) for k, name in enumerate(self.search.objectives)}
        return counts | best

    def to_markdown(self) -> str:
        """Summary: how trials ended, the best of them, what mattered."""
        ends = [
            f"{self._count(s)} {s}" for s in ("complete", "pruned", "failed", "running", "waiting") if self._count(s)
        ]
        lines = [f"study `{self.search.study}`: {', '.join(ends) or 'no trials'}", ""]
        if self.front:
            lines += [*self._table(), ""]
        for name, shares in self.importances.items():
            lines.append(f"what moved {name}: " + ", ".join(f"{key} {100 * s:.0f} %" for key, s in shares.items()))
        reasons = [record for record in self.records if record.state == "failed"]
        lines += [f"trial {record.number} failed: {_first_line(record.reason)}" for record in reasons[:3]]
        return "\n".join(lines)

    def _count(self, state: str) -> int:
        return sum(record.state == state for record in self.records)

    def _table(self) -> list[str]:
        by_number = {record.number: record for record in self.records}
        columns = list(self.search.objectives) + [COST] * (COST not in self.search.objectives)
        keys = list(self.search.space.searched)
        lines = ["| trial | " + " | ".join([*columns, *keys]) + " |", "| --- " * (1 + len(columns) + len(keys)) + "|"]
        for record in (by_number[number] for number in self.front):
            cells = [f"{record.metrics[name]:.4g}" for name in columns]
            cells += [_short(record.settings.get(key)) for key in keys]
            lines.append(f"| {record.number} | " + " | ".join(cells) + " |")
        return lines


def describe(record: TrialRecord, search: Search) -> str:
    """One line on a trial that has ended."""
    parts = [f"trial {record.number} {record.state}"]
    parts += [f"{name} {value:.4g}" for name, value in zip(search.objectives, record.values, strict=False)]
    parts += [f"{key}={_short(value)}" for key, value in record.settings.items()]
    if record.state == "failed":
        parts.append(_first_line(record.reason))
    return " | ".join([*parts, f"{record.seconds:.0f} s"])


def write_results(search: Search, study: Study) -> Results:
    """Write table, figures, summary and run files of a search to its folder."""
    records = [record for record in study.records() if record.number < search.n_trials]
    complete = [record for record in records if record.state == "complete"]
    front = study.front() if complete else []
    files = [_write_table(search, records)]
    importances: dict[str, dict[str, float]] = {}
    recipes: dict[int, Path] = {}
    if complete:
        found = {name: study.importances(k) for k, name in enumerate(search.objectives)}
        importances = {name: shares for name, shares in found.items() if shares}
        recipes = _write_recipes(search, [record for record in records if record.number in front])
        files += [*_draw(search, records, front, importances), *recipes.values()]
    results = Results(search, records, front, importances, recipes, files)
    summary = search.folder / "summary.md"
    summary.write_text(results.to_markdown() + "\n", encoding="utf-8")
    return dataclasses.replace(results, files=[summary, *files])


def _write_table(search: Search, records: Sequence[TrialRecord]) -> Path:
    path = search.folder / "trials.csv"
    metrics = sorted({name for record in records for name in record.metrics})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "seconds", *search.space.searched, *metrics, "reason"])
        for record in records:
            settings = [record.settings.get(key, "") for key in search.space.searched]
            found = [record.metrics.get(name, "") for name in metrics]
            writer.writerow([record.number, record.state, f"{record.seconds:.1f}", *settings, *found, record.reason])
    return path


def _write_recipes(search: Search, records: Sequence[TrialRecord]) -> dict[int, Path]:
    """Run files of the best trials, with every default in them; those of an earlier call that are beaten go."""
    single = len(search.objectives) == 1
    for old in search.folder.glob("best*.yaml"):
        old.unlink(missing_ok=True)  # another machine may do the same
    paths = {}
    for record in records:
        ending = "best" if single else f"best-{record.number:03d}"
        config = validate(RunConfig, search.trial_recipe(record.settings, f"{search.study}-{ending}"))
        paths[record.number] = search.folder / f"{ending}.yaml"
        values = ", ".join(f"{name} {value!r}" for name, value in zip(search.objectives, record.values, strict=True))
        head = f"# {trial_name(record.number)} of the study {search.study}: {values}\n"
        timed = any(stage.max_minutes is not None and not stage.skip for stage in config.stages)
        if timed:
            head += "# Stages are counted in minutes: no two runs take the same steps, so figures differ a little.\n"
        content = config.model_dump(mode="json")
        if search.initial:
            head += f"# Starts from a checkpoint: mfm train {paths[record.number]} --from {search.initial}\n"
            # defaults would stand for another representation than the checkpoint's
            content["model"] = config.model.model_dump(mode="json", include=config.model.model_fields_set)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        paths[record.number].write_text(head + text, encoding="utf-8")
    return paths


def _draw(
    search: Search,
    records: Sequence[TrialRecord],
    front: Sequence[int],
    importances: Mapping[str, Mapping[str, float]],
) -> list[Path]:
    files = [search.folder / "history.png"]
    plot_history(records, search.objectives, files[-1])
    if importances:
        files.append(search.folder / "importances.png")
        plot_importances(importances, files[-1])
    first = search.objectives[0]
    shares = list(importances.get(first, {}))
    if len(shares) >= 2:
        files.append(search.folder / "contour.png")
        plot_contour(records, (0, first), (shares[0], shares[1]), search.space.searched, files[-1])
    if len(search.objectives) > 1:
        files.append(search.folder / "front.png")
        plot_front(records, front, search.objectives, files[-1])
    return files


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason known"
