"""What a run ran on: code, packages, machine, and how busy both are."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["SystemMetrics", "code_version", "describe_environment", "device_name"]

_MEGABYTE = 2**20


def code_version() -> str:
    """Commit of the source tree with `+changes` if it is edited, or ``unknown`` outside a repository."""
    here = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()[:12] + ("+changes" if changes.stdout.strip() else "")


def describe_environment() -> str:
    """Python, machine, processors and every installed package with its version, as JSON."""
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    content = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "gpu": _gpu_name(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    return json.dumps(content, indent=1)


def device_name(device: "torch.device") -> str:
    """What is known of a device: the model of a GPU, the type of any other."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _gpu_name() -> str:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else ""


class SystemMetrics:
    """Load of this process and of its machine, at most every few seconds.

    Parameters
    ----------
    every : float
        Seconds between measurements.
    """

    def __init__(self, every: float = 15.0) -> None:
        import psutil

        self._psutil: Any = psutil
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._every = every
        self._measured = time.monotonic()

    def measure(self) -> dict[str, float]:
        """``system/...`` metrics since the last measurement; empty if that was a moment ago."""
        if time.monotonic() - self._measured < self._every:
            return {}
        self._measured = time.monotonic()
        found = {
            "system/process_cpu_percent": self._process.cpu_percent(),
            "system/process_memory_mb": self._process.memory_info().rss / _MEGABYTE,
            "system/machine_cpu_percent": self._psutil.cpu_percent(),
            "system/machine_memory_percent": self._psutil.virtual_memory().percent,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            found["system/gpu_memory_mb"] = torch.cuda.max_memory_reserved() / _MEGABYTE
        return found
