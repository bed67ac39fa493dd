"""What every head of an electronic property must obey, however its fidelities are joined.

Tolerances as in the contract of energies.
"""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mfm.density.basis import STARTS
from mfm.density.whitening import add_metric
from mfm.graph import Structure, build_graph, collate
from mfm.heads import HEADS
from mfm.losses import combine, loss_terms
from mfm.model import Domain, MFMModel, ModelConfig
from mfm.properties import DENSITY_WIDTH, PROPERTIES, parse_task
from tests.contract.test_model_contract import EXACT, moved
from tests.densities import toy_basis, turned_rows

FIDELITIES = ("low", "high")
TASKS = [f"{prop}_{fidelity}" for prop in HEADS for fidelity in FIDELITIES]
IN_CRYSTALS = [task for task in TASKS if not PROPERTIES[parse_task(task).property].isolated]
POLAR_TENSORS = [f"born_effective_charges_{fidelity}" for fidelity in FIDELITIES]


def evaluate(
    model: MFMModel, structure: Structure, tasks: list[str] | None = None, quantities: list[str] | None = None
) -> dict[str, np.ndarray]:
    graph = build_graph(structure, model.cutoff, dtype=torch.float64)
    outputs = model.predict(graph, TASKS if tasks is None else tasks, quantities=quantities or [])
    return {name: value.numpy() for name, value in outputs.items()}


def turned(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Values (n, 3, …, 3), each Cartesian axis turned."""
    for axis in range(1, values.ndim):
        values = np.moveaxis(np.tensordot(values, matrix, axes=(axis, 1)), -1, axis)
    return values


def is_atomic(task: str) -> bool:
    return PROPERTIES[parse_task(task).property].per == "atom"


def test_every_output_has_the_shape_of_its_property(electronic_model: MFMModel, molecule: Structure) -> None:
    for task, value in evaluate(electronic_model, molecule).items():
        row = PROPERTIES[parse_task(task).property]
        assert value.shape == (len(molecule) if row.per == "atom" else 1, *row.shape)
        assert np.abs(value).max() > 1e-3


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
def test_heads_turn_with_the_molecule(electronic_model: MFMModel, molecule: Structure, improper: bool) -> None:
    matrix = Rotation.random(random_state=3).as_matrix() * (-1.0 if improper else 1.0)
    before = evaluate(electronic_model, molecule, quantities=POLAR_TENSORS)
    after = evaluate(electronic_model, moved(molecule, positions=molecule.positions @ matrix.T), None, POLAR_TENSORS)
    for task, value in before.items():
        expected = turned_rows(value, matrix) if task.startswith("density") else turned(value, matrix)
        np.testing.assert_allclose(after[task], expected, rtol=0, atol=EXACT)


def tensors_in_crystals(model: MFMModel) -> list[str]:
    """Polar tensors that a crystal has: none if its atoms have charges of their own, see `check_polarisation`."""
    long_range = model.config.long_range
    return [] if long_range is not None and long_range.own_charges else POLAR_TENSORS


def test_heads_turn_with_the_crystal(electronic_model: MFMModel, crystal: Structure) -> None:
    matrix = -Rotation.random(random_state=3).as_matrix()
    other = moved(crystal, positions=crystal.positions @ matrix.T, cell=crystal.cell @ matrix.T)
    before, after = (
        evaluate(electronic_model, which, IN_CRYSTALS, tensors_in_crystals(electronic_model))
        for which in (crystal, other)
    )
    for task, value in before.items():
        np.testing.assert_allclose(after[task], turned(value, matrix), rtol=0, atol=EXACT)


def test_moments_of_an_ion_do_not_depend_on_where_it_is(electronic_model: MFMModel, molecule: Structure) -> None:
    shifted = moved(molecule, positions=molecule.positions + np.array([3.1, -7.2, 11.9]))
    before, after = evaluate(electronic_model, molecule), evaluate(electronic_model, shifted)
    for task, value in before.items():
        np.testing.assert_allclose(after[task], value, rtol=0, atol=EXACT)


def test_heads_follow_the_order_of_atoms(electronic_model: MFMModel, molecule: Structure) -> None:
    order = np.array([4, 2, 0, 5, 1, 3])
    swapped = moved(molecule, atomic_numbers=molecule.atomic_numbers[order], positions=molecule.positions[order])
    before, after = evaluate(electronic_model, molecule), evaluate(electronic_model, swapped)
    for task, value in before.items():
        np.testing.assert_allclose(after[task], value[order] if is_atomic(task) else value, rtol=0, atol=EXACT)


def test_a_batch_equals_its_structures(electronic_model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    atom = Structure(np.array([8]), np.zeros((1, 3)), multiplicity=3)
    in_crystals = tensors_in_crystals(electronic_model)[:1]
    for structures, tasks, tensors in (
        ([molecule, atom, molecule], TASKS, POLAR_TENSORS[:1]),
        ([crystal, molecule, atom], IN_CRYSTALS, in_crystals),
    ):
        graphs = [build_graph(structure, electronic_model.cutoff, dtype=torch.float64) for structure in structures]
        together = electronic_model.predict(collate(graphs), tasks, quantities=tensors)
        alone = [electronic_model.predict(graph, tasks, quantities=tensors) for graph in graphs]
        for name, value in together.items():
            torch.testing.assert_close(value, torch.cat([single[name] for single in alone]), rtol=0, atol=EXACT)


def test_charges_add_up_to_the_total(electronic_model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    for structure, charge in ((molecule, 1), (moved(molecule, charge=-1, multiplicity=None), -1), (crystal, 0)):
        for fidelity in FIDELITIES:
            found = evaluate(electronic_model, structure, [f"charges_{fidelity}"])[f"charges_{fidelity}"]
            assert found.sum() == pytest.approx(charge, abs=EXACT)


def test_the_monopoles_of_a_density_are_the_charges(electronic_model: MFMModel, molecule: Structure) -> None:
    found, basis = evaluate(electronic_model, molecule), toy_basis(1, 6, 8)
    for fidelity in FIDELITIES:
        electrons = basis.electrons(found[f"density_{fidelity}"], molecule.atomic_numbers)
        np.testing.assert_allclose(electrons, -found[f"charges_{fidelity}"], rtol=0, atol=EXACT)


def test_the_dipole_of_a_density_is_the_dipole(electronic_model: MFMModel, molecule: Structure) -> None:
    found, basis = evaluate(electronic_model, molecule), toy_basis(1, 6, 8)
    for fidelity in FIDELITIES:
        dipole = basis.dipole(found[f"density_{fidelity}"], molecule)
        np.testing.assert_allclose(dipole, found[f"dipole_{fidelity}"][0], rtol=0, atol=EXACT)


def test_moments_are_those_of_charges_and_atomic_dipoles(electronic_model: MFMModel, molecule: Structure) -> None:
    found = evaluate(electronic_model, molecule)
    numbers = molecule.atomic_numbers
    relative = molecule.positions - numbers @ molecule.positions / numbers.sum()
    for fidelity in FIDELITIES:
        charges, dipoles = found[f"charges_{fidelity}"], found[f"atomic_dipoles_{fidelity}"]
        np.testing.assert_allclose(found[f"dipole_{fidelity}"][0], charges @ relative + dipoles.sum(axis=0), atol=EXACT)
        for name in ("quadrupole", "polarizability"):
            np.testing.assert_allclose(found[f"{name}_{fidelity}"][0], found[f"{name}_{fidelity}"][0].T, atol=EXACT)
        assert np.trace(found[f"quadrupole_{fidelity}"][0]) == pytest.approx(0.0, abs=EXACT)


def test_an_isolated_atom_is_a_sphere(electronic_model: MFMModel) -> None:
    outputs = evaluate(electronic_model, Structure(np.array([8]), np.array([[1.0, 2.0, 3.0]]), charge=1))
    for fidelity in FIDELITIES:
        assert outputs[f"charges_{fidelity}"][0] == pytest.approx(1.0, abs=EXACT)
        for name in ("atomic_dipoles", "dipole", "quadrupole"):
            np.testing.assert_allclose(outputs[f"{name}_{fidelity}"], 0.0, atol=EXACT)
        assert not outputs[f"density_{fidelity}"][:, STARTS[1] :].any()
        polarizability = outputs[f"polarizability_{fidelity}"][0]
        np.testing.assert_allclose(polarizability, polarizability[0, 0] * np.eye(3), atol=EXACT)


def test_distant_copies_have_the_electrons_of_one(electronic_model: MFMModel, molecule: Structure) -> None:
    # with charges of their own, what atoms lack to the total is shared by all of them
    molecule = moved(molecule, charge=0, multiplicity=2)
    one = evaluate(electronic_model, molecule)
    positions = np.concatenate([molecule.positions, molecule.positions + 1e3])
    two = evaluate(electronic_model, Structure(np.tile(molecule.atomic_numbers, 2), positions, multiplicity=3))
    for task, value in one.items():
        if is_atomic(task):
            np.testing.assert_allclose(two[task][: len(molecule)], value, rtol=0, atol=EXACT)
        elif PROPERTIES[parse_task(task).property].extensive:
            np.testing.assert_allclose(two[task], 2.0 * value, rtol=0, atol=1e-9)


def test_heads_are_smooth_at_the_cutoff(electronic_model: MFMModel) -> None:
    def pair(distance: float) -> dict[str, np.ndarray]:
        positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [0.0, 1.1, 0.0]])
        return evaluate(electronic_model, Structure(np.array([6, 8, 1]), positions))

    step = 1e-5
    inside, outside = pair(electronic_model.cutoff - step), pair(electronic_model.cutoff + step)
    for task, value in inside.items():
        # shares of the total, if any, stay; positions move the moments of a charge by charge times step
        np.testing.assert_allclose(outside[task], value, rtol=0, atol=1e-9 if is_atomic(task) else 1e-3)


def test_polar_tensors_are_slopes_of_the_dipole(electronic_model: MFMModel, molecule: Structure) -> None:
    step, neutral = 1e-4, moved(molecule, charge=0, multiplicity=2)
    for structure in (neutral, molecule):
        found = evaluate(electronic_model, structure, [], POLAR_TENSORS)
        numbers = structure.atomic_numbers
        for atom, axis in ((0, 0), (2, 1)):
            outputs = []
            for sign in (1.0, -1.0):
                positions = structure.positions.copy()
                positions[atom, axis] += sign * step
                outputs.append(evaluate(electronic_model, moved(structure, positions=positions)))
            # the origin moves with the nuclei, which the polar tensor of an ion must not see
            origin = structure.charge * numbers[atom] / numbers.sum() * np.eye(3)[axis]
            for fidelity in FIDELITIES:
                slope = (outputs[0][f"dipole_{fidelity}"] - outputs[1][f"dipole_{fidelity}"])[0] / (2.0 * step)
                tensor = found[f"born_effective_charges_{fidelity}"][atom, :, axis]
                np.testing.assert_allclose(tensor, slope + origin, rtol=0, atol=1e-6)
        for tensors in found.values():
            np.testing.assert_allclose(tensors.sum(axis=0), structure.charge * np.eye(3), rtol=0, atol=EXACT)


def test_a_periodic_structure_has_no_moments(
    electronic_model: MFMModel, crystal: Structure, molecule: Structure
) -> None:
    for task in TASKS:
        if task not in IN_CRYSTALS:
            with pytest.raises(ValueError, match=f"`{task}` of a periodic structure depends on the choice of its cell"):
                evaluate(electronic_model, crystal, [task])
    graphs = [build_graph(structure, electronic_model.cutoff, dtype=torch.float64) for structure in (crystal, molecule)]
    assert not set(electronic_model.predict(graphs[0])) & (set(TASKS) - set(IN_CRYSTALS))
    mixed = electronic_model(collate(graphs), TASKS)  # a batch of training may hold both
    assert torch.isnan(mixed["dipole_low"][0]).all()
    assert torch.isfinite(mixed["dipole_low"][1]).all()


def test_missing_labels_of_heads_carry_no_gradient(
    electronic_model: MFMModel, molecule: Structure, crystal: Structure
) -> None:
    labelled = {"charges_low": np.zeros(6), "dipole_high": np.ones(3), "quadrupole_low": np.eye(3)}
    labelled["density_low"] = np.zeros((6, DENSITY_WIDTH))
    graphs = [
        build_graph(molecule, electronic_model.cutoff, labelled, TASKS, torch.float64),
        build_graph(crystal, electronic_model.cutoff, {}, TASKS, torch.float64),
    ]
    for graph, structure, present in ((graphs[0], molecule, "density_low"), (graphs[1], crystal, "")):
        for task in ("density_low", "density_high"):
            add_metric(graph, task, structure, toy_basis(1, 6, 8) if task == present else None)
    gradients = []
    for batch in (graphs[0], collate(graphs)):
        electronic_model.zero_grad()
        terms = loss_terms(electronic_model(batch, TASKS), batch, electronic_model.config.tasks, 1.0)
        combine(terms).backward()
        gradients.append([p.grad.clone() for p in electronic_model.parameters() if p.grad is not None and p.grad.any()])
    assert len(gradients[0]) > 10
    for alone, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_fidelities_of_a_head_differ(electronic_model: MFMModel, molecule: Structure) -> None:
    found = evaluate(electronic_model, molecule)
    for prop in HEADS:
        assert np.abs(found[f"{prop}_high"] - found[f"{prop}_low"]).max() > 1e-4


def test_heads_survive_json(electronic_model: MFMModel, molecule: Structure) -> None:
    config = ModelConfig.model_validate_json(electronic_model.config.model_dump_json())
    domain = Domain.from_dict(json.loads(json.dumps(electronic_model.domain.to_dict())))
    twin = MFMModel(config, domain).double()
    twin.load_state_dict(electronic_model.state_dict())
    before, after = evaluate(electronic_model, molecule), evaluate(twin, molecule)
    assert twin.elements == electronic_model.elements
    for task, value in before.items():
        np.testing.assert_array_equal(after[task], value)
