"""Heads against closed forms, and how fidelities start."""

import numpy as np
import pytest
import torch

from mfm.config import validate
from mfm.density.basis import STARTS
from mfm.graph import AtomicGraph, Structure, build_graph
from mfm.heads import HEADS
from mfm.heads.base import PartSetting
from mfm.heads.electrons import ElectronicHeads
from mfm.heads.joins import part_bases
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from mfm.nn.harmonics import real_harmonics, second_degree_matrices
from mfm.units import conversion_factor
from tests.densities import toy_basis

TINY = {"n_channels": 8, "n_product_channels": 8, "max_degree": 2, "n_radial": 4, "n_message_channels": 4}


def point_charges(numbers: list[int], positions: np.ndarray, charges: list[float]) -> tuple[dict, AtomicGraph]:
    graph = build_graph(Structure(np.array(numbers), positions, multiplicity=None), 4.0, dtype=torch.float64)
    zero = torch.zeros(len(numbers), 3, dtype=torch.float64)
    return {
        "charges": torch.tensor(charges, dtype=torch.float64),
        "atomic_dipoles": zero,
        "atomic_quadrupoles": torch.zeros(len(numbers), 3, 3, dtype=torch.float64),
    }, graph


def make(tasks: dict[str, dict], seed: int = 0, **options: object) -> MFMModel:
    config = validate(ModelConfig, {"backbone": TINY, "tasks": tasks, **options})
    energies = [name.partition("_")[2] for name in tasks if name.startswith("energy_")]
    domain = Domain(
        references={f: {1: -13.0, 8: -2040.0} for f in energies},
        levels={},
        atomic_numbers=(1, 8),
        density_bases={"a": toy_basis(1, 8), "b": toy_basis(1, 8), "c": toy_basis(1, 6, 8)},
    )
    return build_model(config, domain, seed, torch.float64)


def water() -> AtomicGraph:
    positions = np.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.4]])
    return build_graph(Structure(np.array([8, 1, 1]), positions), 5.0, dtype=torch.float64)


def test_the_dipole_of_two_charges_one_angstrom_apart() -> None:
    moments, graph = point_charges([1, 1], np.array([[5.0, 0.0, 0.0], [6.0, 0.0, 0.0]]), [-1.0, 1.0])
    value = HEADS["dipole"].evaluate(moments, graph)[0]
    np.testing.assert_allclose(value, [1.0, 0.0, 0.0], atol=1e-14)
    # the textbook number: 4.80320 D
    assert value[0].item() * conversion_factor("e*Å", "D") == pytest.approx(4.80320, abs=1e-5)


def test_the_dipole_of_an_ion_is_about_the_nuclear_charge_centre() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.9]])
    centre = 0.9 / 9.0  # of O at the origin and H
    for shift in (0.0, 50.0):
        moments, graph = point_charges([8, 1], positions + shift, [-1.2, 0.2])
        found = HEADS["dipole"].evaluate(moments, graph)[0, 2].item()
        assert found == pytest.approx(0.2 * 0.9 + 1.0 * centre, abs=1e-12)


def test_the_quadrupole_of_a_line_of_charges() -> None:
    """+q at ±a on z, −2q between: Σ q z² = 2 q a², of which the traceless part is diag(−1, −1, 2)/3 times that."""
    positions = np.array([[0.0, 0.0, -1.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]) + 7.0
    moments, graph = point_charges([8, 6, 8], positions, [0.3, -0.6, 0.3])
    value = HEADS["quadrupole"].evaluate(moments, graph)[0]
    np.testing.assert_allclose(value, np.diag([-1.0, -1.0, 2.0]) * 2 * 0.3 * 1.5**2 / 3, atol=1e-12)


def test_atomic_dipoles_make_quadrupoles() -> None:
    """Dipoles ±p along z at ±a: charges ±p/h, h apart, in the limit; Σ (μ z + z μ) = 4 p a."""
    height = 1e-5
    positions = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    moments, graph = point_charges([8, 8], positions, [0.0, 0.0])
    moments["atomic_dipoles"] = torch.tensor([[0.0, 0.0, -0.1], [0.0, 0.0, 0.1]], dtype=torch.float64)
    value = HEADS["quadrupole"].evaluate(moments, graph)[0]
    ends = np.array([[0.0, 0.0, z + sign * height / 2] for z in (-1.0, 1.0) for sign in (-1, 1)])
    split = np.einsum("i,ia,ib->ab", np.array([1, -1, -1, 1]) * 0.1 / height, ends, ends)
    np.testing.assert_allclose(value, split - np.trace(split) / 3 * np.eye(3), atol=1e-8)
    assert value[2, 2].item() == pytest.approx(4 * 0.1 * 2 / 3)


def test_second_degree_matrices_are_the_harmonics() -> None:
    points = np.random.default_rng(0).normal(size=(10, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    matrices = second_degree_matrices()
    found = np.einsum("mab,pa,pb->pm", matrices, points, points)
    np.testing.assert_allclose(found, real_harmonics(points, 2)[:, 4:], atol=1e-12)
    np.testing.assert_allclose(np.trace(matrices, axis1=1, axis2=2), 0.0, atol=1e-12)


def test_before_training_a_correction_is_zero_and_molecules_are_their_charges() -> None:
    properties = ("charges", "dipole", "quadrupole", "polarizability")
    tasks = {f"{prop}_a": {} for prop in properties} | {f"{prop}_b": {"anchor": f"{prop}_a"} for prop in properties}
    model, graph = make(tasks), water()
    found = model.predict(graph)
    for prop in properties:
        torch.testing.assert_close(found[f"{prop}_b"], found[f"{prop}_a"], rtol=0, atol=1e-14)
    # electronegativity sets the start: oxygen negative, the dipole of water along its axis
    assert found["charges_a"][0] < -0.1
    assert found["dipole_a"][0].abs().argmax() == 2
    charges = found["charges_a"]
    torch.testing.assert_close(found["dipole_a"][0], charges @ graph.positions)


def test_long_range_and_labels_have_one_charge_state() -> None:
    tasks = {"energy_a": {}, "charges_a": {}, "charges_b": {}}
    model = make(tasks, long_range={"smallest_width": 1.2})
    assert model.charge_state is None
    found = model(water(), ["charges_a", "charges_b"], quantities=["energy_long_range_a"])
    assert set(found) == {"charges_a", "charges_b", "energy_long_range_a"}
    state = model.long_range.owners["all"].state(model.backbone(water()).scalars, water())
    torch.testing.assert_close(found["charges_a"], state.charges[:, 0])
    # the second fidelity has an offset of its own
    assert [name for name, _ in model.electrons.offsets.named_children()] == ["b"]
    found["energy_long_range_a"].sum().backward()
    gradient = model.long_range.owners["all"].state.pulls.grad
    assert gradient.any()
    assert make(tasks, long_range={"fidelities": "own"}).charge_state is not None


def test_heads_of_a_fidelity_share_its_parts() -> None:
    tasks = {"dipole_a": {}, "quadrupole_a": {}, "atomic_dipoles_a": {}, "polarizability_b": {}}
    model = make(tasks)
    assert sorted(name for name, _ in model.electrons.parts.named_children()) == [
        "atomic_dipoles_a", "atomic_polarizabilities_b", "atomic_quadrupoles_a",
    ]  # fmt: skip
    assert model.properties("a") == ["atomic_dipoles", "dipole", "quadrupole", "born_effective_charges"]
    assert model.properties("b") == ["polarizability"]


def test_a_new_property_beside_an_anchored_one_is_free() -> None:
    tasks = {"dipole_a": {}, "dipole_b": {"anchor": "dipole_a"}, "quadrupole_b": {}}
    config = validate(ModelConfig, {"tasks": tasks})
    bases = part_bases(config.tasks)
    assert bases["b", "atomic_dipoles"] == bases["b", "charges"] == "a"
    assert bases["b", "atomic_quadrupoles"] is None
    heads = ElectronicHeads(config.tasks, PartSetting(n_scalars=4, n_channels=4, degree=2, cutoff=5.0), {})
    assert sorted(heads.offsets) == ["b"]


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"needs features of degree 2, got `backbone\.equivariant_degree` 1; raise"):
        make({"quadrupole_a": {}}, backbone={**TINY, "equivariant_degree": 1})
    with pytest.raises(ValueError, match="`long_range` adds to energies, but no task is one; leave it out"):
        make({"dipole_a": {}}, long_range={})
    with pytest.raises(ValueError, match="task `density_d` needs a basis, which comes with labels: name their file as"):
        make({"density_d": {}})
    with pytest.raises(
        ValueError, match="task `density_c` must have the basis and the free atoms of the density it is"
    ):
        make({"density_a": {}, "density_c": {"anchor": "density_a"}})


def test_before_training_a_density_is_free_atoms_with_the_charges_of_the_state() -> None:
    model, graph = make({"charges_a": {}, "density_a": {}, "density_b": {"anchor": "density_a"}}), water()
    found = model.predict(graph)
    torch.testing.assert_close(found["density_b"], found["density_a"], rtol=0, atol=1e-14)
    rows, basis = found["density_a"].numpy(), toy_basis(1, 8)
    np.testing.assert_allclose(basis.electrons(rows, np.array([8, 1, 1])), -found["charges_a"].numpy(), atol=1e-12)
    assert not rows[:, STARTS[1] :].any()


def test_the_electron_number_is_exact_in_single_precision() -> None:
    model, graph = make({"density_a": {}}).float(), water()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.electrons.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    graph = build_graph(Structure(np.array([8, 1, 1]), graph.positions.numpy(), charge=-1, multiplicity=2), 5.0)
    rows = model.predict(graph)["density_a"].numpy()
    assert np.abs(rows).max() > 0.1
    assert toy_basis(1, 8).electrons(rows, np.array([8, 1, 1])).sum() == pytest.approx(1.0, abs=1e-12)


def test_what_a_model_without_energies_is_asked_for() -> None:
    model = make({"dipole_a": {}})
    with pytest.raises(ValueError, match="this model has tasks dipole_a, got `energy_a`"):
        model(water(), derivatives=["forces_a"])
    with pytest.raises(
        ValueError, match=r"quantities dipole_a, born_effective_charges_a, got `charges_a`; charges and"
    ):
        model(water(), quantities=["charges_a"])
    assert model.elements == [1, 8]
