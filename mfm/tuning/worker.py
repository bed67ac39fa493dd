"""One process that carries out trials of a study, one after another, until none is left."""

import contextlib
import dataclasses
import logging
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mfm.config import validate
from mfm.model import MFMModel
from mfm.training.callbacks import Interruption
from mfm.training.data import RunData
from mfm.training.recipe import RunConfig
from mfm.training.run import STATE, Supervision, train
from mfm.tuning.objectives import measure
from mfm.tuning.owner import BEAT_SECONDS
from mfm.tuning.space import Space, with_settings
from mfm.tuning.study import Study, Trial, open_study, storage_errors

__all__ = ["Search", "trial_name", "work"]

logger = logging.getLogger(__name__)

_HOPELESS = 5
"""So many failures in a row, without any success in the study, are no accident."""
_WARM_UP = 0.25
"""Share of a stage's validations before which no trial is judged."""

Outcome = Literal["complete", "pruned", "failed", "stopped"]


@dataclasses.dataclass(frozen=True)
class Search:
    """A search, as every process of it knows it."""

    recipe: Mapping[str, Any]
    """Content of the run file, with what is fixed in the space."""
    space: Space
    objectives: tuple[str, ...]
    """What is minimised; the first decides about pruning."""
    study: str
    """Name of the study."""
    storage: str
    """File of the journal, or URL of the database."""
    folder: Path
    """Holds a folder per trial, and the results."""
    facts: Mapping[str, Any]
    """What must not change while the study is continued."""
    n_trials: int
    prune: bool = True
    initial: str = ""
    """Checkpoint that every trial starts from, by a name that stays the same; none if empty."""

    def open(self) -> Study:
        """The study; see :func:`mfm.tuning.study.open_study`."""
        with storage_errors(self.storage):
            return open_study(
                self.storage,
                self.study,
                self.space,
                len(self.objectives),
                self.facts,
                seed=int(self.recipe.get("seed", 0)),
                prune=self.prunes,
            )

    @property
    def prunes(self) -> bool:
        """Whether trials may end early; with several objectives none is worse before all are known."""
        return self.prune and len(self.objectives) == 1

    def trial_recipe(self, settings: Mapping[str, Any], name: str, output: str = "") -> dict[str, Any]:
        """Content of the run file of a trial."""
        return with_settings(self.recipe, {**settings, "name": name, "output": output})


def trial_name(number: int) -> str:
    """Name of a trial's run and folder."""
    return f"trial-{number:03d}"


def work(
    search: Search, study: Study, is_wanted: threading.Event | None = None, tell: Callable[[], None] = lambda: None
) -> bool:
    """Carry out trials until none is left; returns whether none is, rather than a stop having been asked for.

    Parameters
    ----------
    is_wanted : Event, optional
        Once it is cleared, the trial in hand stops at its next validation and is put back.
    tell : callable
        Called after each trial.

    Raises
    ------
    ValueError
        If one trial after another fails, or storage or tracking cannot be reached.
    OSError
        If the disk is full; the trial in hand is put back.
    """
    failures: list[str] = []
    with storage_errors(search.storage), Interruption().caught() as interruption:
        while not interruption.requested and (is_wanted is None or is_wanted.is_set()):
            trial = study.claim(search.n_trials)
            if trial is None:
                return True
            outcome, reason = _carry_out(search, study, trial, is_wanted)
            if outcome == "stopped":
                return False
            tell()
            failures = [*failures, reason] if outcome == "failed" else []
            if len(failures) >= _HOPELESS and not any(record.state == "complete" for record in study.records()):
                raise ValueError(f"the first {len(failures)} trials all failed, the last with: {reason}")
    return False


class _Watch:
    """What happens to a trial while it trains.

    Parameters
    ----------
    search, study, trial
        Of the trial.
    is_wanted : Event, optional
        As in :func:`work`.
    """

    def __init__(self, search: Search, study: Study, trial: Trial, is_wanted: threading.Event | None) -> None:
        self.pruned = False
        self.metrics: dict[str, float] = {}
        self._search = search
        self._study = study
        self._trial = trial
        self._is_wanted = is_wanted
        self._is_ours = True
        self._done = threading.Event()
        self._validations = validate(RunConfig, search.recipe).validations
        self._seen = 0

    def __call__(self, metrics: Mapping[str, float], position: float) -> bool:
        """Report a validation; returns whether to stop."""
        value = metrics.get(self._search.objectives[0])
        if self._search.prunes and value is not None:
            step = round(position * self._validations)
            is_worse = self._study.report(self._trial, step, value)
            self._seen += 1
            self.pruned = is_worse and self._seen > _WARM_UP * self._validations
        return self.pruned or not self._is_ours or (self._is_wanted is not None and not self._is_wanted.is_set())

    def measure(self, model: MFMModel, data: RunData) -> Mapping[str, float]:
        """Metrics of the trained model, kept for later."""
        self.metrics = measure(model, data)
        return self.metrics

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Context with signs of life to the other processes of the study."""
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                with storage_errors(self._search.storage):
                    self._is_ours = self._study.beat(self._trial)
            except (OSError, ValueError) as error:
                logger.warning("trial %d cannot say that it is alive: %s", self._trial.number, error)


def _carry_out(search: Search, study: Study, trial: Trial, is_wanted: threading.Event | None) -> tuple[Outcome, str]:
    """Train a trial and tell the study how it ended; the second value is why it failed."""
    watch = _Watch(search, study, trial, is_wanted)
    settled = False
    try:
        with watch.alive():
            outcome, reason = _train(search, study, trial, watch)
        if outcome == "complete":
            values = [watch.metrics.get(name, math.nan) for name in search.objectives]
            if all(math.isfinite(value) for value in values):
                study.complete(trial, values, watch.metrics)
            else:
                outcome, reason = "failed", f"objectives must be finite, got {values}"
        if outcome == "pruned":
            study.prune(trial)
        elif outcome == "failed":
            study.fail(trial, reason)
        settled = outcome != "stopped"
    finally:
        if not settled:
            study.put_back(trial)
    return outcome, reason


def _train(search: Search, study: Study, trial: Trial, watch: _Watch) -> tuple[Outcome, str]:
    folder = search.folder / trial_name(trial.number)
    content = search.trial_recipe(trial.settings, trial_name(trial.number), str(folder))
    supervision = Supervision(study.run_key, trial.settings, watch, watch.measure)
    initial = search.initial or None
    try:
        config = validate(RunConfig, content)
        if (folder / STATE).exists():
            try:
                return _outcome(
                    train(config, initial=initial, resume=True, supervision=supervision).finished, watch
                ), ""
            except ValueError as error:
                logger.warning("trial %d starts anew: %s", trial.number, error)
                shutil.rmtree(folder)
        return _outcome(train(config, initial=initial, supervision=supervision).finished, watch), ""
    except (ValueError, RuntimeError) as error:  # such as a GPU without enough memory
        return "failed", str(error)


def _outcome(finished: bool, watch: _Watch) -> Outcome:
    if finished:
        return "complete"
    return "pruned" if watch.pruned else "stopped"
