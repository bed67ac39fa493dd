"""What every labelling method shares: a PySCF molecule in bohr, and the record of its labels."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from pyscf import gto

from mfm.structure import Structure
from mfm.units import BOHR, HARTREE

__all__ = ["Labels", "build_molecule", "net_force_and_torque", "numerical_forces", "orbital_gap"]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of one structure at one level, in eV, Å, e."""

    values: dict[str, np.ndarray]
    """Property name to value."""
    flags: dict[str, float]
    """Quality figures: convergence, diagnostics, sums that must vanish."""


def build_molecule(structure: Structure, basis: str) -> gto.Mole:
    """PySCF molecule.

    Positions are handed over in bohr: PySCF's own Å (CODATA 2010) is not ours (:mod:`mfm.units`).

    Raises
    ------
    ValueError
        If the structure is periodic.
    """
    if structure.pbc.any():
        raise ValueError(
            f"quantum-chemistry labels are for molecules, got {structure.formula} with pbc {structure.pbc.tolist()}"
        )
    rows = structure.positions / BOHR
    atoms = [(int(number), tuple(row)) for number, row in zip(structure.atomic_numbers, rows, strict=True)]
    return gto.M(
        atom=atoms,
        unit="Bohr",
        basis=basis,
        charge=structure.charge,
        spin=(structure.multiplicity or 1) - 1,
        verbose=0,
        # MB; the worker that bounds memory says how much there is
        max_memory=int(os.environ.get("PYSCF_MAX_MEMORY", "6000")),
    )


def orbital_gap(solver: Any) -> float:
    """Smallest gap between occupied and empty orbitals over both spins, eV; infinite where there is none."""
    energies, occupations = np.atleast_2d(solver.mo_energy), np.atleast_2d(solver.mo_occ)
    gaps = [
        e[n == 0].min() - e[n > 0].max()
        for e, n in zip(energies, occupations, strict=True)
        if (n > 0).any() and (n == 0).any()
    ]
    return float(min(gaps)) * HARTREE if gaps else float("inf")


def net_force_and_torque(structure: Structure, forces: np.ndarray) -> dict[str, float]:
    """Flags that vanish for a right gradient: largest component of Σ F, eV/Å, and of Σ r × F about the centre, eV.

    Parameters
    ----------
    forces : (n_atoms, 3), eV/Å
    """
    moments = (structure.positions - structure.positions.mean(axis=0)).T @ forces
    # Σ r × F is the antisymmetric part of Σ r ⊗ F
    return {
        "net_force": float(np.abs(forces.sum(axis=0)).max()),
        "net_torque": float(np.abs(moments - moments.T).max()),
    }


def numerical_forces(
    structure: Structure, energy: Callable[[Structure], float], step: float = 0.005
) -> tuple[np.ndarray, float]:
    """Forces by central differences, extrapolated from two steps: F = (4 F_h − F_2h) / 3.

    For levels without a trustworthy analytic gradient. 12 n_atoms energies.

    Parameters
    ----------
    energy : callable
        Structure to energy, eV.
    step : float, Å
        h. The error left is of order h⁴; the noise of the energies enters divided by h.

    Returns
    -------
    forces : (n_atoms, 3), eV/Å
    correction : float, eV/Å
        Largest change that the extrapolation made to F_h: an upper bound of its error.
    """
    forces = {}
    for h in (step, 2 * step):
        forces[h] = np.zeros_like(structure.positions)
        for k in np.ndindex(*structure.positions.shape):
            energies = []
            for sign in (1, -1):
                positions = structure.positions.copy()
                positions[k] += sign * h
                energies.append(energy(dataclasses.replace(structure, positions=positions)))
            forces[h][k] = -(energies[0] - energies[1]) / (2 * h)
    best = (4 * forces[step] - forces[2 * step]) / 3
    return best, float(np.abs(best - forces[step]).max())
