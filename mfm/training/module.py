"""One optimiser step, as a Lightning module."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import lightning
import torch
from torch import Tensor, nn

from mfm.graph import AtomicGraph
from mfm.losses import LossTerm
from mfm.training.ema import WeightAverage
from mfm.training.recipe import OptimizerConfig
from mfm.training.schedule import Budget, Clock, learning_rate_factor

__all__ = ["StageModule", "TrainingBatch", "build_optimizer"]

Losses = Callable[[Mapping[str, Tensor], AtomicGraph], tuple[Tensor, Mapping[str, LossTerm]]]
"""From a model's outputs and a batch to what is minimised, and the terms of it to report."""


class TrainingBatch(NamedTuple):
    """A batch and the length of the epoch it comes from."""

    graph: AtomicGraph
    batches_in_epoch: int


def build_optimizer(model: nn.Module, config: OptimizerConfig, learning_rate: float) -> torch.optim.AdamW:
    """AdamW with AMSGrad over the trainable parameters.

    AMSGrad, because with rare batches of high-level labels the second moment forgets them in between.

    Raises
    ------
    ValueError
        If nothing is trainable.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("a stage needs at least one trainable parameter, got none; check `trainable`")
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=config.weight_decay, betas=config.betas, amsgrad=True, fused=True
    )


class StageModule(lightning.LightningModule):
    """Steps of one stage. The learning rate is a function of the spent budget, so it holds no state.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(graph, tasks, derivatives)``.
    targets : (tasks, derivatives)
        What the model is asked for.
    losses : callable
    optimizer : torch.optim.Optimizer
    config : OptimizerConfig
    budget : Budget
    average : WeightAverage
    clock : Clock
    """

    def __init__(
        self,
        model: nn.Module,
        targets: tuple[Sequence[str], Sequence[str]],
        losses: Losses,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        budget: Budget,
        average: WeightAverage,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stage_name = ""
        """Name for progress reports."""
        self.model = model
        self.clock = clock
        self.average = average
        self._tasks, self._derivatives = targets
        self._losses = losses
        self._optimizer = optimizer
        self._peak = [group["lr"] for group in optimizer.param_groups]
        self._config = config
        self._budget = budget
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._sums: dict[str, list[Tensor]] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimiser of the stage."""
        return self._optimizer

    def progress(self) -> float:
        """Fraction of the budget that is spent."""
        return self._budget.progress(self.clock)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Take one step. No value is read back from the device here."""
        factor = learning_rate_factor(self.progress(), self.clock.step, self._config.warmup_steps)
        for group, peak in zip(self._optimizer.param_groups, self._peak, strict=True):
            group["lr"] = peak * factor
        loss, terms = self._losses(self.model(batch.graph, self._tasks, self._derivatives), batch.graph)
        self._optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(self._trained, self._config.clip)
        self._optimizer.step()
        self.clock.advance(batch.batches_in_epoch)
        self.average.update(self.clock.step)
        self._accumulate(loss, norm, terms)

    @torch.no_grad()
    def _accumulate(self, loss: Tensor, norm: Tensor, terms: Mapping[str, LossTerm]) -> None:
        one = torch.ones_like(loss)
        values = {"loss": (loss, one), "gradient_norm": (norm, one)}
        values |= {f"{name}/loss": (term.total, term.count) for name, term in terms.items()}
        for name, pair in values.items():
            if name in self._sums:
                torch._foreach_add_(self._sums[name], [value.detach() for value in pair])
            else:
                self._sums[name] = [value.detach().clone() for value in pair]

    def training_metrics(self) -> dict[str, float]:
        """Means since the last call: ``train/loss``, ``train/{task}/loss``, gradient norm, learning rate.

        Raises
        ------
        ValueError
            If the loss is not finite any more.
        """
        sums = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        self._sums = {}
        means = {f"train/{name}": total / count for name, (total, count) in sums.items() if count}
        if not all(math.isfinite(value) for value in means.values()):
            raise ValueError(
                f"the loss must stay finite, got {means.get('train/loss')} near step {self.clock.step} of stage"
                f" `{self.stage_name}`; lower `optimizer.lr`, or look for wild labels with `mfm data info`"
            )
        means["train/learning_rate"] = float(self._optimizer.param_groups[0]["lr"])
        return means
