"""Pictures of densities: the plane that is drawn, and that it is drawn there."""

from pathlib import Path

import numpy as np

from mfm.evaluation.density_plots import molecular_plane, plot_slice
from mfm.graph import Structure


def test_the_plane_lies_nearest_to_the_atoms() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    flat = np.array([[0.0, 0.1, 0.0], [0.8, -0.5, 0.0], [-0.7, -0.5, 0.0]]) @ turn
    centre, directions = molecular_plane(Structure(np.array([8, 1, 1]), flat))
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-12)
    inside = (flat - centre) @ directions.T @ directions
    np.testing.assert_allclose(inside, flat - centre, atol=1e-9)
    alone = molecular_plane(Structure(np.array([2]), np.array([[1.0, 2.0, 3.0]])))
    np.testing.assert_allclose(alone[1] @ alone[1].T, np.eye(2), atol=1e-12)


def test_values_are_asked_for_in_the_plane(tmp_path: Path) -> None:
    structure = Structure(np.array([1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]]))
    asked = []

    def values(points: np.ndarray) -> np.ndarray:
        asked.append(points)
        return np.exp(-np.square(points).sum(axis=1))

    plot_slice(tmp_path / "h2.png", structure, values, "deformation", margin=1.5, n_points=21)
    assert (tmp_path / "h2.png").read_bytes()[:4] == b"\x89PNG"
    (points,) = asked
    assert points.shape == (441, 3)
    np.testing.assert_allclose(np.ptp(points[:, 2]), 2 * (0.35 + 1.5))
    assert np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-9) == 2
