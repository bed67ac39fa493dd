"""What can be known before a label is computed: whether the level describes the structure, and what it will cost."""

import functools
import math
import warnings

import ase.data
import numpy as np
from pyscf import gto
from pyscf.lib.exceptions import BasisNotFoundError

from mfm.labelling.levels import (
    CompositeLevel,
    CoupledClusterLevel,
    DensityFunctionalLevel,
    Level,
    Request,
    TightBindingLevel,
)
from mfm.structure import Structure

__all__ = ["check_structure", "estimate_seconds"]

_CLOSEST = 0.45
"""Times the sum of the covalent radii: 0.28 Å for H-H, 0.43 Å for O-H, 0.68 Å for C-C."""
_LAST_PARTITIONED, _LAST_TIGHT_BINDING = 18, 86


def check_structure(structure: Structure, level: Level, origin: str = "") -> None:
    """Refuse what the level cannot describe, before any time is spent on it.

    Raises
    ------
    ValueError
        If atoms overlap, an element has no basis or parameters at the level, or the geometry is one where the level
        is known to fail.
    """
    _check_overlap(structure)
    _check_elements(structure, level)
    if isinstance(level, CompositeLevel | CoupledClusterLevel) and origin == "stretched":
        raise ValueError(
            f"coupled cluster from one determinant does not describe bonds stretched beyond 1.35 times their length,"
            f" got {structure.formula} of origin `stretched`; label it at a Kohn-Sham level only"
        )


def _check_overlap(structure: Structure) -> None:
    radii = ase.data.covalent_radii[structure.atomic_numbers]
    i, j = _pairs(len(structure))
    distances = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    limits = _CLOSEST * (radii[i] + radii[j])
    if (distances < limits).any():
        k = int(np.argmin(distances / limits))
        pair = [f"{ase.data.chemical_symbols[structure.atomic_numbers[a]]} (atom {a})" for a in (i[k], j[k])]
        raise ValueError(
            f"atoms must not overlap, got {pair[0]} and {pair[1]} of {structure.formula} at {distances[k]:.2f} Å, where"
            f" at least {limits[k]:.2f} Å are expected; check the length unit (Å), or remove the structure"
        )


@functools.cache
def _pairs(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pairs of atoms; of many geometries of a molecule, found once."""
    return np.triu_indices(n_atoms, 1)


@functools.cache
def _n_functions(symbol: str, basis: str) -> int:
    """Functions of an element in a basis; 0 if it has none."""
    try:
        with warnings.catch_warnings():
            # PySCF advises to install a package where it has no basis
            warnings.simplefilter("ignore", UserWarning)
            shells = gto.basis.load(basis, symbol)
    except (BasisNotFoundError, KeyError):
        return 0
    total = 0
    for shell in shells:
        # [l, (kappa), [exponent, coefficient, coefficient …], …]: a column of coefficients per contraction
        rows = [entry for entry in shell[1:] if isinstance(entry, list | tuple)]
        total += (2 * shell[0] + 1) * (len(rows[0]) - 1)
    return total


def _bases(level: Level) -> tuple[str, ...]:
    if isinstance(level, DensityFunctionalLevel):
        return (level.basis, level.fitting_basis)
    if isinstance(level, CompositeLevel):
        fitted = (level.small_basis, level.large_basis)
        return (level.correction_basis, *fitted, *(f"{b}-{kind}" for b in fitted for kind in ("jkfit", "ri")))
    return (level.basis,) if isinstance(level, CoupledClusterLevel) else ()


def _check_elements(structure: Structure, level: Level) -> None:
    lacking: dict[str, str] = {}
    for number in np.unique(structure.atomic_numbers).tolist():
        symbol = ase.data.chemical_symbols[number]
        missing = [basis for basis in _bases(level) if not _n_functions(symbol, basis)]
        if missing:
            lacking[symbol] = f"no {missing[0]} basis"
        elif isinstance(level, DensityFunctionalLevel) and number > _LAST_PARTITIONED:
            lacking[symbol] = "no MBIS shells"
        elif isinstance(level, TightBindingLevel) and number > _LAST_TIGHT_BINDING:
            lacking[symbol] = "no parameters"
    if lacking:
        reasons = ", ".join(f"{symbol} ({reason})" for symbol, reason in lacking.items())
        raise ValueError(
            f"every element must be supported by {level.identifier}, got {reasons} in {structure.formula};"
            " drop this level for it, or choose a basis that has the element"
        )


def estimate_seconds(structure: Structure, request: Request) -> float:
    """CPU seconds of one label on one core (Xeon, 2.6 GHz), right to about 40 % for 1 to 6 heavy atoms of H, C, N, O.

    Powers of the numbers of functions and of electron pairs, fitted to the times of docs/labelling.md; a run corrects
    them by what its own labels take.
    """
    level = request.level
    symbols = [ase.data.chemical_symbols[number] for number in structure.atomic_numbers]
    pairs = max((int(structure.atomic_numbers.sum()) - structure.charge) / 2, 0.5)
    open_shell = 2.0 if (structure.multiplicity or 1) > 1 else 1.0
    if isinstance(level, DensityFunctionalLevel):
        n_functions = sum(_n_functions(symbol, level.basis) for symbol in symbols) or 1
        finer = math.exp(-0.94 * (level.grid >= 4)) * math.exp(0.3 * max(level.grid - 4, 0))
        seconds = 0.1 + 7.3e-4 * n_functions**2.2 * finer
        return open_shell * seconds * (1.8 if "polarizability" in request.extras else 1.05)
    if isinstance(level, CompositeLevel):
        n_functions = sum(_n_functions(symbol, level.large_basis) for symbol in symbols) or 1
        return open_shell * (0.1 + 2.7e-4 * n_functions**0.54 * pairs**3.02)
    if isinstance(level, CoupledClusterLevel):
        n_functions = sum(_n_functions(symbol, level.basis) for symbol in symbols) or 1
        gradient = 1 + 2.5 * pairs / 5 if level.forces else 1.0
        return open_shell * gradient * 2e-5 * (n_functions / (5 * pairs)) ** 3 * (5 * pairs) ** 2 * pairs**2
    return 2e-3 if isinstance(level, TightBindingLevel) else 1e-4
