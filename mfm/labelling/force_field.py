"""MMFF94 labels by RDKit: a surface for pre-training that costs microseconds."""

import numpy as np
from rdkit.Chem import rdForceFieldHelpers

from mfm.graph import Structure
from mfm.labelling.geometries import bond_graph
from mfm.labelling.levels import ForceFieldLevel
from mfm.labelling.molecule import Labels, net_force_and_torque
from mfm.units import conversion_factor

__all__ = ["label_mmff"]


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
    graph = bond_graph(structure, molecule)
    n_radicals = sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms())
    if len(structure) == 1 or n_radicals or structure.multiplicity != 1:
        raise ValueError(
            f"{level.variant} describes closed-shell molecules with bonds, got {structure.formula} with multiplicity"
            f" {structure.multiplicity}; label it at `xtb`"
        )
    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(graph):
        raise ValueError(
            f"{level.variant} must have a type for every atom, got `{molecule or structure.formula}` with atoms that"
            " have none; label it at `xtb`"
        )
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(graph, mmffVariant=level.variant)
    # without these two options distant atoms, and the molecules of a cluster, would not see each other
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(
        graph, properties, nonBondedThresh=1e4, ignoreInterfragInteractions=False
    )
    flat = structure.positions.ravel().tolist()
    unit = conversion_factor("kcal/mol", "eV")
    forces = -np.array(field.CalcGrad(flat)).reshape(-1, 3) * unit
    values = {"energy": np.asarray(field.CalcEnergy(flat) * unit), "forces": forces}
    return Labels(values, net_force_and_torque(structure, forces))
