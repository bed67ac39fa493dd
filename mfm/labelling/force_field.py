"""MMFF94 labels by RDKit: a surface for pre-training that costs microseconds."""

import functools

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers
from rdkit.ForceField.rdForceField import ForceField

from mfm.labelling.geometries import bond_graph, is_in_order
from mfm.labelling.levels import ForceFieldLevel
from mfm.labelling.molecule import Labels, net_force_and_torque
from mfm.structure import Structure
from mfm.units import conversion_factor

__all__ = ["label_mmff"]

_KCAL = conversion_factor("kcal/mol", "eV")


def label_mmff(structure: Structure, level: ForceFieldLevel, molecule: str = "") -> Labels:
    """Energy (eV) and forces (eV/Å) of one molecule or cluster.

    Parameters
    ----------
    molecule : str
        SMILES whose atoms are in the order of the structure; without one the bonds are perceived.

    Raises
    ------
    ValueError
        If MMFF94 does not describe it: radicals, single atoms, elements without types.
    """
    if len(structure) == 1 or structure.multiplicity != 1:
        raise _not_described(level, structure.formula, structure.multiplicity or 1)
    field = _named_field(level, molecule, structure.atomic_numbers.tobytes()) if molecule else None
    if field is None:
        field = _field(level, bond_graph(structure), molecule or structure.formula)
    flat = structure.positions.ravel().tolist()
    # the energy first: the gradient takes distances that only the energy brings up to date
    energy = np.asarray(field.CalcEnergy(flat) * _KCAL)
    forces = -np.array(field.CalcGrad(flat)).reshape(-1, 3) * _KCAL
    values = {"energy": energy, "forces": forces}
    return Labels(values, net_force_and_torque(structure, forces))


@functools.lru_cache(maxsize=16)
def _named_field(level: ForceFieldLevel, molecule: str, numbers: bytes) -> ForceField | None:
    """Force field of a molecule at any geometry, which takes much longer to build than to ask; None for other atoms."""
    atomic_numbers = np.frombuffer(numbers, dtype=np.int64)
    if not is_in_order(molecule, atomic_numbers):
        return None
    apart = Structure(atomic_numbers, np.arange(3.0 * len(atomic_numbers)).reshape(-1, 3))
    return _field(level, bond_graph(apart, molecule), molecule)


def _field(level: ForceFieldLevel, graph: Chem.Mol, name: str) -> ForceField:
    if n_radicals := sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms()):
        raise _not_described(level, name, n_radicals + 1)
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(graph):
        raise ValueError(
            f"{level.variant} must have a type for every atom, got `{name}` with atoms that have none; label it at"
            " `xtb`"
        )
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(graph, mmffVariant=level.variant)
    # without these two options distant atoms, and the molecules of a cluster, would not see each other
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(
        graph, properties, nonBondedThresh=1e4, ignoreInterfragInteractions=False
    )


def _not_described(level: ForceFieldLevel, name: str, multiplicity: int) -> ValueError:
    return ValueError(
        f"{level.variant} describes closed-shell molecules with bonds, got {name} with multiplicity {multiplicity};"
        " label it at `xtb`"
    )
