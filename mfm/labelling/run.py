"""Local supervisor of labelling: several worker processes, one writer, resumable at any moment.

The store is the queue, so stopping costs only the labels in flight. A worker that dies is replaced and its job
tried again, three times in all; a job that overruns its time limit, or has killed three workers, becomes a failure
row. Workers end by themselves when the supervisor is killed.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from mfm.labelling.levels import Level, Request, base_identifier
from mfm.labelling.store import Answer, Job, LabelRow, LabelStore

__all__ = ["Progress", "RunSummary", "label"]

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3
"""Workers that a job may lose, and starts in a row that may fail."""
_START_LIMIT = 120.0
"""Seconds that a worker may take until it says that it is ready; on an idle machine it takes one."""
_REPORT_EVERY = 1.0
"""Seconds between lines of progress."""


class RunSummary(NamedTuple):
    """What a run did."""

    done: int
    failed: int
    left: int
    seconds: float


class Progress:
    """Jobs of one run: what is left, what was tried, what to write; shared by all ways to compute.

    Parameters
    ----------
    store : LabelStore
        Its pending jobs are the work.
    levels : mapping
        Level identifier → level.
    hours : float
        No job is started after this time.
    max_labels : int, optional
        No more jobs than this are started.

    Raises
    ------
    ValueError
        If the queue names a level that `levels` lacks.
    """

    def __init__(
        self, store: LabelStore, levels: Mapping[str, Level], hours: float, max_labels: int | None = None
    ) -> None:
        jobs = store.pending()
        self.store, self.budget = store, hours * 3600
        self.requests = {key: Request.from_key(key, levels) for key in {job.level for job in jobs}}
        self._left = deque(jobs[:max_labels])
        self._beyond = len(jobs) - len(self._left)
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._fidelities = store.fidelities()
        self.total, self.done, self.failed = len(self._left), 0, 0
        self._open = Counter(job.level for job in self._left)
        self._times: dict[str, list[float]] = {}
        self.started = self._reported = time.monotonic()

    def has_work(self) -> bool:
        """Whether another job may start now."""
        return bool(self._left) and time.monotonic() - self.started < self.budget

    def next_job(self) -> Job:
        """Take the next job."""
        return self._left.popleft()

    def lost(self, job: Job, reason: str, seconds: float, provenance: Mapping[str, str]) -> None:
        """A worker died over a job: try it again, or give it up."""
        self._attempts[job.hash, job.level] += 1
        if self._attempts[job.hash, job.level] < _ATTEMPTS:
            _LOG.info("%s; its job (%s) is tried again", reason, job.structure.formula)
            self._left.appendleft(job)
            return
        text = f"{reason}, {_ATTEMPTS} times; memory is the usual cause: raise --memory, or use fewer workers"
        self.record(job, Answer("failed", {}, {}, text, seconds), provenance)

    def record(self, job: Job, answer: Answer, provenance: Mapping[str, str]) -> None:
        """Write an answer and report progress."""
        status, values, flags, text, seconds = answer
        self.store.record(LabelRow(job.hash, job.level, status, values, flags, text, seconds), provenance)
        self.done += 1
        self.failed += status == "failed"
        self._open[job.level] -= 1
        self._times.setdefault(job.level, []).append(seconds)
        now = time.monotonic()
        # thousands of labels a minute need no line each; what failed does
        if status == "failed" or self.done == self.total or now - self._reported >= _REPORT_EVERY:
            self._reported = now
            elapsed = now - self.started
            _LOG.info(
                "%d/%d done, %d failed, %.0f per hour, %.1f min left | %s %s %s %.1f s %s",
                *(self.done, self.total, self.failed, 3600 * self.done / elapsed, self._seconds_left(elapsed) / 60),
                *(job.structure.formula, job.origin, self._fidelities.get(base_identifier(job.level), job.level)),
                *(seconds, text),
            )

    def _seconds_left(self, elapsed: float) -> float:
        """By what labels of each level took in this run: cheap levels say nothing about dear ones."""
        taken = sum(sum(times) for times in self._times.values())
        means = {level: sum(times) / len(times) for level, times in self._times.items()}
        work = sum(count * means.get(level, max(means.values())) for level, count in self._open.items())
        return min(work * elapsed / max(taken, 1e-9), max(self.budget - elapsed, 0.0))

    def summary(self) -> RunSummary:
        """What was done so far."""
        left = self.total - self.done + self._beyond
        return RunSummary(self.done, self.failed, left, time.monotonic() - self.started)


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

    def assign(self, job: Job, request: Request, limit: float) -> None:
        self.job, self.started = job, time.monotonic()
        # a worker that has just died is noticed at the next wait, which then takes its job back
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((job, request, limit))

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
    max_labels: int | None = None,
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
    max_labels : int, optional
        Jobs to start at most.

    Raises
    ------
    ValueError
        If the queue names a level that `levels` lacks, or workers cannot start.
    OSError
        If the store cannot be written, or another run writes to it.
    """
    with store.lock():
        progress = Progress(store, levels, hours, max_labels)
        supervisor = _Supervisor(progress, job_minutes * 60, memory_gib, environment or {})
        supervisor.run(min(n_workers, progress.total))
    return progress.summary()


class _Supervisor:
    """Keeps workers alive and busy."""

    def __init__(self, progress: Progress, limit: float, memory_gib: float, environment: Mapping[str, str]) -> None:
        self.progress, self.limit = progress, limit
        self.memory_gib, self.environment = memory_gib, environment
        self.workers: list[_Worker] = []
        self.failed_starts = 0

    def run(self, n_workers: int) -> None:
        try:
            while self.workers or self.progress.has_work():
                while len(self.workers) < n_workers and self.progress.has_work():
                    self.workers.append(_Worker(self.memory_gib, self.environment))
                ready = wait([w.connection for w in self.workers], timeout=1.0)
                for worker in list(self.workers):
                    if not self._attend(worker, worker.connection in ready):
                        self.workers.remove(worker)
                        worker.stop()
        finally:
            for worker in self.workers:
                worker.stop()

    def _attend(self, worker: _Worker, is_ready: bool) -> bool:
        """Take the worker's answer or notice its death; False when the worker is to be removed."""
        if is_ready:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                return self._died(worker)
            if worker.provenance is None:
                worker.provenance, self.failed_starts = message, 0
            elif worker.job is not None:
                job, worker.job = worker.job, None
                self.progress.record(job, message, worker.provenance)
            if not self.progress.has_work():
                return False
            job = self.progress.next_job()
            worker.assign(job, self.progress.requests[job.level], self.limit)
        elif worker.job is not None and time.monotonic() - worker.started > self.limit:
            text = f"stopped after {self.limit / 60:.3g} minutes; raise --job-minutes, or drop this level for it"
            answer = Answer("failed", {}, {}, text, time.monotonic() - worker.started)
            self.progress.record(worker.job, answer, worker.provenance or {})
            return False
        elif worker.provenance is None and time.monotonic() - worker.started > _START_LIMIT:
            return self._not_started(f"worker not ready after {_START_LIMIT:g} s")
        return True

    def _died(self, worker: _Worker) -> bool:
        reason = f"worker ended with exit status {worker.process.wait()}"
        if worker.job is not None:
            self.progress.lost(worker.job, reason, time.monotonic() - worker.started, worker.provenance or {})
        elif worker.provenance is None:
            return self._not_started(reason)
        return False

    def _not_started(self, reason: str) -> bool:
        """Count a worker that never became ready, which is to be replaced; too many in a row end the run."""
        self.failed_starts += 1
        if self.failed_starts == _ATTEMPTS:
            raise ValueError(
                f"a worker must start, got {_ATTEMPTS} in a row that did not: {reason}; run"
                " `python -m mfm.labelling.worker 0 8` by hand to see why"
            )
        _LOG.warning("%s; another one is started", reason)
        return False
