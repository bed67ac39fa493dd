"""The mesh against the exact sum and an independent library; kernels against numerical integrals; errors."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from mfm.longrange.energy import long_range_energy
from mfm.longrange.kernels import fourier, pair_potential, self_potential
from mfm.longrange.lattice import make_lattice
from mfm.longrange.mesh import mesh_shapes, mesh_sum
from tests.longrange.systems import EXACT_ONLY, MESH_ONLY, energy, gas, graph_of, particles, water_box

CELLS = {
    "cubic": np.eye(3),
    "orthorhombic": np.diag([1.0, 0.8, 1.3]),
    "sheared": np.array([[1.0, 0.0, 0.0], [0.4, 0.9, 0.0], [0.2, -0.3, 1.1]]),
    "primitive": np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]) / math.sqrt(2.0),
    "left-handed": np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.3, 0.0, 1.2]]),
}


def forces_of(
    positions: np.ndarray, charges: np.ndarray, cell: np.ndarray, kinds: np.ndarray, mesh_above: int
) -> np.ndarray:
    graph = graph_of(positions, cell)
    graph.positions.requires_grad_(True)
    widths = np.array([1.0, 1.25])[kinds]
    found = long_range_energy("coulomb", particles(graph, charges, widths, kinds), graph, 5.6, mesh_above)
    return -torch.autograd.grad(found.sum(), graph.positions)[0].numpy()


@pytest.mark.parametrize("name", CELLS)
def test_forces_on_a_mesh_are_right_in_any_cell(name: str) -> None:
    generator = np.random.default_rng(1)
    cell = 12.0 * CELLS[name]
    positions, charges = generator.random((150, 3)) @ cell, generator.standard_normal(150) * 0.5
    kinds = generator.integers(0, 2, 150)
    exact, mesh = (forces_of(positions, charges, cell, kinds, above) for above in (EXACT_ONLY, MESH_ONLY))
    assert np.linalg.norm(mesh - exact) < 2e-4 * np.linalg.norm(exact)


def test_mesh_converges_to_the_exact_sum() -> None:
    positions, charges, cell = gas(20)
    graph = graph_of(positions, cell)
    some = particles(graph, charges)
    lattice = make_lattice(some, graph.cell, graph.pbc)
    exact = energy(positions, charges, cell) + float(
        (0.5 * self_potential("coulomb", some.widths) * some.amplitudes[:, 0] ** 2).sum()
    )
    errors = [
        abs(float(mesh_sum("coulomb", some, lattice, mesh_shapes(lattice.cell, h)[0])) - exact)
        for h in (0.6, 0.3, 0.15)
    ]
    assert errors[0] > 20 * errors[1] > 400 * errors[2]
    assert errors[2] < 5e-6


def test_mesh_forces_can_be_trained_on() -> None:
    positions, charges, cell = gas(4)
    graph = graph_of(positions, cell)
    values = torch.as_tensor(charges).unsqueeze(1).requires_grad_(True)
    widths = torch.full((4,), 1.1, dtype=torch.float64, requires_grad=True)

    def energy_of(x: torch.Tensor, q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        moved = particles(graph, charges)._replace(positions=x, amplitudes=q, widths=s)
        return long_range_energy("coulomb", moved, graph, 4.0, MESH_ONLY)

    # away from the points where a spline's nearest grid point changes only higher derivatives jump
    x = graph.positions.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(energy_of, (x, values, widths), eps=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(energy_of, (x, values, widths), eps=1e-5, atol=1e-5)


def test_exact_sum_can_be_differentiated_twice() -> None:
    positions, charges, cell = gas(4)
    graph = graph_of(positions, cell)

    def energy_of(x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        graph.cell = h
        moved = particles(graph, charges, kinds=[0, 1, 1, 0])._replace(
            positions=x, amplitudes=q, widths=s[[0, 1, 1, 0]]
        )
        return long_range_energy("coulomb", moved, graph, 4.0, EXACT_ONLY)

    inputs = (
        graph.positions.clone(),
        torch.as_tensor(charges).unsqueeze(1),
        torch.tensor([1.1, 1.3]).double(),
        graph.cell.clone(),
    )
    inputs = tuple(tensor.requires_grad_(True) for tensor in inputs)
    assert torch.autograd.gradcheck(energy_of, inputs, eps=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(energy_of, inputs, eps=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["orthorhombic", "sheared"])
def test_an_independent_library_agrees(name: str) -> None:
    torchpme = pytest.importorskip("torchpme")
    generator = np.random.default_rng(5)
    cell = 9.0 * CELLS[name]
    positions, charges = generator.random((20, 3)) @ cell, generator.standard_normal(20)
    # a fine grid: its cut in reciprocal space is half of what its argument says
    calculator = torchpme.EwaldCalculator(
        torchpme.CoulombPotential(smearing=1.0), lr_wavelength=0.35, full_neighbor_list=False
    ).to(torch.float64)
    tensors = {
        "charges": torch.as_tensor(charges).unsqueeze(1),
        "cell": torch.as_tensor(cell),
        "positions": torch.as_tensor(positions),
        "neighbor_indices": torch.zeros((0, 2), dtype=torch.int64),
        "neighbor_distances": torch.zeros(0, dtype=torch.float64),
    }
    expected = float((calculator(**tensors) * tensors["charges"]).sum()) * 14.399645478425667
    assert energy(positions, charges, cell, k_cutoff=9.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("k", [0.0, 0.4, 1.3, 3.0])
def test_dispersion_transforms_as_an_integral_says(k: float, width: float) -> None:
    def potential(r: float) -> float:
        tensors = torch.tensor([r], dtype=torch.float64), torch.tensor([width], dtype=torch.float64)
        return float(pair_potential("dispersion", *tensors))

    expected, _ = quad(lambda r: 4 * np.pi * r * r * np.sinc(k * r / np.pi) * potential(r), 1e-6, 60.0, limit=400)
    if k == 0.0:  # beyond the reach of the integration
        expected -= 4 * np.pi / (3 * 60.0**3)
    tensors = torch.tensor([k * k], dtype=torch.float64), torch.tensor(width, dtype=torch.float64)
    assert float(fourier("dispersion", *tensors)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    limit = float(self_potential("dispersion", torch.tensor([width], dtype=torch.float64)))
    assert potential(1e-3) == pytest.approx(limit, rel=1e-5)


def test_dispersion_of_a_crystal_is_a_sum_over_images() -> None:
    positions, _, cell = gas(4)
    amplitudes = np.array([1.0, 2.0, 1.5, 0.5])
    reach = np.arange(-9, 10)
    shifts = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3) @ cell
    expected = 0.0
    for i in range(4):
        for j in range(4):
            distances = np.linalg.norm(positions[i] - positions[j] + shifts, axis=1)
            distances = torch.as_tensor(distances[distances > 1e-9])
            values = pair_potential("dispersion", distances, torch.ones_like(distances))
            expected += 0.5 * amplitudes[i] * amplitudes[j] * float(values.sum())
    found = energy(positions, amplitudes, cell, kernel="dispersion")
    # images beyond the nine of the direct sum: −(2π/3) (Σ c)²/(V R³)
    rest = -2 * np.pi / 3 * amplitudes.sum() ** 2 / np.linalg.det(cell) / 50.0**3
    assert found == pytest.approx(expected, abs=2 * abs(rest))


@pytest.mark.parametrize("name", ["orthorhombic", "sheared"])
def test_dispersion_on_a_mesh_is_the_exact_sum(name: str) -> None:
    generator = np.random.default_rng(3)
    cell = 9.0 * CELLS[name]
    positions, amplitudes = generator.random((40, 3)) @ cell, 1.0 + generator.random(40)
    energies, forces = [], []
    # the mesh of the default spacing, and of half of it
    for mesh_above, k_cutoff in ((EXACT_ONLY, 8.0), (MESH_ONLY, 5.6), (MESH_ONLY, 11.2)):
        graph = graph_of(positions, cell)
        graph.positions.requires_grad_(True)
        found = long_range_energy("dispersion", particles(graph, amplitudes), graph, k_cutoff, mesh_above).sum()
        energies.append(float(found.detach()))
        forces.append(-torch.autograd.grad(found, graph.positions)[0].numpy())
    assert energies[0] < -1e-2
    assert energies[1] == pytest.approx(energies[0], rel=1e-4)
    errors = [np.linalg.norm(mesh - forces[0]) / np.linalg.norm(forces[0]) for mesh in forces[1:]]
    assert errors[0] < 6e-4
    assert errors[1] < errors[0] / 10


def test_a_frozen_mesh_stays_while_the_cell_breathes() -> None:
    positions, charges, cell = water_box(2, 6.3)
    kinds = (charges > 0).astype(int)
    energies = []
    for scale in np.linspace(0.97, 1.03, 41):
        graph = graph_of(positions * scale, cell * scale)
        graph.reference_cell = torch.as_tensor(cell)[None]
        energies.append(
            float(long_range_energy("coulomb", particles(graph, charges, 1.0, kinds), graph, 5.6, MESH_ONLY))
        )
    assert np.abs(np.diff(energies, 4)).max() / len(charges) < 1e-6


def test_errors_say_what_to_do() -> None:
    positions, charges, cell = gas(3)
    with pytest.raises(ValueError, match=r"0, 2 and 3 periodic directions; structure 0 .* has `pbc`.*vacuum around it"):
        energy(positions, charges, cell, (True, False, False))
    with pytest.raises(ValueError, match=r"dispersion needs three periodic directions or none.*vacuum on both sides"):
        energy(positions, charges, cell, (True, True, False), kernel="dispersion")
    with pytest.raises(ValueError, match=r"at least 5 points along each lattice vector.*use the exact sum"):
        energy(positions, charges, np.eye(3) * 1.2, mesh_above=MESH_ONLY)
    graph = graph_of(positions, cell)
    graph.cell = graph.cell * 0.0
    with pytest.raises(ValueError, match="give a vector for each periodic direction"):
        long_range_energy("coulomb", particles(graph, charges), graph, 5.6, EXACT_ONLY)
