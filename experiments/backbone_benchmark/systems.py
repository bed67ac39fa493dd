"""Structures for timings, the same on every machine: small molecules from a file, water from a formula."""

from pathlib import Path

import ase.io
import numpy as np
from scipy.spatial.transform import Rotation

from mfm.graph import Structure

__all__ = ["SYSTEMS", "speed_systems", "water"]

_MOLECULES = Path(__file__).parent / "molecules.xyz"
_RATTLE = 0.05  # Å
_WATER_MASS = 18.015  # g/mol
_AVOGADRO = 0.602214076  # per mol and Å^3, at 1 cm^3 = 1e24 Å^3
_BOND, _ANGLE = 0.9572, np.deg2rad(104.52)  # Å; gas phase

SYSTEMS = {
    "ethanol": "ethanol, 9 atoms",
    "molecule27": "27 atoms",
    "batch64x20": "64 × 20 atoms",
    "water192": "water, 192 atoms",
    "water648": "water, 648 atoms",
    "train16x27": "training, 16 × 27 atoms",
}
"""Systems of the table and their titles."""


def water(molecules_per_edge: int, seed: int = 0) -> Structure:
    """Periodic water at 1 g/cm³: molecules of random orientation on a slightly disordered cubic lattice.

    Not a liquid, but with its number of neighbours, on which the cost of a model depends.

    Parameters
    ----------
    molecules_per_edge : int
        The cell holds the cube of it.
    """
    generator = np.random.default_rng(seed)
    n_molecules = molecules_per_edge**3
    edge = (n_molecules * _WATER_MASS / _AVOGADRO) ** (1 / 3)
    steps = np.arange(molecules_per_edge) * edge / molecules_per_edge
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lattice = lattice + generator.normal(scale=_RATTLE, size=lattice.shape)
    half = _ANGLE / 2
    molecule = _BOND * np.array([[0, 0, 0], [np.sin(half), 0, np.cos(half)], [-np.sin(half), 0, np.cos(half)]])
    turns = Rotation.random(n_molecules, random_state=seed).as_matrix()
    positions = lattice[:, None] + np.einsum("nij,aj->nai", turns, molecule)
    numbers = np.tile([8, 1, 1], n_molecules)
    return Structure(numbers, positions.reshape(-1, 3), edge * np.eye(3), np.ones(3, dtype=bool))


def speed_systems() -> dict[str, list[Structure]]:
    """Batches to time, by the names of :data:`SYSTEMS`."""
    ethanol, amide, drug = (Structure.from_ase(atoms) for atoms in ase.io.read(_MOLECULES, index=":"))
    return {
        "ethanol": [ethanol],
        "molecule27": [drug],
        "batch64x20": _rattled(amide, 64),
        "water192": [water(4)],
        "water648": [water(6)],
        "train16x27": _rattled(drug, 16),
    }


def _rattled(structure: Structure, count: int) -> list[Structure]:
    generator = np.random.default_rng(0)
    shape = structure.positions.shape
    return [
        Structure(structure.atomic_numbers, structure.positions + generator.normal(scale=_RATTLE, size=shape))
        for _ in range(count)
    ]
