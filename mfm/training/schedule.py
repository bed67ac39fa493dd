"""Position within a stage, its budget, and the learning rate that ends with the budget."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Budget", "Clock", "learning_rate_factor"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage lasts, counted in one of three ways."""

    kind: Literal["epochs", "steps", "minutes"]
    amount: float

    def progress(self, clock: "Clock") -> float:
        """Fraction of the budget that is spent, at least 0; the stage ends at 1."""
        if self.kind == "epochs":
            return (clock.epoch + clock.batch / max(clock.batches_in_epoch, 1)) / self.amount
        if self.kind == "steps":
            return clock.step / self.amount
        return clock.seconds() / (60 * self.amount)


class Clock:
    """Counts steps, epochs and seconds of a stage.

    Seconds are processor time on the CPU, so that a budget buys the same training on a busy machine (with several
    threads they add up), and wall time on other devices.

    Parameters
    ----------
    device_type : str
        ``cpu``, ``cuda`` ...
    agree : callable, optional
        From this process's seconds to those of all that train together. With it, time goes on with the steps only, so
        that everything that depends on it happens at the same step everywhere.
    """

    def __init__(self, device_type: str = "cpu", agree: Callable[[float], float] | None = None) -> None:
        self.step = 0
        self.epoch = 0
        self.batch = 0
        """Batches of the present epoch that are done."""
        self.batches_in_epoch = 0
        self._now = time.process_time if device_type == "cpu" else time.perf_counter
        self._before = 0.0
        self._started = self._now()
        self._agree = agree
        self._agreed = 0.0

    def seconds(self) -> float:
        """Time spent in the stage, over all its restarts, s."""
        return self._measured() if self._agree is None else self._agreed

    def _measured(self) -> float:
        return self._before + self._now() - self._started

    def advance(self, batches_in_epoch: int) -> None:
        """Count one step in an epoch of so many batches."""
        self.step += 1
        self.batch += 1
        self.batches_in_epoch = batches_in_epoch
        if self.batch >= batches_in_epoch:
            self.epoch += 1
            self.batch = 0
        if self._agree is not None:
            self._agreed = self._agree(self._measured())

    def state_dict(self) -> dict[str, float]:
        """Everything that a restart needs."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "batches_in_epoch": self.batches_in_epoch,
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave, and count on from now."""
        self.step = int(state["step"])
        self.epoch = int(state["epoch"])
        self.batch = int(state["batch"])
        self.batches_in_epoch = int(state["batches_in_epoch"])
        self._before = self._agreed = float(state["seconds"])
        self._started = self._now()


def learning_rate_factor(progress: float, step: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate: a cosine to zero at the end of the budget, times a linear warm-up.

    Parameters
    ----------
    progress : float
        Fraction of the budget that is spent.
    step : int
        Optimiser steps done.
    warmup_steps : int
        Steps over which the rate rises. Counted in steps, since it is the number of gradients seen that makes Adam's
        second moments trustworthy, however long the stage.

    Examples
    --------
    >>> [round(learning_rate_factor(p, int(1000 * p), warmup_steps=100), 3) for p in (0.049, 0.1, 0.5, 1.0)]
    [0.497, 0.976, 0.5, 0.0]
    """
    warm = min((step + 1) / max(warmup_steps, 1), 1.0)
    return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
