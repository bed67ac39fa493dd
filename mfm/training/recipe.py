"""What a run is: data, tasks, model, optimiser, stages. One YAML file, every field with a default that is right."""

from typing import Any, Literal

import pydantic

from mfm.config import Config
from mfm.model import ModelConfig
from mfm.properties import parse_task
from mfm.training.schedule import Budget

__all__ = [
    "AuxiliaryDenoisingConfig",
    "BatchConfig",
    "DataConfig",
    "OptimizerConfig",
    "ReplayConfig",
    "RunConfig",
    "StageConfig",
    "TrackingConfig",
]


class ReplayConfig(Config):
    """Data of the parent model that a fine-tuned one keeps seeing, so that it does not forget them."""

    data: str
    """Dataset, as `data.train`; molecules that its card holds out are left out."""
    structures: int | None = pydantic.Field(1000, gt=0)
    """Structures drawn from it; all if null."""
    tasks: list[str] | None = None
    """Of the parent's tasks, those to replay, with forces and stress of energies; all that it has labels of if null."""
    share: float = pydantic.Field(0.5, gt=0, lt=1)
    """Share of the structures of every epoch that are replayed."""


class DataConfig(Config):
    """Where structures and labels come from and how they are divided."""

    train: str
    """Dataset: ``builtin:NAME``, an mfm file, or any file that ``mfm data info`` can read."""
    valid: str | None = None
    """Dataset for validation; taken from `train` by `split` if not given."""
    test: str | None = None
    """Dataset for the final table; taken from `train` by `split` if not given."""
    densities: str | None = None
    """Dataset with density coefficients (``mfm label export --density``) of the structures of the others."""
    split: str = pydantic.Field("by_molecule", pattern=r"^(by_molecule|random_frames|.+\.json)$")
    """``by_molecule`` keeps the geometries of a molecule together, ``random_frames`` does not (for a single molecule);
    or a file that ``mfm data split`` wrote."""
    valid_fraction: float = pydantic.Field(0.1, ge=0, lt=1)
    """Share of `train` that validates, if `valid` is not given."""
    test_fraction: float = pydantic.Field(0.1, ge=0, lt=1)
    """Share of `train` that tests, if `test` is not given."""
    n_train: int | None = pydantic.Field(None, gt=0)
    """Number of training structures to draw; all if not given."""
    seed: int = 0
    """Seed of split and draw; apart from the run's seed, so that seeds of a run share their data."""
    references: Literal["auto", "isolated_atoms", "least_squares"] = "auto"
    """Atomic energies that are subtracted: isolated atoms where the data give them (``auto``), which keeps
    dissociation right, or a least-squares fit, which leaves less to learn."""
    replay: ReplayConfig | None = None
    """Data of the parent to mix in, for runs that start from a checkpoint."""
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
    """Fidelity to the share of draws that must carry its labels, in stages that train several of them; by the number of
    labels if not given."""
    temperature: float | None = pydantic.Field(None, ge=1)
    """In place of `ratios`: shares in proportion to the number of labels to the power 1/temperature. 1 draws by their
    number; the larger it is, the more alike the shares."""

    @pydantic.model_validator(mode="after")
    def _one_mixture(self) -> "BatchConfig":
        if self.ratios is not None and self.temperature is not None:
            raise ValueError("give `ratios` or `temperature`, not both: each says how fidelities are mixed")
        if self.ratios is not None and min(self.ratios.values(), default=1.0) <= 0.0:
            raise ValueError(
                f"`ratios` must be positive, got {self.ratios}; leave a level out of a stage by its `tasks`"
            )
        return self


class OptimizerConfig(Config):
    """AdamW with AMSGrad, linear warm-up, cosine to zero at the end of the stage."""

    lr: float = pydantic.Field(3e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = pydantic.Field(0.0, ge=0)
    """Decoupled weight decay; keep 0 when fine-tuning."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and the second moment."""
    warmup_steps: int = pydantic.Field(100, ge=0)
    """Optimiser steps over which the learning rate rises at the start of a stage."""
    clip: float = pydantic.Field(2.0, gt=1)
    """Largest norm of the gradient, in multiples of the running average of the norms before it."""
    ema: float = pydantic.Field(0.998, ge=0, lt=1)
    """Decay of the weight average."""
    condition_penalty: float = pydantic.Field(1e-3, ge=0)
    """Weight of the squared terms that set a ``conditioned`` task apart from its base."""
    charge_penalty: float = pydantic.Field(1e-2, ge=0)
    """Weight of the squared charge that atoms' own charges lack to the total charge, if ``long_range.own_charges``."""


class AuxiliaryDenoisingConfig(Config):
    """Denoising of some structures of a supervised stage, see :mod:`mfm.training.auxiliary`."""

    condition: Literal["forces", "self"] = "forces"
    """What tells the model where displaced atoms came from: their forces, or its own features of the structure as it
    was. With ``forces`` only structures with forces are displaced."""
    share: float = pydantic.Field(0.25, gt=0, le=1)
    """Share of the structures that are displaced."""
    atoms: float = pydantic.Field(0.25, gt=0, le=1)
    """Share of the atoms of such a structure that are moved, at least one."""
    noise: float = pydantic.Field(0.05, gt=0)
    """Standard deviation of every coordinate of a moved atom, Å."""
    weight: float = pydantic.Field(0.1, gt=0)
    """Weight of the squared error of the noise, in variances of it, at the start; it falls linearly to zero over the
    stage."""


class StageConfig(Config):
    """One part of a recipe; starts from the weight average of the part before."""

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the stage, of its run and of its checkpoint."""
    objective: Literal["supervised", "denoising"] = "supervised"
    """What is minimised: errors of labels, or, without any label, errors of the noise that positions were given."""
    tasks: Literal["all"] | list[str] = "all"
    """Tasks that train; structures without a label of any of them are left out. Energies that theirs build on train
    along where these structures carry the labels. Denoising trains the representation."""
    noise: float | None = pydantic.Field(None, gt=0)
    """Denoising: standard deviation of every coordinate, Å; 0.04 if not given."""
    structures: str | None = None
    """Denoising: dataset of the structures; all of the training part if not given, also those without labels."""
    origins: list[str] | None = None
    """Denoising: only structures that were made in one of these ways, such as ``equilibrium``; all if not given."""
    auxiliary_denoising: AuxiliaryDenoisingConfig | None = None
    """Supervised: structures to denoise beside; none if not given."""
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
    lora_rank: int | None = pydantic.Field(None, gt=0)
    """If given, the backbone's matrices train through corrections of this rank only, which are added to them when the
    stage ends; the rest of the backbone is frozen, heads train as `trainable` says."""
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

    @pydantic.model_validator(mode="after")
    def _goes_with_objective(self) -> "StageConfig":
        if self.objective == "denoising" and self.tasks != "all":
            raise ValueError(f"stage `{self.name}` denoises, which trains no task; leave `tasks` out")
        if self.objective == "denoising" and self.auxiliary_denoising is not None:
            raise ValueError(f"stage `{self.name}` denoises all structures; leave `auxiliary_denoising` out")
        backbone = [pattern for pattern in self.trainable if pattern.startswith("backbone")]
        if self.lora_rank is not None and self.trainable != "all" and backbone:
            raise ValueError(
                f"stage `{self.name}`: with `lora_rank` the whole backbone trains by its corrections alone; leave"
                f" `{backbone[0]}` out of `trainable`"
            )
        if self.objective == "supervised":
            for key in ("noise", "structures", "origins"):
                if getattr(self, key) is not None:
                    raise ValueError(f"stage `{self.name}`: `{key}` is for `objective: denoising`")
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


class RunConfig(Config):
    """A run: everything that ``mfm train`` needs to know."""

    name: str = pydantic.Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the run and of its folder."""
    data: DataConfig
    """Structures and labels."""
    model: ModelConfig
    """Tasks and representation; `tasks` may also stand at the top level of the file."""
    stages: list[StageConfig] = pydantic.Field(min_length=1)
    """What is trained, in order."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimiser of all stages."""
    batch: BatchConfig = BatchConfig()
    """Batches of all stages."""
    seed: int = pydantic.Field(0, ge=0)
    """Seed of weights and of the order of batches."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: the GPU if there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the network; energies keep float64 wherever the references are included."""
    validations: int = pydantic.Field(20, gt=0)
    """Validations per stage, evenly over its length."""
    valid_structures: int = pydantic.Field(200, gt=0)
    """Most structures per fidelity that a validation looks at, evenly over the set; the final tables take all."""
    log_every: int = pydantic.Field(50, gt=0)
    """Optimiser steps between training metrics."""
    gradient_cosines: int | None = pydantic.Field(None, gt=0)
    """Optimiser steps between measurements of the cosine between the gradients of tasks; none if not given."""
    output: str = ""
    """Folder of the run; ``runs/{name}`` if not given."""
    tracking: Literal["none"] | TrackingConfig = TrackingConfig()
    """Where the run is recorded, or ``none``."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _move_tasks(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "tasks" not in content:
            return content
        moved = {key: value for key, value in content.items() if key != "tasks"}
        model = dict(moved.get("model") or {})
        if "tasks" in model:
            raise ValueError("give `tasks` at the top level or in `model`, not in both")
        return {**moved, "model": {**model, "tasks": content["tasks"]}}

    @pydantic.model_validator(mode="after")
    def _check_stages(self) -> "RunConfig":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must have different names, got {', '.join(names)}")
        if all(stage.skip for stage in self.stages):
            raise ValueError("every stage is skipped; leave at least one")
        for key in ("ratios", "temperature"):
            if self.data.replay is not None and getattr(self.batch, key) is not None:
                raise ValueError(f"give `data.replay` or `batch.{key}`, not both: each says what a batch is mixed of")
        for stage in self.stages:
            unknown = [task for task in self.stage_tasks(stage) if task not in self.model.tasks]
            if unknown:
                raise ValueError(
                    f"stage `{stage.name}` trains `{unknown[0]}`, which is not among the tasks"
                    f" {', '.join(self.model.tasks)}"
                )
        if self.batch.ratios is not None:
            self._check_ratios(self.batch.ratios)
        return self

    def _check_ratios(self, ratios: dict[str, float]) -> None:
        known = list(dict.fromkeys(parse_task(task).fidelity for task in self.model.tasks))
        unknown = [fidelity for fidelity in ratios if fidelity not in known]
        if unknown:
            raise ValueError(f"`batch.ratios` must be of the tasks' levels {', '.join(known)}, got `{unknown[0]}`")
        for stage in self.stages:
            levels = {parse_task(task).fidelity for task in self.stage_tasks(stage)}
            missing = sorted(levels - set(ratios))
            if stage.objective == "supervised" and len(levels) > 1 and missing and not stage.skip:
                raise ValueError(
                    f"`batch.ratios` must give `{missing[0]}` a share, which stage `{stage.name}` trains too"
                )

    @property
    def folder(self) -> str:
        """Folder of the run."""
        return self.output or f"runs/{self.name}"

    def stage_tasks(self, stage: StageConfig) -> list[str]:
        """Tasks that a stage trains."""
        return list(self.model.tasks) if stage.tasks == "all" else list(stage.tasks)
