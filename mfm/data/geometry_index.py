"""Finding equal geometries without the gaps of rounding.

Two files often hold the same geometry with the last bits apart, and a hash of rounded coordinates then differs
whenever a coordinate falls on a rounding boundary: in formaldehyde at three levels, for one geometry in twenty.
"""

import numpy as np

from mfm.structure import Structure

__all__ = ["GeometryIndex"]

_TOLERANCE = 1e-6
"""Å; geometries within it in every coordinate are the same."""


class GeometryIndex:
    """Structures by geometry, periodicity, charge and multiplicity; equal to 1e-6 Å in every coordinate."""

    def __init__(self) -> None:
        self._bins: dict[tuple[bytes, int], list[tuple[int, Structure]]] = {}

    def add(self, structure: Structure, number: int) -> None:
        """Enter a structure under a number."""
        self._bins.setdefault((_exact_key(structure), _bin(structure)), []).append((number, structure))

    def find(self, structure: Structure) -> list[int]:
        """Numbers of the structures entered so far that are equal to this one, in order of entry."""
        key, middle = _exact_key(structure), _bin(structure)
        candidates = [entry for b in (middle - 1, middle, middle + 1) for entry in self._bins.get((key, b), ())]
        return sorted(number for number, other in candidates if _is_equal(structure, other))


def _exact_key(structure: Structure) -> bytes:
    head = f"{structure.charge} {structure.multiplicity} {structure.pbc.tolist()} "
    return head.encode() + structure.atomic_numbers.tobytes()


def _bin(structure: Structure) -> int:
    flat = structure.positions.ravel()
    # any fixed direction will do that no symmetry of a molecule makes degenerate; a bin is wider than the tolerance
    # can move the projection, so that equal structures are in the same or in neighbouring bins
    return int(np.floor(flat @ np.cos(np.arange(1.0, len(flat) + 1.0)) / (_TOLERANCE * len(flat))))


def _is_equal(one: Structure, other: Structure) -> bool:
    if np.abs(one.positions - other.positions).max() > _TOLERANCE:
        return False
    return bool(np.abs(np.where(one.pbc[:, None], one.cell - other.cell, 0.0)).max() <= _TOLERANCE)
