"""Structures: geometry only, checked when made, and their neighbours.

Apart from the graphs that models eat (:mod:`mfm.graph`), so that what labels structures need not load torch, which
takes longer than most labels; vesin loads it too, and is therefore imported where it is used.
"""

import dataclasses
import hashlib
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

__all__ = ["Structure", "neighbour_list", "whole_number"]

_MINIMUM_DISTANCE = 0.2
"""Å; closer atoms are a broken file, not chemistry (H2 at 60 eV above its minimum is 0.3 Å)."""
_WHOLE = 1e-3
"""How far from a whole number a charge may be: files round."""


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, cell, periodicity, total charge, spin multiplicity. Checked when made."""

    atomic_numbers: np.ndarray
    """(n_atoms,), integers."""
    positions: np.ndarray
    """(n_atoms, 3), Å."""
    cell: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    """(3, 3), Å, rows are lattice vectors; zero rows where there is none."""
    pbc: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3, dtype=bool))
    """(3,), whether each lattice vector repeats; alone decides periodicity, never the cell."""
    charge: int = 0
    """Total charge, e."""
    multiplicity: int | None = None
    """2S + 1; None means the lowest the electron count allows (1 or 2)."""

    def __post_init__(self) -> None:
        numbers = np.asarray(self.atomic_numbers)
        positions = np.asarray(self.positions, dtype=np.float64)
        cell = np.asarray(self.cell, dtype=np.float64)
        pbc = np.broadcast_to(np.asarray(self.pbc, dtype=bool), (3,)).copy()
        _check_arrays(numbers, positions, cell)
        _check_cell(cell, pbc)
        n_electrons = int(numbers.sum()) - int(self.charge)
        multiplicity = 1 + n_electrons % 2 if self.multiplicity is None else int(self.multiplicity)
        if n_electrons < 0 or multiplicity < 1 or (n_electrons + multiplicity) % 2 == 0:
            raise ValueError(
                f"`multiplicity` {multiplicity} does not go with {n_electrons} electrons (charge {self.charge}):"
                " an even number of electrons needs an odd multiplicity and the other way round"
            )
        for name, value in (
            ("atomic_numbers", numbers.astype(np.int64)),
            ("positions", positions),
            ("cell", cell),
            ("pbc", pbc),
            ("charge", int(self.charge)),
            ("multiplicity", multiplicity),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.content_hash() == other.content_hash()

    def __hash__(self) -> int:
        return hash(self.content_hash())

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order, such as ``C2H6O``."""
        return ase.Atoms(self.atomic_numbers).get_chemical_formula()

    def check_distances(self, minimum: float = _MINIMUM_DISTANCE) -> None:
        """Refuse overlapping atoms.

        Raises
        ------
        ValueError
            If two atoms (or images) are closer than `minimum` Å; the message names the pair.
        """
        import vesin

        i, j, distances = vesin.ase_neighbor_list("ijd", self.to_ase(), minimum)
        if len(i):
            k = int(np.argmin(distances))
            symbols = [chemical_symbols[self.atomic_numbers[atom]] for atom in (i[k], j[k])]
            raise ValueError(
                f"`positions` must keep atoms at least {minimum} Å apart, got {distances[k]:.3f} Å between atoms"
                f" {i[k]} ({symbols[0]}) and {j[k]} ({symbols[1]}) in {self.formula}; check the length unit"
            )

    def content_hash(self) -> str:
        """SHA-256 of the geometry (positions to 1e-6 Å), charge and multiplicity."""
        digest = hashlib.sha256(self.atomic_numbers.astype("<i8").tobytes())
        # adding 0.0 turns -0.0 into 0.0, which has other bytes
        digest.update((np.round(self.positions, 6) + 0.0).astype("<f8").tobytes())
        periodic_cell = np.where(self.pbc[:, None], self.cell, 0.0)
        digest.update((np.round(periodic_cell, 6) + 0.0).astype("<f8").tobytes())
        digest.update(f"{self.pbc.tolist()} {self.charge} {self.multiplicity}".encode())
        return digest.hexdigest()

    @classmethod
    def from_ase(cls, atoms: ase.Atoms) -> "Structure":
        """From ASE atoms; `charge`, and `spin` or `multiplicity` (2S + 1), come from ``atoms.info``."""
        info = atoms.info
        spin = info.get("multiplicity", info.get("spin"))
        return cls(
            atoms.numbers,
            atoms.positions,
            atoms.cell.array,
            atoms.pbc,
            charge=whole_number("charge", info.get("charge", 0)),
            multiplicity=None if spin is None else whole_number("multiplicity", spin),
        )

    def to_ase(self) -> ase.Atoms:
        """As ASE atoms with `charge` and `spin` (2S + 1) in ``info``."""
        info = {"charge": self.charge, "spin": self.multiplicity}
        return ase.Atoms(self.atomic_numbers, self.positions, cell=self.cell, pbc=self.pbc, info=info)


def whole_number(name: str, value: Any) -> int:
    """A charge or a multiplicity out of a file, as an integer.

    Raises
    ------
    ValueError
        If it is no number, or not a whole one: a rounded charge is another molecule.

    Examples
    --------
    >>> whole_number("charge", "-1.0")
    -1
    """
    try:
        number = float(value)
        near = round(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be a whole number, got {value!r}") from error
    if abs(number - near) > _WHOLE:
        raise ValueError(f"`{name}` must be a whole number, got {value!r}")
    return near


def _check_arrays(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> None:
    if numbers.ndim != 1 or len(numbers) == 0 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"`atomic_numbers` must be a non-empty list of integers, got {numbers.dtype} of shape {numbers.shape}"
        )
    if numbers.min() < 1 or numbers.max() > 118:
        raise ValueError(f"`atomic_numbers` must lie in 1 to 118, got {numbers.min()} to {numbers.max()}")
    if positions.shape != (len(numbers), 3):
        raise ValueError(f"`positions` must have shape ({len(numbers)}, 3), got {positions.shape}; one row per atom")
    if not np.isfinite(positions).all():
        atom = int(np.argmax(~np.isfinite(positions).all(axis=1)))
        raise ValueError(f"`positions` must be finite, got {positions[atom]} for atom {atom}; remove the structure")
    if cell.shape != (3, 3):
        raise ValueError(f"`cell` must have shape (3, 3), got {cell.shape}; reshape it in the reader, rows are vectors")
    if not np.isfinite(cell).all():
        raise ValueError("`cell` must be finite; use zeros where there is no cell")


def _check_cell(cell: np.ndarray, pbc: np.ndarray) -> None:
    if not pbc.any():
        return
    vectors = cell[pbc]
    if np.linalg.matrix_rank(vectors, tol=1e-6) < len(vectors):
        raise ValueError(
            f"`pbc` is {pbc.tolist()} but the cell {cell.tolist()} has no independent vector for each periodic"
            " direction; give the cell, or set `pbc` to False"
        )


def neighbour_list(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs closer than the cutoff, periodic images included, sorted by receiver.

    Returns
    -------
    edge_index : (2, n_edges), int64
        Senders, receivers.
    unit_shifts : (n_edges, 3), int64
        Lattice translations of the sender.
    """
    import vesin

    # a cell that is not periodic must not reach the neighbour search: it would only change how it bins atoms
    box = np.where(structure.pbc[:, None], structure.cell, 0.0)
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    receivers, senders, shifts = search.compute(
        points=structure.positions, box=box, periodic=structure.pbc, quantities="ijS"
    )
    return np.stack([senders, receivers]).astype(np.int64), shifts.astype(np.int64)
