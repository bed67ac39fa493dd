"""A search from its files to its results: checks, workers, progress, summary."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock
import torch

from mfm import tracking
from mfm.allocator import tune_allocator
from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.training.callbacks import Interruption
from mfm.training.recipe import RunConfig
from mfm.training.transfer import prepare_run
from mfm.tuning.objectives import check_objectives, default_objective
from mfm.tuning.results import Results, describe, write_results
from mfm.tuning.space import Space, with_settings
from mfm.tuning.study import Study, storage_errors
from mfm.tuning.worker import Search, trial_name, work

__all__ = ["TuneOptions", "TuneResult", "tune"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_MOST_RESTARTS = 20
"""So often a search may replace a killed worker."""
_FAILED, _STOPPED = 2, 130
"""Exit statuses of a worker, those of the command line."""


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """How a search is carried out."""

    n_trials: int
    """Trials of the study, those of earlier calls and other machines included."""
    workers: int = 1
    """Processes on this machine; one is this process itself."""
    objectives: Sequence[str] = ()
    """What is minimised; the error per atom of the highest level if not given."""
    study: str = ""
    """Name of the study; that of the recipe with ``-tune`` if not given."""
    storage: str = ""
    """Journal or database; ``optuna.journal`` beside the tracked runs if not given."""
    output: str = ""
    """Folder of trials and results; ``runs/STUDY`` if not given."""
    prune: bool = True
    """Whether trials may end early that are worse than the median of others."""
    threads: int = 1
    """CPU threads of each worker."""
    initial: str = ""
    """Checkpoint that every trial starts from, also ``models:/NAME@ALIAS`` or ``runs:/RUN``; none if empty."""


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What a search left."""

    finished: bool
    """Whether no trial is left to begin; otherwise the same call goes on."""
    results: Results


def tune(recipe: Mapping[str, Any], space: Space, options: TuneOptions) -> TuneResult:
    """Search a space for the settings of a recipe that are best on its validation set, or go on with that.

    Parameters
    ----------
    recipe : mapping
        Content of a run file.
    space : Space
        Of :func:`mfm.tuning.space.read_space`.

    Raises
    ------
    ValueError
        If recipe, objectives and data do not fit, the storage cannot be reached, or holds another search of that name.
    OSError
        If a disk is full.
    """
    search, config = _prepare(recipe, space, options)
    study = search.open()
    _refuse_strangers(search, study)
    with _own_folder(search.folder) as folder:
        return _carry_out(search, config, study, options, folder)


def _carry_out(search: Search, config: RunConfig, study: Study, options: TuneOptions, folder: Path) -> TuneResult:
    tracker = _open_tracker(config, search, study, folder)
    status = "FAILED"
    logger.info(
        "study %s in %s: %d trials, minimises %s",
        search.study, search.storage.rpartition("@")[2], search.n_trials, ", ".join(search.objectives),
    )  # fmt: skip
    progress = _Progress(search, study)
    try:
        if options.workers == 1:
            finished = work(search, study, tell=progress.tell)
        else:
            finished = _supervise(search, options, progress, folder)
        with storage_errors(search.storage):
            results = write_results(search, study)
        # a worker may have put its trial back after all others had gone
        finished = finished and not any(record.state == "waiting" for record in results.records)
        status = "FINISHED" if finished else "KILLED"
        tracker.log_metrics(results.metrics, step=results.n_ended)
        tracker.log_artifacts(results.files)
    finally:
        tracker.finish(status)
    return TuneResult(finished, results)


def _prepare(recipe: Mapping[str, Any], space: Space, options: TuneOptions) -> tuple[Search, RunConfig]:
    """Everything that can be wrong without training anything."""
    for name, least in (("trials", options.n_trials), ("workers", options.workers), ("threads", options.threads)):
        if least < 1:
            raise ValueError(f"`--{name}` must be at least 1, got {least}")
    content = with_settings(recipe, space.fixed)
    config = validate(RunConfig, content)
    objectives = tuple(options.objectives) or (default_objective(config),)
    initial = tracking.resolve(options.initial)
    parent = None
    facts: dict[str, Any] = {}
    if initial:
        with tracking.checkpoint_file(initial) as path:
            parent = load_model(path)
            facts = {"parent": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    trained, data = prepare_run(config, parent, [] if parent is None else parent.tasks)
    check_objectives(objectives, trained, data)
    if options.prune and len(objectives) > 1:
        logger.info("no trial ends early: with several objectives none is worse before all are known")
    assert data.valid is not None
    facts |= {
        **tracking.flatten(config.model_dump(mode="json", exclude={"name", "output", "tracking", "device"})),
        "space": space.to_dict(),
        "objective": list(objectives),
        "training set": data.train.digest,
        "validation set": data.valid.digest,
    }
    study = options.study or f"{config.name}-tune"
    directory = "mlruns" if config.tracking == "none" else config.tracking.directory
    beside = tracking.locate(directory).directory or Path(directory)
    search = Search(
        recipe=content,
        space=space,
        objectives=objectives,
        study=study,
        storage=options.storage or str(beside / "optuna.journal"),
        folder=Path(options.output or f"runs/{study}"),
        facts=facts,
        n_trials=options.n_trials,
        prune=options.prune,
        initial=initial,
    )
    return search, config


def _refuse_strangers(search: Search, study: Study) -> None:
    """Trials in the folder that the study does not know are of another one, and would be taken for its own."""
    folders = sorted(path.name for path in search.folder.glob("trial-*"))  # before the study: others may begin trials
    with storage_errors(search.storage):
        known = {trial_name(record.number) for record in study.records()}
    strangers = [name for name in folders if name not in known]
    if strangers:
        raise ValueError(
            f"`{search.folder}` holds {', '.join(strangers[:3])} of another study; name this one with `--study`, its"
            " folder with `--output`, or remove that folder"
        )


@contextlib.contextmanager
def _own_folder(study: Path) -> Iterator[Path]:
    """Folder for what a process alone writes: the study's, or one in it while another process has that.

    Several machines may share the folder of a study, and several commands on one.
    """
    for number in itertools.count(1):
        folder = study if number == 1 else study / f"process-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".process.lock")
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
            break
    try:
        yield folder
    finally:
        lock.release()


def _open_tracker(config: RunConfig, search: Search, study: Study, folder: Path) -> tracking.Run:
    """Tracked run of the study, which those of its trials are nested under."""
    if config.tracking == "none":
        return tracking.NoRun()
    experiment, directory = config.tracking.experiment, config.tracking.directory
    if study.run_key and folder != search.folder:
        return tracking.join_run(folder, experiment, search.study, directory, study.run_key)
    if not study.run_key:
        study.set_run_key(f"{search.study}-{uuid.uuid4().hex[:12]}")
    tags = {"mfm.commit": tracking.code_version(), "mfm.seed": str(config.seed)}
    resume = (folder / tracking.JOURNAL).exists()
    tracker = tracking.start_run(folder, experiment, search.study, tags, directory, resume, key=study.run_key)
    tracker.log_params({"objectives": ",".join(search.objectives), **tracking.flatten(search.space.to_dict())})
    return tracker


class _Progress:
    """Tells of trials as they end, whichever process ended them."""

    def __init__(self, search: Search, study: Study) -> None:
        self._search = search
        self._study = study
        self._told = {record.number for record in study.records() if record.state not in ("waiting", "running")}
        if self._told:
            logger.info("%d trials have ended before", len(self._told))

    def tell(self) -> None:
        """Log a line per trial that has ended since the last call."""
        with storage_errors(self._search.storage):
            ended = [record for record in self._study.records() if record.state not in ("waiting", "running")]
        news = [record for record in ended if record.number not in self._told]
        for record in news:
            self._told.add(record.number)
            logger.info("%d of %d | %s", len(self._told), self._search.n_trials, describe(record, self._search))


def _supervise(search: Search, options: TuneOptions, progress: _Progress, folder: Path) -> bool:
    """Let processes work, and replace those that are killed."""
    restarts = 0
    with Interruption().caught() as interruption:
        workers = [_start(search, options, number, folder) for number in range(options.workers)]
        try:
            some_work = True
            while some_work:
                time.sleep(_POLL_SECONDS)
                progress.tell()
                some_work = False
                for number, worker in enumerate(workers):
                    code = worker.exitcode
                    some_work |= code is None
                    if interruption.requested and code is None:
                        worker.terminate()
                    elif code is not None and code < 0 and not interruption.requested and restarts < _MOST_RESTARTS:
                        restarts += 1
                        logger.warning("worker %d was killed by signal %d; another takes over", number, -code)
                        workers[number] = _start(search, options, number, folder)
                        some_work = True
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
    progress.tell()
    codes = [worker.exitcode or 0 for worker in workers]
    logs = [folder / f"worker-{number}.log" for number in range(len(workers))]
    if all(code > 0 and code != _STOPPED for code in codes):
        last = logs[0].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"every worker gave up; the log `{logs[0]}` ends with: {''.join(last)}")
    for number, code in enumerate(codes):
        if code not in (0, _STOPPED):
            logger.warning("worker %d ended with status %s; see %s", number, code, logs[number])
    return 0 in codes and not interruption.requested


def _start(search: Search, options: TuneOptions, number: int, folder: Path) -> BaseProcess:
    """Start a worker: a process of its own from the beginning, since torch does not survive a fork."""
    process = multiprocessing.get_context("spawn").Process(
        target=_run_worker,
        args=(search, options.threads, os.getpid(), folder / f"worker-{number}.log"),
        daemon=True,
    )
    process.start()
    return process


def _run_worker(search: Search, threads: int, parent: int, path: Path) -> None:
    """Body of a worker: its output goes to a file."""
    log = path.open("a", encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("mfm").setLevel(logging.INFO)
    tune_allocator()
    torch.set_num_threads(threads)
    is_wanted = threading.Event()
    is_wanted.set()
    threading.Thread(target=_watch_parent, args=(parent, is_wanted), daemon=True).start()
    try:
        finished = work(search, search.open(), is_wanted)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        sys.exit(_FAILED)
    sys.exit(0 if finished else _STOPPED)


def _watch_parent(parent: int, is_wanted: threading.Event) -> None:
    """Stop wanting trials once the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    is_wanted.clear()
