"""Molecules from SMILES: canonical names, conformers, and checks on what a geometry must keep."""

from typing import Any

import ase.data
import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

from mfm.structure import Structure

__all__ = [
    "bond_graph",
    "bonds",
    "canonical_smiles",
    "changed_bond",
    "conformers",
    "fingerprint",
    "fragments",
    "is_in_order",
    "keeps_bonds",
    "molecule_name",
    "rotatable_dihedrals",
    "side_of_bond",
    "spin_multiplicity",
]

_LONGEST_BOND = 1.6
"""In sums of covalent radii: bonds of GFN2-xTB minima reach 1.41 (N-O in ``NN[OH2+]``), broken ones begin at 1.9."""
_CLOSEST_PAIR = 1.15
"""The same for atoms that are not bonded: they come to 1.28 where two atoms share a proton, a new bond is below 1.1."""
_CLOSEST_ACROSS = 1.0
"""The same across a four-membered ring, where strained bicycles come to 1.06 (``O1C2OC1O2``)."""


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


def changed_bond(structure: Structure, smiles: str) -> str:
    """What is not as the graph of a SMILES says: a bond that is broken, or two atoms that have formed one.

    For minima: a bond that is stretched on purpose, or a hot frame, may differ and yet be the molecule. Of a cluster
    each molecule is judged by itself.

    Returns
    -------
    str
        The largest deviation in words; empty if there is none.

    Raises
    ------
    ValueError
        If the structure's atoms are not those of the SMILES in its order, with the hydrogens last.

    Examples
    --------
    >>> changed_bond(Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 1.24]])), "[H][H]")
    'H0-H1 is 1.24 Å long, 2.00 times its covalent radii'
    """
    numbers, positions = structure.atomic_numbers, structure.positions
    if not is_in_order(smiles, numbers):
        raise ValueError(
            f"atoms must be those of `{smiles}` in its order with the hydrogens last, got {structure.formula};"
            " take them from `conformers`, or give the SMILES of this molecule"
        )
    molecule = _parse(smiles)
    bonded = np.asarray(Chem.GetAdjacencyMatrix(molecule), dtype=np.int64)
    # RDKit gives atoms of different molecules a huge number
    connected = np.asarray(Chem.GetDistanceMatrix(molecule)) < len(numbers)
    i, j = np.nonzero(np.triu(connected, 1))
    radii = ase.data.covalent_radii[numbers]
    lengths = np.linalg.norm(positions[i] - positions[j], axis=1)
    ratios = lengths / (radii[i] + radii[j])
    # across a four-membered ring are two atoms that share two neighbours
    closest = np.where((bonded @ bonded)[i, j] >= 2, _CLOSEST_ACROSS, _CLOSEST_PAIR)
    is_bond = bonded[i, j] == 1
    excess = np.where(is_bond, ratios / _LONGEST_BOND, closest / ratios)
    if excess.max(initial=0.0) <= 1:
        return ""
    k = int(excess.argmax())
    pair = "-".join(f"{ase.data.chemical_symbols[numbers[a]]}{a}" for a in (int(i[k]), int(j[k])))
    words = f"{lengths[k]:.2f} Å long" if is_bond[k] else f"no bond, but {lengths[k]:.2f} Å long"
    return f"{pair} is {words}, {ratios[k]:.2f} times its covalent radii"


def keeps_bonds(structure: Structure, smiles: str) -> bool:
    """Whether a minimum has the bonds of a SMILES and no others: :func:`changed_bond` finds nothing.

    Examples
    --------
    >>> keeps_bonds(conformers("OCC", 1, seed=0)[0], "OCC")
    True
    """
    return not changed_bond(structure, smiles)


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
