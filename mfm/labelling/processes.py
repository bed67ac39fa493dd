"""What every process that computes for another one does: end with it, and stay within its memory."""

import os
import resource
import threading
import time

__all__ = ["follow_parent", "limit_memory", "start_helper"]


def follow_parent(parent: int) -> None:
    """End this process soon after its parent has died: an orphan would only take time from the next run.

    Parameters
    ----------
    parent : int
        Its process id. Where it has died already, this process ends at once.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(gibibytes: float) -> None:
    """Bound the address space of this process, and tell PySCF to plan with three quarters of it."""
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.environ["PYSCF_MAX_MEMORY"] = str(int(750 * gibibytes))


def start_helper(parent: int, gibibytes: float) -> None:
    """Initialiser of the processes of a pool."""
    follow_parent(parent)
    limit_memory(gibibytes)
