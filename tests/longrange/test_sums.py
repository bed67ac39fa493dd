"""Sums against closed forms, other formulas for the same thing, and themselves in another cell."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import erf, erfc

from mfm.graph import collate
from mfm.longrange.energy import long_range_energy
from mfm.units import COULOMB_CONSTANT
from tests.longrange.systems import EXACT_ONLY, MESH_ONLY, energy, gas, graph_of, particles, water_box

MADELUNG = {
    # per formula unit and nearest-neighbour distance: Sakamoto, J. Chem. Phys. 28, 164 (1958) and later digits
    "NaCl": (1.7475645946331822, 0.5),
    "CsCl": (1.7626747730709883, math.sqrt(3.0) / 2.0),
    "ZnS": (1.6380550533879096, math.sqrt(3.0) / 4.0),
}


def crystal(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions, charges, cell of a conventional cubic cell of length 1."""
    faces = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    if name == "CsCl":
        return np.array([[0.0] * 3, [0.5] * 3]), np.array([1.0, -1.0]), np.eye(3)
    shift = 0.25 if name == "ZnS" else 0.5
    return np.concatenate([faces, faces + shift]), np.repeat([1.0, -1.0], 4), np.eye(3)


def short_range(positions: np.ndarray, charges: np.ndarray, cell: np.ndarray, width: float, reach: int = 3) -> float:
    """½ Σ q_i q_j k_e erfc(r/(√2 σ))/r over images: what the Gaussians of the long-range part leave out."""
    total = 0.0
    for shift in itertools.product(range(-reach, reach + 1), repeat=3):
        distances = np.linalg.norm(positions[:, None] - positions[None] + np.array(shift) @ cell, axis=2)
        mask = distances > 1e-9
        safe = np.where(mask, distances, 1.0)
        total += np.sum(np.outer(charges, charges) * mask * erfc(safe / (math.sqrt(2.0) * width)) / safe)
    return 0.5 * COULOMB_CONSTANT * total


@pytest.mark.parametrize("name", MADELUNG)
def test_madelung_constants(name: str) -> None:
    fractions, charges, cell = crystal(name)
    constant, nearest = MADELUNG[name]
    length = 5.6
    found = energy(fractions * length, charges, cell * length, widths=0.9)
    found += short_range(fractions * length, charges, cell * length, 0.9)
    n_pairs = len(charges) // 2
    assert -found * nearest * length / (n_pairs * COULOMB_CONSTANT) == pytest.approx(constant, rel=1e-7)


@pytest.mark.parametrize("width", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("mesh_above", [EXACT_ONLY, MESH_ONLY])
def test_a_lone_charge_has_the_wigner_energy_whatever_its_width(width: float, mesh_above: int) -> None:
    found = energy(
        [[0.3, 0.1, 0.2]], [1.0], np.eye(3) * 10.0, widths=width, k_cutoff=8.0 / width, mesh_above=mesh_above
    )
    expected = -2.837297479 * COULOMB_CONSTANT / 20.0
    assert found == pytest.approx(expected, rel=1e-6 if mesh_above == EXACT_ONLY else 1e-4)


def test_net_charge_of_atoms_with_different_widths() -> None:
    """The background's energy depends on all widths; the sum with short-range parts must not."""
    positions, charges, _ = gas(4)
    cell, charges = np.eye(3) * 9.0, charges + 0.5
    widths = np.array([0.6, 0.6, 0.8, 0.8])

    def total(widths: np.ndarray) -> float:
        found = energy(positions, charges, cell, widths=widths, kinds=[0, 0, 1, 1], k_cutoff=14.0)
        pair = np.sqrt(0.5 * (widths[:, None] ** 2 + widths[None] ** 2))
        for shift in itertools.product((-1, 0, 1), repeat=3):
            distances = np.linalg.norm(positions[:, None] - positions[None] + np.array(shift) @ cell, axis=2)
            mask = distances > 1e-9
            safe = np.where(mask, distances, 1.0)
            bare = np.outer(charges, charges) * mask * erfc(safe / (math.sqrt(2.0) * pair)) / safe
            found += 0.5 * COULOMB_CONSTANT * bare.sum()
        return found

    assert total(widths) == pytest.approx(total(np.full(4, 0.7)), abs=1e-8)


@pytest.mark.parametrize("mesh_above", [EXACT_ONLY, MESH_ONLY], ids=["exact", "mesh"])
def test_pressure_of_a_charged_cell(mesh_above: int) -> None:
    """A lone point charge and its background scale as 1/L: P = E/3V. Slopes are slopes with a net charge."""

    def of_volume(positions: np.ndarray, charges: list[float], cell: np.ndarray, factor: float) -> tuple[float, float]:
        graph = graph_of(positions, cell)
        volume = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
        graph.cell, graph.positions = graph.cell * volume ** (1 / 3), graph.positions * volume ** (1 / 3)
        some = particles(graph, charges, 1.0 + 0.2 * np.arange(len(charges)), np.arange(len(charges)))
        graph.reference_cell = torch.as_tensor(cell)[None]
        found = long_range_energy("coulomb", some, graph, 8.0, mesh_above).sum()
        return float(found.detach()), -float(torch.autograd.grad(found, volume)[0])

    lone, cell = np.array([[0.3, 0.1, 0.2]]), np.eye(3) * 10.0
    value, pressure = of_volume(lone, [1.0], cell, 1.0)  # in units of 1/V
    assert value < -1.0
    assert pressure == pytest.approx(value / 3.0, rel=1e-6 if mesh_above == EXACT_ONLY else 1e-4)
    positions, _, sheared = gas(3)
    _, pressure = of_volume(positions, [1.0, 0.7, -0.2], sheared, 1.0)
    ahead, behind = (of_volume(positions, [1.0, 0.7, -0.2], sheared, 1.0 + step)[0] for step in (1e-4, -1e-4))
    assert pressure == pytest.approx((behind - ahead) / 2e-4, rel=1e-6)


def test_equivalent_cells_have_one_energy() -> None:
    positions, charges, cell = gas()
    expected = energy(positions, charges, cell)
    swapped = cell[[1, 0, 2]]
    sheared = np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]]) @ cell
    turn = Rotation.random(random_state=1).as_matrix()
    wrapped = positions + np.random.default_rng(2).integers(-3, 4, (len(charges), 3)) @ cell
    assert np.linalg.det(swapped) < 0
    assert energy(positions, charges, swapped) == pytest.approx(expected, abs=1e-9)
    assert energy(positions, charges, sheared) == pytest.approx(expected, abs=1e-9)
    assert energy(positions @ turn.T, charges, cell @ turn.T) == pytest.approx(expected, abs=1e-9)
    assert energy(wrapped, charges, cell) == pytest.approx(expected, abs=1e-9)
    both = np.concatenate([positions, positions + cell[2]])
    assert energy(both, np.tile(charges, 2), cell * [[1], [1], [2]]) == pytest.approx(2 * expected, abs=1e-9)


def test_it_is_the_sum_over_wave_vectors() -> None:
    positions, charges, cell = gas()
    widths, kinds = np.where(np.arange(8) < 3, 1.0, 1.3), np.where(np.arange(8) < 3, 5, 2)
    inverse = np.linalg.inv(cell)
    found = 0.0
    for n in itertools.product(range(-14, 15), repeat=3):
        if n == (0, 0, 0):
            continue
        k = 2 * np.pi * inverse @ np.array(n)
        factor = np.sum(charges * np.exp(-0.25 * widths**2 * (k @ k)) * np.exp(1j * positions @ k))
        found += 2 * np.pi * COULOMB_CONSTANT / abs(np.linalg.det(cell)) * abs(factor) ** 2 / (k @ k)
    found -= np.sum(charges**2 * COULOMB_CONSTANT / (math.sqrt(2 * np.pi) * widths))
    assert energy(positions, charges, cell, widths=widths, kinds=kinds, k_cutoff=12.0) == pytest.approx(found, abs=1e-9)


def two_dimensional_sum(positions: np.ndarray, charges: np.ndarray, length: float, width: float) -> float:
    """Energy of Gaussian charges periodic in a square: Parry, Surf. Sci. 49, 433 (1975), with sheets for k = 0."""
    z = positions[:, None, 2] - positions[None, :, 2]
    pairs = np.outer(charges, charges)
    smooth = z * erf(z / (math.sqrt(2) * width)) + width * math.sqrt(2 / np.pi) * np.exp(-(z**2) / (2 * width**2))
    total = -np.pi * np.sum(pairs * smooth)
    for n in itertools.product(range(-10, 11), repeat=2):
        if n == (0, 0):
            continue
        k = 2 * np.pi / length * np.array(n)
        norm, inner = np.linalg.norm(k), (positions[:, None, :2] - positions[None, :, :2]) @ k
        sides = [
            np.exp(sign * norm * z) * erfc(norm * width / math.sqrt(2) + sign * z / (math.sqrt(2) * width))
            for sign in (1, -1)
        ]
        total += 0.5 * np.pi / norm * np.sum(pairs * np.cos(inner) * sum(sides))
    own = np.sum(charges**2) / (math.sqrt(2 * np.pi) * width)
    return float(COULOMB_CONSTANT * (total / length**2 - own))


@pytest.mark.parametrize(
    "charges", [[1.0, -1.0, 0.0], [1.0, -1.3, 0.3], [1.0, 1.0, 0.5]], ids=["dipole", "neutral", "net"]
)
def test_slabs(charges: list[float]) -> None:
    positions = np.array([[0.0, 0.0, 5.0], [1.0, 2.0, 7.0], [3.0, 0.5, 6.2]])
    expected = two_dimensional_sum(positions, np.array(charges), 6.0, 1.0)
    found = []
    for third in ([0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [1.0, 2.0, 40.0]):
        cell = np.array([[6.0, 0.0, 0.0], [0.0, 6.0, 0.0], third])
        found.append(energy(positions, charges, cell, (True, True, False)))
        # the same slab, its normal along the first axis of the cell
        turned = positions[:, [2, 0, 1]]
        found.append(energy(turned, charges, cell[[2, 0, 1]][:, [2, 0, 1]], (False, True, True)))
    assert max(found) - min(found) < 1e-9
    assert found[0] == pytest.approx(expected, abs=2e-9)
    # the length of the cell that it is summed in is not one of its properties either
    graph = graph_of(positions, np.diag([6.0, 6.0, 0.0]), (True, True, False))
    for length in (0.0, 31.0, 47.3, 80.0):
        graph.slab_length = torch.tensor([length], dtype=torch.float64)
        longer = float(long_range_energy("coulomb", particles(graph, charges), graph, 8.0, EXACT_ONLY))
        assert longer == pytest.approx(found[0], abs=1e-9)
    assert energy(
        positions, charges, np.diag([6.0, 6.0, 0.0]), (True, True, False), mesh_above=MESH_ONLY
    ) == pytest.approx(expected, abs=1e-3)


def test_molecules_do_not_see_a_cell() -> None:
    positions, charges, cell = gas()
    widths = np.linspace(0.8, 1.4, 8)
    expected = 0.0
    for i, j in itertools.combinations(range(8), 2):
        distance = np.linalg.norm(positions[i] - positions[j])
        width = math.sqrt(widths[i] ** 2 + widths[j] ** 2)
        expected += COULOMB_CONSTANT * charges[i] * charges[j] * erf(distance / width) / distance
    for box in (None, cell, np.diag([3.0, 0.0, 1.0])):
        assert energy(positions, charges, box, False, widths, np.arange(8)) == pytest.approx(expected, abs=1e-10)


def test_a_large_box_becomes_a_molecule() -> None:
    """Makov and Payne, Phys. Rev. B 51, 4014 (1995): the error falls with the third power of the length."""
    positions, charges, _ = gas()
    alone = energy(positions, charges, widths=1.2)
    errors = [
        energy(positions, charges, np.eye(3) * length, widths=1.2, k_cutoff=5.0) - alone for length in (20.0, 40.0)
    ]
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.05)


def test_mixed_batches_equal_their_structures_one_by_one() -> None:
    positions, _, cell = gas()
    one = graph_of(positions[:5], cell)
    graphs = [
        one, graph_of(positions[:3]), graph_of(positions, cell, (True, False, True)), graph_of(positions, 1.3 * cell),
        graph_of(positions[:1]), graph_of(positions[:6] + 1.0, cell[[1, 2, 0]]),
    ]  # fmt: skip
    batch = collate(graphs)
    generator = np.random.default_rng(4)
    kinds = generator.integers(1, 4, batch.n_atoms)
    values, widths = generator.standard_normal((batch.n_atoms, 2)), np.array([0.0, 1.0, 1.2, 1.1])[kinds]
    for mesh_above in (EXACT_ONLY, 5):
        together = long_range_energy("coulomb", particles(batch, values, widths, kinds), batch, 5.6, mesh_above)
        for number, graph in enumerate(graphs):
            mine = (batch.batch == number).numpy()
            alone = particles(graph, values[mine], widths[mine], kinds[mine])
            expected = float(long_range_energy("coulomb", alone, graph, 5.6, mesh_above))
            assert float(together[number]) == pytest.approx(expected, abs=1e-10)


def test_float32_phases_are_precise_enough() -> None:
    """What is left is far below what a float32 network resolves."""
    positions, charges, cell = water_box()
    graph = graph_of(positions, cell)
    exact, single = (
        float(long_range_energy("coulomb", particles(graph, charges)._replace(precision=dtype), graph, 5.6, EXACT_ONLY))
        for dtype in (torch.float64, torch.float32)
    )
    assert single != exact
    assert abs(single - exact) / len(charges) < 1e-6


@pytest.mark.parametrize("n_points", [61, pytest.param(601, marks=pytest.mark.slow)])
def test_nothing_jumps_as_a_cell_breathes(n_points: int) -> None:
    positions, charges, cell = water_box()
    scales = np.linspace(0.95, 1.05, n_points) ** (1 / 3)
    kinds = (charges > 0).astype(int)
    energies, slopes = [], []
    for scale in scales:
        graph = graph_of(positions * scale, cell * scale)
        volume = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        factor = volume ** (1.0 / 3.0)
        graph.cell, graph.positions = graph.cell * factor, graph.positions * factor
        found = long_range_energy("coulomb", particles(graph, charges, 1.0, kinds), graph, 5.6, EXACT_ONLY).sum()
        energies.append(float(found.detach()))
        slopes.append(float(torch.autograd.grad(found, volume)[0]) / scale**3)
    # fourth differences of a smooth curve vanish with the fourth power of the step: 1.7e-3 in volume, or a tenth of it
    jumps = np.abs(np.diff(energies, 4)) / len(charges)
    assert jumps.max() < 1e-6
    volumes = scales**3
    step = volumes[1] - volumes[0]
    middle = np.array(energies)
    derivative = (8 * (middle[3:-1] - middle[1:-3]) - (middle[4:] - middle[:-4])) / (12 * step)
    np.testing.assert_allclose(derivative, np.array(slopes)[2:-2], rtol=1e-6)
