"""One stage of a recipe: from the model as it is to the model with averaged weights."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from mfm.data.dataset import GraphDataset
from mfm.data.sampling import AtomBudgetBatchSampler
from mfm.data.store import Store
from mfm.evaluation.evaluate import batched, evaluable, labelled_rows, model_graphs, predict_labelled
from mfm.evaluation.metrics import errors
from mfm.graph import AtomicGraph
from mfm.losses import LossTerm, combine, loss_terms
from mfm.model import NOISE, MFMModel
from mfm.properties import parse_task
from mfm.training.auxiliary import (
    AuxiliaryLoss,
    DisplacedDataset,
    Displacement,
    WithDenoising,
)
from mfm.training.callbacks import Interruption, StageCallback
from mfm.training.cosines import GradientCosines
from mfm.training.data import Graphs, RunData, StageBatches, stage_derivatives, stage_sampler
from mfm.training.denoising import DEFAULT_NOISE, NoisyDataset, denoising_term, structures_to_denoise
from mfm.training.drawn import DrawnLevels
from mfm.training.ema import WeightAverage
from mfm.training.module import Losses, StageModule, Targets, build_optimizer
from mfm.training.ranks import ALONE, Ranks
from mfm.training.recipe import OptimizerConfig, RunConfig, StageConfig
from mfm.training.resume import TrainingState, restore_random_state
from mfm.training.scales import gap_scales, label_gaps, label_scales
from mfm.training.schedule import Clock
from mfm.training.trainable import begin_stage, end_stage

__all__ = ["Stage", "StageHooks", "build_stage", "fit_stage", "validation_rows"]

logger = logging.getLogger(__name__)


class StageHooks(NamedTuple):
    """What a stage tells the run."""

    report: Callable[[Mapping[str, float], int], None]
    """Receives metrics and the step they belong to."""
    save: Callable[["Stage"], None]
    """Writes a resumable state."""


class Stage(NamedTuple):
    """A stage that is ready to train, and everything of it that a state holds."""

    config: StageConfig
    model: MFMModel
    module: StageModule
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    clock: Clock
    batches: StageBatches
    validate: Callable[[], dict[str, float]]


def build_stage(
    model: MFMModel,
    data: RunData,
    config: RunConfig,
    number: int,
    state: TrainingState | None,
    ranks: Ranks = ALONE,
) -> Stage:
    """Make a stage, at its beginning or where a saved state left it.

    Parameters
    ----------
    number : int
        Which of the configuration's stages.
    state : TrainingState, optional
        Taken within this stage.
    ranks : Ranks, optional
        Processes that train it together.
    """
    stage = config.stages[number]
    clock = Clock(next(model.parameters()).device.type, agree=ranks.largest if ranks.size > 1 else None)
    collect = _denoise if stage.objective == "denoising" else _learn
    work = collect(model, data, config, number, ranks)
    if stage.auxiliary_denoising is not None:
        work = _denoise_beside(work, model, stage, config.seed + 1000 * number, clock, ranks)
    work = _draw_levels(work, config.seed + 1000 * number)
    if state is None:  # the model of a state has begun its stage
        begin_stage(model, stage)
    ranks.share_weights(model)
    optimizer = build_optimizer(model, config.optimizer, stage.lr or config.optimizer.lr)
    average = WeightAverage(model, config.optimizer.ema)
    asked = model if stage.auxiliary_denoising is None else WithDenoising(model)
    module = StageModule(asked, work.targets, work.losses, optimizer, config.optimizer, stage.budget, average, clock)
    module.stage_name, module.ranks = stage.name, ranks
    if config.gradient_cosines is not None:
        shared = [parameter for parameter in model.backbone.last_layer.parameters() if parameter.requires_grad]
        if shared:
            module.cosines = GradientCosines(shared, config.gradient_cosines, ranks.reduction)
        else:
            logger.warning("stage %s: the last shared block is frozen, so there are no gradient cosines", stage.name)
    if state is not None:
        # after the module has seen the peak learning rate, which the saved groups do not hold
        assert state["optimizer"] is not None
        assert state["average"] is not None
        assert state["clock"] is not None
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        clock.load_state_dict(state["clock"])
    logger.info(
        "stage %s: %d structures, %d batches per epoch, learns %s",
        stage.name, work.n_structures, len(work.sampler), ", ".join([*work.targets.tasks, *work.targets.derivatives]),
    )  # fmt: skip
    batches = StageBatches(work.dataset, work.sampler, clock)
    validate = (
        dict
        if work.targets.tasks == [NOISE] or not ranks.writes
        else _validator(model, data, list(work.targets.tasks), average, config.valid_structures)
    )
    return Stage(stage, model, module, optimizer, average, clock, batches, validate)


class _Work(NamedTuple):
    """What a stage learns from what, and what it minimises."""

    targets: Targets
    dataset: Graphs
    n_structures: int
    sampler: AtomBudgetBatchSampler
    losses: Losses
    held: Sequence[str] = ()
    """Fidelities that train along because others build on them."""


def _learn(model: MFMModel, data: RunData, config: RunConfig, number: int, ranks: Ranks) -> _Work:
    """Errors of labels."""
    stage = config.stages[number]
    asked, store, replayed = _material(model, data, stage.name, config.stage_tasks(stage))
    tasks = _with_bases(model, asked, store)
    derivatives = stage_derivatives(store, model.config.tasks, tasks)
    dataset = GraphDataset(store, model.cutoff, [*tasks, *derivatives], model.domain.references, model.dtype)
    # another order in each stage
    sampler = stage_sampler(store, asked, config.batch, config.seed + 1000 * number, replayed, ranks)
    targets = Targets(tasks, derivatives, _residuals(model, tasks))
    losses = _losses(model, config.optimizer, store, derivatives, ranks)
    held = [parse_task(task).fidelity for task in tasks if task not in asked]
    return _Work(targets, dataset, len(store), sampler, losses, held)


def _denoise(model: MFMModel, data: RunData, config: RunConfig, number: int, ranks: Ranks) -> _Work:
    """Errors of noise."""
    stage, seed = config.stages[number], config.seed + 1000 * number
    store = structures_to_denoise(data, stage.structures, stage.origins)
    dataset = NoisyDataset(store, model.cutoff, stage.noise or DEFAULT_NOISE, seed, model.dtype)
    sampler = stage_sampler(store, [], config.batch, seed, ranks=ranks)

    def losses(outputs: Mapping[str, Tensor], graph: AtomicGraph) -> tuple[Tensor, Mapping[str, LossTerm]]:
        terms = {NOISE: denoising_term(outputs[NOISE], graph)}
        return combine(terms, ranks.reduction), terms

    return _Work(Targets([NOISE], []), dataset, len(store), sampler, losses)


def _denoise_beside(work: _Work, model: MFMModel, stage: StageConfig, seed: int, clock: Clock, ranks: Ranks) -> _Work:
    """The work with noise in some structures."""
    chosen = stage.auxiliary_denoising
    assert chosen is not None
    assert isinstance(work.dataset, GraphDataset)
    if chosen.condition == "forces" and not any(name.startswith("forces_") for name in work.targets.derivatives):
        raise ValueError(
            f"stage `{stage.name}`: `auxiliary_denoising` is conditioned on forces, of which the training data have"
            " none; use `condition: self`"
        )
    how = Displacement(chosen.condition, chosen.share, chosen.atoms, chosen.noise)
    losses = AuxiliaryLoss(work.losses, chosen.weight, lambda: stage.budget.progress(clock), ranks.reduction)
    return work._replace(dataset=DisplacedDataset(work.dataset, model.cutoff, how, seed), losses=losses)


def _draw_levels(work: _Work, seed: int) -> _Work:
    """The work with forces of one level for each structure, if it has several levels with forces.

    Not with Hessian-vector products, which are derivatives of the forces of their own level.
    """
    names = [parse_task(name) for name in work.targets.derivatives]
    if len({name.fidelity for name in names}) < 2 or any(name.property == "hessian_product" for name in names):
        return work
    return work._replace(dataset=DrawnLevels(work.dataset, work.targets.derivatives, work.held, seed))


def _material(
    model: MFMModel, data: RunData, name: str, tasks: Sequence[str]
) -> tuple[list[str], Store, tuple[np.ndarray, float] | None]:
    """Tasks that a stage trains, the records that carry their labels, and which of those are replayed.

    Replayed records train every task of the model that they have labels of: what is not asked for would be forgotten.
    """
    replayed = data.replayed
    covered = {task: data.train.coverage(task) for task in model.tasks}
    again = [task for task in model.tasks if (covered[task] & replayed).any()]
    own = [task for task in tasks if (covered[task] & ~replayed).any()]
    if not own:
        raise ValueError(
            f"stage `{name}` needs labels of one of its tasks {', '.join(tasks)}, the training data have"
            f" {', '.join(data.new.labels) or 'none'}"
        )
    used = ~replayed & np.any([covered[task] for task in own], axis=0)
    if again:
        used |= replayed & np.any([covered[task] for task in again], axis=0)
    rows = np.flatnonzero(used)
    mixture = (replayed[rows], data.replay_share) if again else None
    return [task for task in model.tasks if task in own or task in again], data.train.subset(rows), mixture


def _with_bases(model: MFMModel, tasks: Sequence[str], store: Store) -> list[str]:
    """The tasks, and the energies that theirs build on as far as the records carry the labels, in the model's order.

    The sum of a level and what corrects it does not determine the two: left to itself the lower level drifts, by
    electronvolts, and the gap with it. The labels that the structures carry anyway hold it in its place.
    """
    found = set(tasks)
    for name in (task for task in tasks if parse_task(task).property == "energy"):
        base = model.config.tasks[name].base
        while base is not None:
            if store.coverage(base).any():
                found.add(base)
            base = model.config.tasks[base].base
    return [task for task in model.tasks if task in found]


def _residuals(model: MFMModel, tasks: Sequence[str]) -> list[str]:
    """Charge residuals that are to be kept small: one, or one per fidelity if each has its own charges."""
    config = model.config.long_range
    if config is None or not config.own_charges:
        return []
    names = [f"charge_residual_{parse_task(task).fidelity}" for task in tasks if parse_task(task).property == "energy"]
    return names if config.fidelities == "own" else names[:1]


def _losses(model: MFMModel, config: OptimizerConfig, store: Store, derivatives: Sequence[str], ranks: Ranks) -> Losses:
    tasks, scale = model.config.tasks, model.domain.scale
    gaps = {**gap_scales(store, tasks, model.domain.references, derivatives), **label_gaps(store, tasks)}
    sizes = label_scales(store, tasks)
    conditioned = any(task.join == "conditioned" for task in tasks.values())

    def losses(outputs: Mapping[str, Tensor], graph: AtomicGraph) -> tuple[Tensor, Mapping[str, LossTerm]]:
        residuals = [value for name, value in outputs.items() if name.startswith("charge_residual_")]
        labelled = {name: value for name, value in outputs.items() if not name.startswith("charge_residual_")}
        terms = loss_terms(labelled, graph, tasks, scale, gaps, sizes)
        total = combine(terms, ranks.reduction)
        if conditioned:
            total = total + config.condition_penalty / ranks.size * model.condition_penalty()
        for residual in residuals:
            weight = config.charge_penalty * ranks.share(len(residual))
            total = total + weight * residual.square().mean().to(total.dtype)
        return total, terms

    return losses


def _validator(
    model: MFMModel, data: RunData, tasks: list[str], average: WeightAverage, most: int
) -> Callable[[], dict[str, float]]:
    """Function that measures the averaged weights on the validation set, whose graphs it keeps."""
    if data.valid is None:
        return dict
    fidelities = {parse_task(task).fidelity for task in tasks}
    labels = [task for task in data.valid.labels if parse_task(task).fidelity in fidelities]
    if not any(data.valid.coverage(task).any() for task in labels):
        logger.warning(
            "the validation set has no label of %s; the stage is not validated", ", ".join(sorted(fidelities))
        )
        return dict
    direct, derivatives = evaluable(model, data.valid, labels)
    device = next(model.parameters()).device
    valid = data.valid.subset(validation_rows(data.valid, [*direct, *derivatives], most))
    batches = [batch.to(device) for batch in batched(model_graphs(model, valid, [*direct, *derivatives]))]

    def validate() -> dict[str, float]:
        with average.applied():
            found = predict_labelled(model, batches, direct, derivatives)
        return {
            f"val/{task}/{name}": value
            for task, prediction in found.items()
            for name, value in errors(task, prediction).items()
            if name != "count"
        }

    return validate


def validation_rows(store: Store, tasks: Sequence[str], most: int) -> np.ndarray:
    """Records that a validation looks at: of each fidelity at most so many, evenly over the store.

    With ten thousand cheap labels, validation would otherwise take longer than training.
    """
    chosen = [np.zeros(0, dtype=np.int64)]
    for fidelity in dict.fromkeys(parse_task(task).fidelity for task in tasks):
        rows = labelled_rows(store, [task for task in tasks if parse_task(task).fidelity == fidelity])
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)])
    return np.unique(np.concatenate(chosen))


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Context without Lightning's reports on hardware and its tips."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch 2.13 in a way that torch is about to drop
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message="GPU available but not used.*")  # `device: cpu` was asked for
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def fit_stage(
    stage: Stage,
    config: RunConfig,
    interruption: Interruption,
    hooks: StageHooks,
    state: TrainingState | None = None,
    stop_after: int | None = None,
    validate_first: bool = False,
) -> bool:
    """Train until the budget is spent or a stop is requested; returns whether the stage is finished.

    A finished stage leaves the averaged weights in the model.

    Parameters
    ----------
    state : TrainingState, optional
        Whose random state to continue with.
    stop_after : int, optional
        Steps of the stage after which to stop as if interrupted.
    validate_first : bool
        Whether to validate before the first step: what a model can do that comes from elsewhere.
    """
    callback = StageCallback(
        interruption,
        stage.validate,
        hooks.report,
        save=lambda: hooks.save(stage),
        n_validations=config.validations,
        log_every=config.log_every,
        stop_after=stop_after,
    )
    callback.validate_first = validate_first
    device = next(stage.model.parameters()).device
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if device.type == "cuda":
        options = {"accelerator": "gpu", "devices": [device.index or 0]}
    with _quiet_lightning():
        trainer = lightning.Trainer(
            **options,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            use_distributed_sampler=False,
            callbacks=[callback],
            # under a launcher, Lightning would look for ranks of its own and take over SLURM's signals
            plugins=[LightningEnvironment()],
        )
        if state is not None:
            restore_random_state(state["random"])
        if stage.module.progress() < 1 and not interruption.agreed(stage.module.ranks):
            stage.module.train()
            trainer.fit(stage.module, train_dataloaders=stage.batches)
    stage.module.to(device)
    if stage.module.progress() < 1:
        hooks.save(stage)
        return False
    stage.average.copy_to_model()
    end_stage(stage.model)
    return True
