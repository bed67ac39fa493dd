"""Building blocks against closed forms."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from mfm.graph import AtomicGraph, Structure, build_graph
from mfm.nn.aggregate import neighbour_table
from mfm.nn.harmonics import SphericalHarmonics, degrees, real_harmonics, sphere_quadrature
from mfm.nn.linear import DegreewiseLinear
from mfm.nn.products import SphereGrid
from mfm.nn.radial import BesselBasis, polynomial_cutoff


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_harmonics_are_the_textbook_polynomials() -> None:
    points = unit_vectors(20)
    x, y, z = points.T
    expected = [
        np.ones_like(x),
        *(3**0.5 * c for c in (x, y, z)),
        15**0.5 * x * y,
        15**0.5 * y * z,
        5**0.5 / 2 * (3 * z**2 - 1),
        15**0.5 * x * z,
        15**0.5 / 2 * (x**2 - y**2),
        70**0.5 / 4 * y * (3 * x**2 - y**2),
    ]
    values = SphericalHarmonics(3).double()(torch.as_tensor(points)).numpy()
    np.testing.assert_allclose(values[:, :10], np.stack(expected, axis=1), atol=1e-13)


def test_harmonics_obey_the_addition_theorem() -> None:
    points = unit_vectors(12)
    values = SphericalHarmonics(4).double()(torch.as_tensor(points)).numpy()
    cosines = points @ points.T
    of_degree = np.array(degrees(4))
    for degree in range(5):
        block = values[:, of_degree == degree]
        legendre = np.polynomial.legendre.Legendre.basis(degree)(cosines)
        np.testing.assert_allclose(block @ block.T, (2 * degree + 1) * legendre, atol=1e-12)
    np.testing.assert_allclose(values, real_harmonics(points, 4), atol=1e-12)


@pytest.mark.parametrize("degree", [3, 8, 12])
def test_quadrature_is_exact(degree: int) -> None:
    points, weights = sphere_quadrature(degree)
    for order in range(degree + 1):
        theta, phi = np.arccos(points[:, 2]), np.arctan2(points[:, 1], points[:, 0])
        mean = (weights * sph_harm_y(degree, order, theta, phi)).sum()
        assert abs(mean) < 1e-13
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)


def test_grid_product_of_vectors_is_their_dot_product_and_symmetric_traceless_part() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3))
    coefficients = torch.zeros(2, 9, 1, 1, dtype=torch.float64)
    coefficients[0, 1:4, 0, 0], coefficients[1, 1:4, 0, 0] = torch.as_tensor(a), torch.as_tensor(b)
    grid = SphereGrid(2, 2, order=2).double()
    product = grid.to_grid(coefficients[0]) * grid.to_grid(coefficients[1])
    # f = √3 a·r̂ / 3 with the grid's scale of 1/(L + 1), so the mean of f g is a·b / 9
    assert grid.invariant(product).item() == pytest.approx(a @ b / 9)
    tensor = grid.equivariant(product).squeeze().numpy()
    assert np.abs(tensor[:3]).max() < 1e-14
    xy = (a[0] * b[1] + a[1] * b[0]) / 2 * 3 / 9 * 2 / 15**0.5
    assert tensor[3] == pytest.approx(xy)


def test_bessel_functions_are_orthogonal_and_vanish_smoothly() -> None:
    cutoff = 4.0
    basis = BesselBasis(cutoff, 6).double()
    r = torch.linspace(1e-4, cutoff, 20001, dtype=torch.float64)
    values = basis(r) / polynomial_cutoff(r, cutoff).clamp(min=1e-300)[:, None]
    overlap = torch.einsum("ri,rj,r->ij", values[:-1], values[:-1], r[:-1] ** 2) * (r[1] - r[0])
    torch.testing.assert_close(overlap, cutoff * torch.eye(6, dtype=torch.float64), rtol=0, atol=2e-3)
    edge = torch.tensor([cutoff], dtype=torch.float64, requires_grad=True)
    value = polynomial_cutoff(edge, cutoff)
    for _ in range(3):
        assert value.item() == pytest.approx(0.0, abs=1e-12)
        (value,) = torch.autograd.grad(value, edge, create_graph=True)


def small_cell() -> AtomicGraph:
    """A periodic structure in which an atom sees several images of another, and of itself."""
    rng = np.random.default_rng(2)
    structure = Structure(np.full(4, 6), rng.uniform(0, 3, size=(4, 3)), 3.0 * np.eye(3), np.ones(3, dtype=bool))
    return build_graph(structure, 3.2, dtype=torch.float64)


def test_neighbour_table_sums_like_a_loop_over_edges() -> None:
    graph = small_cell()
    table = neighbour_table(graph, 3.2)
    features = torch.randn(4, 2, dtype=torch.float64)
    lengths = table.vectors.norm(dim=1)
    taken = (lengths < 3.2).double().unsqueeze(1)
    assert int(taken.sum()) == graph.edge_index.shape[1]
    summed = (table.gather(features) * taken * lengths.unsqueeze(1)).view(4, -1, 2).sum(dim=1)
    expected = torch.zeros(4, 2, dtype=torch.float64)
    for (sender, receiver), shift in zip(graph.edge_index.T, graph.unit_shifts, strict=True):
        vector = graph.positions[sender] + shift @ graph.cell[0] - graph.positions[receiver]
        expected[receiver] += features[sender] * vector.norm()
    torch.testing.assert_close(summed, expected)


def test_derivatives_of_gathering_are_those_of_indexing() -> None:
    graph = small_cell()
    table = neighbour_table(graph, 3.2)
    weights = (table.vectors.norm(dim=1) < 3.2).double().unsqueeze(1)
    results = []
    for gather in (table.gather, lambda values: values[table.senders]):
        values = torch.linspace(0, 1, 8, dtype=torch.float64).view(4, 2).requires_grad_(True)
        (first,) = torch.autograd.grad((gather(values).sin() * weights).sum(), values, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), values)
        results.append((first, second))
    torch.testing.assert_close(results[0], results[1])


def test_a_lone_atom_has_one_empty_slot() -> None:
    table = neighbour_table(build_graph(Structure(np.array([6]), np.zeros((1, 3))), 3.0), 3.0)
    assert table.n_slots == 1
    assert table.senders.tolist() == [0]
    assert table.vectors.tolist() == [[3.0, 0.0, 0.0]]


def test_degreewise_linear_keeps_degrees_apart() -> None:
    layer = DegreewiseLinear(3, 4, max_degree=2, min_degree=1).double()
    features = torch.randn(8, 5, 3, dtype=torch.float64)
    features[3:] = 0.0
    mixed = layer(features)
    assert not mixed[3:].any()
    torch.testing.assert_close(mixed[1], features[1] @ layer.weight[0])
