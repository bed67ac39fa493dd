"""What happens around the optimiser steps: stopping, saving, validating, reporting."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning
from tqdm import tqdm

from mfm.evaluation.metrics import report_unit
from mfm.properties import parse_task
from mfm.training.module import StageModule
from mfm.training.ranks import Ranks

__all__ = ["Interruption", "StageCallback"]

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A request to stop at the next step, by Ctrl-C or SIGTERM.

    A second Ctrl-C raises KeyboardInterrupt at once; the last saved state stays valid. A request also reaches the
    interruption in whose context this one was caught: a run that is part of a search stops the search.
    """

    def __init__(self) -> None:
        self.requested = False
        self._outer: Interruption | None = None

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._outer is not None:
            self._outer.requested = True

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any of the ranks is to stop; then it is requested on this one too."""
        stop = ranks.largest(float(self.requested)) > 0
        if stop:
            self.requested = True
        return stop

    def install(self) -> None:
        """Catch the signals; Lightning installs its own when a fit starts, so this is called again then."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._request)

    @contextmanager
    def caught(self) -> Iterator["Interruption"]:
        """Context in which signals only set :attr:`requested`; the caller's handlers come back at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        outer = getattr(before[signal.SIGTERM], "__self__", None)
        self._outer = outer if isinstance(outer, Interruption) else None
        self.install()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class StageCallback(lightning.Callback):
    """Ends a stage with its budget, validates evenly over it, saves states, reports progress.

    Parameters
    ----------
    interruption : Interruption
    validate : callable
        Validates the weight average and returns its metrics; called `n_validations` times.
    report : callable
        Receives metrics and the step they belong to.
    save : callable
        Writes a resumable state.
    n_validations : int
    log_every : int
        Optimiser steps between training metrics.
    save_every : float
        Seconds between states.
    stop_after : int, optional
        Optimiser steps of this stage after which to stop as if interrupted.
    """

    def __init__(
        self,
        interruption: Interruption,
        validate: Callable[[], Mapping[str, float]],
        report: Callable[[Mapping[str, float], int], None],
        save: Callable[[], None],
        n_validations: int = 20,
        log_every: int = 50,
        save_every: float = 300.0,
        stop_after: int | None = None,
    ) -> None:
        self._interruption = interruption
        self._validate = validate
        self._report = report
        self._save = save
        self._n_validations = n_validations
        self._log_every = log_every
        self._save_every = save_every
        self._stop_after = stop_after
        self.validate_first = False
        """Whether to validate before the first step too."""
        self._due = 0.0
        self._saved = time.monotonic()
        self._window = (0, 0.0)
        self._latest: dict[str, float] = {}
        self._bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals, open the progress bar, find the next validation."""
        assert isinstance(pl_module, StageModule)
        self._interruption.install()
        progress = pl_module.progress()
        self._due = (int(progress * self._n_validations + 1e-9) + 1) / self._n_validations
        self._window = (pl_module.clock.step, time.perf_counter())
        self._saved = time.monotonic()
        # a bar for people; a file or a pipe gets the lines of `_describe` only
        self._bar = tqdm(
            total=100.0, initial=round(100 * progress, 1), desc=pl_module.stage_name, leave=False, file=sys.stderr,
            disable=None if pl_module.ranks.writes else True,
            bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining}{postfix}",
        )  # fmt: skip
        if self.validate_first and pl_module.clock.step == 0:
            self._run_validation(pl_module, 0.0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act on the step that was just taken."""
        assert isinstance(pl_module, StageModule)
        step, progress = pl_module.clock.step, pl_module.progress()
        if step % self._log_every == 0 or progress >= 1:
            self._log_training(pl_module, progress)
        if progress >= self._due or progress >= 1:
            self._run_validation(pl_module, progress)
        stop = self._interruption.agreed(pl_module.ranks) or step == self._stop_after
        if progress >= 1 or stop:
            trainer.should_stop = True
        elif time.monotonic() - self._saved > self._save_every:
            self._save()
            self._saved = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the progress bar."""
        self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the progress bar; the state of an unfinished step is not worth saving."""
        if self._bar is not None:
            self._bar.close()

    def _log_training(self, module: StageModule, progress: float) -> None:
        metrics = module.training_metrics()
        now = time.perf_counter()
        first, started = self._window
        if module.clock.step > first:
            metrics["train/steps_per_second"] = (module.clock.step - first) / (now - started)
        self._window = (module.clock.step, now)
        self._latest.update(metrics)
        self._report(metrics, module.clock.step)
        self._bar.update(round(100 * min(progress, 1.0), 1) - self._bar.n)

    def _run_validation(self, module: StageModule, progress: float) -> None:
        metrics = dict(self._validate())
        while self._due <= progress:
            self._due += 1 / self._n_validations
        self._report(metrics, module.clock.step)
        self._bar.clear()
        if module.ranks.writes:
            logger.info(_describe(module, min(progress, 1.0), {**self._latest, **metrics}))
        self._bar.refresh()
        # validation must not count as slow training
        self._window = (module.clock.step, time.perf_counter())


def _describe(module: StageModule, progress: float, metrics: Mapping[str, float]) -> str:
    """One line on the state of a stage."""
    parts = [f"{module.stage_name} {100 * progress:3.0f} %", f"step {module.clock.step}"]
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.3g}")
    for name, value in metrics.items():
        split, _, rest = name.partition("/")
        task, _, quantity = rest.partition("/")
        if split != "val":
            continue
        unit = report_unit(task)
        per_atom = "_per_atom" if parse_task(task).property == "energy" else ""
        if quantity == f"mae_{unit.suffix}{per_atom}":
            parts.append(f"{task} {value:.2f} {unit.symbol}{'/atom' if per_atom else ''}")
    if "train/steps_per_second" in metrics:
        parts.append(f"{metrics['train/steps_per_second']:.1f} steps/s")
    return " | ".join(parts)
