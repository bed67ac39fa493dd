"""Splits into parts: by molecule, by frame, by list; always across fidelities.

A split maps a part's name to the positions of its records. It is made over records, not over labels, so the same
structure is never in one part at one fidelity and in another part at another.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfm.data.geometry_index import GeometryIndex
from mfm.data.store import Store

__all__ = [
    "Split",
    "by_file",
    "by_molecule",
    "check_split",
    "first_n",
    "held_out_rows",
    "leaks",
    "predefined",
    "random_frames",
    "shared_geometries",
    "write_split",
]

Split = dict[str, np.ndarray]
"""Part to ascending positions of its records."""

DEFAULT_FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}
"""Share of the records in each part."""


def held_out_rows(store: Store) -> np.ndarray:
    """Positions of the records of molecules that the card keeps for tests.

    Raises
    ------
    ValueError
        If it keeps none.
    """
    rows = np.flatnonzero(np.isin(store.molecules, store.card.test_molecules))
    if not len(rows):
        raise ValueError(f"the card of `{store.card.name}` must hold out molecules, got none that are in it")
    return rows


def by_molecule(store: Store, fractions: Mapping[str, float] | None = None, seed: int = 0) -> Split:
    """Whole molecules to each part, at random.

    Molecules that the card holds out go to `test`, and nothing else does: that set is comparable between papers. The
    others are dealt out so that every part gets its share of the records, separately for molecules that carry
    different fidelities, so that each part also gets its share of the expensive labels.

    Parameters
    ----------
    fractions : mapping, optional
        Part to its share; they must sum to 1. 0.8 `train`, 0.1 `valid`, 0.1 `test` if not given.

    Raises
    ------
    ValueError
        If the shares do not sum to 1 or there are fewer molecules than parts.
    """
    shares = _check_fractions(fractions)
    molecules, group = np.unique(store.molecules, return_inverse=True)
    held_out = np.isin(molecules, store.card.test_molecules)
    if held_out.any():
        shares = {part: share for part, share in shares.items() if part != "test"} or {"train": 1.0}
        shares = {part: share / sum(shares.values()) for part, share in shares.items()}
    n_free = int((~held_out).sum())
    if n_free < len(shares):
        raise ValueError(
            f"a split by molecule into {', '.join(shares)} needs as many molecules, got {n_free} of"
            f" `{store.card.name}`; use a split by frame within molecules"
        )
    order, sizes = _shuffled_strata(store, group, seed)
    part_of = {int(m): "test" for m in np.flatnonzero(held_out)}
    names = list(shares)
    counts = dict.fromkeys(names, 0)
    total = 0
    free = [m for m in order if not held_out[m]]
    for n_left, molecule in zip(range(len(free), 0, -1), free, strict=True):
        total += sizes[molecule]
        # the part that is furthest behind its share; the last molecules go to parts that have none
        empty = [part for part in names if counts[part] == 0]
        candidates = empty if n_left <= len(empty) else names
        behind = max(candidates, key=lambda part: (shares[part] * total - counts[part], -names.index(part)))
        part_of[int(molecule)] = behind
        counts[behind] += sizes[molecule]
    parts = np.array([part_of[m] for m in range(len(molecules))])[group]
    return {part: np.flatnonzero(parts == part) for part in dict.fromkeys([*shares, *part_of.values()])}


def random_frames(store: Store, fractions: Mapping[str, float] | None = None, seed: int = 0) -> Split:
    """Records at random, molecules cut apart: for one molecule, or a set whose frames are independent.

    Equal geometries stay together.

    Raises
    ------
    ValueError
        If the shares do not sum to 1, or a part would be empty.
    """
    shares = _check_fractions(fractions)
    leaders = _geometry_groups(store)
    order = np.random.default_rng(seed).permutation(np.unique(leaders))
    edges = np.round(np.cumsum([0.0, *shares.values()]) * len(order)).astype(int)
    split = {}
    for part, first, last in zip(shares, edges[:-1], edges[1:], strict=True):
        if first == last:
            raise ValueError(f"part `{part}` would be empty with {len(order)} geometries; raise its fraction")
        split[part] = np.flatnonzero(np.isin(leaders, order[first:last]))
    return split


def first_n(store: Store, sizes: Mapping[str, int]) -> Split:
    """The first records to the first part, the next to the second, and so on: published splits of ordered files.

    Raises
    ------
    ValueError
        If the sizes exceed the number of records.
    """
    if sum(sizes.values()) > len(store) or min(sizes.values(), default=0) < 1:
        raise ValueError(f"sizes must be at least 1 and sum to at most {len(store)} records, got {dict(sizes)}")
    edges = np.cumsum([0, *sizes.values()])
    return {part: np.arange(edges[i], edges[i + 1]) for i, part in enumerate(sizes)}


def predefined(store: Store, parts: Mapping[str, Sequence[int] | Sequence[str] | np.ndarray]) -> Split:
    """Parts by positions of records, or by names of molecules.

    Raises
    ------
    ValueError
        If a position is out of range or in two parts, or a molecule is unknown or in two parts.
    """
    split = {}
    for part, items in parts.items():
        if len(items) and isinstance(items[0], str):
            unknown = sorted(set(map(str, items)) - set(store.molecules))
            if unknown:
                raise ValueError(
                    f"part `{part}` names molecules that `{store.card.name}` lacks: {', '.join(unknown[:5])}"
                )
            split[part] = np.flatnonzero(np.isin(store.molecules, list(items)))
        else:
            split[part] = np.unique(np.asarray(items, dtype=np.int64))
    check_split(store, split)
    return split


def by_file(store: Store, path: str | Path) -> Split:
    """Split that :func:`write_split` wrote, or a JSON mapping of parts to positions or molecules.

    Raises
    ------
    ValueError
        If the file was made for other data, or its parts do not fit the store.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read split `{path}`: {error}") from error
    digest = content.pop("digest", store.digest)
    if digest != store.digest:
        raise ValueError(f"split `{path}` was made for data with digest {digest}, got {store.digest}; make it again")
    return predefined(store, content.pop("parts", content))


def write_split(path: str | Path, split: Split, store: Store) -> None:
    """Write a split as JSON, with the digest of the data it belongs to."""
    content = {"digest": store.digest, "parts": {part: indices.tolist() for part, indices in split.items()}}
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def check_split(store: Store, split: Mapping[str, np.ndarray], whole_molecules: bool = False) -> None:
    """Refuse a split that leaks.

    Raises
    ------
    ValueError
        If a position is out of range, a record is in two parts, or (if asked) a molecule is in two parts.
    """
    owner: dict[str, str] = {}
    seen = np.full(len(store), "", dtype=object)
    for part, indices in split.items():
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(store)):
            raise ValueError(f"part `{part}` must have positions in 0 to {len(store) - 1}, got {indices.max()}")
        taken = [i for i in indices if seen[i]]
        if taken:
            raise ValueError(f"record {taken[0]} must be in one part, it is in `{seen[taken[0]]}` and `{part}`")
        seen[indices] = part
        for molecule in np.unique(store.molecules[indices]) if whole_molecules else ():
            if owner.setdefault(molecule, part) != part:
                raise ValueError(
                    f"molecule `{molecule}` must be in one part, it is in `{owner[molecule]}` and `{part}`"
                )


def shared_geometries(one: Store, other: Store) -> np.ndarray:
    """Positions in `other` of the geometries that `one` also holds: what would leak."""
    index = GeometryIndex()
    for i, structure in enumerate(one.structures()):
        index.add(structure, i)
    return np.array([i for i, structure in enumerate(other.structures()) if index.find(structure)], dtype=np.int64)


def leaks(known: Store, held_out: Store) -> list[str]:
    """What of a held-out part can be learned from another part, a line each; empty if nothing."""
    molecules = set(known.molecules.tolist())
    # a cluster A.B shows A and B
    shown = molecules | {part for molecule in molecules for part in molecule.split(".")}
    lines = []
    if shared := sorted(set(held_out.molecules.tolist()) & shown):
        lines.append(
            f"{len(shared)} held-out molecules are also outside, alone or in clusters: {', '.join(shared[:5])}"
        )
    if n_shared := len(shared_geometries(known, held_out)):
        lines.append(f"{n_shared} held-out geometries are also outside")
    return lines


def _check_fractions(fractions: Mapping[str, float] | None) -> dict[str, float]:
    shares = dict(DEFAULT_FRACTIONS if fractions is None else fractions)
    if abs(sum(shares.values()) - 1.0) > 1e-6 or min(shares.values(), default=0.0) <= 0.0:
        raise ValueError(f"fractions must be positive and sum to 1, got {shares}")
    return shares


def _shuffled_strata(store: Store, group: np.ndarray, seed: int) -> tuple[list[int], np.ndarray]:
    """Molecules in random order, those with the same fidelities together; and their numbers of records."""
    sizes = np.bincount(group)
    patterns = np.zeros(len(sizes), dtype=np.int64)
    for bit, task in enumerate(task for task in store.labels if task.startswith("energy_")):
        carries = np.bincount(group, weights=store.coverage(task)) > 0
        patterns += carries.astype(np.int64) << bit
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    return [int(m) for m in shuffled[np.argsort(patterns[shuffled], kind="stable")]], sizes


def _geometry_groups(store: Store) -> np.ndarray:
    """(n_records,), position of the first record with the same geometry."""
    index = GeometryIndex()
    leaders = np.arange(len(store))
    for i, record in enumerate(store):
        equal = index.find(record.structure)
        if equal:
            leaders[i] = equal[0]
        else:
            index.add(record.structure, i)
    return leaders
