"""Reading runs back: by name or identifier, with the settings and curves of their stages."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfm.tracking.journal import JOURNAL, Position
from mfm.tracking.store import Store

__all__ = ["RunRecord", "find_run", "read_curves", "read_runs"]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run with its stages."""

    id: str
    name: str
    status: str
    params: dict[str, str]
    """Parameters; those of a stage begin with its name."""
    tags: dict[str, str]
    """Tags of mfm, without MLflow's own."""
    metrics: dict[str, float]
    """Last values."""
    artifacts: str
    """URI of the folder of its files."""
    children: tuple[str, ...]
    """Identifiers of the stages, in the order in which they began."""


def find_run(store: Store, key: str) -> Any:
    """Run of the folder `key`, or whose id starts with `key`, or the newest whose name is `key`, as MLflow has it.

    Raises
    ------
    ValueError
        If no run fits, or several ids do.
    """
    if (Path(key) / JOURNAL).exists():
        key = Position.read(Path(key)).runs.get("", key)
    if key and set(key) <= set("0123456789abcdef"):
        by_id = store.search(f"attributes.run_id LIKE '{key}%'", most=2)
        if len(by_id) > 1:
            raise ValueError(f"`{key}` fits several run ids; give more characters")
        if by_id:
            return by_id[0]
    by_name = store.search(f"attributes.run_name = '{key}'", most=1) if "'" not in key else []
    if by_name:
        return by_name[0]
    names = ", ".join(f"{run.info.run_name} ({run.info.run_id[:8]})" for run in store.search(most=8))
    raise ValueError(f"no run has the name or id `{key}`; the newest are: {names or 'none, the store is empty'}")


def read_runs(store: Store, keys: Sequence[str]) -> list[RunRecord]:
    """Runs of folders, of names or of the first characters of ids.

    Raises
    ------
    ValueError
        As :func:`find_run`.
    """
    return [_record(store, find_run(store, key)) for key in keys]


def _record(store: Store, run: Any) -> RunRecord:
    identifier = run.info.run_id
    children = store.search(f"tags.`mlflow.parentRunId` = '{identifier}'")[::-1]
    params = dict(run.data.params)
    for child in children:
        params |= {f"{child.info.run_name}.{name}": value for name, value in child.data.params.items()}
    return RunRecord(
        id=identifier,
        name=run.info.run_name,
        status=run.info.status,
        params=params,
        tags={name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
        metrics=dict(run.data.metrics),
        artifacts=run.info.artifact_uri,
        children=tuple(child.info.run_id for child in children),
    )


def read_curves(store: Store, record: RunRecord, metrics: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """(step over all stages, value) pairs of each metric that the run or a stage of it has."""
    curves: dict[str, list[tuple[int, float]]] = {}
    offset = 0
    for run in record.children or (record.id,):
        last = 0
        for name in metrics:
            points = sorted(store.history(run, name))
            if points:
                last = max(last, points[-1][0])
                curves.setdefault(name, []).extend((offset + step, value) for step, value in points)
        offset += last
    return curves
