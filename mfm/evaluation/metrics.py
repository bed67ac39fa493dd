"""Errors between predictions and labels, with the unit in every name."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from mfm.properties import PROPERTIES, parse_task
from mfm.units import conversion_factor

__all__ = ["Prediction", "ReportUnit", "errors", "errors_by_element", "errors_by_group", "report_unit"]


class ReportUnit(NamedTuple):
    """Unit in which errors of a property are reported: of a size that three decimals show."""

    factor: float
    """Reported unit = factor × internal unit."""
    suffix: str
    """End of a metric's name, such as ``mev_per_angstrom``."""
    symbol: str
    """For tables and axes, such as ``meV/Å``."""


_REPORT_UNITS = {
    "eV": ReportUnit(1e3, "mev", "meV"),
    "eV/Å": ReportUnit(1e3, "mev_per_angstrom", "meV/Å"),
    "eV/Å^3": ReportUnit(1e3, "mev_per_angstrom3", "meV/Å³"),
    "e": ReportUnit(1e3, "me", "me"),
    "e*Å": ReportUnit(1e3 * conversion_factor("e*Å", "D"), "millidebye", "mD"),
    "e*Å^2": ReportUnit(1e3, "me_angstrom2", "me Å²"),
    "e^2*Å^2/eV": ReportUnit(1e3, "me2_angstrom2_per_ev", "me² Å²/eV"),
}


_IN_INTERNAL = ReportUnit(1e3, "me_angstrom", "me Å")
"""In which dipoles are reported as well."""


def report_unit(task: str) -> ReportUnit:
    """Unit in which a task's errors are reported."""
    return _REPORT_UNITS[PROPERTIES[parse_task(task).property].unit]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions of one task beside their labels, only where there is a label.

    A row is a structure or an atom, as the property has it. Energies may have their atomic references subtracted
    from both sides.
    """

    predicted: np.ndarray
    """(n_rows, ...), internal unit."""
    target: np.ndarray
    """(n_rows, ...), internal unit."""
    structure: np.ndarray
    """(n_rows,), position in the dataset of the structure that the row belongs to."""
    n_atoms: np.ndarray
    """(n_rows,), number of atoms of that structure."""
    atomic_numbers: np.ndarray | None = None
    """(n_rows,), element of the row where rows are atoms."""

    def select(self, rows: np.ndarray) -> "Prediction":
        """The chosen rows."""
        numbers = None if self.atomic_numbers is None else self.atomic_numbers[rows]
        return Prediction(self.predicted[rows], self.target[rows], self.structure[rows], self.n_atoms[rows], numbers)


def errors(task: str, prediction: Prediction) -> dict[str, float]:
    """Mean absolute and root mean square error over rows and components, and the number of rows.

    Parameters
    ----------
    task : str
        Decides unit and name; energies also get errors per atom, dipoles the mean length of the error's vector
        (``mean_length_millidebye``) and errors in me Å, densities √(∫ (Δρ − Δρ')² / ∫ Δρ²) of all structures together
        (``error_percent``); rows of theirs hold the coefficients of orthonormal functions.

    Returns
    -------
    Metric name to value, such as ``mae_mev_per_atom``, and ``count``; empty without rows.
    """
    if len(prediction.target) == 0:
        return {}
    unit = report_unit(task)
    difference = (prediction.predicted - prediction.target).astype(np.float64) * unit.factor
    real = difference
    if parse_task(task).property == "density":
        # rows are as long as the largest element's; slots that an element has no function for hold zeros
        filled = difference[(prediction.target != 0) | (prediction.predicted != 0)]
        real = filled if len(filled) else difference
    found = {f"mae_{unit.suffix}": _mae(real), f"rmse_{unit.suffix}": _rmse(real)}
    if parse_task(task).property == "energy":
        per_atom = difference / prediction.n_atoms
        found[f"mae_{unit.suffix}_per_atom"] = _mae(per_atom)
        found[f"rmse_{unit.suffix}_per_atom"] = _rmse(per_atom)
    if parse_task(task).property == "density":
        size = np.square(prediction.target.astype(np.float64)).sum() * unit.factor**2
        found["error_percent"] = 100.0 * float(np.sqrt(np.square(difference).sum() / size)) if size > 0 else math.inf
    if parse_task(task).property == "dipole":
        found[f"mean_length_{unit.suffix}"] = float(np.linalg.norm(difference, axis=1).mean())
        other = difference * (_IN_INTERNAL.factor / unit.factor)
        found |= {f"mae_{_IN_INTERNAL.suffix}": _mae(other), f"rmse_{_IN_INTERNAL.suffix}": _rmse(other)}
    found["count"] = float(len(difference))
    return found


def errors_by_element(task: str, prediction: Prediction) -> dict[str, dict[str, float]]:
    """:func:`errors` of each element; empty for a property of structures."""
    if prediction.atomic_numbers is None:
        return {}
    numbers = prediction.atomic_numbers
    return {chemical_symbols[z]: errors(task, prediction.select(numbers == z)) for z in np.unique(numbers)}


def errors_by_group(task: str, prediction: Prediction, groups: np.ndarray) -> dict[str, dict[str, float]]:
    """:func:`errors` of each group of structures.

    Parameters
    ----------
    groups : (n_structures,)
        Name of the group of each structure of the dataset, such as its molecule.
    """
    names = groups[prediction.structure]
    return {str(name): errors(task, prediction.select(names == name)) for name in np.unique(names)}


def _mae(difference: np.ndarray) -> float:
    return float(np.abs(difference).mean())


def _rmse(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))
