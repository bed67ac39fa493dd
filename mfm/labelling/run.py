"""Local supervisor of labelling: several worker processes, one writer, resumable at any moment.

The store is the queue, so stopping costs only the labels in flight. A worker that dies or overruns its time
limit is replaced; its job becomes a failure row.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from mfm.labelling.levels import Level
from mfm.labelling.store import Job, LabelRow, LabelStore

__all__ = ["RunSummary", "label"]

_LOG = logging.getLogger(__name__)


class RunSummary(NamedTuple):
    """What a run did."""

    done: int
    failed: int
    left: int
    seconds: float


class _Worker:
    """One worker process and the job it has."""

    def __init__(self, memory_gib: float, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfm.labelling.worker", str(theirs.fileno()), str(memory_gib)],
            pass_fds=[theirs.fileno()],
            # an interrupt at the keyboard reaches only the supervisor, which then stops its workers
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.provenance: dict[str, str] | None = None
        self.job: Job | None = None
        self.started = time.monotonic()

    def assign(self, job: Job, level: Level) -> None:
        self.job, self.started = job, time.monotonic()
        # a worker that has just died is noticed at the next wait, which then fails its job
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((job.structure, level, job.origin))

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def label(
    store: LabelStore,
    levels: Mapping[str, Level],
    n_workers: int,
    hours: float,
    job_minutes: float = 15.0,
    memory_gib: float = 8.0,
    environment: Mapping[str, str] | None = None,
) -> RunSummary:
    """Work through the store's queue.

    Parameters
    ----------
    store : LabelStore
        Written by this process only.
    levels : mapping
        Level identifier → level, for every level in the queue.
    hours : float
        No job is started after this time; those running are finished.
    job_minutes : float
        A job that takes longer is killed and recorded as failed.
    memory_gib : float
        Address-space limit of a worker.
    environment : mapping, optional
        Variables for the workers, such as ``OPENBLAS_CORETYPE``.

    Raises
    ------
    ValueError
        If the queue names a level that `levels` lacks, or a worker cannot start.
    """
    jobs = store.pending()
    missing = sorted({job.level for job in jobs} - set(levels))
    if missing:
        raise ValueError(
            f"queue must name levels out of {', '.join(sorted(levels)) or 'none'}, got {', '.join(missing)}"
        )
    run = _Run(store, levels, jobs, hours * 3600, job_minutes * 60)
    workers = [_Worker(memory_gib, environment or {}) for _ in range(min(n_workers, len(jobs)))]
    try:
        while workers:
            ready = wait([w.connection for w in workers], timeout=1.0)
            for worker in list(workers):
                if not run.attend(worker, worker.connection in ready):
                    workers.remove(worker)
                    worker.stop()
                    if run.has_work():
                        workers.append(_Worker(memory_gib, environment or {}))
    finally:
        for worker in workers:
            worker.stop()
    return run.summary()


class _Run:
    """Progress of one run."""

    def __init__(
        self, store: LabelStore, levels: Mapping[str, Level], jobs: list[Job], budget: float, limit: float
    ) -> None:
        self.store, self.levels, self.budget, self.limit = store, levels, budget, limit
        self.jobs = jobs[::-1]
        self.total, self.done, self.failed = len(jobs), 0, 0
        self.started = time.monotonic()

    def has_work(self) -> bool:
        return bool(self.jobs) and time.monotonic() - self.started < self.budget

    def attend(self, worker: _Worker, is_ready: bool) -> bool:
        """Take the worker's answer or notice its death; False when the worker is to be removed."""
        if is_ready:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                return self._lost(worker, f"worker ended with exit status {worker.process.wait()}")
            if worker.provenance is None:
                worker.provenance = message
            else:
                self._record(worker, message)
            return self._feed(worker)
        if worker.job is not None and time.monotonic() - worker.started > self.limit:
            return self._lost(worker, f"stopped after {self.limit / 60:.3g} minutes")
        return True

    def _feed(self, worker: _Worker) -> bool:
        if not self.has_work():
            return False
        job = self.jobs.pop()
        worker.assign(job, self.levels[job.level])
        return True

    def _lost(self, worker: _Worker, reason: str) -> bool:
        if worker.job is None:
            raise ValueError(
                f"a worker must start, got: {reason}; run `python -m mfm.labelling.worker` by hand to see why"
            )
        self._record(worker, ("failed", {}, {}, reason, time.monotonic() - worker.started))
        return False

    def _record(self, worker: _Worker, message: tuple) -> None:
        status, values, flags, text, seconds = message
        job, worker.job = worker.job, None
        assert job is not None
        self.store.record(LabelRow(job.hash, job.level, status, values, flags, text, seconds), worker.provenance or {})
        self.done += 1
        self.failed += status == "failed"
        elapsed = time.monotonic() - self.started
        rate = self.done / elapsed
        left = min((self.total - self.done) / rate, max(self.budget - elapsed, 0.0))
        _LOG.info(
            "%d/%d done, %d failed, %.0f per hour, %.0f min left | %s %s %s %.1f s %s",
            *(self.done, self.total, self.failed, 3600 * rate, left / 60),
            *(job.structure.formula, job.origin, job.level.split(":")[0], seconds, text),
        )

    def summary(self) -> RunSummary:
        return RunSummary(self.done, self.failed, self.total - self.done, time.monotonic() - self.started)
