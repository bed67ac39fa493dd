"""Small data with a closed form: molecules whose atoms attract each other by Morse potentials.

Two levels differ in the well depth and the range, so that their difference is smaller and smoother than either.
"""

import itertools

import numpy as np

from mfm.data import DatasetCard, Record, Store
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure

ATOMS = {"low": {1: -13.0, 6: -1030.0, 8: -2040.0}, "high": {1: -13.6, 6: -1027.0, 8: -2041.0}}
"""eV, energies of the separate atoms."""
_SYMBOLS = {1: "H", 6: "C", 8: "O"}
_DEPTH = {"low": 2.0, "high": 2.2}
_RANGE = {"low": 1.5, "high": 1.45}
_RADIUS = {1: 0.5, 6: 0.75, 8: 0.65}

MOLECULES = {
    "water": [8, 1, 1],
    "hydrogen": [1, 1],
    "methylene": [6, 1, 1],
    "monoxide": [6, 8],
    "formyl": [6, 8, 1, 1],
    "dioxide": [6, 8, 8],
    "ketene": [6, 6, 8, 1, 1],
    "peroxide": [8, 8, 1, 1],
}


def morse(numbers: np.ndarray, positions: np.ndarray, level: str) -> tuple[float, np.ndarray]:
    """Energy, eV, and forces, eV/Å."""
    energy = sum(ATOMS[level][int(z)] for z in numbers)
    forces = np.zeros_like(positions)
    for i, j in itertools.combinations(range(len(numbers)), 2):
        vector = positions[j] - positions[i]
        distance = float(np.linalg.norm(vector))
        rest = _RADIUS[int(numbers[i])] + _RADIUS[int(numbers[j])]
        decay = np.exp(-_RANGE[level] * (distance - rest))
        energy += _DEPTH[level] * (decay**2 - 2 * decay)
        slope = 2 * _DEPTH[level] * _RANGE[level] * (decay - decay**2)
        forces[i] += slope * vector / distance
        forces[j] -= slope * vector / distance
    return float(energy), forces


def geometry(numbers: list[int], rng: np.random.Generator) -> np.ndarray:
    """Random positions, no two atoms closer than 0.75 Å."""
    while True:
        positions = rng.normal(size=(len(numbers), 3)) * 0.9
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(positions, 2)]
        if min(distances) > 0.75:
            return positions


def morse_store(n_per_molecule: int = 4, seed: int = 0, isolated_atoms: bool = True) -> Store:
    """Every molecule with ``low`` energies and forces; every second geometry also with a ``high`` energy."""
    rng = np.random.default_rng(seed)
    records = []
    for name, numbers in MOLECULES.items():
        for frame in range(n_per_molecule):
            positions = geometry(numbers, rng)
            energy, forces = morse(np.array(numbers), positions, "low")
            labels = {"energy_low": np.array(energy), "forces_low": forces}
            if frame % 2 == 0:
                labels["energy_high"] = np.array(morse(np.array(numbers), positions, "high")[0])
            records.append(Record(Structure(np.array(numbers), positions), labels, molecule=name, origin="random"))
    atoms = {level: {_SYMBOLS[z]: e for z, e in known.items()} for level, known in ATOMS.items()}
    card = DatasetCard(
        name="morse",
        levels={level: LevelOfTheory(method=f"Morse-{level}") for level in ATOMS},
        references=atoms if isolated_atoms else {},
    )
    return Store.from_records(records, card)


def recipe(file: str, output: str, **changes: object) -> dict[str, object]:
    """Content of a run file: a tiny model, two fidelities, a stage on each and on both."""
    content: dict[str, object] = {
        "name": "morse",
        "data": {"train": file, "valid_fraction": 0.25, "test_fraction": 0.25},
        "tasks": {"energy_low": {}, "energy_high": {"anchor": "energy_low"}},
        "model": {"backbone": TINY, "readout_channels": 8},
        "stages": [
            {"name": "low", "tasks": ["energy_low"], "epochs": 5},
            {"name": "joint", "max_steps": 10},
        ],
        "batch": {"structures": 4},
        "validations": 2,
        "log_every": 3,
        "device": "cpu",
        "output": output,
        "tracking": "none",
    }
    return {**content, **changes}


TINY = {
    "n_layers": 1,
    "n_channels": 8,
    "n_product_channels": 8,
    "n_message_channels": 4,
    "n_transport_channels": 4,
    "n_radial": 4,
    "max_degree": 2,
    "equivariant_degree": 1,
}
