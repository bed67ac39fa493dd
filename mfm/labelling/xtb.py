"""GFN2-xTB by tblite: the cheap surface on which geometries are sampled, and the `xtb` labels."""

import functools

import ase
import numpy as np
from tblite.ase import TBLite
from tblite.interface import Calculator, Result

from mfm.labelling.levels import TightBindingLevel
from mfm.labelling.molecule import Labels, net_force_and_torque
from mfm.structure import Structure
from mfm.units import BOHR, HARTREE

__all__ = ["attach_calculator", "label_xtb"]


def attach_calculator(structure: Structure, level: TightBindingLevel) -> ase.Atoms:
    """ASE atoms with a GFN2-xTB calculator, for dynamics and optimisation."""
    atoms = structure.to_ase()
    atoms.calc = TBLite(
        method=level.method,
        accuracy=level.accuracy,
        charge=structure.charge,
        multiplicity=structure.multiplicity,
        verbosity=0,
    )
    return atoms


def label_xtb(structure: Structure, level: TightBindingLevel) -> Labels:
    """Energy (eV), forces (eV/Å), charges (e) and dipole (e Å, about the nuclear charge centre) of one molecule.

    Raises
    ------
    ValueError
        If the structure is periodic or the SCF does not converge.
    """
    if structure.pbc.any():
        raise ValueError(f"labels are for molecules, got {structure.formula} with pbc {structure.pbc.tolist()}")
    unpaired = (structure.multiplicity or 1) - 1
    calculator = _calculator(level, structure.atomic_numbers.tobytes(), structure.charge, unpaired)
    try:
        calculator.update(structure.positions / BOHR)
        # from scratch each time: a restart is faster, but its last bits would depend on what was labelled before
        result = calculator.singlepoint()
    except RuntimeError as error:
        _calculator.cache_clear()
        raise ValueError(f"GFN2-xTB must converge, got: {error}; the structure is recorded as failed") from error
    numbers = structure.atomic_numbers.astype(float)
    # the dipole of an ion depends on the origin: tblite's is that of the coordinates
    centre = numbers @ structure.positions / numbers.sum()
    forces = -result.get("gradient") * (HARTREE / BOHR)
    values = {
        "energy": np.asarray(result.get("energy") * HARTREE),
        "forces": forces,
        "charges": result.get("charges"),
        "dipole": result.get("dipole") * BOHR - structure.charge * centre,
    }
    return Labels(values, net_force_and_torque(structure, forces) | {"gap": _gap(result)})


@functools.lru_cache(maxsize=16)
def _calculator(level: TightBindingLevel, numbers: bytes, charge: int, unpaired: int) -> Calculator:
    """Calculator of a molecule at any geometry: building one takes as long as a label of a small molecule."""
    atomic_numbers = np.frombuffer(numbers, dtype=np.int64)
    apart = np.arange(3.0 * len(atomic_numbers)).reshape(-1, 3)
    calculator = Calculator(level.method, atomic_numbers, apart, charge=float(charge), uhf=unpaired)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", level.accuracy)
    return calculator


def _gap(result: Result) -> float:
    """Gap between filled and empty orbitals, eV; infinite where there is none. Fermi smearing fills some by halves."""
    energies, occupations = result.get("orbital-energies"), result.get("orbital-occupations")
    filled, empty = energies[occupations > 0.5], energies[occupations <= 0.5]
    return float(empty.min() - filled.max()) * HARTREE if len(filled) and len(empty) else float("inf")
