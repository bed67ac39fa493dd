"""Infrared spectrum of a molecule in the harmonic approximation."""

import math
from typing import NamedTuple

import ase
import numpy as np

from mfm.units import AVOGADRO, COULOMB_CONSTANT, SPEED_OF_LIGHT_SQUARED

__all__ = ["Infrared", "infrared_spectrum"]

_WAVENUMBER = 1e8 / (2.0 * math.pi * math.sqrt(SPEED_OF_LIGHT_SQUARED))
"""cm⁻¹ of a mode whose force constant over mass is 1 eV/(Å² amu)."""
_INTENSITY = math.pi / 3.0 * AVOGADRO * COULOMB_CONSTANT / SPEED_OF_LIGHT_SQUARED * 1e-13
"""km/mol of a mode whose dipole changes by 1 e/√amu: N_A/(12 ε₀ c²) |∂μ/∂Q|², with 1 Å = 1e-13 km."""
_LARGEST_FORCE = 0.05
"""eV/Å; beyond, the energy is not at a minimum and rotations mix with vibrations."""
_RIGID = 1e-6
"""Relative size below which a rigid-body motion does not exist: the rotation of a line about itself."""


class Infrared(NamedTuple):
    """Normal modes and how they absorb."""

    wavenumbers: np.ndarray
    """(n_modes,), cm⁻¹, ascending; imaginary ones negative; 3 n_atoms − 6 modes, of a linear molecule − 5."""
    intensities: np.ndarray
    """(n_modes,), km/mol."""
    modes: np.ndarray
    """(n_modes, n_atoms, 3), Å/√amu per unit of normal coordinate: displacements, not mass-weighted."""


def infrared_spectrum(atoms: ase.Atoms, step: float = 0.005) -> Infrared:
    """Wavenumbers and intensities from a Hessian by central differences of forces and from atomic polar tensors.

    Parameters
    ----------
    atoms : ase.Atoms
        A molecule at a minimum, with an :class:`mfm.MFMCalculator` that has energies and a dipole at its fidelity, best
        in float64.
    step : float, Å
        Displacement of an atom.

    Raises
    ------
    ValueError
        If there is a periodic direction, or a force above 0.05 eV/Å.
    """
    if atoms.pbc.any():
        raise ValueError(f"an infrared spectrum needs a molecule, got `pbc` {atoms.pbc.tolist()}; set it to False")
    largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    if largest > _LARGEST_FORCE:
        raise ValueError(
            f"an infrared spectrum needs forces below {_LARGEST_FORCE} eV/Å, got {largest:.3f} in"
            f" {atoms.get_chemical_formula()}; optimise the geometry first"
        )
    polar_tensors = atoms.calc.born_effective_charges(atoms)
    roots = np.repeat(np.sqrt(atoms.get_masses()), 3)
    hessian = _hessian(atoms, step) / np.outer(roots, roots)
    inner = _vibrations(atoms, roots)  # (3 n_atoms, n_modes)
    constants, vectors = np.linalg.eigh(inner.T @ hessian @ inner)
    displacements = (inner @ vectors / roots[:, None]).T.reshape(len(constants), len(atoms), 3)
    slopes = np.einsum("iab,mib->ma", polar_tensors, displacements)
    wavenumbers = _WAVENUMBER * np.sign(constants) * np.sqrt(np.abs(constants))
    return Infrared(wavenumbers, _INTENSITY * np.square(slopes).sum(axis=1), displacements)


def _hessian(atoms: ase.Atoms, step: float) -> np.ndarray:
    """(3 n_atoms, 3 n_atoms), eV/Å², symmetric."""
    moved = atoms.copy()
    moved.calc = atoms.calc
    rows = []
    for atom in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1.0, -1.0):
                moved.positions[:] = atoms.positions
                moved.positions[atom, axis] += sign * step
                forces.append(moved.get_forces().ravel())
            rows.append((forces[1] - forces[0]) / (2.0 * step))
    matrix = np.array(rows)
    return 0.5 * (matrix + matrix.T)


def _vibrations(atoms: ase.Atoms, roots: np.ndarray) -> np.ndarray:
    """Orthonormal mass-weighted displacements that neither shift nor turn the molecule, (3 n_atoms, n_modes)."""
    relative = atoms.positions - atoms.get_center_of_mass()
    axes = np.eye(3)
    shifts = [np.tile(axis, len(atoms)) for axis in axes]
    turns = [np.cross(axis, relative).ravel() for axis in axes]
    rigid = (np.array(shifts + turns) * roots).T
    left, sizes, _ = np.linalg.svd(rigid, full_matrices=True)
    return np.asarray(left[:, int((sizes > _RIGID * sizes[0]).sum()) :])
