"""What a transfer study compares: strategies, numbers of high-level labels, seeds, all at the same compute."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pydantic

from mfm.config import Config, validate
from mfm.properties import parse_task, task_name
from mfm.training.recipe import RunConfig

__all__ = ["BASELINE", "STRATEGIES", "Cell", "Compute", "Stability", "Strategy", "TransferConfig"]

BASELINE = "scratch"
"""Strategy that the others are compared with: the high level alone."""


class Compute(Config):
    """Length of every model's training, pre-training included."""

    max_steps: int | None = pydantic.Field(None, gt=0)
    """Optimiser steps. A step on labels with forces costs more than one without; the report gives the time of both."""
    max_minutes: float | None = pydantic.Field(None, gt=0)
    """Minutes of processor time (of wall time on a GPU)."""

    @pydantic.model_validator(mode="after")
    def _one(self) -> "Compute":
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ValueError("`compute` needs one of `max_steps` and `max_minutes`")
        return self

    def share(self, part: float) -> dict[str, float]:
        """Length of a stage that takes a part of it."""
        if self.max_steps is not None:
            return {"max_steps": max(1, round(self.max_steps * part))}
        assert self.max_minutes is not None
        return {"max_minutes": self.max_minutes * part}


class Stability(Config):
    """Molecular dynamics that a model has to survive."""

    temperature: float = pydantic.Field(500.0, gt=0)
    """K."""
    picoseconds: float = pydantic.Field(20.0, gt=0)
    """Length of a run that nothing ends."""
    timestep: float = pydantic.Field(0.5, gt=0)
    """fs."""
    structures: int = pydantic.Field(2, gt=0)
    """Test molecules to run, the largest first."""


class TransferConfig(Config):
    """A transfer study."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the study and of its folder."""
    run: dict[str, Any]
    """What all models share, as in a recipe: `data`, and whatever else differs from the defaults. Tasks, stages, seed
    and output come from the study. The high level is used up to the number of labels under study; all other labels of
    the training part are the low level's."""
    low: str
    """Fidelity with many labels, energies and, where there are any, forces."""
    high: str
    """Fidelity with few labels. Its energies are learned; forces of it are only tested."""
    labels: list[int] = pydantic.Field(min_length=1)
    """Numbers of high-level labels. Those of a smaller number are among those of a larger one."""
    compute: Compute
    """What every model may spend."""
    low_share: float = pydantic.Field(0.75, gt=0, lt=1)
    """Part of the compute that strategies with a stage of its own for the low level spend there. It is spent once per
    seed and counted for each model that builds on it."""
    high_share: float = pydantic.Field(0.25, gt=0, lt=1)
    """Share of the structures in a batch that carry a high-level label, where both levels train together."""
    denoise_share: float = pydantic.Field(0.25, gt=0, lt=1)
    """Part of the compute that strategies which denoise first spend on that, on the structures of the training part."""
    rate: float = pydantic.Field(1e-3, gt=0)
    """Learning rate after a stage of the low level."""
    weights: dict[str, float] = pydantic.Field(default_factory=dict)
    """Fidelity to the weight of its energies in the loss; 1 if not given."""
    strategies: list[str] = pydantic.Field(default_factory=lambda: list(STRATEGIES))
    """Which to compare."""
    seeds: int = pydantic.Field(3, gt=0)
    """Seeds of weights, batches and of the choice of labels."""
    out_of_distribution: str | None = None
    """A second test set, such as larger molecules."""
    target: float | None = pydantic.Field(None, gt=0)
    """Test error of energies, meV, whose price in labels is asked for; by default the baseline's with most labels."""
    stability: Stability | None = None
    """Dynamics to run with every model; none if not given."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TransferConfig":
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown:
            raise ValueError(f"`strategies` must be of {', '.join(STRATEGIES)}, got `{unknown[0]}`")
        if BASELINE not in self.strategies:
            raise ValueError(f"`strategies` must hold `{BASELINE}`, which the others are compared with")
        if self.low == self.high:
            raise ValueError(f"`low` and `high` must differ, both are `{self.low}`")
        if sorted(set(self.labels)) != self.labels or self.labels[0] < 1:
            raise ValueError(f"`labels` must rise from at least 1, got {self.labels}")
        strange = [name for name in self.weights if name not in (self.low, self.high)]
        if strange or min(self.weights.values(), default=1.0) <= 0:
            raise ValueError(f"`weights` must be positive, of `{self.low}` and `{self.high}`, got {self.weights}")
        taken = [key for key in ("name", "tasks", "stages", "seed", "output") if key in self.run]
        if taken:
            raise ValueError(f"`run` must leave `{taken[0]}` to the study")
        for cell in self.cells():
            self.recipe(cell, "data", "test", "folder")
        return self

    def cells(self) -> list["Cell"]:
        """Every model, those that others start from first."""
        shared = {STRATEGIES[name].parent for name in self.strategies} - {None}
        parents = [Cell(_PARENT, 0, seed) for seed in range(self.seeds)] if shared else []
        grid = [(seed, n, name) for seed in range(self.seeds) for n in self.labels for name in self.strategies]
        return parents + [Cell(name, n, seed) for seed, n, name in grid]

    def recipe(self, cell: "Cell", train: str, test: str, folder: str) -> RunConfig:
        """Recipe of one model.

        Parameters
        ----------
        train, test : str
            Datasets.
        folder : str
            Where it trains.
        """
        strategy = PARENT if cell.strategy == _PARENT else STRATEGIES[cell.strategy]
        low, high = task_name("energy", self.low), task_name("energy", self.high)
        data = {**self.run.get("data", {}), "train": train, "test": test, "valid_fraction": 0}
        # the study's own files are divided already, and in mfm's format
        for key in ("valid", "split", "n_train", "seed", "format", "fidelity", "keys", "units"):
            data.pop(key, None)
        content = {
            "validations": 1,
            **self.run,
            "data": data,
            "name": f"{self.name}-{cell.name}",
            "tasks": {
                name: {"weight": self.weights.get(parse_task(name).fidelity, 1.0), **task}
                for name, task in strategy.tasks(low, high).items()
            },
            "stages": strategy.stages(low, high, self),
            "seed": cell.seed,
            "output": folder,
        }
        if strategy.parent is not None:  # the representation is the parent's
            content.pop("model", None)
        if strategy.mixed:
            ratios = {self.low: 1.0 - self.high_share, self.high: self.high_share}
            content["batch"] = {**content.get("batch", {}), "ratios": ratios}
        return validate(RunConfig, content, source=f"recipe of `{cell.name}`")

    def parent(self, cell: "Cell") -> "Cell | None":
        """Model that another one starts from."""
        if cell.strategy == _PARENT or STRATEGIES[cell.strategy].parent is None:
            return None
        return Cell(_PARENT, 0, cell.seed)


class Cell(NamedTuple):
    """One model of the grid."""

    strategy: str
    n_labels: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.strategy}-{self.n_labels}-{self.seed}"

    @property
    def train_set(self) -> str:
        """Name of its training data; those of all strategies are the same."""
        return f"{self.n_labels}-{self.seed}"


Tasks = dict[str, dict[str, Any]]
Stages = list[dict[str, Any]]


class Strategy(NamedTuple):
    """How a model comes to its high level."""

    description: str
    tasks: Callable[[str, str], Tasks]
    stages: Callable[[str, str, TransferConfig], Stages]
    parent: Literal["low"] | None
    """Whether it starts from the model of the low level."""
    mixed: bool = False
    """Whether both levels train together."""


def _joined(join: str | None) -> Callable[[str, str], Tasks]:
    return lambda low, high: {low: {}, high: {} if join is None else {join: low}}


def _after(low_too: bool, readout_only: bool = False) -> Callable[[str, str, TransferConfig], Stages]:
    """The stage after the low level's own: on both levels, or on the high one alone."""

    def stages(low: str, high: str, config: TransferConfig) -> Stages:
        length = config.compute.share(1.0 - config.low_share)
        tasks = [low, high] if low_too else [high]
        trainable = [f"heads.{high}.*"] if readout_only else "all"
        return [{"name": "high", "tasks": tasks, "lr": config.rate, "trainable": trainable, **length}]

    return stages


def _at_once(low: str, high: str, config: TransferConfig) -> Stages:
    return [{"name": "all", **config.compute.share(1.0)}]


def _denoised(low: str, high: str, config: TransferConfig) -> Stages:
    first = {"name": "denoise", "objective": "denoising", **config.compute.share(config.denoise_share)}
    return [first, {"name": "all", **config.compute.share(1.0 - config.denoise_share)}]


_PARENT = "low"
PARENT = Strategy(
    "the low level alone",
    lambda low, high: {low: {}},
    lambda low, high, config: [{"name": "low", **config.compute.share(config.low_share)}],
    None,
)
STRATEGIES: dict[str, Strategy] = {
    BASELINE: Strategy("the high level alone", lambda low, high: {high: {}}, _at_once, None),
    "joint": Strategy("both levels from the first step, high anchored to low", _joined("anchor"), _at_once, None, True),
    "denoised": Strategy("denoising first, then the high level alone", lambda low, high: {high: {}}, _denoised, None),
    "denoised-joint": Strategy(
        "denoising first, then both levels, high anchored to low", _joined("anchor"), _denoised, None, True
    ),
    "anchor": Strategy("low first, then both, high anchored to low", _joined("anchor"), _after(True), "low", True),
    "conditioned": Strategy("low first, then both, one head", _joined("conditioned"), _after(True), "low", True),
    "independent": Strategy("low first, then both, a head each", _joined(None), _after(True), "low", True),
    "fine-tuned": Strategy("low first, then high alone, anchored to low", _joined("anchor"), _after(False), "low"),
    "readout": Strategy(
        "low first, then the high level's head alone", _joined("anchor"), _after(False, readout_only=True), "low"
    ),
}
