"""What a run will cost, before it starts: labels and CPU-hours of each level."""

import collections
from typing import NamedTuple

from mfm.labelling.checks import estimate_seconds
from mfm.labelling.levels import Request, base_identifier
from mfm.labelling.store import LabelStore

__all__ = ["LevelCost", "estimate_run", "format_costs"]

_ENOUGH = 5
"""Labels of a level that a store must hold before they correct the estimate of the others."""


class LevelCost(NamedTuple):
    """Work left at one level."""

    fidelity: str
    n_labels: int
    cpu_hours: float
    n_measured: int
    """Labels of this store that the estimate is corrected by."""


def estimate_run(store: LabelStore) -> list[LevelCost]:
    """Cost of what is left in the queue, by level."""
    levels, fidelities = store.levels(), store.fidelities()
    ratios = _measured_over_estimated(store)
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for job in store.pending():
        identifier = base_identifier(job.level)
        expected = estimate_seconds(job.structure, Request.from_key(job.level, levels))
        seconds[identifier] += expected * ratios.get(identifier, (1.0, 0))[0]
        counts[identifier] += 1
    return [
        LevelCost(name, counts[key], seconds[key] / 3600, ratios.get(key, (1.0, 0))[1])
        for key, name in fidelities.items()
        if counts[key]
    ]


def _measured_over_estimated(store: LabelStore) -> dict[str, tuple[float, int]]:
    """Level identifier → factor that makes estimates agree with the labels there are, and their number."""
    levels = store.levels()
    measured: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    expected: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    for key, structure, seconds in store.seconds():
        identifier = base_identifier(key)
        measured[identifier].append(seconds)
        expected[identifier].append(estimate_seconds(structure, Request.from_key(key, levels)))
    return {
        key: (sum(taken) / sum(expected[key]), len(taken)) for key, taken in measured.items() if len(taken) >= _ENOUGH
    }


def format_costs(costs: list[LevelCost], n_workers: int, hours: float) -> str:
    """Table of :func:`estimate_run`, and whether the time allowed will do."""
    if not costs:
        return "nothing to label: every label that is queued has an answer\n"
    lines = ["level            labels  CPU-hours"]
    for cost in costs:
        note = f"  (corrected by {cost.n_measured} labels of this store)" if cost.n_measured else ""
        lines.append(f"{cost.fidelity:14s} {cost.n_labels:8d} {cost.cpu_hours:10.2f}{note}")
    total = sum(cost.cpu_hours for cost in costs)
    lines.append(f"{'all':14s} {sum(c.n_labels for c in costs):8d} {total:10.2f}")
    needed = total / n_workers
    verdict = "fits" if needed <= hours else f"is stopped by the budget of {hours:.3g} h; run it again to go on"
    lines.append(f"about {needed:.2g} h with {n_workers} workers (right to a factor of two): {verdict}")
    return "\n".join(lines) + "\n"
