"""What a run is: data, tasks, model, optimiser, stages. One YAML file, every field with a default that is right."""

from typing import Literal

import pydantic

from mfm.config import Config
from mfm.training.schedule import Budget

__all__ = ["BatchConfig", "DataConfig", "OptimizerConfig", "RunConfig", "StageConfig", "TrackingConfig"]


class DataConfig(Config):
    """Where structures and labels come from and how they are divided."""

    train: str
    """Dataset: ``builtin:NAME``, an mfm file, or any file that ``mfm data info`` can read."""
    valid: str | None = None
    """Dataset for validation; taken from `train` by `split` if not given."""
    test: str | None = None
    """Dataset for the final table; taken from `train` by `split` if not given."""
    split: Literal["by_molecule", "by_frame"] = "by_molecule"
    """What may not part: all geometries of a molecule, or nothing (`by_frame`, for a single molecule)."""
    valid_fraction: float = pydantic.Field(0.1, ge=0, lt=1)
    """Share of `train` that validates, if `valid` is not given."""
    test_fraction: float = pydantic.Field(0.1, ge=0, lt=1)
    """Share of `train` that tests, if `test` is not given."""
    n_train: int | None = pydantic.Field(None, gt=0)
    """Number of training structures to draw; all if not given."""
    seed: int = 0
    """Seed of split and draw; apart from the run's seed, so that seeds of a run share their data."""
    format: str | None = None
    """Format of foreign files; found from the content if not given."""
    fidelity: str | None = None
    """Fidelity of foreign files that do not name one."""
    keys: dict[str, str] | None = None
    """Property to the key it has in foreign files."""
    units: dict[str, str] | None = None
    """Property to the unit it has in foreign files."""


class BatchConfig(Config):
    """How much one optimiser step sees."""

    structures: int = pydantic.Field(8, gt=0)
    """Most structures in a batch. Small batches take more steps per minute of CPU and learn faster."""
    atoms: int = pydantic.Field(1024, gt=0)
    """Most atoms in a batch; bounds the memory."""
    ratios: dict[str, float] | None = None
    """Fidelity to the share of draws that must carry its labels; by the number of labels if not given."""


class OptimizerConfig(Config):
    """AdamW with AMSGrad, linear warm-up, cosine to zero at the end of the stage."""

    lr: float = pydantic.Field(5e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = pydantic.Field(0.0, ge=0)
    """Decoupled weight decay; keep 0 when fine-tuning."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and the second moment."""
    warmup: float = pydantic.Field(0.02, ge=0, lt=1)
    """Fraction of the stage over which the learning rate rises."""
    clip: float = pydantic.Field(10.0, gt=0)
    """Largest norm of the gradient."""
    ema: float = pydantic.Field(0.998, ge=0, lt=1)
    """Decay of the weight average."""


class StageConfig(Config):
    """One part of a recipe; starts from the weight average of the part before."""

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the stage, of its run and of its checkpoint."""
    objective: Literal["supervised"] = "supervised"
    """What is minimised."""
    tasks: Literal["all"] | list[str] = "all"
    """Tasks that train; structures without a label of any of them are left out."""
    epochs: float | None = pydantic.Field(None, gt=0)
    """Length in passes over the stage's structures."""
    max_steps: int | None = pydantic.Field(None, gt=0)
    """Length in optimiser steps."""
    max_minutes: float | None = pydantic.Field(None, gt=0)
    """Length in minutes: of processor time on the CPU, of wall time on other devices."""
    lr: float | None = pydantic.Field(None, gt=0)
    """Peak learning rate in place of `optimizer.lr`."""
    trainable: Literal["all"] | list[str] = "all"
    """Which parameters train: patterns on their names, such as ``heads.*``."""
    skip: bool = False
    """Leave the stage out."""

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        given = [name for name in ("epochs", "max_steps", "max_minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"stage `{self.name}` needs exactly one of `epochs`, `max_steps` and `max_minutes`,"
                f" got {', '.join(given) or 'none'}"
            )
        return self

    @property
    def budget(self) -> Budget:
        """Length of the stage."""
        if self.epochs is not None:
            return Budget("epochs", self.epochs)
        if self.max_steps is not None:
            return Budget("steps", self.max_steps)
        assert self.max_minutes is not None
        return Budget("minutes", self.max_minutes)


class TrackingConfig(Config):
    """Where the run is recorded."""

    experiment: str = "mfm"
    """Experiment that groups runs to compare."""
    directory: str = "mlruns"
    """Folder of database and artifacts; the environment variable ``MFM_TRACKING_URI`` goes before it."""
