"""One labelled structure, checked when it is made."""

import dataclasses
from collections.abc import Mapping

import ase.data
import numpy as np

from mfm.properties import PROPERTIES, parse_task
from mfm.structure import Structure

__all__ = ["Record", "formula"]


def formula(atomic_numbers: np.ndarray) -> str:
    """Chemical formula in Hill order: C, H, then the alphabet; alphabetic throughout without carbon.

    Parameters
    ----------
    atomic_numbers : (n_atoms,)

    Examples
    --------
    >>> formula(np.array([8, 1, 6, 1]))
    'CH2O'
    """
    numbers, counts = np.unique(np.asarray(atomic_numbers), return_counts=True)
    amounts = {ase.data.chemical_symbols[z]: int(n) for z, n in zip(numbers, counts, strict=True)}
    first = [symbol for symbol in ("C", "H") if symbol in amounts] if "C" in amounts else []
    order = first + sorted(set(amounts) - set(first))
    return "".join(f"{symbol}{amounts[symbol] if amounts[symbol] > 1 else ''}" for symbol in order)


@dataclasses.dataclass(frozen=True)
class Record:
    """A structure, its labels and where it came from.

    Labels are in mfm's units and complete: a label that was not computed is left out of the mapping, never
    written as NaN.

    Raises
    ------
    ValueError
        If a label's name is not a task, its shape does not fit its property and the number of atoms, it holds a
        number that is not finite, or a Hessian-vector product lacks its probe.
    """

    structure: Structure
    labels: Mapping[str, np.ndarray]
    """Task (``energy_dft``) to value: () or (shape) per structure, (n_atoms, shape) per atom."""
    molecule: str = ""
    """Group key of splits: structures that share it never part. Empty: the formula, with the charge."""
    origin: str = ""
    """How the geometry was made, such as ``md-300K`` or ``normal-mode``."""
    flags: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Quality numbers that belong to the structure, such as ``t1`` or ``wall_time_s``."""

    def __post_init__(self) -> None:
        n_atoms = len(self.structure.atomic_numbers)
        labels = {task: np.asarray(value, dtype=np.float64) for task, value in self.labels.items()}
        for task, value in labels.items():
            _check_shape(task, value, n_atoms)
        for task, value in labels.items():
            _check_finite(task, value, labels)
            prop, fidelity = parse_task(task)
            if prop == "hessian_product" and f"probe_{fidelity}" not in labels:
                raise ValueError(
                    f"label `{task}` needs `probe_{fidelity}` beside it: what the Hessian is multiplied with"
                )
        object.__setattr__(self, "labels", labels)
        if not self.molecule:
            charge = self.structure.charge
            object.__setattr__(
                self, "molecule", formula(self.structure.atomic_numbers) + (f"{charge:+d}" if charge else "")
            )


def _check_shape(task: str, value: np.ndarray, n_atoms: int) -> None:
    prop = PROPERTIES[parse_task(task).property]
    expected = (n_atoms, *prop.shape) if prop.per == "atom" else prop.shape
    if value.shape != expected:
        raise ValueError(
            f"label `{task}` must have shape {expected} for a structure of {n_atoms} atoms, got {value.shape};"
            " reshape it in the reader"
        )


def _check_finite(task: str, value: np.ndarray, labels: Mapping[str, np.ndarray]) -> None:
    if np.isfinite(value).all():
        return
    prop, fidelity = parse_task(task)
    where = ""
    if PROPERTIES[prop].per == "atom":
        atoms = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
        where = f" at atoms {atoms[:5].tolist()}{' and more' if len(atoms) > 5 else ''}"
    energy = labels.get(f"energy_{fidelity}")
    beside = f" beside a finite `energy_{fidelity}`" if prop != "energy" and energy is not None else ""
    raise ValueError(
        f"label `{task}` must be finite, got NaN or infinity{where}{beside}; leave the label out if it was not"
        " computed, or leave the structure out if the calculation failed"
    )
