"""Trials of a study, shared by any number of processes and machines: the only file that imports Optuna.

A trial has a number for life. A process that takes one writes down who it is and, every half minute, that it still
lives. A trial whose process is gone waits again, under the same number, and the next free process goes on with it: none
is lost, and none counts twice.
"""

import contextlib
import dataclasses
import json
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
import sqlalchemy.exc
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mfm.tuning.journal import Journal
from mfm.tuning.owner import is_gone, this_process, with_beat
from mfm.tuning.space import Choice, Space

__all__ = ["Study", "Trial", "TrialRecord", "open_study", "storage_errors"]

_UNCLAIMED = 60.0
"""Seconds after which nobody will write down any more that a trial is theirs."""
_MOST_KILLS = 3
"""So many processes may be killed over a trial before it counts as failed: it may be what kills them."""
_OWNER, _KILLS, _METRICS, _REASON = "mfm.owner", "mfm.kills", "mfm.metrics", "mfm.reason"
_FACTS, _RUN = "mfm.facts", "mfm.run"

State = Literal["waiting", "running", "complete", "pruned", "failed"]
_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@contextlib.contextmanager
def storage_errors(location: str) -> Iterator[None]:
    """Context in which Optuna logs warnings only, and a storage that fails is a ValueError that says where it is."""
    logger = optuna.logging.get_logger("optuna")
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise ValueError(_unreachable(location, error)) from error
    finally:
        logger.setLevel(level)


class Trial(NamedTuple):
    """A trial that this process works on."""

    number: int
    settings: dict[str, Any]
    """Dotted key of the recipe → value."""
    token: str
    """Tells this claim apart from others on the same trial."""
    handle: optuna.trial.Trial
    reported: set[int]
    """Steps with a value already, from a process that was killed."""


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial."""

    number: int
    state: State
    settings: dict[str, Any]
    values: tuple[float, ...]
    """One per objective of a complete trial, otherwise empty."""
    metrics: dict[str, float]
    """All that was measured at its end."""
    reason: str
    """Why it failed."""
    seconds: float
    """Between its (last) start and its end; NaN if it has not ended."""


class _Sampler(optuna.samplers.BaseSampler):
    """Tree-structured Parzen estimator whose random numbers depend on the number of the trial alone.

    Workers then neither suggest the same, as equal seeds would make them, nor something else when a trial is taken up
    again. The first trial has the recipe's own settings: whatever is found is found beside them.
    """

    def __init__(self, seed: int, own: Mapping[str, Any]) -> None:
        self._seed = seed
        self._own = own

    def _estimator(self, trial: FrozenTrial) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(seed=(self._seed * 1_000_003 + trial.number) % 2**32)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._estimator(trial).infer_relative_search_space(study, trial) if trial.number else {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._estimator(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        if trial.number == 0 and param_name in self._own:
            return self._own[param_name]
        # each setting its own stream: one for all would give them all the same position in their ranges
        digest = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._seed} {trial.number} {param_name}")
        estimator = optuna.samplers.TPESampler(seed=digest.int % 2**32)
        return estimator.sample_independent(study, trial, param_name, param_distribution)


class Study:
    """The trials of one search; made by :func:`open_study`."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, space: Space) -> None:
        self._study = study
        self._storage = storage
        self._space = space
        self._id = storage.get_study_id_from_name(study.study_name)
        self.name = study.study_name

    @property
    def run_key(self) -> str:
        """Key of the study's tracked run; empty if there is none."""
        return str(self._study.user_attrs.get(_RUN, ""))

    def set_run_key(self, key: str) -> None:
        """Remember the tracked run, for processes to come."""
        self._study.set_user_attr(_RUN, key)

    def claim(self, n_trials: int) -> Trial | None:
        """A trial to work on, with a number below `n_trials`; None if none is left.

        Trials of killed processes go first.
        """
        while True:
            self.release_stale()
            trials = self._trials()
            free = [trial for trial in trials[:n_trials] if trial.state == TrialState.WAITING]
            if free or len(trials) < n_trials:
                handle = self._study.ask()
                if handle.number < n_trials:
                    return self._claimed(handle)
                # another process was quicker; the trial stays for a search that is continued
                self._set_state(handle.number, TrialState.WAITING)
            elif any(_is_unclaimed(trial) for trial in trials):
                time.sleep(1.0)  # its process writes its name down now, or was killed before it could
            else:
                return None

    def _claimed(self, handle: optuna.trial.Trial) -> Trial:
        token = uuid.uuid4().hex
        handle.set_user_attr(_OWNER, {**this_process(), "token": token})
        reported = set(self._storage.get_trial(self._trial_id(handle.number)).intermediate_values)
        return Trial(handle.number, _suggest(handle, self._space), token, handle, reported)

    def beat(self, trial: Trial) -> bool:
        """Give a sign of life; returns whether the trial is still this process's."""
        owner = self._storage.get_trial(self._trial_id(trial.number)).user_attrs.get(_OWNER)
        if owner is None or owner["token"] != trial.token:
            return False
        self._set_attributes(trial.number, {_OWNER: with_beat(owner)})
        return True

    def release_stale(self) -> list[int]:
        """Let trials wait again whose process is gone; returns their numbers."""
        released = []
        for trial in self._trials():
            if trial.state != TrialState.RUNNING or not _is_stale(trial):
                continue
            kills = int(trial.user_attrs.get(_KILLS, 0)) + 1
            reason = f"{kills} processes were killed while they worked on it; too little memory?"
            self._set_attributes(trial.number, {_KILLS: kills, _OWNER: None})
            if kills >= _MOST_KILLS:
                self._set_attributes(trial.number, {_REASON: reason})
                self._set_state(trial.number, TrialState.FAIL)
            else:
                self._set_state(trial.number, TrialState.WAITING)
                released.append(trial.number)
        return released

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Add a value on the way; returns whether the trial is worse than others were and should end."""
        if step not in trial.reported:
            trial.handle.report(value, step)
            trial.reported.add(step)
        return bool(trial.handle.should_prune())

    def complete(self, trial: Trial, values: Sequence[float], metrics: Mapping[str, float]) -> None:
        """End a trial with its objectives, in the order of the study, and all that was measured."""
        self._set_attributes(trial.number, {_METRICS: dict(metrics)})
        self._set_state(trial.number, TrialState.COMPLETE, values)

    def prune(self, trial: Trial) -> None:
        """End a trial that is worse than others were."""
        self._set_state(trial.number, TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial that cannot be carried out."""
        self._set_attributes(trial.number, {_REASON: reason})
        self._set_state(trial.number, TrialState.FAIL)

    def put_back(self, trial: Trial) -> None:
        """Let a trial wait for another process, or for this search to be continued."""
        if self.beat(trial):
            self._set_attributes(trial.number, {_OWNER: None})
            self._set_state(trial.number, TrialState.WAITING)

    def records(self) -> list[TrialRecord]:
        """All trials that were begun, by number."""
        return [_record(trial, self._space) for trial in self._trials() if trial.params or trial.state.is_finished()]

    def front(self) -> list[int]:
        """Numbers of the trials that no other beats in every objective, best first in the first of them."""
        best = sorted(self._study.best_trials, key=lambda trial: (trial.values, trial.number))
        return [trial.number for trial in best[: 1 if len(self._study.directions) == 1 else None]]

    def importances(self, objective: int) -> dict[str, float]:
        """Share of each setting in the variance of an objective, largest first; empty if there are too few trials."""
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        if len(complete) < 4 or len({trial.values[objective] for trial in complete}) < 2:
            return {}
        with warnings.catch_warnings():
            # smaller is better, which is what the estimator takes for granted
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator")
            found = optuna.importance.get_param_importances(self._study, target=lambda trial: trial.values[objective])
        return dict(found)

    def _trials(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _set_attributes(self, number: int, attributes: Mapping[str, Any]) -> None:
        with _unless_ended():
            for key, value in attributes.items():
                self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _set_state(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        with _unless_ended():
            self._storage.set_trial_state_values(self._trial_id(number), state, values)


def _unless_ended() -> contextlib.AbstractContextManager[None]:
    """Context that leaves a trial as it is which another process, having taken it for stale, has ended before."""
    return contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError)


def open_study(
    location: str,
    name: str,
    space: Space,
    n_objectives: int,
    facts: Mapping[str, Any],
    seed: int = 0,
    prune: bool = True,
) -> Study:
    """A study that is new, or continued.

    Parameters
    ----------
    location : str
        File of a journal, or URL of a database (``postgresql://...``).
    facts : mapping
        Plain content that must be the same whenever the study is continued.
    prune : bool
        Whether trials end early that are worse than the median of others; only with one objective.

    Raises
    ------
    ValueError
        If the storage cannot be reached, or the study was begun with other facts.
    """
    storage = _open_storage(location)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if prune else optuna.pruners.NopPruner()
    options: dict[str, Any] = {"storage": storage, "study_name": name, "load_if_exists": True}
    sampler = _Sampler(seed, {key: _plain(value) for key, value in space.own.items()})
    study = optuna.create_study(**options, sampler=sampler, pruner=pruner, directions=["minimize"] * n_objectives)
    found = Study(study, storage, space)
    known = study.user_attrs.get(_FACTS)
    if known is None:
        study.set_user_attr(_FACTS, dict(facts))
    else:
        plain = json.loads(json.dumps(facts))
        changed = [key for key in sorted({*known, *plain}) if known.get(key) != plain.get(key)]
        if changed:
            raise ValueError(
                f"the study `{name}` was begun with another {', '.join(changed[:5])}; restore it, or name another study"
                " with `--study`"
            )
    return found


def _open_storage(location: str) -> BaseStorage:
    if "://" not in location:
        try:
            return optuna.storages.JournalStorage(_as_backend(Journal(Path(location))))
        except OSError as error:
            raise ValueError(
                f"cannot keep the study in `{location}`: {error.strerror}; name another `--storage`"
            ) from error
    options: dict[str, Any] = {"pool_pre_ping": True}
    if location.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    try:
        return optuna.storages.RDBStorage(location, engine_kwargs=options)
    except ImportError as error:
        reason = error.__cause__ or error
        raise ValueError(f"{_unreachable(location, reason)}, and install the database's driver") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise ValueError(_unreachable(location, error)) from error


def _as_backend(journal: Journal) -> Any:
    """The journal, as Optuna asks for it: by structure it is one already."""
    return journal


def _unreachable(location: str, error: BaseException) -> str:
    scheme, _, rest = location.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}"  # without the password
    reason = str(error).splitlines()[0]
    return f"cannot reach the study's storage at `{shown}`: {reason}; check `--storage`"


def _suggest(trial: optuna.trial.Trial, space: Space) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, setting in space.searched.items():
        if isinstance(setting, Choice):
            names = [_plain(option) for option in setting.options]
            found[key] = setting.options[names.index(trial.suggest_categorical(key, names))]
        elif setting.whole:
            step = 1 if setting.step is None else int(setting.step)
            found[key] = trial.suggest_int(key, int(setting.low), int(setting.high), log=setting.log, step=step)
        else:
            found[key] = trial.suggest_float(key, setting.low, setting.high, log=setting.log, step=setting.step)
    return found


def _plain(option: Any) -> Any:
    """An option as Optuna can keep it: what is no scalar, as JSON."""
    return json.dumps(option) if isinstance(option, dict | list) else option


def _record(trial: FrozenTrial, space: Space) -> TrialRecord:
    settings = {}
    for key, value in trial.params.items():
        setting = space.searched[key]
        options = setting.options if isinstance(setting, Choice) else ()
        settings[key] = next((option for option in options if _plain(option) == value), value)
    ended = trial.datetime_start is not None and trial.datetime_complete is not None
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        settings={key: settings[key] for key in space.searched if key in settings},
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else (),
        metrics=dict(trial.user_attrs.get(_METRICS, {})),
        reason=str(trial.user_attrs.get(_REASON, "")),
        seconds=trial.duration.total_seconds() if ended and trial.duration is not None else float("nan"),
    )


def _is_unclaimed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(_OWNER) is None


def _is_stale(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(_OWNER)
    if owner is None:
        started = trial.datetime_start or datetime.now()
        return (datetime.now() - started).total_seconds() > _UNCLAIMED
    return is_gone(owner)
