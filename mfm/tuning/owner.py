"""Who works on a trial: a process on a machine, and whether it still lives."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil

__all__ = ["BEAT_SECONDS", "is_gone", "this_process", "with_beat"]

BEAT_SECONDS = 30.0
"""Time between two signs of life of a process."""
_SILENCE = 600.0
"""Seconds after which a process on another machine counts as gone; clocks may differ by minutes."""
_SAME_START = 10.0
"""Seconds by which the start of one process may seem to differ: the clock it is measured by may be set."""


def this_process() -> dict[str, Any]:
    """The calling process, as others can recognise it."""
    process = psutil.Process()
    return with_beat({"machine": _machine(), "pid": process.pid, "started": process.create_time()})


def with_beat(owner: Mapping[str, Any]) -> dict[str, Any]:
    """The owner with a sign of life, now."""
    return {**owner, "beat": time.time()}


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether a process has ended: certain on this machine, elsewhere after ten minutes without a sign of life."""
    if owner["machine"] != _machine():
        return time.time() - float(owner["beat"]) > _SILENCE
    try:
        process = psutil.Process(int(owner["pid"]))
        # numbers of processes are used again
        is_another = abs(process.create_time() - float(owner["started"])) > _SAME_START
        return is_another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Name of the machine and of the container on it: a process has its number only within it."""
    try:
        numbering = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        numbering = 0
    return f"{socket.gethostname()}/{numbering}"
