"""MLflow's pages on this machine."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mfm.tracking.location import DATABASE, DEFAULT_DIRECTORY, locate
from mfm.tracking.store import open_store

__all__ = ["serve", "ui_address", "ui_command"]

_HOST = "127.0.0.1"
_STOP_SECONDS = 10.0
"""What the pages' processes get to end by themselves."""


def ui_address(port: int, directory: str | Path = DEFAULT_DIRECTORY) -> str:
    """Address of the list of runs that the newest run is in.

    MLflow's own first page leads to pages on language models, which show no training run.

    Raises
    ------
    ValueError
        If the store cannot be read.
    """
    newest = open_store(locate(directory)).search(most=1)
    page = f"experiments/{newest[0].info.experiment_id}/runs" if newest else "experiments"
    return f"http://{_HOST}:{port}/#/{page}?workflowType=machine_learning"


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
    return [sys.executable, "-m", "mlflow", "ui", *store, "--host", _HOST, "--port", str(port), "--workers", "1"]


def serve(command: Sequence[str], port: int) -> int:
    """Run a command of :func:`ui_command` until Ctrl-C or SIGTERM, then end it and whatever it started.

    Returns
    -------
    int
        Its exit status; 0 if it was stopped so.

    Raises
    ------
    ValueError
        If another program listens on the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}); take another with `--port`") from error
    # without telemetry and without eight idle job workers (0.7 GB)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Ctrl-C too: a shell starts what it puts in the background with that signal ignored
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    # a session of its own: the server starts processes that outlive it if only it is stopped
    process = subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end_session(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End every process of the session of a process that led it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
