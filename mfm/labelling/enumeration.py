"""Lists of small molecules: every graph of a few atoms, and ions, radicals and pairs derived from molecules.

Graphs grow by one atom or one ring bond at a time within the valences of neutral atoms, so that nothing is missed;
what chemistry does not make, or does not keep, is dropped at the end by a list of patterns.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from rdkit import Chem

from mfm.labelling.geometries import canonical_smiles

__all__ = ["enumerate_molecules", "ions", "pairs", "radicals"]

_VALENCES = {"B": 3, "C": 4, "N": 3, "O": 2, "F": 1, "S": 2, "Cl": 1}
_BONDS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}

_UNSTABLE = {
    "chain of hetero atoms": [
        "[#8,#16]~[#8,#16]",
        "[#7,#8]~[#7]-,:[#7,#8]",
        "[#7,#8]~[#8]~[#7,#8]",
        "[#7]~[#8]-,:[#6,#7]",
        "[#7,#8,#16][F,Cl]",
    ],
    "hetero atoms on one carbon": ["[OX2,NX3;!a][CX4][OX2H]", "[F,Cl][CX4][OX2H,NX3]"],
    "cumulated bonds": ["[*]=[*]=[*]"],
    "strained ring": ["[r3]=[*]", "[r4]=[r4]", "[R]#[R]"],
    "enol": ["[CX3]=[CX3][OX2H,NX3H2,NX3H]", "[C]#[C][O,N;!$(N#*)]"],
    "imine of ammonia": ["[CX3]=[NX2H]"],
}
"""Patterns of what tautomerises, falls apart or is too strained to keep; name a molecule to have it nevertheless."""
_QUERIES = [Chem.MolFromSmarts(pattern) for patterns in _UNSTABLE.values() for pattern in patterns]


def enumerate_molecules(elements: Sequence[str], n_heavy: int, keep_unstable: bool = False) -> list[str]:
    """Canonical SMILES of every neutral closed-shell molecule with `n_heavy` atoms besides hydrogen.

    Parameters
    ----------
    elements : sequence of str
        Heavy elements, of B, C, N, O, F, S (divalent), Cl.
    keep_unstable : bool
        Keep graphs that a list of patterns calls unstable.

    Raises
    ------
    ValueError
        If an element is not among those, or `n_heavy` is not in 1 to 6.

    Examples
    --------
    >>> enumerate_molecules(["C", "O"], 2)
    ['C#C', 'C=C', 'C=O', 'CC', 'CO']
    """
    if unknown := sorted(set(elements) - set(_VALENCES)):
        raise ValueError(f"elements to enumerate must be among {', '.join(_VALENCES)}, got {', '.join(unknown)}")
    if not 1 <= n_heavy <= 6:
        raise ValueError(f"molecules are enumerated for 1 to 6 heavy atoms, got {n_heavy}; list larger ones by SMILES")
    molecules = [(smiles, Chem.MolFromSmiles(smiles)) for smiles in sorted(_graphs(tuple(elements), n_heavy))]
    return [
        smiles
        for smiles, molecule in molecules
        if keep_unstable or not any(molecule.HasSubstructMatch(query) for query in _QUERIES)
    ]


@functools.cache
def _graphs(elements: tuple[str, ...], n_heavy: int) -> frozenset[str]:
    if n_heavy == 1:
        return frozenset(canonical_smiles(f"[{symbol}H{_VALENCES[symbol]}]") for symbol in elements)
    grown = {smiles for parent in _graphs(elements, n_heavy - 1) for smiles in _with_one_more(parent, elements)}
    return frozenset(_with_rings(grown))


def _with_one_more(smiles: str, elements: Sequence[str]) -> set[str]:
    molecule = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    found = set()
    for atom, symbol in itertools.product(molecule.GetAtoms(), elements):
        for order in range(1, min(atom.GetTotalNumHs(), _VALENCES[symbol]) + 1):
            if order in _BONDS:
                found |= _edited(molecule, atom.GetIdx(), symbol, order)
    return found


def _with_rings(parents: set[str]) -> set[str]:
    """The parents and all that further bonds between their atoms make."""
    found, fresh = set(parents), set(parents)
    while fresh:
        closed = set()
        for smiles in fresh:
            molecule = Chem.MolFromSmiles(smiles)
            Chem.Kekulize(molecule, clearAromaticFlags=True)
            for i, j in itertools.combinations(molecule.GetAtoms(), 2):
                if molecule.GetBondBetweenAtoms(i.GetIdx(), j.GetIdx()) is None:
                    for order in range(1, min(i.GetTotalNumHs(), j.GetTotalNumHs(), 3) + 1):
                        closed |= _edited(molecule, i.GetIdx(), j.GetIdx(), order)
        fresh = closed - found
        found |= fresh
    return found


def _edited(molecule: Chem.Mol, start: int, end: int | str, order: int) -> set[str]:
    """SMILES with one more bond, from an atom to another or to a new one; empty if the valences forbid it."""
    editable = Chem.RWMol(molecule)
    target = editable.AddAtom(Chem.Atom(end)) if isinstance(end, str) else end
    editable.AddBond(start, target, _BONDS[order])
    for index in (start, target):
        # the hydrogens that the new bond replaces are left to be counted again
        atom = editable.GetAtomWithIdx(index)
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
    try:
        Chem.SanitizeMol(editable)
    except Chem.MolSanitizeException:
        return set()
    return {canonical_smiles(Chem.MolToSmiles(editable))}


def ions(smiles: str) -> list[str]:
    """Protonated (at N and O) and deprotonated (from O, N, S) forms of a neutral molecule.

    Examples
    --------
    >>> ions("CO")
    ['C[O-]', 'C[OH2+]']
    """
    molecule = Chem.MolFromSmiles(canonical_smiles(smiles))
    found = set()
    for atom in molecule.GetAtoms():
        symbol, n_hydrogens = atom.GetSymbol(), atom.GetTotalNumHs()
        if atom.GetFormalCharge() or symbol not in ("N", "O", "S"):
            continue
        if symbol != "S" and not (symbol == "N" and atom.GetIsAromatic() and n_hydrogens):
            found.add(_charged(molecule, atom.GetIdx(), 1, n_hydrogens + 1))
        if n_hydrogens:
            found.add(_charged(molecule, atom.GetIdx(), -1, n_hydrogens - 1))
    return sorted(found)


def _charged(molecule: Chem.Mol, index: int, charge: int, n_hydrogens: int) -> str:
    editable = Chem.RWMol(molecule)
    atom = editable.GetAtomWithIdx(index)
    atom.SetFormalCharge(charge)
    atom.SetNoImplicit(True)
    atom.SetNumExplicitHs(n_hydrogens)
    Chem.SanitizeMol(editable)
    return canonical_smiles(Chem.MolToSmiles(editable))


def radicals(smiles: str) -> list[str]:
    """Every radical that a molecule leaves when it loses one hydrogen atom.

    Examples
    --------
    >>> radicals("CO")
    ['C[O]', '[CH2]O']
    """
    molecule = Chem.MolFromSmiles(canonical_smiles(smiles))
    found = set()
    for atom in molecule.GetAtoms():
        if atom.GetTotalNumHs():
            editable = Chem.RWMol(molecule)
            changed = editable.GetAtomWithIdx(atom.GetIdx())
            changed.SetNoImplicit(True)
            changed.SetNumExplicitHs(atom.GetTotalNumHs() - 1)
            changed.SetNumRadicalElectrons(1)
            Chem.SanitizeMol(editable)
            found.add(canonical_smiles(Chem.MolToSmiles(editable)))
    return sorted(found)


def pairs(molecules: Sequence[str], n_pairs: int, seed: int) -> list[str]:
    """Distinct random pairs ``A.B`` of molecules, a molecule with itself among them.

    Examples
    --------
    >>> pairs(["O"], 5, seed=0)
    ['O.O']
    """
    every = sorted({canonical_smiles(f"{a}.{b}") for a, b in itertools.combinations_with_replacement(molecules, 2)})
    order = np.random.default_rng(seed).permutation(len(every))
    return [every[k] for k in order[:n_pairs]]
