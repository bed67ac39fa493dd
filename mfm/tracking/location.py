"""Where runs are kept: a folder of this machine or a server."""

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["DATABASE", "DEFAULT_DIRECTORY", "Location", "locate"]

DATABASE = "mlflow.db"
"""Name of the database in a folder of runs."""
DEFAULT_DIRECTORY = "mlruns"
"""Folder of runs, in the working directory, where none is named."""
_URI_VARIABLE = "MFM_TRACKING_URI"


class Location(NamedTuple):
    """Where runs are kept."""

    uri: str
    """MLflow tracking URI."""
    directory: Path | None
    """Directory of database and artifacts; None for a server, which places artifacts itself."""


def locate(directory: str | Path = DEFAULT_DIRECTORY) -> Location:
    """Location named by ``MFM_TRACKING_URI``, else a database in `directory`.

    A value that is not a URI (``/data/mlruns``) is taken as a directory.
    """
    named = os.environ.get(_URI_VARIABLE, "")
    if "://" in named:
        return Location(named, None)
    root = Path(named or directory).resolve()
    return Location(f"sqlite:///{root / DATABASE}", root)
