"""What a scaling study trains: sizes of the backbone, numbers of structures, lengths, seeds."""

from typing import Any, NamedTuple

import pydantic

from mfm.config import Config, validate
from mfm.training.recipe import RunConfig

__all__ = ["Cell", "ScalingConfig"]

_OF_THE_STUDY = ("name", "stages", "seed", "output")


class ScalingConfig(Config):
    """A scaling study."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the study and of its folder."""
    run: dict[str, Any]
    """What all models share, as in a recipe: `data`, `tasks`, and whatever else differs from the defaults. Stages, seed
    and output come from the study."""
    sizes: dict[str, dict[str, Any]] = pydantic.Field(min_length=1)
    """Name of a size to the settings of the backbone that make it, such as ``{small: {n_channels: 16}}``."""
    structures: list[int] = pydantic.Field(min_length=1)
    """Numbers of training structures. Those of a smaller number are among those of a larger one."""
    steps: list[int] = pydantic.Field(min_length=1)
    """Lengths of training, optimiser steps. Each is a training of its own, with its own decay of the learning rate."""
    seeds: int = pydantic.Field(3, gt=0)
    """Seeds of weights, batches and of the choice of structures."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ScalingConfig":
        for key in ("structures", "steps"):
            values = getattr(self, key)
            if sorted(set(values)) != values or values[0] < 1:
                raise ValueError(f"`{key}` must rise from at least 1, got {values}")
        odd = [name for name in self.sizes if not name.replace("_", "").isalnum()]
        if odd:
            raise ValueError(f"names of `sizes` must be letters, digits and `_`, got `{odd[0]}`")
        taken = [key for key in _OF_THE_STUDY if key in self.run]
        if taken:
            raise ValueError(f"`run` must leave `{taken[0]}` to the study")
        for size in self.sizes:
            self.recipe(Cell(size, self.structures[0], self.steps[0], 0), "data", "test", "folder")
        return self

    def cells(self) -> list["Cell"]:
        """Every model, the cheap ones first."""
        return [
            Cell(size, n, steps, seed)
            for steps in self.steps
            for seed in range(self.seeds)
            for size in self.sizes
            for n in self.structures
        ]

    def recipe(self, cell: "Cell", train: str, test: str, folder: str) -> RunConfig:
        """Recipe of one model.

        Parameters
        ----------
        train, test : str
            Datasets.
        folder : str
            Where it trains.
        """
        data = {**self.run.get("data", {}), "train": train, "test": test, "valid_fraction": 0}
        # the study's own files are divided already, and in mfm's format
        for key in ("valid", "split", "n_train", "seed", "format", "fidelity", "keys", "units"):
            data.pop(key, None)
        model = dict(self.run.get("model", {}))
        model["backbone"] = {**model.get("backbone", {}), **self.sizes[cell.size]}
        content = {
            "validations": 1,
            **self.run,
            "data": data,
            "model": model,
            "name": f"{self.name}-{cell.name}",
            "stages": [{"name": "all", "max_steps": cell.steps}],
            "seed": cell.seed,
            "output": folder,
        }
        return validate(RunConfig, content, source=f"recipe of `{cell.name}`")


class Cell(NamedTuple):
    """One model of the grid."""

    size: str
    n_structures: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.size}-{self.n_structures}-{self.steps}-{self.seed}"

    @property
    def train_set(self) -> str:
        """Name of its training data."""
        return f"{self.n_structures}-{self.seed}"
