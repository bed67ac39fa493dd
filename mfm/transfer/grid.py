"""Trains the models of a transfer study; every one that is there is not trained again."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mfm.calculator import MFMCalculator
from mfm.data import Record, Store, open_dataset
from mfm.evaluation.dynamics import survival_time
from mfm.evaluation.evaluate import evaluate
from mfm.model import MFMModel
from mfm.properties import parse_task, task_name
from mfm.study.cells import Layout, keep_settings, train_missing
from mfm.training.data import prepare_data
from mfm.training.experiment import run_model
from mfm.training.recipe import DataConfig
from mfm.transfer.plan import Cell, TransferConfig

__all__ = ["run_cell", "run_grid", "write_data"]

_MAY_GROW = {"labels", "strategies", "seeds", "target"}


def write_data(config: TransferConfig, layout: Layout) -> None:
    """Training sets with n high-level labels each, nested, and the test set; what is there is kept.

    Raises
    ------
    ValueError
        If the training part has fewer high-level labels than the largest number asked for, or there is no test part
        with high-level energies.
    """
    cells = {(cell.n_labels, cell.seed): cell for cell in config.cells()}
    if layout.test.exists() and all(layout.train(cell).exists() for cell in cells.values()):
        return
    low, high = (task_name("energy", name) for name in (config.low, config.high))
    data = prepare_data(DataConfig.model_validate({**config.run.get("data", {}), "valid_fraction": 0}), [low, high])
    labelled = np.flatnonzero(data.train.coverage(high))
    if len(labelled) < config.labels[-1]:
        raise ValueError(
            f"`labels` asks for {config.labels[-1]} labels of `{config.high}`, the training part has {len(labelled)}"
        )
    if data.test is None or not data.test.coverage(high).any():
        raise ValueError(f"a study needs test structures with `{high}`; name `data.test` or raise `data.test_fraction`")
    layout.test.parent.mkdir(parents=True, exist_ok=True)
    for (n_labels, seed), cell in cells.items():
        chosen = set(np.random.default_rng(seed).permutation(labelled)[:n_labels].tolist())
        Store.from_records(_records(data.train, config, chosen), data.train.card).write(layout.train(cell))
    data.test.write(layout.test)  # last: it says that all are there


def _records(store: Store, config: TransferConfig, chosen: set[int]) -> Iterator[Record]:
    """Records with the low level's labels, and with the high level's energies where chosen."""
    for row, record in enumerate(store):
        labels = {task: value for task, value in record.labels.items() if parse_task(task).fidelity == config.low}
        if row in chosen:
            labels[task_name("energy", config.high)] = record.labels[task_name("energy", config.high)]
        if labels:
            yield Record(record.structure, labels, record.molecule, record.origin)


def run_grid(config: TransferConfig, folder: Path, n_workers: int = 1) -> bool:
    """Train and test whatever is missing; returns whether all is there.

    Parameters
    ----------
    n_workers : int
        Models trained at once, a thread each.

    Raises
    ------
    ValueError
        If the folder holds models of another study, or see :func:`write_data`.
    """
    layout = Layout(folder)
    if config.out_of_distribution is not None:
        open_dataset(config.out_of_distribution)  # before anything is trained
    keep_settings(layout, config, _MAY_GROW, functools.partial(write_data, config, layout))
    cells = config.cells()
    waves = [
        [cell for cell in cells if config.parent(cell) is None],
        [c for c in cells if config.parent(c) is not None],
    ]
    return train_missing(config.name, layout, waves, functools.partial(run_cell, config, layout), n_workers)


def run_cell(config: TransferConfig, layout: Layout, cell: Cell) -> bool:
    """Train and test one model; returns False if it was interrupted, to be continued by the same call."""
    parent = config.parent(cell)
    recipe = config.recipe(cell, str(layout.train(cell)), str(layout.test), str(layout.model(cell)))
    start = None if parent is None else layout.model(parent) / "model.mfm"

    def describe(model: MFMModel) -> Mapping[str, Any]:
        return _more(config, model, layout)

    content = recipe.model_dump(mode="json", exclude_unset=True)
    return run_model(content, layout.result(cell), cell._asdict(), describe, start)


def _more(config: TransferConfig, model: MFMModel, layout: Layout) -> dict[str, Any]:
    """Errors out of distribution and picoseconds survived."""
    found: dict[str, Any] = {}
    if config.high not in model.fidelities:
        return found
    if config.out_of_distribution is not None:
        store = open_dataset(config.out_of_distribution)
        found["out_of_distribution"] = evaluate(model, store).metrics
        found["out_of_distribution_digest"] = store.digest
    if config.stability is not None:
        found["stability_ps"] = _stability(config, model, open_dataset(str(layout.test)))
    return found


def _stability(config: TransferConfig, model: MFMModel, test: Store) -> list[float]:
    """Picoseconds survived by the largest molecules, each from its geometry of lowest labelled energy."""
    assert config.stability is not None
    labels = [name for name in (task_name("energy", f) for f in (config.high, config.low)) if test.coverage(name).any()]
    energies = [np.nan_to_num(test.energies(name), nan=np.inf) for name in labels]
    first: dict[str, int] = {}
    for row in np.lexsort(energies[::-1]) if energies else range(len(test)):
        first.setdefault(str(test.molecules[row]), int(row))
    largest = sorted(first.values(), key=lambda row: -int(test.n_atoms[row]))[: config.stability.structures]
    times = []
    for row in largest:
        atoms = test[int(row)].structure.to_ase()
        atoms.calc = MFMCalculator(model, config.high)
        times.append(
            survival_time(atoms, config.stability.picoseconds, config.stability.temperature, config.stability.timestep)
        )
    return times
