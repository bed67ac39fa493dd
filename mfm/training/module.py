"""One optimiser step, as a Lightning module."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import lightning
import torch
from torch import Tensor, nn

from mfm.graph import AtomicGraph
from mfm.losses import LossTerm
from mfm.training.cosines import GradientCosines
from mfm.training.ema import WeightAverage
from mfm.training.ranks import ALONE
from mfm.training.recipe import OptimizerConfig
from mfm.training.schedule import Budget, Clock, learning_rate_factor

__all__ = ["Losses", "StageModule", "Targets", "TrainingBatch", "build_optimizer"]

Losses = Callable[[Mapping[str, Tensor], AtomicGraph], tuple[Tensor, Mapping[str, LossTerm]]]
"""From a model's outputs and a batch to what is minimised, and the terms of it to report."""


_NORM_MEMORY = 0.02
"""Weight of a step in the running average of gradient norms: it remembers about 50 steps."""


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


class Targets(NamedTuple):
    """What a stage asks its model for."""

    tasks: Sequence[str]
    derivatives: Sequence[str]
    quantities: Sequence[str] = ()


class StageModule(lightning.LightningModule):
    """Steps of one stage. The learning rate is a function of the spent budget, so it holds no state.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(graph, tasks, derivatives, quantities)``.
    targets : Targets
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
        targets: Targets,
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
        self.ranks = ALONE
        """Processes that train together."""
        self.cosines: GradientCosines | None = None
        """Measures whether tasks pull the same way; if there is none, nothing does."""
        self.model = model
        self.clock = clock
        self.average = average
        self._targets = targets
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
        """Take one step. No value is read back from the device here.

        Raises
        ------
        ValueError
            If nothing that trains has a part in the loss.
        """
        factor = learning_rate_factor(self.progress(), self.clock.step, self._config.warmup_steps)
        for group, peak in zip(self._optimizer.param_groups, self._peak, strict=True):
            group["lr"] = peak * factor
        loss, terms = self._losses(self.model(batch.graph, *self._targets), batch.graph)
        if not loss.requires_grad:
            learned = ", ".join(f"`{name}`" for name in terms)
            raise ValueError(
                f"stage `{self.stage_name}` trains no parameter that {learned} depend on; widen its `trainable` or name"
                " other `tasks`"
            )
        cosines = {}
        if self.cosines is not None and self.cosines.is_due(self.clock.step):
            cosines = self.cosines.measure(terms)
        self._optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        self.ranks.sum_gradients(self._trained)
        norm = self._clip()
        self._optimizer.step()
        self.clock.advance(batch.batches_in_epoch)
        self.average.update(self.clock.step)
        terms_and_cosines = {f"{name}/loss": (term.total, term.count) for name, term in terms.items()} | cosines
        self._accumulate(loss, norm, terms_and_cosines)

    @torch.no_grad()
    def _clip(self) -> Tensor:
        """Shorten a gradient that is much longer than those before it; returns the length it had.

        Adam divides by what gradients were, so a single long one moves the weights by many times the learning rate, and
        with products of many features a few such steps end in infinities. A fixed limit is too lax late in training.
        """
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        group = self._optimizer.param_groups[0]  # saved with the optimiser, so that a resumed stage clips alike
        typical = group.get("typical_norm", norm)
        # a batch without a label of what trains has no gradient and says nothing about those to come
        typical = torch.where(typical > 0.0, typical, norm)
        limit = self._config.clip * typical
        torch._foreach_mul_(gradients, (limit / norm.clamp(min=1e-30)).clamp(max=1.0))
        weight = max(_NORM_MEMORY, 1.0 / (self.clock.step + 1))
        counted = torch.where(norm > 0.0, torch.minimum(norm, limit), typical)
        group["typical_norm"] = typical + (counted - typical) * weight
        return norm

    @torch.no_grad()
    def _accumulate(self, loss: Tensor, norm: Tensor, others: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        one = torch.ones_like(loss)
        values = {"loss": (loss, one), "gradient_norm": (norm, one), **others}
        for name, pair in values.items():
            if name in self._sums:
                torch._foreach_add_(self._sums[name], [value.detach() for value in pair])
            else:
                self._sums[name] = [value.detach().clone() for value in pair]

    def training_metrics(self) -> dict[str, float]:
        """Means since the last call: ``train/loss``, ``train/{task}/loss``, gradient norm, learning rate.

        Of all ranks' structures; the ranks call this at the same step.

        Raises
        ------
        ValueError
            If the loss is not finite any more.
        """
        own = [(float(total), float(count)) for total, count in self._sums.values()]
        everyones = self.ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        sums = dict(zip(self._sums, everyones, strict=True))
        self._sums = {}
        means = {f"train/{name}": total / count for name, (total, count) in sums.items() if count}
        if "train/loss" in means:
            means["train/loss"] *= self.ranks.size  # each rank has a part of the loss of every step
        if not all(math.isfinite(value) for value in means.values()):
            raise ValueError(
                f"the loss must stay finite, got {means.get('train/loss')} near step {self.clock.step} of stage"
                f" `{self.stage_name}`; lower `optimizer.lr`, or look for wild labels with `mfm data info`"
            )
        means["train/learning_rate"] = float(self._optimizer.param_groups[0]["lr"])
        return means
