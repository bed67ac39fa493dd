"""Labelling on the executor of a cluster: Parsl, or anything that is a ``concurrent.futures.Executor``.

The store stays with this process, which alone writes; workers compute and answer. A job whose worker was lost is
submitted again, three times in all.
"""

import logging
import runpy
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any

from mfm.labelling.levels import Level
from mfm.labelling.run import Progress, RunSummary
from mfm.labelling.store import Answer, Job, LabelStore
from mfm.labelling.worker import answer_remotely

__all__ = ["label_on", "open_executor"]

_LOG = logging.getLogger(__name__)


def open_executor(path: Path) -> Executor:
    """Executor that a Python file describes: its ``executor()``, or its ``config``, a ``parsl.Config``.

    Raises
    ------
    ValueError
        If it defines neither, or Parsl is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`--cluster` takes a Python file, got {path}, which is none; see docs/labelling.md")
    names: dict[str, Any] = runpy.run_path(str(path))
    if callable(names.get("executor")):
        return names["executor"]()
    if "config" not in names:
        raise ValueError(
            f"{path} must define `config`, a parsl.Config, or `executor()`, which returns an executor of"
            " concurrent.futures; got neither (docs/labelling.md has an example)"
        )
    try:
        from parsl.concurrent import ParslPoolExecutor
    except ImportError as error:
        raise ValueError("`config` needs Parsl; install it with: pip install mfm[cluster]") from error
    return ParslPoolExecutor(names["config"])


def label_on(
    executor: Executor,
    store: LabelStore,
    levels: Mapping[str, Level],
    n_workers: int,
    hours: float,
    job_minutes: float = 15.0,
    memory_gib: float = 8.0,
    max_labels: int | None = None,
) -> RunSummary:
    """Work through the store's queue on an executor; as :func:`mfm.labelling.run.label` otherwise.

    Parameters
    ----------
    executor : concurrent.futures.Executor
        Its workers must be able to import mfm, and should have ``OMP_NUM_THREADS=1``.
    n_workers : int
        Workers there will be: twice as many jobs are submitted at a time, so that none waits.

    Raises
    ------
    ValueError
        If the queue names a level that `levels` lacks.
    OSError
        If the store cannot be written, or another run writes to it.
    """
    limits = (job_minutes * 60, memory_gib)
    with store.lock():
        progress = Progress(store, levels, hours, max_labels)
        running: dict[Future[tuple[Answer, dict[str, str]]], tuple[Job, float]] = {}
        try:
            while running or progress.has_work():
                while progress.has_work() and len(running) < 2 * n_workers:
                    job = progress.next_job()
                    request = progress.requests[job.level]
                    running[executor.submit(answer_remotely, job, request, *limits)] = (job, time.monotonic())
                for future in wait(running, timeout=5.0, return_when=FIRST_COMPLETED).done:
                    _take(progress, future, *running.pop(future))
        finally:
            for future in running:
                future.cancel()
    return progress.summary()


def _take(progress: Progress, future: "Future[tuple[Answer, dict[str, str]]]", job: Job, submitted: float) -> None:
    """Record what a future holds; one that failed lost its worker, since a job's own errors are answers."""
    error = future.exception()
    if error is None:
        progress.record(job, *future.result())
    else:
        reason = f"worker lost ({type(error).__name__}: {error})"
        progress.lost(job, reason, time.monotonic() - submitted, {})
