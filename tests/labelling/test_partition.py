"""MBIS: pro-molecules are recovered, elements outside the table are refused."""

import numpy as np
import pytest
from pyscf import dft, gto

from mfm.labelling.partition import mbis


def _shell(points: np.ndarray, centre: np.ndarray, population: float, width: float) -> np.ndarray:
    return population / (8 * np.pi * width**3) * np.exp(-np.linalg.norm(points - centre, axis=1) / width)


@pytest.fixture(scope="module")
def grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    molecule = gto.M(atom="H 0 0 0; F 0 0 1.8", unit="Bohr", basis="sto-3g", verbose=0)
    grids = dft.gen_grid.Grids(molecule)
    grids.level = 2
    grids.build()
    return molecule.atom_coords(), grids.coords, grids.weights


def test_a_density_made_of_shells_is_taken_apart_again(grid: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    positions, points, weights = grid
    density = _shell(points, positions[0], 0.6, 0.4) + _shell(points, positions[1], 2.0, 0.06)
    density += _shell(points, positions[1], 7.4, 0.35)
    found = mbis(np.array([1, 9]), positions, points, weights, density, tolerance=1e-8)
    # the grid integrates these shells to a few 1e-5 electrons
    np.testing.assert_allclose(found.charges, [0.4, -0.4], atol=2e-4)
    np.testing.assert_allclose(found.dipoles, 0.0, atol=2e-4)


def test_charges_sum_to_the_charge_and_reproduce_the_dipole(grid: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    positions, points, weights = grid
    # a density off both centres: only atomic dipoles can describe it
    density = _shell(points, np.array([0.1, 0.0, 0.1]), 0.6, 0.4) + _shell(points, positions[1], 2.0, 0.06)
    density += _shell(points, positions[1], 7.4, 0.35)
    found = mbis(np.array([1, 9]), positions, points, weights, density)
    electrons = weights * density
    dipole = np.array([1.0, 9.0]) @ positions - electrons @ points
    assert found.charges.sum() == pytest.approx(10 - electrons.sum(), abs=1e-6)
    np.testing.assert_allclose(found.charges @ positions + found.dipoles.sum(axis=0), dipole, atol=1e-6)
    assert found.n_iterations > 1


def test_elements_beyond_argon_are_refused() -> None:
    with pytest.raises(ValueError, match=r"atomic numbers 1 to 18, got 19 at atom 1"):
        mbis(np.array([1, 19]), np.zeros((2, 3)), np.zeros((1, 3)), np.ones(1), np.ones(1))


def test_no_convergence_is_an_error(grid: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    positions, points, weights = grid
    density = _shell(points, positions[0], 1.0, 0.4) + _shell(points, positions[1], 9.0, 0.3)
    with pytest.raises(ValueError, match=r"MBIS must converge to 1e-12 e within 2 iterations"):
        mbis(np.array([1, 9]), positions, points, weights, density, tolerance=1e-12, max_iterations=2)
