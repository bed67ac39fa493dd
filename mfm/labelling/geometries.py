"""Molecules from SMILES: canonical names, conformers, and checks on what a geometry must keep."""

from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

from mfm.structure import Structure

__all__ = [
    "bond_graph",
    "bonds",
    "canonical_smiles",
    "conformers",
    "fingerprint",
    "fragments",
    "is_in_order",
    "molecule_name",
    "rotatable_dihedrals",
    "side_of_bond",
    "spin_multiplicity",
]


def _parse(smiles: str) -> Chem.Mol:
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"SMILES must parse and obey valence rules, got `{smiles}`; check brackets and charges")
    return Chem.AddHs(molecule)


def canonical_smiles(smiles: str) -> str:
    """Canonical SMILES: the name of a molecule, and the key that data splits group by.

    Raises
    ------
    ValueError
        If RDKit cannot read it.

    Examples
    --------
    >>> canonical_smiles("OCC")
    'CCO'
    """
    return str(Chem.MolToSmiles(Chem.RemoveHs(_parse(smiles))))


def spin_multiplicity(smiles: str) -> int:
    """Multiplicity that a SMILES implies: all unpaired electrons parallel, as in ``[O][O]`` or ``[CH2]``.

    Examples
    --------
    >>> spin_multiplicity("CCO"), spin_multiplicity("C[CH2]"), spin_multiplicity("[CH2]")
    (1, 2, 3)
    """
    return 1 + sum(atom.GetNumRadicalElectrons() for atom in _parse(smiles).GetAtoms())


def fragments(smiles: str) -> list[tuple[str, np.ndarray]]:
    """Molecules of a cluster ``A.B``: their SMILES, and which atoms of the whole they are, in their own order."""
    molecule = _parse(smiles)
    parts = [np.array(sorted(atoms)) for atoms in Chem.GetMolFrags(molecule)]
    return list(zip(smiles.split("."), sorted(parts, key=lambda atoms: int(atoms[0])), strict=True))


def bond_graph(structure: Structure, smiles: str = "") -> Chem.Mol:
    """RDKit molecule with a structure's atoms and positions: the graph of a SMILES, or bonds that distances imply.

    Raises
    ------
    ValueError
        If the SMILES has other atoms, or no bonds can be perceived.
    """
    conformer = Chem.Conformer(len(structure))
    for atom, position in enumerate(structure.positions.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*position))
    if smiles and is_in_order(smiles, structure.atomic_numbers):
        graph = _parse(smiles)
        graph.AddConformer(conformer)
        return graph
    editable = Chem.RWMol()
    for number in structure.atomic_numbers.tolist():
        editable.AddAtom(Chem.Atom(number))
    editable.AddConformer(conformer)
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBonds(editable, charge=structure.charge)
    # RDKit raises ValueError where valences do not add up and RuntimeError where it gives up
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"bonds of {structure.formula} must follow from its distances, got none that do ({reason});"
            " name the molecule by its SMILES"
        ) from error
    return editable.GetMol()


def is_in_order(smiles: str, atomic_numbers: np.ndarray) -> bool:
    """Whether atoms are those of a SMILES, in its order with the hydrogens last."""
    return [atom.GetAtomicNum() for atom in _parse(smiles).GetAtoms()] == atomic_numbers.tolist()


def molecule_name(structure: Structure) -> str:
    """Canonical SMILES of a structure, by its distances; its formula and charge where bonds cannot be perceived."""
    try:
        return str(Chem.MolToSmiles(Chem.RemoveHs(bond_graph(structure))))
    except ValueError:
        return structure.formula + (f"{structure.charge:+d}" if structure.charge else "")


def conformers(smiles: str, n_trials: int, seed: int, multiplicity: int | None = None) -> list[Structure]:
    """Distinct conformers by ETKDGv3 and MMFF94 (UFF where MMFF94 has no types), lowest energy first.

    Parameters
    ----------
    n_trials : int
        Embeddings tried.
    seed : int
        Makes the result reproducible.
    multiplicity : int, optional
        Of the structures; :func:`spin_multiplicity` if not given.

    Raises
    ------
    ValueError
        If the SMILES does not parse, the multiplicity contradicts the number of electrons, or nothing embeds.
    """
    molecule = _parse(smiles)
    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = seed
    settings.pruneRmsThresh = 0.3
    found = list(rdDistGeom.EmbedMultipleConfs(molecule, n_trials, settings))
    if not found:
        settings.useRandomCoords = True
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, n_trials, settings))
    if not found:
        raise ValueError(
            f"`{smiles}` must embed in three dimensions, got no geometry in {n_trials} trials;"
            " give more trials or leave it out"
        )
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=1000)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule, maxIters=1000)
    else:
        results = [(0, 0.0)] * len(found)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    order = sorted(range(len(found)), key=lambda k: results[k][1])
    multiplicity = multiplicity or spin_multiplicity(smiles)
    kept: list[Structure] = []
    fingerprints: list[np.ndarray] = []
    for k in order:
        structure = Structure(
            numbers,
            molecule.GetConformer(found[k]).GetPositions(),
            charge=Chem.GetFormalCharge(molecule),
            multiplicity=multiplicity,
        )
        mark = fingerprint(structure)
        if all(np.abs(mark - other).max() > 0.05 for other in fingerprints):
            kept.append(structure)
            fingerprints.append(mark)
    return kept


def fingerprint(structure: Structure) -> np.ndarray:
    """Sorted distances of each kind of atom pair, Å: equal for rotated, reflected and relabelled copies."""
    numbers = structure.atomic_numbers
    i, j = np.triu_indices(len(numbers), 1)
    distances = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    kinds = np.minimum(numbers[i], numbers[j]) * 1000 + np.maximum(numbers[i], numbers[j])
    return distances[np.lexsort((distances, kinds))]


def bonds(smiles: str) -> np.ndarray:
    """Bonded pairs, (n_bonds, 2), in the atom order of :func:`conformers`."""
    pairs = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in _parse(smiles).GetBonds()]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def rotatable_dihedrals(smiles: str) -> list[tuple[int, int, int, int]]:
    """One dihedral (i, j, k, l) per single bond j-k outside rings whose ends both carry further atoms."""
    molecule = _parse(smiles)
    found = []
    for bond in molecule.GetBonds():
        if bond.GetBondType() != Chem.BondType.SINGLE or bond.IsInRing():
            continue
        j, k = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        before = [n.GetIdx() for n in molecule.GetAtomWithIdx(j).GetNeighbors() if n.GetIdx() != k]
        after = [n.GetIdx() for n in molecule.GetAtomWithIdx(k).GetNeighbors() if n.GetIdx() != j]
        # a linear centre has one neighbour on the axis: rotating about it changes nothing
        hybrids = {molecule.GetAtomWithIdx(a).GetHybridization() for a in (j, k)}
        if before and after and Chem.HybridizationType.SP not in hybrids:
            found.append((before[0], j, k, after[0]))
    return found


def side_of_bond(smiles: str, fixed: int, moving: int) -> np.ndarray:
    """Atoms reached from `moving` without crossing the bond to `fixed` (all of a ring if it is in one)."""
    molecule = _parse(smiles)
    reached, stack = {moving}, [moving]
    while stack:
        atom = stack.pop()
        for neighbour in molecule.GetAtomWithIdx(atom).GetNeighbors():
            index = neighbour.GetIdx()
            if index not in reached and {atom, index} != {fixed, moving}:
                reached.add(index)
                stack.append(index)
    return np.array(sorted(reached))
