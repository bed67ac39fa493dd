"""What every reader shares: its options, how labels are chosen, converted once and shaped.

A reader is a module with two functions, listed in :data:`mfm.data.readers.READERS`:

``matches(path, head)``
    whether the file (its first bytes are `head`) is in the format, from its content;
``read(path, options)``
    a :class:`Source`: records in mfm's units, made as they are asked for, and the card of the file.
"""

import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm.data.card import DatasetCard, property_of
from mfm.data.records import Record
from mfm.fidelity import LevelOfTheory
from mfm.properties import PROPERTIES, parse_task, task_name
from mfm.structure import Structure, whole_number
from mfm.units import conversion_factor

__all__ = [
    "DEFAULT_FIDELITY",
    "UNSPECIFIED",
    "Column",
    "Known",
    "ReadOptions",
    "Reader",
    "Source",
    "make_record",
    "plan_labels",
    "present",
    "shape_label",
    "single_level_card",
]

_LOGGER = logging.getLogger(__name__)

DEFAULT_FIDELITY = "ref"
"""Fidelity of a file that holds one level of theory when neither the caller nor a card names it."""
UNSPECIFIED = LevelOfTheory("unspecified")
"""Level of theory of a file that does not state it."""
_TEXT_KEYS = ("molecule", "origin")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """What the caller, or a card, knows about a foreign file."""

    fidelity: str | None = None
    """Name of the one level in the file; for a format with several levels, the one to keep."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Property or task to its key in the file, ``-`` before it for a gradient; only these labels are read.

    ``molecule`` and ``origin`` name the keys of the group and of the kind of geometry.
    """
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Property, task or ``positions`` to a unit, over the file's own and the format's."""
    corrections: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Property or task to a factor that repairs a known defect."""
    levels: Mapping[str, LevelOfTheory] = dataclasses.field(default_factory=dict)
    """Levels of theory, over the format's own."""
    origin: str = ""
    """How the geometries were made, where the file does not say."""

    def position_factor(self, unit: str) -> float:
        """Factor from the file's length unit (`unit` if the caller gave none) to Å."""
        return conversion_factor(self.units.get("positions", unit), "Å")

    @property
    def label_keys(self) -> dict[str, str]:
        """The keys that name labels."""
        return {name: key for name, key in self.keys.items() if name not in _TEXT_KEYS}


class Source(NamedTuple):
    """What a reader returns."""

    records: Iterator[Record]
    """Records in file order, in mfm's units."""
    card: DatasetCard
    """Card of the file, as far as the format and the options say."""


class Reader(NamedTuple):
    """One foreign format."""

    name: str
    description: str
    matches: Callable[[Path, bytes], bool]
    read: Callable[[Path, ReadOptions], Source]


class Known(NamedTuple):
    """A label that a format may hold."""

    name: str
    """Property, or task where the format itself tells the levels apart."""
    keys: tuple[str, ...]
    """Keys under which it is found; more than one present is ambiguous."""
    unit: str
    """Unit that the format fixes or its writers use."""
    sign: int = 1
    """-1 where the file holds gradients."""


class Column(NamedTuple):
    """A label to read: its task, its key in the file, the factor to mfm's unit."""

    task: str
    key: str
    factor: float


def plan_labels(
    found: Iterable[str],
    known: Sequence[Known],
    options: ReadOptions,
    where: str,
    key_units: Mapping[str, str] | None = None,
) -> list[Column]:
    """Decide which of the keys found in a file are read as which labels.

    Parameters
    ----------
    found : iterable of str
        Keys in the file.
    known : sequence of Known
        Labels that the format may hold; used where `options.keys` is empty.
    where : str
        Name of the file, for messages.
    key_units : mapping, optional
        Key to the unit that the file itself states for it.

    Raises
    ------
    ValueError
        If a key asked for is not in the file, no label is found, or two keys could be the same label.
    """
    names = sorted(set(found))
    if options.label_keys:
        chosen = [_requested(name, key, names, known, options, where) for name, key in options.label_keys.items()]
    else:
        chosen = [choice for row in known for choice in _recognised(row, names, options, where)]
    columns = []
    for task, key, unit, sign in chosen:
        factor = sign * _factor(task, (key_units or {}).get(key, unit), options)
        columns.append(Column(task, key, factor))
    if not columns:
        hint = ", ".join(f"keys={{'{row.name}': ...}}" for row in known[:1])
        raise ValueError(
            f"`{where}` must hold a label that its format knows ({', '.join(row.keys[0] for row in known)}), found keys"
            f" {', '.join(names) or '(none)'}; name the key, such as {hint}"
        )
    return columns


class _Choice(NamedTuple):
    task: str
    key: str
    unit: str
    sign: int


def _requested(
    name: str, key: str, names: list[str], known: Sequence[Known], options: ReadOptions, where: str
) -> _Choice:
    bare = key.removeprefix("-")
    if bare not in names:
        near = difflib.get_close_matches(bare, names, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ValueError(f"key `{bare}` for `{name}` matches nothing in `{where}`, found {', '.join(names)}{hint}")
    prop = property_of(name)
    rows = [row for row in known if bare in row.keys and property_of(row.name) == prop]
    rows = rows or [row for row in known if property_of(row.name) == prop]
    unit = rows[0].unit if rows else PROPERTIES[prop].unit
    sign = rows[0].sign if rows and bare in rows[0].keys else 1
    task = name if name != prop else task_name(prop, options.fidelity or DEFAULT_FIDELITY)
    return _Choice(task, bare, unit, -1 if key.startswith("-") else sign)


def _recognised(row: Known, names: list[str], options: ReadOptions, where: str) -> list[_Choice]:
    keys = [key for key in row.keys if key in names]
    if not keys:
        return []
    if len(keys) > 1:
        raise ValueError(
            f"`{where}` holds {', '.join(f'`{key}`' for key in keys)}, each of which could be `{row.name}`; name the"
            f" one to read, such as keys={{'{row.name}': '{keys[0]}'}}"
        )
    if row.name in PROPERTIES:
        task = task_name(row.name, options.fidelity or DEFAULT_FIDELITY)
    elif options.fidelity not in (None, parse_task(row.name).fidelity):
        return []
    else:
        task = row.name
    return [_Choice(task, keys[0], row.unit, row.sign)]


def _factor(task: str, unit: str, options: ReadOptions) -> float:
    prop = parse_task(task).property
    stated = options.units.get(task, options.units.get(prop, unit))
    correction = options.corrections.get(task, options.corrections.get(prop, 1.0))
    return conversion_factor(stated, PROPERTIES[prop].unit) * correction


def shape_label(task: str, value: np.ndarray, n_atoms: int) -> np.ndarray:
    """A label in the shape of its property, where the file's shape can mean nothing else.

    Flattened tensors, trailing or leading axes of length 1, and symmetric tensors as (xx, yy, zz, yz, xz, xy)
    for the stress only. Anything else is returned as it came, to be refused by the record.
    """
    prop = PROPERTIES[parse_task(task).property]
    expected = (n_atoms, *prop.shape) if prop.per == "atom" else prop.shape
    array = np.asarray(value, dtype=np.float64)
    if array.shape == expected:
        return array
    if prop.name == "stress" and array.shape in ((6,), (1, 6)):
        xx, yy, zz, yz, xz, xy = array.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return array.reshape(expected) if _is_reshaped(array.shape, expected) else array


def _is_reshaped(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    squeezed = tuple(n for n in shape if n != 1)
    if squeezed == tuple(n for n in expected if n != 1):
        return True
    return len(squeezed) == 1 and squeezed[0] == int(np.prod(expected))


def present(value: np.ndarray | np.floating) -> bool:
    """Whether a value is there at all, in formats that write NaN for what was not computed."""
    return not bool(np.isnan(value).all())


def make_record(  # noqa: PLR0913  (one argument per thing a file may say about a structure)
    where: str,
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    labels: Mapping[str, np.ndarray | float],
    *,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | Sequence[bool] = (False, False, False),
    charge: float = 0,
    multiplicity: float | None = None,
    molecule: str = "",
    origin: str = "",
) -> Record:
    """Record whose errors say where in the file it is.

    Raises
    ------
    ValueError
        What :class:`~mfm.graph.Structure` or :class:`~mfm.data.records.Record` refuse, with `where` before it.
    """
    try:
        structure = Structure(
            np.asarray(atomic_numbers),
            positions,
            np.zeros((3, 3)) if cell is None else cell,
            np.asarray(pbc, dtype=bool),
            charge=whole_number("charge", charge),
            multiplicity=None if multiplicity is None else whole_number("multiplicity", multiplicity),
        )
        shaped = {task: shape_label(task, np.asarray(value), len(structure)) for task, value in labels.items()}
        return Record(structure, shaped, molecule=molecule, origin=origin)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def single_level_card(
    path: Path,
    columns: Sequence[Column],
    options: ReadOptions,
    levels: Mapping[str, LevelOfTheory] | None = None,
    assumed_units: bool = False,
) -> DatasetCard:
    """Card of a file: the levels of the labels that are read, as far as anyone states them.

    Parameters
    ----------
    levels : mapping, optional
        Levels that the format itself fixes.
    assumed_units : bool
        Whether the format does not fix its units, so that its habit was assumed where the caller stated none.
    """
    fidelities = dict.fromkeys(parse_task(column.task).fidelity for column in columns)
    stated = {**(levels or {}), **options.levels}
    guessed = [
        prop
        for prop in dict.fromkeys(parse_task(column.task).property for column in columns)
        if assumed_units and not any(property_of(name) == prop for name in options.units if name != "positions")
    ]
    if guessed:
        _LOGGER.warning(
            "`%s` does not state its units; assumed %s: pass units={...} if that is wrong",
            path.name,
            ", ".join(f"{prop} in {PROPERTIES[prop].unit}" for prop in guessed),
        )
    return DatasetCard(
        name=path.name,
        source=path.name,
        levels={fidelity: stated.get(fidelity, UNSPECIFIED) for fidelity in fidelities},
        units_stated=not guessed,
    )
