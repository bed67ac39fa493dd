"""Atomic references: what an isolated atom is worth at a fidelity, subtracted before any float32.

If the card gives the energies of isolated atoms at the level, they are the references. Otherwise least squares on
the composition. The composition rarely determines all of them (one molecule determines one number), so the fit starts
from a prior and moves it as little as it can; the directions that the data do not determine keep the prior. The prior
is the semiclassical energy of neutral atoms if the energies look like all-electron totals, and the same energy for
every atom otherwise (formation energies, pseudopotentials).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from mfm.data.store import Store
from mfm.properties import task_name
from mfm.units import HARTREE

__all__ = [
    "ReferenceMethod",
    "References",
    "fit_references",
    "free_atom_energy",
    "references_beside",
    "residual_energies",
    "shifted_references",
]

References = dict[str, dict[int, float]]
"""Fidelity to atomic number to energy, eV."""

ReferenceMethod = Literal["auto", "isolated_atoms", "least_squares"]
"""Where references come from: isolated atoms where the card has them, in any case, or never."""

_RANK = 1e-6
"""Relative size below which a direction of the (column-scaled) composition counts as undetermined."""
_TOTAL = 0.03
"""Largest relative distance from the sum of semiclassical atoms at which energies count as all-electron totals."""


def free_atom_energy(atomic_number: int | np.ndarray) -> np.ndarray:
    """Energy of a neutral atom in the semiclassical expansion, eV; within 1 % of C, N, O, 8 % of H.

    Thomas-Fermi, Scott and Schwinger terms: −0.768745 Z^(7/3) + Z²/2 − 0.269900 Z^(5/3) hartree
    (Englert and Schwinger, Phys. Rev. A 32, 47 (1985)).

    Examples
    --------
    >>> round(float(free_atom_energy(8)) / HARTREE, 2)  # Hartree-Fock: -74.81
    -75.04
    """
    z = np.asarray(atomic_number, dtype=np.float64)
    return np.asarray(HARTREE * (-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)))


def fit_references(
    store: Store,
    fidelities: Sequence[str],
    method: ReferenceMethod = "auto",
) -> References:
    """Energies of the atoms at each fidelity.

    Parameters
    ----------
    store : Store
        Records to fit on: the training part.
    fidelities : sequence of str
        Those to fit; each must have energies in the store.
    method : str
        ``auto`` takes the isolated atoms of the card where it has any at the fidelity, least squares elsewhere.

    Returns
    -------
    dict
        Fidelity to atomic number to eV, for every element that has a label at the fidelity (least squares) or that
        the card lists (isolated atoms).

    Raises
    ------
    ValueError
        If a fidelity has no energies, or the card lacks an isolated atom that the records contain.
    """
    references = {}
    for fidelity in fidelities:
        task = task_name("energy", fidelity)
        covered = store.coverage(task)
        if not covered.any():
            raise ValueError(
                f"references of `{fidelity}` need at least one record with `{task}`, got none in {store!r}"
            )
        known = store.card.references.get(fidelity, {})
        if method == "isolated_atoms" and not known:
            raise ValueError(
                f"card `{store.card.name}` gives no isolated atoms for `{fidelity}`; add them under `references` or"
                " use least squares"
            )
        labelled = store.subset(covered)
        if known and method != "least_squares":
            references[fidelity] = {atomic_numbers[symbol]: float(energy) for symbol, energy in known.items()}
            _check_elements(labelled.elements, references[fidelity], f"`{fidelity}` of card `{store.card.name}`")
        else:
            references[fidelity] = _least_squares(labelled.energies(task), labelled)
    return references


def references_beside(store: Store, fidelity: str, base: str, base_references: Mapping[int, float]) -> dict[int, float]:
    """References of a fidelity whose model adds to that of another: such that the difference starts near zero.

    The base's references plus the least-squares fit, per element, of the energy differences of the records that
    carry both labels. With unrelated references (isolated atoms at one level, a fit at the other) the correction
    would have to learn the atomisation energy.

    Parameters
    ----------
    base : str
        Fidelity that is added to.
    base_references : mapping
        Atomic number to eV, of the base.

    Raises
    ------
    ValueError
        If no record carries both energies.
    """
    tasks = task_name("energy", fidelity), task_name("energy", base)
    both = store.coverage(tasks[0]) & store.coverage(tasks[1])
    if not both.any():
        raise ValueError(
            f"references of `{fidelity}` beside `{base}` need records with both `{tasks[0]}` and `{tasks[1]}`, got"
            f" none in {store!r}; give isolated atoms at both levels in the card, or train `{fidelity}` independently"
        )
    paired = store.subset(both)
    return shifted_references(paired, base_references, paired.energies(tasks[0]) - paired.energies(tasks[1]))


def shifted_references(store: Store, base_references: Mapping[int, float], differences: np.ndarray) -> dict[int, float]:
    """References moved by the least-squares fit, per element, of what structures differ by.

    Parameters
    ----------
    base_references : mapping
        Atomic number to eV.
    differences : (n_records,), eV
        Of every record, such as labels minus the predictions that go with `base_references`.
    """
    counts = store.composition(store.elements).astype(np.float64)
    shifts = _minimum_norm(counts, differences)
    found = {z: base_references[z] + float(shift) for z, shift in zip(store.elements, shifts, strict=True)}
    return {z: found[z] for z in sorted(found)}


def residual_energies(store: Store, task: str, references: Mapping[int, float]) -> np.ndarray:
    """Energies minus the references of the atoms, in float64.

    Parameters
    ----------
    references : mapping
        Atomic number to eV, of the task's fidelity.

    Returns
    -------
    (n_records,), eV
        NaN where the label is missing.

    Raises
    ------
    ValueError
        If an element of a labelled record has no reference.
    """
    energies = store.energies(task)
    covered = store.coverage(task)
    labelled = store.subset(covered)
    if len(labelled) == 0:
        return energies
    _check_elements(labelled.elements, references, f"`{task}`")
    atoms = np.array([references[z] for z in labelled.elements])
    energies[covered] -= labelled.composition(labelled.elements) @ atoms
    return energies


def _check_elements(elements: Sequence[int], references: Mapping[int, float], where: str) -> None:
    missing = [chemical_symbols[z] for z in elements if z not in references]
    if missing:
        known = ", ".join(chemical_symbols[z] for z in sorted(references)) or "none"
        raise ValueError(
            f"every element needs a reference energy, {', '.join(missing)} has none at {where} (known: {known});"
            " add it to the card, or fit references on records that contain it"
        )


def _least_squares(energies: np.ndarray, store: Store) -> dict[int, float]:
    counts = store.composition(store.elements).astype(np.float64)
    free_atoms = free_atom_energy(np.array(store.elements))
    expected = counts @ free_atoms
    if np.median(np.abs(energies / expected - 1.0)) < _TOTAL:
        prior = free_atoms
    else:
        prior = np.full(len(free_atoms), energies.sum() / counts.sum())
    fitted = prior + _minimum_norm(counts, energies - counts @ prior)
    return {z: float(e) for z, e in zip(store.elements, fitted, strict=True)}


def _minimum_norm(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Energy per element, zero in the directions that the compositions do not determine."""
    # columns of unit norm: a rare element is as well determined as a common one
    norms = np.linalg.norm(counts, axis=0)
    scaled, *_ = np.linalg.lstsq(counts / norms, energies, rcond=_RANK)
    return scaled / norms
