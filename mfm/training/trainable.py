"""Which parameters of a model a stage trains, and what the model has during a stage only."""

import fnmatch

from mfm.model import MFMModel
from mfm.training.auxiliary import add_conditioner, remove_conditioner
from mfm.training.denoising import add_denoiser
from mfm.training.lora import add_low_rank, merge_low_rank
from mfm.training.recipe import StageConfig

__all__ = ["begin_stage", "end_stage", "set_trainable"]


def set_trainable(model: MFMModel, patterns: str | list[str]) -> None:
    """Let the parameters train whose name fits a pattern, and freeze the others.

    Raises
    ------
    ValueError
        If a pattern fits no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    wanted = ["*"] if patterns == "all" else list(patterns)
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(f"`trainable` pattern `{pattern}` fits no parameter; they are {', '.join(parts)}, ...")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in wanted))


def begin_stage(model: MFMModel, stage: StageConfig) -> None:
    """Freeze what a stage does not train, and give the model what it has during the stage only.

    That is heads for noise and low-rank corrections. They train whatever the stage's patterns are, so the patterns come
    first; a stage that is resumed begins from a model without them, too, or its optimiser would hold other parameters.
    """
    set_trainable(model, stage.trainable)
    if stage.objective == "denoising":
        add_denoiser(model)
    if stage.auxiliary_denoising is not None:
        add_conditioner(model, stage.auxiliary_denoising.condition)
    if stage.lora_rank is not None:
        add_low_rank(model.backbone, stage.lora_rank)


def end_stage(model: MFMModel) -> None:
    """Take away what :func:`begin_stage` gave; what low-rank corrections have learned stays."""
    merge_low_rank(model.backbone)
    remove_conditioner(model)
