"""A made-up basis of densities, so that tests of models need no PySCF, and rotations of its coefficients."""

import numpy as np

from mfm.density.basis import SLOTS, STARTS, DensityBasis, ElementBasis, Shell
from mfm.nn.harmonics import real_harmonics


def normalised(degree: int, exponents: tuple[float, ...], weights: tuple[float, ...], square: float = 1.0) -> Shell:
    """Shell whose radial function has ∫ R² r² dr = `square`."""
    raw = Shell(degree, exponents, weights)
    factor = np.sqrt(square / raw.moment(raw, 0))
    return raw._replace(weights=tuple(factor * weight for weight in weights))


def toy_element(number: int) -> ElementBasis:
    """Shells up to g for heavy atoms and up to d for hydrogen; the free atom's electrons are its nuclear charge."""
    size = 1.0 + 0.05 * number
    counts = (2, 1, 1) if number == 1 else (3, 2, 2, 1, 1)
    shells = []
    for degree, count in enumerate(counts):
        widest = size * 0.9
        # the first shell of a degree is contracted
        shells.append(normalised(degree, (widest, 2.3 * widest), (1.0, 0.4)))
        shells += [normalised(degree, (widest * 2.5**k,), (1.0,)) for k in range(1, count)]
    core = [normalised(0, (9.0 * size, 1.1 * size), (1.0, 0.3), square=min(number, 2))]
    valence = [normalised(1, (1.3 * size,), (1.0,), square=number - 2)] if number > 2 else []
    return ElementBasis(tuple(shells), tuple(core + valence))


def toy_basis(*numbers: int) -> DensityBasis:
    """Basis of some elements."""
    return DensityBasis("toy", {number: toy_element(number) for number in numbers})


def turned_rows(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Coefficients of a density (n_atoms, DENSITY_WIDTH) after the molecule was turned or reflected by a matrix."""
    points = np.random.default_rng(0).normal(size=(60, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before, after = (real_harmonics(where, len(SLOTS) - 1) for where in (points, points @ matrix.T))
    found = np.zeros_like(rows)
    for degree, count in enumerate(SLOTS):
        part = slice(degree**2, (degree + 1) ** 2)
        wigner = np.linalg.lstsq(before[:, part], after[:, part], rcond=None)[0].T
        place = slice(STARTS[degree], STARTS[degree + 1])
        values = rows[:, place].reshape(len(rows), count, -1)
        found[:, place] = (values @ wigner.T).reshape(len(rows), -1)
    return found
