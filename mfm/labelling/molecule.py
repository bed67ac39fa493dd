"""What every labelling method shares: a PySCF molecule in bohr, and the record of its labels."""

import dataclasses

import numpy as np
from pyscf import gto

from mfm.graph import Structure
from mfm.units import BOHR

__all__ = ["Labels", "build_molecule"]


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
        raise ValueError(f"quantum-chemistry labels are for molecules, got {structure.formula} with pbc {structure.pbc.tolist()}")
    rows = structure.positions / BOHR
    atoms = [(int(number), tuple(row)) for number, row in zip(structure.atomic_numbers, rows, strict=True)]
    return gto.M(
        atom=atoms,
        unit="Bohr",
        basis=basis,
        charge=structure.charge,
        spin=structure.multiplicity - 1,
        verbose=0,
        max_memory=6000,
    )
