"""GFN2-xTB by tblite: the cheap surface on which geometries are sampled, and the `xtb` labels."""

import ase
import numpy as np
from tblite.ase import TBLite

from mfm.graph import Structure
from mfm.labelling.levels import TightBindingLevel
from mfm.labelling.molecule import Labels

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
    """Energy (eV), forces (eV/Å), charges (e) and dipole (e Å) of one molecule."""
    atoms = attach_calculator(structure, level)
    forces = atoms.get_forces()
    values = {
        "energy": np.asarray(atoms.get_potential_energy()),
        "forces": forces,
        "charges": atoms.get_charges(),
        "dipole": atoms.get_dipole_moment(),
    }
    return Labels(values, {"net_force": float(np.abs(forces.sum(axis=0)).max())})
