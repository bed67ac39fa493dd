"""A labelling worker: one process, one thread, jobs in and answers out over a socket.

Started by :mod:`mfm.labelling.run` as ``python -m mfm.labelling.worker FD MEMORY_GIB`` with its environment
set beforehand, because BLAS libraries read theirs when they are loaded.
"""

import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection

from mfm.graph import Structure
from mfm.labelling.coupled_cluster import label_composite
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import CompositeLevel, DensityFunctionalLevel, Level
from mfm.labelling.molecule import Labels
from mfm.labelling.xtb import label_xtb

__all__ = ["compute", "provenance"]


def compute(structure: Structure, level: Level, origin: str) -> Labels:
    """Labels of one structure at any level; stretched bonds get the broken-symmetry search."""
    if isinstance(level, DensityFunctionalLevel):
        return label_dft(structure, level, check_state=origin == "bond")
    if isinstance(level, CompositeLevel):
        return label_composite(structure, level)
    return label_xtb(structure, level)


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
    connection.send(provenance())
    while True:
        try:
            structure, level, origin = connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        try:
            labels = compute(structure, level, origin)
            answer = ("ok", labels.values, labels.flags, "")
        # a label must never stop the run: whatever a quantum-chemistry program raises becomes a failure row
        except Exception as error:  # noqa: BLE001
            answer = ("failed", {}, {}, f"{type(error).__name__}: {error}")
        try:
            connection.send((*answer, time.perf_counter() - started))
        except BrokenPipeError:  # the supervisor has gone: this answer is computed again by the next run
            return


def main() -> None:
    """Entry point: socket descriptor and address-space limit (GiB) come as arguments."""
    limit = int(float(sys.argv[2]) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
