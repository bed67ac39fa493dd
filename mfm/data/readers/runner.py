"""RuNNer / n2p2 ``input.data``, plain or gzipped: begin, lattice, atom, energy, charge, end.

The programs expect atomic units, which are assumed: bohr, hartree, hartree/bohr. Frames with three lattice lines are
periodic, others are not. The per-atom charge column is read only if asked for (key ``atom_charge``): most writers
leave it at 0.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers as NUMBERS

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.readers.text import open_text
from mfm.data.records import Record

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("energy",), "hartree"),
    Known("forces", ("force",), "hartree/bohr"),
    Known("charges", (), "e"),
)
_N_COLUMNS = 9


def matches(path: Path, head: bytes) -> bool:
    """Whether the first word is `begin`."""
    return not path.is_dir() and head.lstrip().startswith(b"begin")


def read(path: Path, options: ReadOptions) -> Source:
    """Read an input.data file.

    Raises
    ------
    ValueError
        If the file is truncated, a line has the wrong number of words, or an element is unknown.
    """
    columns = plan_labels({"energy", "force", "atom_charge"}, _KNOWN, options, path.name)
    return Source(_records(path, columns, options), single_level_card(path, columns, options))


def _records(path: Path, columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    frame: dict[str, list[list[str]]] = {}
    position = 0
    with open_text(path) as file:
        for line in file:
            keyword, *words = line.split() or [""]
            if keyword == "begin":
                frame = {}
            elif keyword == "end":
                yield _frame(frame, f"frame {position} of `{path.name}`", columns, options)
                frame, position = {}, position + 1
            elif keyword not in ("", "comment"):
                frame.setdefault(keyword, []).append(words)
    if frame:
        raise ValueError(f"frame {position} of `{path.name}` must end with `end`; the file is truncated")


def _frame(frame: dict[str, list[list[str]]], where: str, columns: list[Column], options: ReadOptions) -> Record:
    atoms = frame.get("atom", [])
    odd = [words for words in atoms if len(words) != _N_COLUMNS]
    if odd or not atoms:
        got = f"{len(odd[0])} words in `{' '.join(odd[0])}`" if odd else "no atom"
        raise ValueError(f"{where}: every `atom` line must have {_N_COLUMNS} words after it, got {got}")
    symbols = [words[3] for words in atoms]
    unknown = [symbol for symbol in symbols if symbol not in NUMBERS]
    if unknown:
        raise ValueError(f"{where}: elements must be chemical symbols, got `{unknown[0]}`")
    table = np.array([float(word) for words in atoms for word in (*words[:3], *words[4:])]).reshape(-1, 8)
    found = {"force": table[:, 5:8], "atom_charge": table[:, 3]}
    if "energy" in frame:
        found["energy"] = np.array(float(frame["energy"][0][0]))
    scale = options.position_factor("bohr")
    lattice = np.array(frame.get("lattice", []), dtype=np.float64)
    return make_record(
        where,
        np.array([NUMBERS[symbol] for symbol in symbols]),
        table[:, :3] * scale,
        {task: found[key] * factor for task, key, factor in columns if key in found},
        cell=lattice * scale if len(lattice) else None,
        pbc=[len(lattice) > 0] * 3,
        charge=float(frame["charge"][0][0]) if "charge" in frame else 0.0,
        origin=options.origin,
    )
