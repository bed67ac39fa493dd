"""What two guesses that need no training say of the electrons: charges of the elements, and those of a cheap level."""

from collections.abc import Iterable

import numpy as np
import torch

from mfm.data import Record, Store
from mfm.data.targets import label_target
from mfm.density.basis import STARTS
from mfm.density.evaluator import MolecularDensity
from mfm.density.grid import integration_grid
from mfm.evaluation.densities import nmae
from mfm.evaluation.metrics import report_unit
from mfm.nn.moments import traceless
from mfm.properties import DENSITY_WIDTH
from mfm.structure import Structure


def baselines(train: Store, test: Store, fidelity: str, low: str) -> dict[str, dict[str, float]]:
    """Mean absolute errors on the test structures, in the units of reports.

    Parameters
    ----------
    train : Store
        Gives the mean charge of each element, and the mean of its spherical density coefficients.
    fidelity, low : str
        Level that is learned, and the cheap one whose charges and dipoles are taken as they are.

    Returns
    -------
    dict
        Property to ``element means`` and the name of the low level; nothing where no structure has a label.
    """
    charges, shells = element_means(train, f"charges_{fidelity}"), element_means(train, f"density_{fidelity}")
    errors: dict[str, dict[str, list[np.ndarray]]] = {}

    def add(prop: str, guess: str, difference: np.ndarray) -> None:
        errors.setdefault(prop, {}).setdefault(guess, []).append(np.abs(difference).reshape(-1))

    for record in test:
        structure, labels = record.structure, record.labels
        guessed = neutralised(charges, structure)
        guesses = {"element means": (guessed, dipole_of(guessed, structure))}
        if f"charges_{low}" in labels:
            guesses[low] = labels[f"charges_{low}"], labels[f"dipole_{low}"]
        for name, (q, dipole) in guesses.items():
            values = {"charges": q, "dipole": dipole, "quadrupole": quadrupole_of(q, structure)}
            for prop, value in values.items():
                task = f"{prop}_{fidelity}"
                if task in labels:
                    add(prop, name, (value - label_target(task, labels[task])) * report_unit(task).factor)
        if f"density_{fidelity}" in labels:
            add("density", "element means", np.array(spherical_error(record, shells, test, fidelity)))
    return {
        prop: {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}
        for prop, found in errors.items()
    }


def element_means(store: Store, task: str) -> dict[int, np.ndarray]:
    """Atomic number → mean label of its atoms."""
    values: dict[int, list[np.ndarray]] = {}
    for record in labelled(store, task):
        for number, value in zip(record.structure.atomic_numbers, record.labels[task], strict=True):
            values.setdefault(int(number), []).append(value)
    return {number: np.mean(found, axis=0) for number, found in values.items()}


def labelled(store: Store, task: str) -> Iterable[Record]:
    """Records with a label."""
    return (store[int(row)] for row in np.flatnonzero(store.coverage(task)))


def neutralised(charges: dict[int, np.ndarray], structure: Structure) -> np.ndarray:
    """Charges of the elements, what they lack to the total spread evenly."""
    guess = np.array([charges[int(number)] for number in structure.atomic_numbers])
    return np.asarray(guess + (structure.charge - guess.sum()) / len(guess))


def centred(structure: Structure) -> np.ndarray:
    """Positions about the nuclear charge centre, (n_atoms, 3), Å."""
    numbers = structure.atomic_numbers
    return np.asarray(structure.positions - numbers @ structure.positions / numbers.sum())


def dipole_of(charges: np.ndarray, structure: Structure) -> np.ndarray:
    """Dipole moment of point charges, (3,), e Å."""
    return np.asarray(charges @ centred(structure))


def quadrupole_of(charges: np.ndarray, structure: Structure) -> np.ndarray:
    """Traceless quadrupole moment of point charges, (3, 3), e Å²."""
    places = centred(structure)
    return traceless(torch.as_tensor(np.einsum("i,ia,ib->ab", charges, places, places))).numpy()


def spherical_error(record: Record, shells: dict[int, np.ndarray], store: Store, fidelity: str) -> float:
    """NMAE, percent, of free atoms with the mean spherical deformation of their element."""
    rows = np.zeros((len(record.structure), DENSITY_WIDTH))
    for row, number in zip(rows, record.structure.atomic_numbers, strict=True):
        row[: STARTS[1]] = shells[int(number)][: STARTS[1]]
    target = MolecularDensity.of(
        record.structure, record.labels[f"density_{fidelity}"], store.card.density_bases[fidelity]
    )
    guess = target._replace(coefficients=torch.as_tensor(rows))
    return nmae(guess, target, *integration_grid(record.structure))
