"""A labelling worker: one process, one thread, jobs in and answers out over a socket.

Started by :mod:`mfm.labelling.run` as ``python -m mfm.labelling.worker FD MEMORY_GIB`` with its environment
set beforehand, because BLAS libraries read theirs when they are loaded.
"""

import contextlib
import os
import platform
import resource
import signal
import sys
import threading
import time
from importlib.metadata import version
from multiprocessing.connection import Connection

import numpy as np

from mfm.labelling.checks import check_structure, estimate_seconds
from mfm.labelling.coupled_cluster import label_composite, label_coupled_cluster
from mfm.labelling.dft import label_dft
from mfm.labelling.force_field import label_mmff
from mfm.labelling.levels import CompositeLevel, CoupledClusterLevel, DensityFunctionalLevel, ForceFieldLevel, Request
from mfm.labelling.molecule import Labels
from mfm.labelling.processes import follow_parent, limit_memory
from mfm.labelling.store import Answer, Job
from mfm.labelling.xtb import label_xtb

__all__ = ["answer", "answer_remotely", "compute", "limit_memory", "provenance"]

_REACTIVE = ("bond", "stretched")
"""Origins whose restricted solution may be the wrong one whatever its gap."""


def compute(job: Job, request: Request) -> Labels:
    """Labels of one structure at any level.

    Raises
    ------
    ValueError
        If the level does not describe the structure, or the calculation fails.
    """
    structure, level = job.structure, request.level
    check_structure(structure, level, job.origin)
    if isinstance(level, DensityFunctionalLevel):
        return label_dft(structure, level, check_state=job.origin in _REACTIVE, extras=request.extras)
    if isinstance(level, CompositeLevel):
        return label_composite(structure, level)
    if isinstance(level, CoupledClusterLevel):
        return label_coupled_cluster(structure, level)
    if isinstance(level, ForceFieldLevel):
        return label_mmff(structure, level, job.molecule)
    return label_xtb(structure, level)


def answer(job: Job, request: Request, limit_seconds: float) -> Answer:
    """Compute a label; whatever goes wrong becomes a failure that says so. Its seconds are those of the processor.

    Parameters
    ----------
    limit_seconds : float
        Time that the run allows a label: one that would take three times as long is not begun.
    """
    started = time.process_time()
    try:
        expected = estimate_seconds(job.structure, request)
        if expected > 3 * limit_seconds:
            raise ValueError(
                f"a label must fit into {limit_seconds / 60:.3g} minutes, {job.structure.formula} would take about"
                f" {expected / 60:.3g} at {request.key}; raise --job-minutes, or drop this level for it"
            )
        labels = compute(job, request)
        finite = all(np.isfinite(value).all() for value in labels.values.values())
        if not finite:
            raise ValueError("labels must be finite, got NaN or infinity; the structure is recorded as failed")
        return Answer("ok", labels.values, labels.flags, "", time.process_time() - started)
    except MemoryError as error:
        text = f"memory ran out ({error or 'no details'}); raise --memory, or use fewer workers"
        return Answer("failed", {}, {}, text, time.process_time() - started)
    except ValueError as error:
        return Answer("failed", {}, {}, str(error), time.process_time() - started)
    # a label must never stop the run: whatever a quantum-chemistry program raises becomes a failure row
    except Exception as error:  # noqa: BLE001
        return Answer("failed", {}, {}, f"{type(error).__name__}: {error}", time.process_time() - started)


def answer_remotely(
    job: Job, request: Request, limit_seconds: float, memory_gib: float
) -> tuple[Answer, dict[str, str]]:
    """:func:`answer` and :func:`provenance`, for a worker process that an executor of a cluster started.

    No supervisor watches such a process, so it bounds its own memory and time.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        limit_memory(memory_gib)
    if threading.current_thread() is not threading.main_thread():
        return answer(job, request, limit_seconds), provenance()

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {limit_seconds / 60:.3g} minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    try:
        return answer(job, request, limit_seconds), provenance()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def provenance() -> dict[str, str]:
    """Versions, processor and environment that labels were computed with."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # other systems have no such file; the platform's own name is kept
    packages = ("pyscf", "pyscf-dispersion", "tblite", "numpy", "rdkit")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "processor": model,
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", ""),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def serve(connection: Connection) -> None:
    """Answer jobs until the other end closes."""
    # when the supervisor has gone, the next run computes again what was in flight
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(provenance())
        while True:
            job, request, limit_seconds = connection.recv()
            connection.send(answer(job, request, limit_seconds))


def main() -> None:
    """Entry point: socket descriptor and address-space limit (GiB) come as arguments."""
    follow_parent(os.getppid())
    limit_memory(float(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
