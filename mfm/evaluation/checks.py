"""What can be asked of any checkpoint without labels, before it is promoted; no audit of its physics.

The test structure is made from the elements of the model, so its energies need not be sensible: they must be finite,
belong to the forces, and not change when the structure is moved or its atoms are renamed. Nor may the sizes of charges
and moments.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import covalent_radii

from mfm.checkpoint import load_model
from mfm.graph import Structure
from mfm.heads import HEADS
from mfm.model import MFMModel
from mfm.potential import Potential

__all__ = ["checkpoint_problems", "consistency_problems", "probe_structure"]

logger = logging.getLogger(__name__)

_STEP = 1e-4
"""Å; in float64 the error of a central difference is then far below the tolerance, smooth or not."""
_FORCE_TOLERANCE = 1e-4
"""Largest deviation of a force from the slope of the energy, relative to the largest force."""
_SMALLEST_FORCE = 1e-2
"""eV/Å; where all forces are smaller, deviations are relative to this: differences of total energies have noise."""
_ENERGY_TOLERANCE = 1e-6
"""eV; what moving a structure may change in float64. Of charges and moments, in their unit or relative."""
_MOST_ATOMS = 8


def checkpoint_problems(path: Path) -> list[str]:
    """What speaks against using a checkpoint: a sentence per problem, none if all checks pass.

    The checks: it loads, into float64; then those of :func:`consistency_problems`.
    """
    try:
        model = load_model(path, dtype=torch.float64)
    except ValueError as error:
        return [str(error)]
    return consistency_problems(model)


def consistency_problems(model: MFMModel) -> list[str]:
    """What is not finite, not consistent, or changes under a symmetry, at each fidelity."""
    structure = probe_structure(model)
    if structure is None:
        return ["no test structure with a charge and multiplicity of the training data can be made of its elements"]
    potential = Potential(model, torch.device("cpu"), torch.float64, skin=0.0)
    problems = _electronic_problems(potential, structure)
    for fidelity in (name for name in potential.fidelities if potential.has_energy(name)):
        found = potential.evaluate(structure, forces=[fidelity])
        energy, forces = found.energies[fidelity], found.forces[fidelity]
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            problems.append(f"{fidelity}: energy or forces of {structure.formula} are not finite")
            continue
        slope = _slope(potential, structure, fidelity)
        deviation = float(np.abs(forces + slope).max()) / max(_SMALLEST_FORCE, float(np.abs(slope).max()))
        if not deviation <= _FORCE_TOLERANCE:
            problems.append(
                f"{fidelity}: forces of {structure.formula} differ from the slope of the energy by {deviation:.1e} of"
                f" the largest, more than {_FORCE_TOLERANCE:.0e}"
            )
        for name, moved in _moved(structure).items():
            change = abs(potential.evaluate(moved).energies[fidelity] - energy)
            if not change <= _ENERGY_TOLERANCE:
                problems.append(f"{fidelity}: {name} changes the energy of {structure.formula} by {change:.1e} eV")
    logger.info(
        "checked %s at %s: finite, forces are slopes, rotation, translation, permutation; physics was not audited",
        structure.formula, ", ".join(potential.fidelities),
    )  # fmt: skip
    return problems


def _electronic_problems(potential: Potential, structure: Structure) -> list[str]:
    """Charges and moments that are not finite, or whose size changes under a symmetry."""
    problems = []
    for fidelity in potential.fidelities:
        names = [name for name in potential.properties(fidelity) if name in HEADS]
        if not names:
            continue
        found = potential.evaluate(structure, quantities=(names, fidelity)).quantities
        moved = {
            kind: potential.evaluate(other, quantities=(names, fidelity)).quantities
            for kind, other in _moved(structure).items()
        }
        for name in names:
            if not np.isfinite(found[name]).all():
                problems.append(f"{fidelity}: {name} of {structure.formula} are not finite")
                continue
            size = _size(found[name])
            for kind, quantities in moved.items():
                change = abs(_size(quantities[name]) - size)
                if not change <= _ENERGY_TOLERANCE * max(1.0, size):
                    problems.append(f"{fidelity}: {kind} changes the size of {name} by {change:.1e}")
    return problems


def _size(values: np.ndarray) -> float:
    """Root of the sum of squares, which neither turning nor another order of atoms changes."""
    return float(np.linalg.norm(values.ravel()))


def probe_structure(model: MFMModel) -> Structure | None:
    """A compact heap of the model's elements, with a charge and multiplicity that it knows; None if there is none."""
    elements, domain = list(model.elements), model.domain
    charges = set(domain.charges).intersection(*(domain.charges_seen(fidelity) for fidelity in model.fidelities))
    numbers = [elements[k % len(elements)] for k in range(max(3, min(len(elements), _MOST_ATOMS)))]
    for candidate in (numbers, [*numbers, numbers[0]], [*numbers, numbers[-1]]):
        atoms = np.array(candidate)
        spacing = 2.2 * max(covalent_radii[z] for z in candidate)
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[: len(atoms)]
        jitter = np.random.default_rng(0).normal(scale=0.05, size=grid.shape)
        for charge in sorted(charges, key=abs):
            for multiplicity in model.domain.multiplicities:
                if (int(atoms.sum()) - charge + multiplicity) % 2:
                    return Structure(atoms, spacing * (grid + jitter), charge=charge, multiplicity=multiplicity)
    return None


def _slope(potential: Potential, structure: Structure, fidelity: str) -> np.ndarray:
    """(n_atoms, 3), eV/Å: central differences of the energy."""
    slope = np.zeros_like(structure.positions)
    for index in np.ndindex(*slope.shape):
        step = np.zeros_like(slope)
        step[index] = _STEP
        ahead, behind = (
            potential.evaluate(_placed(structure, structure.positions + sign * step)).energies[fidelity]
            for sign in (1, -1)
        )
        slope[index] = (ahead - behind) / (2 * _STEP)
    return slope


def _moved(structure: Structure) -> dict[str, Structure]:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    order = np.arange(len(structure))[::-1]
    return {
        "rotation": _placed(structure, structure.positions @ rotation.T),
        "translation": _placed(structure, structure.positions + np.array([1.7, -2.3, 0.9])),
        "permutation": _placed(structure, structure.positions[order], order),
    }


def _placed(structure: Structure, positions: np.ndarray, order: Sequence[int] | np.ndarray | None = None) -> Structure:
    numbers = structure.atomic_numbers if order is None else structure.atomic_numbers[order]
    return Structure(numbers, positions, charge=structure.charge, multiplicity=structure.multiplicity)
