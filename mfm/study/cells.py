"""Trains the models of a study; every one that is there is not trained again."""

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

from mfm.config import Config
from mfm.tracking import flatten
from mfm.training.experiment import begin, write_json

__all__ = ["Layout", "keep_settings", "train_missing"]


@runtime_checkable
class Model(Protocol):
    """One model of a grid."""

    @property
    def name(self) -> str:
        """Name of its files."""

    @property
    def train_set(self) -> str:
        """Name of its training data, which it may share with others."""


Cell = TypeVar("Cell", bound=Model)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Files of a study in its folder."""

    folder: Path

    def result(self, cell: Model) -> Path:
        """What became of a model."""
        return self.folder / "cells" / f"{cell.name}.json"

    def model(self, cell: Model) -> Path:
        """Its run."""
        return self.folder / "models" / cell.name

    def train(self, cell: Model) -> Path:
        """Its training data."""
        return self.folder / "data" / f"train-{cell.train_set}.h5"

    @property
    def test(self) -> Path:
        """Test data of all."""
        return self.folder / "data" / "test.h5"

    @property
    def study(self) -> Path:
        """What all models have in common."""
        return self.folder / "study.json"


def keep_settings(layout: Layout, config: Config, may_grow: set[str], prepare: Callable[[], None]) -> None:
    """Write what all models have in common, once their data are there, or refuse what differs from what is written.

    Parameters
    ----------
    config : Config
        Of the study.
    may_grow : set of str
        Settings that say which models it has, or how they are reported, and not what they are.
    prepare : callable
        Writes the data.

    Raises
    ------
    ValueError
        If the folder holds models of another study: they do not belong into one report.
    """
    common = json.loads(config.model_dump_json(exclude=may_grow))
    if layout.study.exists():
        written = json.loads(layout.study.read_text(encoding="utf-8"))
        fields = type(config).model_fields.items()
        defaults = {name: field.get_default(call_default_factory=True) for name, field in fields}
        # a setting that came later is as if it had been written: models then had what is its default now
        added = {name: common[name] for name in common.keys() - written.keys() if common[name] == defaults[name]}
        then, now = flatten({**written, **added}), flatten(common)
        changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        if changed:
            raise ValueError(
                f"`{layout.folder}` holds models of a study with another"
                f" {', '.join(f'`{key}`' for key in changed[:5])}; restore it, or name another folder with `--output`"
            )
    prepare()
    write_json(layout.study, common)


def train_missing(
    name: str, layout: Layout, waves: Sequence[Sequence[Cell]], train: Callable[[Cell], bool], n_workers: int
) -> bool:
    """Train and test whatever has no result; returns whether all is there.

    Parameters
    ----------
    waves : sequence of sequences of cells
        Those of a wave start from models of the waves before.
    train : callable
        Trains and tests one and writes its result; returns False if it was interrupted. A function that can be pickled.
    n_workers : int
        Models trained at once, a thread each.
    """
    missing = [[cell for cell in wave if not layout.result(cell).exists()] for wave in waves]
    total = sum(map(len, waves))
    with tqdm(total=total, initial=total - sum(map(len, missing)), unit="model", desc=name) as bar:
        for wave in missing:
            for done in _run(train, wave, n_workers):
                if not done:
                    return False
                bar.update()
    return True


def _run(train: Callable[[Cell], bool], cells: Sequence[Cell], n_workers: int) -> Iterator[bool]:
    if n_workers == 1 or len(cells) < 2:
        for cell in cells:
            yield train(cell)
        return
    with ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_work, [train] * len(cells), cells)


def _work(train: Callable[[Cell], bool], cell: Cell) -> bool:
    begin()
    return train(cell)
