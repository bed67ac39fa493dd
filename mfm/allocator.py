"""Memory allocation of the process that runs a command line."""

import ctypes
import sys

__all__ = ["tune_allocator"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # <malloc.h>: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX


def tune_allocator() -> bool:
    """Let glibc keep large blocks instead of returning them to the system after every tensor operation.

    Each returned block is mapped, zeroed page by page and unmapped again, which costs a training step on a CPU up
    to half of its time. Memory stays with the process until it ends, so only mfm's own commands call this: a
    library must not decide it for its host.

    Returns
    -------
    bool
        Whether the allocator took the settings; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)
