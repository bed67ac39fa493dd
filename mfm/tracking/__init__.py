"""Experiment tracking: what a run records goes to its folder, and from there to MLflow.

Runs live under ``mlruns/`` of the working directory: a SQLite database and artifacts with explicit, absolute
locations. The environment variable ``MFM_TRACKING_URI`` moves all of it, for instance to a server. A recipe is a
parent run and each stage a child. Only :mod:`mfm.tracking.store` imports MLflow, and only when a store is opened.
"""

from mfm.tracking.environment import code_version, describe_environment, device_name
from mfm.tracking.journal import JOURNAL
from mfm.tracking.location import DEFAULT_DIRECTORY, Location, locate
from mfm.tracking.queries import RunRecord, find_run, read_curves, read_runs
from mfm.tracking.registry import Gate, checkpoint_file, is_stored, open_model, register, resolve
from mfm.tracking.run import NoRun, Run, TrackedRun, flatten, join_run, start_run
from mfm.tracking.sending import synchronise
from mfm.tracking.store import RefusedError, Store, StoreError, open_store
from mfm.tracking.ui import serve, ui_address, ui_command

__all__ = [
    "DEFAULT_DIRECTORY",
    "Gate",
    "JOURNAL",
    "Location",
    "NoRun",
    "RefusedError",
    "Run",
    "RunRecord",
    "Store",
    "StoreError",
    "TrackedRun",
    "checkpoint_file",
    "code_version",
    "describe_environment",
    "device_name",
    "find_run",
    "flatten",
    "is_stored",
    "join_run",
    "locate",
    "open_model",
    "open_store",
    "read_curves",
    "read_runs",
    "register",
    "resolve",
    "serve",
    "start_run",
    "synchronise",
    "ui_address",
    "ui_command",
]
