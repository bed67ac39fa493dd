"""Extended XYZ: one comment line of ``key=value`` pairs and a table per frame, plain or gzipped.

The format fixes Å for positions and nothing else; energies in eV, forces in eV/Å and so on are the habit of
ASE, which is assumed, with a warning, unless units are given. A ``Lattice`` without ``pbc`` is periodic, as the
format says; with ``pbc``, only ``pbc`` counts. ``spin`` and ``multiplicity`` are 2S + 1.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers as NUMBERS

from mfm.data.readers.base import Column, Known, ReadOptions, Source, make_record, plan_labels, single_level_card
from mfm.data.readers.text import open_text
from mfm.data.records import Record
from mfm.properties import PROPERTIES, parse_task

__all__ = ["matches", "read"]

_KNOWN = (
    Known("energy", ("energy", "energy_ref", "REF_energy", "dft_energy", "DFT_energy"), "eV"),
    Known("forces", ("forces", "force", "forces_ref", "REF_forces", "dft_forces", "DFT_forces"), "eV/Å"),
    Known("stress", ("stress", "stress_ref", "REF_stress"), "eV/Å^3"),
    Known("charges", ("charges", "mbis_charges", "mbi_charges", "REF_charges"), "e"),
    Known("dipole", ("dipole", "dipole_ref", "REF_dipole"), "e*Å"),
    Known("quadrupole", ("quadrupole", "REF_quadrupole"), "e*Å^2"),
)
_PAIR = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|[^\s="]+)"""  # a key
    r"""(?:\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\{[^}]*\}|[^\s]+))?"""
)


class _Header(NamedTuple):
    """What a frame says of itself, its rows not yet taken apart."""

    where: str
    info: dict[str, str]
    properties: str
    columns: dict[str, tuple[str, int, int]]
    rows: list[str]
    n_atoms: int


class _Frame(NamedTuple):
    info: dict[str, str]
    columns: dict[str, tuple[str, int, int]]  # name -> (type, first, width)
    tokens: list[str]
    n_columns: int
    n_atoms: int

    def numbers(self, name: str) -> np.ndarray:
        _, first, width = self.columns[name]
        picked = [self.tokens[first + k :: self.n_columns] for k in range(width)]
        values = np.array([list(map(float, column)) for column in picked]).T
        return values[:, 0] if width == 1 else values

    def words(self, name: str) -> list[str]:
        return self.tokens[self.columns[name][1] :: self.n_columns]


def matches(path: Path, head: bytes) -> bool:
    """Whether the first line is a count and the second looks like an (extended) XYZ comment."""
    if path.is_dir():
        return False
    lines = head.decode("utf-8", errors="replace").splitlines()
    return len(lines) >= 2 and lines[0].strip().isdigit() and ("=" in lines[1] or path.suffix in (".xyz", ".extxyz"))


def read(path: Path, options: ReadOptions) -> Source:
    """Read an extended XYZ file; see the module for what the format fixes.

    Raises
    ------
    ValueError
        If the file is empty or truncated, a frame cannot be parsed, or a key matches nothing.
    """
    next(_frames(path), None)  # a table that is wrong is told from here, not from where it ends
    # of every frame: what the first one lacks is a label of the others all the same
    found: set[str] = set()
    for header in _headers(path):
        found |= set(header.info) | set(header.columns)
    if not found:
        raise ValueError(f"`{path.name}` must hold at least one frame, got an empty file")
    found -= {"Lattice", "Properties", "pbc", "species", "pos", "Z"}
    columns = plan_labels(found, _KNOWN, options, path.name)
    return Source(_records(path, columns, options), single_level_card(path, columns, options, assumed_units=True))


def _records(path: Path, columns: list[Column], options: ReadOptions) -> Iterator[Record]:
    scale = options.position_factor("Å")
    molecule_keys = (options.keys["molecule"],) if "molecule" in options.keys else ("molecule", "smiles")
    origin_keys = (options.keys["origin"],) if "origin" in options.keys else ("origin", "config_type")
    for position, frame in enumerate(_frames(path)):
        where = f"frame {position} of `{path.name}`"
        labels = {}
        for task, key, factor in columns:
            value = _label(frame, key, PROPERTIES[parse_task(task).property].per, where)
            if value is not None:
                labels[task] = value * factor
        cell = _vector(frame.info["Lattice"], where).reshape(3, 3) * scale if "Lattice" in frame.info else None
        spin = frame.info.get("multiplicity", frame.info.get("spin"))
        yield make_record(
            where,
            _atomic_numbers(frame, where),
            frame.numbers("pos") * scale,
            labels,
            cell=cell,
            pbc=_periodicity(frame.info, where),
            charge=_scalar(frame.info.get("charge", "0"), f"`charge` in {where}"),
            multiplicity=None if spin is None else _scalar(spin, f"spin multiplicity in {where}"),
            molecule=next((frame.info[key].strip('"') for key in molecule_keys if key in frame.info), ""),
            origin=next((frame.info[key].strip('"') for key in origin_keys if key in frame.info), options.origin),
        )


def _label(frame: _Frame, key: str, per: str, where: str) -> np.ndarray | None:
    if per == "atom" and key in frame.columns:
        return frame.numbers(key)
    return _vector(frame.info[key], f"`{key}` in {where}") if key in frame.info else None


def _atomic_numbers(frame: _Frame, where: str) -> np.ndarray:
    if "species" not in frame.columns:
        return frame.numbers("Z").astype(np.int64)
    words = frame.words("species")
    unknown = [word for word in words if word not in NUMBERS]
    if unknown:
        raise ValueError(f"{where}: species must be chemical symbols, got `{unknown[0]}`")
    return np.array([NUMBERS[word] for word in words])


def _vector(text: str, where: str) -> np.ndarray:
    content = text[1:-1] if text[:1] in "\"'" else text
    content = content.removeprefix("_JSON ").strip()
    try:
        if content.startswith("["):
            return np.array(json.loads(content), dtype=np.float64)
        values = [float(word) for word in content.strip("{}").replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{where}: must be numbers, got `{text[:60]}`") from error
    return np.array(values[0] if len(values) == 1 else values)


def _scalar(text: str, where: str) -> float:
    value = _vector(text, where)
    if value.ndim:
        raise ValueError(f"{where}: must be one number, got `{text[:60]}`")
    return float(value)


def _periodicity(info: dict[str, str], where: str) -> list[bool]:
    if "pbc" not in info:
        return ["Lattice" in info] * 3
    words = info["pbc"].strip("\"'[]").replace(",", " ").split()
    truth = {"T": True, "F": False, "TRUE": True, "FALSE": False, "1": True, "0": False}
    if len(words) != 3 or any(word.upper() not in truth for word in words):
        raise ValueError(f"{where}: `pbc` must be three of T and F, got `{info['pbc']}`")
    return [truth[word.upper()] for word in words]


def _frames(path: Path) -> Iterator[_Frame]:
    for header in _headers(path):
        n_columns = sum(width for _, _, width in header.columns.values())
        tokens = " ".join(header.rows).split()
        if len(tokens) != header.n_atoms * n_columns:
            raise ValueError(
                f"{header.where}: must have {n_columns} columns for each of {header.n_atoms} atoms"
                f" ({header.properties}), got {len(tokens)} words in all; the file is truncated or `Properties` is"
                " wrong"
            )
        yield _Frame(header.info, header.columns, tokens, n_columns, header.n_atoms)


def _headers(path: Path) -> Iterator[_Header]:
    layouts: dict[str, dict[str, tuple[str, int, int]]] = {}
    with open_text(path) as file:
        position = 0
        for line in file:
            if not line.strip():
                continue
            where = f"frame {position} of `{path.name}`"
            if not line.strip().isdigit():
                raise ValueError(f"{where}: must start with its number of atoms, got `{line.strip()[:60]}`")
            n_atoms = int(line)
            info = {key.strip('"'): value for key, value in _PAIR.findall(file.readline())}
            rows = [file.readline() for _ in range(n_atoms)]
            if rows and not rows[-1].strip():
                n_read = sum(bool(row.strip()) for row in rows)
                raise ValueError(f"{where}: must have {n_atoms} atoms, got {n_read}; the file is truncated")
            properties = info.get("Properties", "species:S:1:pos:R:3")
            if properties not in layouts:
                layouts[properties] = _layout(properties, where)
            yield _Header(where, info, properties, layouts[properties], rows, n_atoms)
            position += 1


def _layout(properties: str, where: str) -> dict[str, tuple[str, int, int]]:
    words = properties.strip('"').split(":")
    columns, first = {}, 0
    if len(words) % 3 or not all(word.isdigit() for word in words[2::3]):
        raise ValueError(f"{where}: `Properties` must be name:type:count triples, got `{properties}`")
    for name, kind, width in zip(words[::3], words[1::3], words[2::3], strict=True):
        columns[name] = (kind, first, int(width))
        first += int(width)
    if "pos" not in columns or not {"species", "Z"} & set(columns):
        raise ValueError(f"{where}: `Properties` must hold `pos` and `species` or `Z`, got `{properties}`")
    return columns
