"""HDF5 files of foreign formats: groups of molecules, each a folder of arrays with a leading frame axis."""

from collections.abc import Iterator
from pathlib import Path

import h5py

__all__ = ["first_group", "groups", "open_hdf5"]

_MAGIC = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading.

    Raises
    ------
    ValueError
        If the file is truncated or not HDF5.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"cannot open `{path.name}` as HDF5, it may be truncated: {error}") from error


def groups(node: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """Groups that hold arrays, depth first, with their names."""
    for name, item in node.items():
        if isinstance(item, h5py.Group):
            if any(isinstance(child, h5py.Dataset) for child in item.values()):
                yield name, item
            else:
                yield from groups(item)


def first_group(path: Path, head: bytes) -> set[str]:
    """Names of the arrays in the first group that holds any; empty if the file is not HDF5.

    Raises
    ------
    ValueError
        If the file is truncated.
    """
    if not head.startswith(_MAGIC):
        return set()
    with open_hdf5(path) as file:
        return next(({name for name in group} for _, group in groups(file)), set())
