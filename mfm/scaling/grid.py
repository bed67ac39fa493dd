"""Trains the models of a scaling study; every one that is there is not trained again."""

import functools
from pathlib import Path

import numpy as np

from mfm.scaling.plan import Cell, ScalingConfig
from mfm.study.cells import Layout, keep_settings, train_missing
from mfm.training.data import prepare_data
from mfm.training.experiment import run_model
from mfm.training.recipe import DataConfig

__all__ = ["run_cell", "run_grid", "write_data"]

_MAY_GROW = {"structures", "steps", "seeds"}


def write_data(config: ScalingConfig, layout: Layout) -> None:
    """Training sets, nested, and the test set; what is there is kept.

    Raises
    ------
    ValueError
        If the training part is smaller than the largest number asked for, or there is no test part.
    """
    cells = {cell.train_set: cell for cell in config.cells()}
    if layout.test.exists() and all(layout.train(cell).exists() for cell in cells.values()):
        return
    tasks = list(config.recipe(config.cells()[0], "data", "test", "folder").model.tasks)
    data = prepare_data(DataConfig.model_validate({**config.run.get("data", {}), "valid_fraction": 0}), tasks)
    usable = np.flatnonzero(np.all([data.train.coverage(task) for task in tasks], axis=0))
    if len(usable) < config.structures[-1]:
        raise ValueError(
            f"`structures` asks for {config.structures[-1]}, the training part has {len(usable)} with labels of every"
            " task"
        )
    if data.test is None:
        raise ValueError("a study needs test structures; name `data.test` or raise `data.test_fraction`")
    layout.test.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells.values():
        chosen = np.random.default_rng(cell.seed).permutation(usable)[: cell.n_structures]
        data.train.subset(np.sort(chosen)).write(layout.train(cell))
    data.test.write(layout.test)  # last: it says that all are there


def run_grid(config: ScalingConfig, folder: Path, n_workers: int = 1) -> bool:
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
    keep_settings(layout, config, _MAY_GROW, functools.partial(write_data, config, layout))
    return train_missing(config.name, layout, [config.cells()], functools.partial(run_cell, config, layout), n_workers)


def run_cell(config: ScalingConfig, layout: Layout, cell: Cell) -> bool:
    """Train and test one model; returns False if it was interrupted, to be continued by the same call."""
    recipe = config.recipe(cell, str(layout.train(cell)), str(layout.test), str(layout.model(cell)))
    return run_model(recipe.model_dump(mode="json", exclude_unset=True), layout.result(cell), cell._asdict())
