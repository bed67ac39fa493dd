"""DeePMD-kit npy systems: a folder with ``type.raw`` and ``set.*/coord.npy``, or a folder of such folders.

The format fixes its units: Å, eV, eV/Å (its documentation, "System"). Elements come from ``type_map.raw``; a
system is periodic unless it has a file ``nopbc``. A virial W becomes the stress −W/V. Frames of the mixed-type
layout (``real_atom_types.npy``) may have padding atoms of type −1.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers as NUMBERS

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.records import Record
from mfm.properties import PROPERTIES, parse_task

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("energy",), "eV"),
    Known("forces", ("force",), "eV/Å"),
    # the file holds the virial, an energy: the records divide it by the volume
    Known("stress", ("virial",), "eV/Å^3", sign=-1),
    Known("charges", ("atomic_charge",), "e"),
)


def matches(path: Path, head: bytes) -> bool:
    """Whether it is a folder that holds a `type.raw`, at any depth."""
    return path.is_dir() and not head and next(path.rglob("type.raw"), None) is not None


def read(path: Path, options: ReadOptions) -> Source:
    """Read a DeePMD system or a folder of systems.

    Raises
    ------
    ValueError
        If a system has no `type_map.raw`, names an unknown element or has arrays of different lengths.
    """
    systems = sorted(file.parent for file in path.rglob("type.raw"))
    found = {file.stem for system in systems for file in system.glob("set.*/*.npy")}
    if "coord" not in found:
        raise ValueError(f"`{path.name}` must hold `set.*/coord.npy` beside `type.raw`, found {sorted(found)}")
    columns = plan_labels(found - {"coord", "box", "real_atom_types"}, _KNOWN, options, path.name)
    return Source(_records(systems, columns, options), single_level_card(path, columns, options))


def _records(systems: list[Path], columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    for system in systems:
        numbers = _element_table(system)
        types = np.loadtxt(system / "type.raw", dtype=np.int64, ndmin=1).ravel()
        for folder in sorted(system.glob("set.*")):
            yield from _set(folder, numbers, types, columns, options)


def _element_table(system: Path) -> np.ndarray:
    path = system / "type_map.raw"
    if not path.is_file():
        raise ValueError(f"DeePMD system `{system}` must have a `type_map.raw` that names its elements; write one")
    symbols = path.read_text(encoding="utf-8").split()
    unknown = [symbol for symbol in symbols if symbol not in NUMBERS]
    if unknown:
        raise ValueError(f"`{path}` must hold chemical symbols, got {', '.join(unknown)}")
    return np.array([NUMBERS[symbol] for symbol in symbols])


def _load(path: Path, n_frames: int) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read `{path}`, it may be truncated: {error}") from error
    if n_frames >= 0 and len(array) != n_frames:
        raise ValueError(f"`{path}` must have {n_frames} frames like `coord.npy`, got {len(array)}")
    return np.asarray(array)


def _set(
    folder: Path, table: np.ndarray, types: np.ndarray, columns: list[Column], options: ReadOptions
) -> Iterator[Record]:
    coordinates = _load(folder / "coord.npy", -1).astype(np.float64)
    n_frames = len(coordinates)
    scale = options.position_factor("Å")
    positions = coordinates.reshape(n_frames, -1, 3) * scale
    is_periodic = not (folder.parent / "nopbc").exists()
    if is_periodic and not (folder / "box.npy").is_file():
        raise ValueError(f"`{folder}` must have `box.npy`, or its system a file `nopbc`: periodic without a cell")
    cells = _load(folder / "box.npy", n_frames).reshape(-1, 3, 3) * scale if is_periodic else np.zeros((n_frames, 3, 3))
    mixed = folder / "real_atom_types.npy"
    frame_types = _load(mixed, n_frames) if mixed.is_file() else np.broadcast_to(types, (n_frames, len(types)))
    values = {}
    for task, key, factor in columns:
        if (folder / f"{key}.npy").is_file():
            values[task] = _load(folder / f"{key}.npy", n_frames).astype(np.float64) * factor
    for i in range(n_frames):
        real = frame_types[i] >= 0
        labels = {}
        for task, array in values.items():
            prop = PROPERTIES[parse_task(task).property]
            value = array[i].reshape(len(real), *prop.shape)[real] if prop.per == "atom" else array[i]
            labels[task] = value / abs(np.linalg.det(cells[i])) if prop.name == "stress" else value
        yield make_record(
            f"frame {i} of `{folder.parent.name}/{folder.name}`",
            table[frame_types[i][real]],
            positions[i][real],
            labels,
            cell=cells[i],
            pbc=[is_periodic] * 3,
            origin=options.origin,
        )
