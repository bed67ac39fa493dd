"""MLflow's pages on this machine."""

import os
import sys
from pathlib import Path

from mfm.tracking.location import DATABASE, DEFAULT_DIRECTORY, locate

__all__ = ["ui_command", "ui_environment"]


def ui_command(directory: str | Path = DEFAULT_DIRECTORY, port: int = 5000) -> list[str]:
    """Command that serves the tracking pages of the location on this machine.

    Raises
    ------
    ValueError
        If the runs are on a server (open it instead), or there are none yet.
    """
    location = locate(directory)
    if location.directory is None:
        raise ValueError(f"the runs are on a server, open {location.uri} in a browser")
    if not (location.directory / DATABASE).exists():
        raise ValueError(f"`{location.directory}` holds no runs yet; train first, or name another directory")
    store = ["--backend-store-uri", location.uri, "--default-artifact-root", str(location.directory / "artifacts")]
    return [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def ui_environment() -> dict[str, str]:
    """Environment for :func:`ui_command`: without telemetry and without eight idle job workers (0.7 GB)."""
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
