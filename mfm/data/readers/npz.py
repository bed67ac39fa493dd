"""numpy archives: looking inside and loading without ever unpickling."""

import zipfile
from pathlib import Path

import numpy as np

__all__ = ["archive_keys", "load_archive"]


def archive_keys(path: Path, head: bytes) -> set[str]:
    """Names of the arrays in an npz archive; empty if it is none, or is broken."""
    if not head.startswith(b"PK") or not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def load_archive(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an npz archive; object arrays, which need unpickling, are left out.

    Raises
    ------
    ValueError
        If the archive is truncated.
    """
    arrays = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError as error:
                    if "pickle" not in str(error):
                        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read `{path.name}` as a numpy archive, it may be truncated: {error}") from error
    return arrays
