"""Densities in Gaussians against quadrature, closed forms and Poisson's equation."""

from pathlib import Path

import ase.io.cube
import numpy as np
import pytest
import torch

from mfm.density.basis import DensityBasis, ElementBasis, merge_bases
from mfm.density.cube import cube_grid, write_cube
from mfm.density.evaluator import MolecularDensity, density_at
from mfm.density.fields import field_at, write_field
from mfm.density.grid import integration_grid
from mfm.density.metric import metric_root, overlap_matrix
from mfm.density.potential import boys, potential_at
from mfm.density.whitening import add_metric, orthonormal
from mfm.graph import Structure, build_graph, collate
from mfm.properties import DENSITY_WIDTH
from mfm.units import BOHR, COULOMB_CONSTANT
from tests.densities import normalised, toy_basis, toy_element, turned_rows

WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.1], [0.8, 0.1, -0.5], [-0.75, 0.05, -0.45]]))
BASIS = toy_basis(1, 8)


def some_density(structure: Structure = WATER, seed: int = 0) -> MolecularDensity:
    generator = np.random.default_rng(seed)
    n_functions = len(BASIS.positions_of(structure.atomic_numbers))
    rows = BASIS.to_rows(0.3 * generator.normal(size=n_functions), structure.atomic_numbers)
    return MolecularDensity.of(structure, rows, BASIS)


def test_rows_hold_the_functions_of_each_atom() -> None:
    values = np.arange(1.0, 1.0 + len(BASIS.positions_of(WATER.atomic_numbers)))
    rows = BASIS.to_rows(values, WATER.atomic_numbers)
    assert rows.shape == (3, DENSITY_WIDTH)
    np.testing.assert_array_equal(BASIS.from_rows(rows, WATER.atomic_numbers), values)
    oxygen = BASIS.elements[8].n_functions
    assert (np.count_nonzero(rows[0]), np.count_nonzero(rows[1])) == (oxygen, BASIS.elements[1].n_functions)
    # s shells first, then those of p with their components together
    np.testing.assert_array_equal(rows[0][13:19], values[3:9])
    assert DensityBasis.from_dict(BASIS.to_dict()) == BASIS


def test_electrons_and_dipole_are_integrals_of_the_density() -> None:
    density = some_density()
    points, weights = integration_grid(WATER, n_radial=70, degree=29)
    values = field_at(points, density)
    rows = density.coefficients.numpy()
    electrons = 10.0 + BASIS.electrons(rows, WATER.atomic_numbers).sum()
    assert weights @ values == pytest.approx(electrons, abs=1e-4)
    numbers = WATER.atomic_numbers
    origin = numbers @ WATER.positions / numbers.sum()
    dipole = -(weights * values) @ (points - origin)
    np.testing.assert_allclose(BASIS.dipole(rows, WATER), dipole, atol=3e-4)


def test_overlaps_are_integrals_of_squares() -> None:
    density = some_density()
    points, weights = integration_grid(WATER, n_radial=70, degree=29)
    values = field_at(points, density, "deformation")
    coefficients = BASIS.from_rows(density.coefficients.numpy(), WATER.atomic_numbers)
    overlaps = overlap_matrix(WATER, BASIS)
    np.testing.assert_allclose(np.diag(overlaps), 1.0, atol=1e-12)
    assert coefficients @ overlaps @ coefficients == pytest.approx(weights @ values**2, rel=1e-4)
    root = metric_root(WATER, BASIS)
    np.testing.assert_allclose(root @ root, overlaps, atol=1e-12)
    np.testing.assert_allclose(root, root.T, atol=1e-12)


def test_orthonormal_coefficients_of_a_batch() -> None:
    hydroxide = Structure(np.array([1, 8]), WATER.positions[[1, 0]], charge=-1)
    graphs = [build_graph(structure, 3.0, dtype=torch.float64) for structure in (WATER, hydroxide, WATER)]
    for graph, structure, basis in zip(graphs, (WATER, hydroxide, WATER), (BASIS, BASIS, None), strict=True):
        add_metric(graph, "density_dft", structure, basis)
    densities = [some_density(), some_density(hydroxide, 1), some_density(WATER, 2)]
    rows = torch.cat([density.coefficients for density in densities])
    found = orthonormal(rows, collate(graphs), "density_dft").numpy()
    for part, structure in ((slice(0, 3), WATER), (slice(3, 5), hydroxide)):
        coefficients = BASIS.from_rows(rows[part].numpy(), structure.atomic_numbers)
        expected = coefficients @ overlap_matrix(structure, BASIS) @ coefficients
        assert np.square(found[part]).sum() == pytest.approx(expected, rel=1e-12)
    assert not found[5:].any()


def test_values_have_derivatives() -> None:
    density = some_density()
    points = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    inputs = points, density.positions.requires_grad_(True), density.coefficients.requires_grad_(True)

    def value(where: torch.Tensor, positions: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return density_at(where, density._replace(positions=positions, coefficients=coefficients))

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
    # nuclei and points move together
    gradients = torch.autograd.grad(value(*inputs).sum(), inputs[:2])
    torch.testing.assert_close(gradients[0].sum(0), -gradients[1].sum(0))


def test_the_number_of_points_at_a_time_does_not_matter() -> None:
    density = some_density()
    points = np.random.default_rng(0).normal(size=(5000, 3))
    values = field_at(points, density)
    np.testing.assert_allclose(field_at(points[4990:], density), values[4990:], rtol=1e-12)
    assert field_at(points[:0], density).shape == (0,)
    parts = [density_at(torch.as_tensor(points), density, part).numpy() for part in ("deformation", "free")]
    np.testing.assert_allclose(sum(parts), values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
def test_densities_turn_with_their_coefficients(improper: bool) -> None:
    matrix = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    matrix *= np.linalg.det(matrix) * (-1.0 if improper else 1.0)
    density, points = some_density(), np.random.default_rng(1).normal(size=(50, 3))
    turned = Structure(WATER.atomic_numbers, WATER.positions @ matrix.T)
    rows = turned_rows(density.coefficients.numpy(), matrix)
    for field in ("density", "potential"):
        after = field_at(points @ matrix.T, MolecularDensity.of(turned, rows, BASIS), field)
        np.testing.assert_allclose(after, field_at(points, density, field), atol=1e-10)
    one, other = (overlap_matrix(which, BASIS) for which in (WATER, turned))
    before, after = (BASIS.from_rows(r, WATER.atomic_numbers) for r in (density.coefficients.numpy(), rows))
    assert after @ other @ after == pytest.approx(before @ one @ before, rel=1e-12)


def test_potential_obeys_poissons_equation() -> None:
    """∇²V = −ρ/ε₀ away from nuclei: 4π × the Coulomb constant × electrons, by finite differences."""
    density = some_density()
    points = WATER.positions.mean(axis=0) + np.random.default_rng(2).normal(size=(8, 3))
    step = 1e-3
    shifts = step * np.concatenate([np.eye(3), -np.eye(3)])
    around = sum(field_at(points + shift, density, "potential") for shift in shifts)
    laplacian = (around - 6.0 * field_at(points, density, "potential")) / step**2
    expected = 4.0 * np.pi * COULOMB_CONSTANT * field_at(points, density)
    np.testing.assert_allclose(laplacian, expected, rtol=1e-4, atol=1e-3)


def test_potential_far_away_is_that_of_charge_and_dipole() -> None:
    density = some_density()
    rows, numbers = density.coefficients.numpy(), WATER.atomic_numbers
    origin, far = numbers @ WATER.positions / numbers.sum(), 300.0
    charge = -BASIS.electrons(rows, numbers).sum()
    dipole = BASIS.dipole(rows, WATER)
    values = field_at(origin + far * np.eye(3), density, "potential")
    np.testing.assert_allclose(values, COULOMB_CONSTANT * (charge / far + dipole / far**2), rtol=0, atol=1e-5)


def test_boys_functions() -> None:
    """F_0 is an error function; ∫ t² e^{−x t²} dt follows by parts; at zero they are 1/(2n + 1)."""
    x = torch.tensor([0.0, 1e-9, 0.3, 4.0, 50.0], dtype=torch.float64)
    root = x[2:].sqrt()
    torch.testing.assert_close(boys(0, x)[2:], 0.5 * np.sqrt(np.pi) * torch.erf(root) / root)
    torch.testing.assert_close(boys(1, x)[2:], (boys(0, x)[2:] - torch.exp(-x[2:])) / (2 * x[2:]))
    for order in range(5):
        torch.testing.assert_close(boys(order, x)[:2], torch.full((2,), 1 / (2 * order + 1), dtype=torch.float64))


def test_potential_has_derivatives() -> None:
    density = some_density()
    points = torch.tensor([[1.0, 0.3, -0.2], [0.2, 2.0, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda where: potential_at(where, density), points, fast_mode=True)


def test_a_cube_file_is_read_by_others(tmp_path: Path) -> None:
    density = some_density()
    grid = write_field(tmp_path / "a.cube", WATER, density, step=0.3)
    values, atoms = ase.io.cube.read_cube_data(str(tmp_path / "a.cube"))
    np.testing.assert_array_equal(atoms.numbers, WATER.atomic_numbers)
    np.testing.assert_allclose(atoms.positions, WATER.positions, atol=1e-5)
    assert values.shape == grid.shape
    assert (WATER.positions - grid.origin).min() >= 3.0 - 1e-9
    corner = grid.origin + grid.step * np.array([9, 4, 11])
    assert values[9, 4, 11] == pytest.approx(field_at(corner[None], density)[0] * BOHR**3, rel=1e-4)
    with pytest.raises(ValueError, match=r"`values` must have the shape of the grid \(\d+, \d+, \d+\), got \(2, 2\)"):
        write_cube(tmp_path / "b.cube", WATER, grid, np.zeros((2, 2)), "")
    with pytest.raises(ValueError, match=r"`step` and `margin` must be lengths above 0 Å, got 0\.0 and 3\.0"):
        cube_grid(WATER, step=0.0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="density basis `toy` must have C, got only H, O; label densities with that"):
        BASIS.check(np.array([6]))
    with pytest.raises(ValueError, match=r"`coefficients` must be the \d+ of `toy` on these atoms, got shape \(3,\)"):
        BASIS.to_rows(np.zeros(3), WATER.atomic_numbers)
    disordered = ElementBasis(toy_element(1).shells[::-1], toy_element(1).free_atom)
    with pytest.raises(ValueError, match="shells of H in `x` must ascend from s to g"):
        DensityBasis("x", {1: disordered})
    beyond = ElementBasis((normalised(5, (1.0,), (1.0,)),), ())
    with pytest.raises(ValueError, match="must ascend from s to g, with at most"):
        DensityBasis("x", {1: beyond})
    assert merge_bases({"dft": toy_basis(1)}, {"dft": toy_basis(8)}) == {"dft": BASIS}
    other = DensityBasis("toy", {1: toy_element(2)})
    with pytest.raises(ValueError, match="densities of one level must have one basis, got `toy` and `toy` with"):
        merge_bases({"dft": BASIS}, {"dft": other})
