"""Overlap of the functions of a structure, in closed form: the metric in which densities are compared.

With the Fourier transform of a solid harmonic Gaussian, r^l Y_lm e^{−αr²} → (−i)^l π^{3/2} (k/2)^l α^{−l−3/2} Y_lm
e^{−k²/4α}, the overlap of two of them a distance R apart is, with p = 1/4α + 1/4β, x = R²/4p and n = (l + l' − L)/2,

    S = N N' / 2π² Σ_LM (−1)^{(l − l' − L)/2} G(lm, l'm', LM) Y_LM(R̂) I_Ln,   N = π^{3/2} 2^{−l} α^{−l−3/2},
    I_Ln = ∫ k^{2+L+2n} j_L(kR) e^{−pk²} dk = √π n! R^L e^{−x} L_n^{(L+1/2)}(x) / (2^{L+2} p^{L+n+3/2}),

where G are the integrals of three harmonics and L_n^{(a)} the Laguerre polynomials.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import eval_genlaguerre

from mfm.density.basis import MAX_DEGREE, DensityBasis
from mfm.nn.harmonics import real_harmonics, sphere_quadrature
from mfm.structure import Structure

__all__ = ["metric_root", "overlap_matrix"]

_SMALLEST = 1e-30
"""Å; keeps the direction between an atom and itself defined, where only L = 0 counts."""


class _Functions(NamedTuple):
    """All primitive functions of one degree in a structure."""

    exponents: np.ndarray  # (n_primitives,)
    weights: np.ndarray  # (n_primitives,), times N
    atoms: np.ndarray  # (n_primitives,)
    contraction: np.ndarray  # (n_shells, n_primitives), one where a primitive belongs to a shell
    shell_atoms: np.ndarray  # (n_shells,)
    places: np.ndarray  # (n_shells, 2 l + 1), in the order of the structure's functions


@functools.cache
def _three_harmonics(first: int, second: int, third: int) -> np.ndarray:
    """∫ Y_lm Y_l'm' Y_LM, (2 l + 1, 2 l' + 1, 2 L + 1)."""
    points, weights = sphere_quadrature(first + second + third)
    table = real_harmonics(points, max(first, second, third))
    parts = [table[:, degree**2 : (degree + 1) ** 2] for degree in (first, second, third)]
    return np.asarray(np.einsum("p,pa,pb,pc->abc", weights, *parts) / math.sqrt(4.0 * math.pi))


def _functions(atomic_numbers: np.ndarray, basis: DensityBasis) -> list[_Functions]:
    """Functions by degree."""
    rows: list[list[tuple[float, float, int, int]]] = [[] for _ in range(MAX_DEGREE + 1)]
    shells: list[list[tuple[int, int]]] = [[] for _ in range(MAX_DEGREE + 1)]
    start = 0
    for atom, number in enumerate(atomic_numbers):
        for shell in basis.elements[int(number)].shells:
            degree = shell.degree
            for exponent, weight in zip(shell.exponents, shell.weights, strict=True):
                scale = math.pi**1.5 * 2.0**-degree * exponent ** (-degree - 1.5)
                rows[degree].append((exponent, weight * scale, atom, len(shells[degree])))
            shells[degree].append((atom, start))
            start += 2 * degree + 1
    found = []
    for degree in range(MAX_DEGREE + 1):
        columns = np.array(rows[degree]).reshape(-1, 4).T
        exponents, weights = columns[:2]
        atoms, owners = columns[2:].astype(int)
        contraction = (np.arange(len(shells[degree]))[:, None] == owners).astype(float)
        table = np.array(shells[degree], dtype=int).reshape(-1, 2)
        places = table[:, 1:] + np.arange(2 * degree + 1)
        found.append(_Functions(exponents, weights, atoms, contraction, table[:, 0], places))
    return found


def overlap_matrix(structure: Structure, basis: DensityBasis) -> np.ndarray:
    """∫ χ_P χ_Q of the functions of a structure, atom by atom and shell by shell.

    Returns
    -------
    (n_functions, n_functions), Å⁻³

    Raises
    ------
    ValueError
        If the basis lacks an element.
    """
    basis.check(structure.atomic_numbers)
    functions = _functions(structure.atomic_numbers, basis)
    vectors = structure.positions[None, :] - structure.positions[:, None]  # (n_atoms, n_atoms, 3), from row to column
    distances = np.linalg.norm(vectors, axis=-1)
    directions = np.where(distances[..., None] > 0, vectors / (distances[..., None] + _SMALLEST), [0.0, 0.0, 1.0])
    harmonics = real_harmonics(directions.reshape(-1, 3), 2 * MAX_DEGREE) / math.sqrt(4.0 * math.pi)
    harmonics = harmonics.reshape(*distances.shape, -1)
    matrix = np.zeros((sum(f.places.size for f in functions),) * 2)
    for first in range(MAX_DEGREE + 1):
        for second in range(first, MAX_DEGREE + 1):
            one, other = functions[first], functions[second]
            if not (len(one.exponents) and len(other.exponents)):
                continue
            block = _block(one, other, (first, second), distances, harmonics)  # (n, 2 l + 1, n', 2 l' + 1)
            rows, columns = one.places.reshape(-1), other.places.reshape(-1)
            flat = block.reshape(len(rows), len(columns))
            matrix[np.ix_(rows, columns)] = flat
            matrix[np.ix_(columns, rows)] = flat.T
    return matrix


def _block(
    one: _Functions, other: _Functions, degrees: tuple[int, int], distances: np.ndarray, harmonics: np.ndarray
) -> np.ndarray:
    """Overlaps of all shells of one degree with all of another."""
    first, second = degrees
    width = 0.25 / one.exponents[:, None] + 0.25 / other.exponents[None, :]  # p
    distance = distances[np.ix_(one.atoms, other.atoms)]
    x = distance**2 / (4.0 * width)
    front = one.weights[:, None] * other.weights[None, :] * np.exp(-x) / (2.0 * math.pi**2)
    shell_pairs = np.ix_(one.shell_atoms, other.shell_atoms)
    total: np.ndarray | float = 0.0
    for third in range(second - first, first + second + 1, 2):
        n = (first + second - third) // 2
        sign = (-1.0) ** ((first - second - third) // 2)
        scale = sign * math.sqrt(math.pi) * math.factorial(n) / 2.0 ** (third + 2)
        radial = scale * front * distance**third * eval_genlaguerre(n, third + 0.5, x) / width ** (third + n + 1.5)
        radial = one.contraction @ radial @ other.contraction.T  # (n_shells, n_shells')
        angular = np.einsum(
            "ijc,abc->ijab", harmonics[..., third**2 : (third + 1) ** 2], _three_harmonics(first, second, third)
        )
        total = total + radial[:, None, :, None] * angular[shell_pairs].transpose(0, 2, 1, 3)
    return np.asarray(total)


def metric_root(structure: Structure, basis: DensityBasis) -> np.ndarray:
    """Symmetric square root of :func:`overlap_matrix`.

    Coefficients that it is applied to are those of orthonormal functions, each as near to its atom as can be (Löwdin,
    J. Chem. Phys. 18, 365 (1950)); their squares add up to ∫ Δρ².
    """
    values, vectors = np.linalg.eigh(overlap_matrix(structure, basis))
    return np.asarray((vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T)
