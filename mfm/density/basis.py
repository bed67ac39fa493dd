"""The Gaussian basis of a density: shells of each element, its free atom, and how coefficients are laid out.

A density is ρ = Σ_A ρ_A + Σ_P c_P χ_P: spherical free atoms and a deformation. With w and α of a shell,

    χ_lm(r) = r^l Y_lm(r̂) Σ_k w_k e^{−α_k r²},    ρ_A(r) = Σ_o (r^l Σ_k w_k e^{−α_k r²})² / 4π,

Y_lm in the order of :mod:`mfm.nn.harmonics` with ∫ Y² = 1. Lengths are in Å; functions are normalised to ∫ χ² = 1 Å⁻³,
so that coefficients are in e. The free atom is that of the level of theory, exactly: sums of squared orbitals.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from scipy.special import gamma

from mfm.properties import DENSITY_WIDTH
from mfm.structure import Structure

__all__ = ["MAX_DEGREE", "SLOTS", "STARTS", "DensityBasis", "ElementBasis", "Shell", "merge_bases"]

SLOTS = (13, 11, 9, 4, 1)
"""Shells of each degree that a row of coefficients has room for: those of any element to argon in
def2-universal-jkfit. The same for every basis, so that rows can be compared whatever elements a file holds."""
MAX_DEGREE = len(SLOTS) - 1
"""Highest degree of a shell; g functions are needed for an error below 1 %."""
STARTS = tuple(sum(count * (2 * degree + 1) for degree, count in enumerate(SLOTS[:k])) for k in range(len(SLOTS) + 1))
"""Where the coefficients of each degree begin in a row, and where they end."""
assert STARTS[-1] == DENSITY_WIDTH


class Shell(NamedTuple):
    """A radial function r^l Σ_k w_k e^{−α_k r²}."""

    degree: int
    """l."""
    exponents: tuple[float, ...]
    """α_k, Å⁻²."""
    weights: tuple[float, ...]
    """w_k, Å^(−3 − l): what is left of the unit when the square's integral is 1 Å⁻³."""

    def moment(self, other: "Shell", power: int) -> float:
        """∫₀^∞ R R' r^(2 + power) dr of two radial functions."""
        n = 2 + power + self.degree + other.degree
        sums = np.add.outer(self.exponents, other.exponents)
        integrals = 0.5 * gamma(0.5 * (n + 1)) * sums ** (-0.5 * (n + 1))
        return float(np.array(self.weights) @ integrals @ np.array(other.weights))

    @property
    def electrons(self) -> float:
        """∫ χ: what a coefficient of one adds to the number of electrons; zero unless l = 0."""
        if self.degree > 0:
            return 0.0
        return float(
            np.sqrt(4.0 * np.pi) * 0.25 * np.sqrt(np.pi) * np.dot(self.weights, np.power(self.exponents, -1.5))
        )

    @property
    def dipole(self) -> float:
        """∫ x χ of the first component, Å: zero unless l = 1, whose components are x, y, z."""
        if self.degree != 1:
            return 0.0
        radial = 0.375 * np.sqrt(np.pi) * np.dot(self.weights, np.power(self.exponents, -2.5))
        return float(np.sqrt(4.0 * np.pi / 3.0) * radial)


@dataclasses.dataclass(frozen=True)
class ElementBasis:
    """What belongs to one element."""

    shells: tuple[Shell, ...]
    """Of the deformation, ascending in degree."""
    free_atom: tuple[Shell, ...]
    """Orbitals of the free atom, their occupations within the weights."""

    @property
    def degrees(self) -> list[int]:
        """Degree of each shell."""
        return [shell.degree for shell in self.shells]

    @property
    def n_functions(self) -> int:
        """Number of coefficients of an atom."""
        return sum(2 * degree + 1 for degree in self.degrees)


@dataclasses.dataclass(frozen=True)
class DensityBasis:
    """Basis of the densities of one level of theory.

    Coefficients of an atom stand in a row of :data:`mfm.properties.DENSITY_WIDTH` numbers: all s shells, then all p
    shells, and so on, each with room for :data:`SLOTS` shells. What an element lacks is zero.

    Raises
    ------
    ValueError
        If shells of an element are not ascending in degree, or a row has no room for them.
    """

    name: str
    """Such as ``def2-universal-jkfit``."""
    elements: Mapping[int, ElementBasis]
    """Atomic number to basis."""

    def __post_init__(self) -> None:
        for number, element in self.elements.items():
            counts = np.bincount(element.degrees, minlength=len(SLOTS))
            fits = len(counts) == len(SLOTS) and bool((counts <= SLOTS).all())
            if element.degrees != sorted(element.degrees) or not fits:
                raise ValueError(
                    f"shells of {chemical_symbols[number]} in `{self.name}` must ascend from s to g, with at most"
                    f" {SLOTS} of each, got degrees {element.degrees}; label with def2-universal-jfit, or leave the"
                    " element out"
                )

    @functools.cached_property
    def places(self) -> dict[int, np.ndarray]:
        """Atomic number → (n_functions,), where the coefficients of its shells, in order, stand in a row."""
        return {number: self._places(element) for number, element in self.elements.items()}

    def _places(self, element: ElementBasis) -> np.ndarray:
        places, used = [], [0] * len(SLOTS)
        for degree in element.degrees:
            size = 2 * degree + 1
            places.append(STARTS[degree] + used[degree] * size + np.arange(size))
            used[degree] += 1
        return np.concatenate(places)

    def positions_of(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """(n_functions,), where all functions of a structure, atom by atom, stand in its rows, flattened.

        Raises
        ------
        ValueError
            If the basis lacks an element.
        """
        self.check(atomic_numbers)
        return np.concatenate([atom * DENSITY_WIDTH + self.places[int(z)] for atom, z in enumerate(atomic_numbers)])

    def to_rows(self, coefficients: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """Coefficients (n_functions,), atom by atom and shell by shell, as rows (n_atoms, DENSITY_WIDTH).

        Raises
        ------
        ValueError
            If there are not as many as the atoms have functions.
        """
        places = self.positions_of(atomic_numbers)
        if np.shape(coefficients) != places.shape:
            raise ValueError(
                f"`coefficients` must be the {len(places)} of `{self.name}` on these atoms, got shape"
                f" {np.shape(coefficients)}"
            )
        rows = np.zeros(len(atomic_numbers) * DENSITY_WIDTH)
        rows[places] = coefficients
        return rows.reshape(-1, DENSITY_WIDTH)

    def from_rows(self, rows: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`to_rows`."""
        return np.asarray(np.reshape(rows, -1)[self.positions_of(atomic_numbers)])

    def electrons(self, rows: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """(n_atoms,), what the deformation adds to the electrons of each atom's free atom."""
        self.check(atomic_numbers)
        table = {number: self.charge_row(number) for number in {int(z) for z in atomic_numbers}}
        return np.array([row @ table[int(z)] for row, z in zip(rows, atomic_numbers, strict=True)])

    def charge_row(self, number: int) -> np.ndarray:
        """(DENSITY_WIDTH,), ∫ χ of each coefficient of an element."""
        row = np.zeros(DENSITY_WIDTH)
        values = self.moments(number, 0)
        row[: len(values)] = values
        return row

    def moments(self, number: int, degree: int) -> np.ndarray:
        """(n_shells,), ∫ χ of an element's s functions, or ∫ x χ, Å, of its p functions along x; `degree` is 0 or 1."""
        shells = [shell for shell in self.elements[number].shells if shell.degree == degree]
        return np.array([shell.dipole if degree else shell.electrons for shell in shells])

    def dipole(self, rows: np.ndarray, structure: Structure) -> np.ndarray:
        """Dipole moment (3,), e Å, of the deformation about the nuclear charge centre; free atoms have none.

        Electrons count negative; with the nuclei and the free atoms, which cancel, it is the molecule's.
        """
        numbers = structure.atomic_numbers
        relative = structure.positions - numbers @ structure.positions / numbers.sum()
        moment = -self.electrons(rows, numbers) @ relative
        for row, number in zip(rows, numbers, strict=True):
            lengths = self.moments(int(number), 1)
            moment = moment - lengths @ row[STARTS[1] : STARTS[1] + 3 * len(lengths)].reshape(-1, 3)
        return np.asarray(moment)

    def overlaps(self, number: int, degree: int) -> np.ndarray:
        """Overlap matrix of an element's shells of one degree, (n_shells, n_shells), Å⁻³."""
        shells = [shell for shell in self.elements[number].shells if shell.degree == degree]
        return np.array([one.moment(other, 0) for one in shells for other in shells]).reshape(len(shells), len(shells))

    def check(self, atomic_numbers: np.ndarray) -> None:
        """Refuse elements that the basis lacks.

        Raises
        ------
        ValueError
            For the first such element.
        """
        for number in {int(z) for z in atomic_numbers} - self.elements.keys():
            raise ValueError(
                f"density basis `{self.name}` must have {chemical_symbols[number]}, got only"
                f" {', '.join(chemical_symbols[z] for z in self.elements)}; label densities with that element"
            )

    def merged(self, other: "DensityBasis") -> "DensityBasis":
        """The basis with the elements of another one too.

        Raises
        ------
        ValueError
            If the two differ in an element that both have.
        """
        for number in self.elements.keys() & other.elements.keys():
            if self.name != other.name or self.elements[number] != other.elements[number]:
                raise ValueError(
                    f"densities of one level must have one basis, got `{self.name}` and `{other.name}` with different"
                    f" functions or free atoms of {chemical_symbols[number]}; label them at one level"
                )
        both = {**self.elements, **other.elements}
        return DensityBasis(self.name, {number: both[number] for number in sorted(both)})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able mapping that :meth:`from_dict` reads back, exactly."""
        return {
            "name": self.name,
            "elements": {
                str(number): {"shells": list(element.shells), "free_atom": list(element.free_atom)}
                for number, element in self.elements.items()
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DensityBasis":
        """Read what :meth:`to_dict` wrote."""
        elements = {
            int(number): ElementBasis(_shells(element["shells"]), _shells(element["free_atom"]))
            for number, element in content["elements"].items()
        }
        return cls(content["name"], elements)


def merge_bases(one: Mapping[str, DensityBasis], other: Mapping[str, DensityBasis]) -> dict[str, DensityBasis]:
    """Fidelity → basis with the elements of both.

    Raises
    ------
    ValueError
        If the two differ in an element of one fidelity.
    """
    common = {fidelity: one[fidelity].merged(other[fidelity]) for fidelity in one.keys() & other.keys()}
    return {**one, **other, **common}


def _shells(rows: Any) -> tuple[Shell, ...]:
    return tuple(Shell(int(degree), tuple(exponents), tuple(weights)) for degree, exponents, weights in rows)
