"""What every model must obey, whatever its backbone and however its fidelities are joined.

Tolerances: float64 energies of order 10 eV carry 1e-14 of relative rounding through some hundred operations, so
identities hold to 1e-10 eV and 1e-10 eV/Å. Central differences with a step h of 1e-4 Å have an error of h² times a
third derivative of order 10: 1e-6 is asked for.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mfm.graph import Structure, build_graph, collate
from mfm.losses import combine, loss_terms
from mfm.model import Domain, MFMModel, ModelConfig

EXACT = 1e-10
ENERGIES = ["energy_low", "energy_high"]
FORCES = ["forces_low", "forces_high"]
STRESS = ["stress_low", "stress_high"]


def evaluate(model: MFMModel, structure: Structure, derivatives: list[str] | None = None) -> dict[str, np.ndarray]:
    graph = build_graph(structure, model.cutoff, dtype=torch.float64)
    outputs = model.predict(graph, derivatives=FORCES if derivatives is None else derivatives)
    return {name: value.numpy() for name, value in outputs.items()}


def moved(structure: Structure, **changes: object) -> Structure:
    return dataclasses.replace(structure, **changes)


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_rotation_and_reflection(model: MFMModel, kind: str, improper: bool, request: pytest.FixtureRequest) -> None:
    structure = request.getfixturevalue(kind)
    matrix = Rotation.random(random_state=3).as_matrix() * (-1.0 if improper else 1.0)
    turned = moved(structure, positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T)
    wanted = FORCES + (STRESS if kind == "crystal" else [])
    before, after = evaluate(model, structure, wanted), evaluate(model, turned, wanted)
    for name in ENERGIES:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=EXACT)
    for name in FORCES:
        np.testing.assert_allclose(after[name], before[name] @ matrix.T, rtol=0, atol=EXACT)
    for name in wanted[2:]:
        np.testing.assert_allclose(after[name][0], matrix @ before[name][0] @ matrix.T, rtol=0, atol=EXACT)


def test_translation(model: MFMModel, crystal: Structure) -> None:
    shifted = moved(crystal, positions=crystal.positions + np.array([3.1, -7.2, 11.9]))
    before, after = evaluate(model, crystal), evaluate(model, shifted)
    for name in ENERGIES + FORCES:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=EXACT)


def test_wrapping_an_atom_into_another_cell_changes_nothing(model: MFMModel, crystal: Structure) -> None:
    positions = crystal.positions.copy()
    positions[2] += 2.0 * crystal.cell[0] - crystal.cell[2]
    before, after = evaluate(model, crystal), evaluate(model, moved(crystal, positions=positions))
    for name in ENERGIES + FORCES:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=EXACT)


def test_permutation(model: MFMModel, molecule: Structure) -> None:
    order = np.array([4, 2, 0, 5, 1, 3])
    swapped = moved(molecule, atomic_numbers=molecule.atomic_numbers[order], positions=molecule.positions[order])
    before, after = evaluate(model, molecule), evaluate(model, swapped)
    for name in ENERGIES:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=EXACT)
    for name in FORCES:
        np.testing.assert_allclose(after[name], before[name][order], rtol=0, atol=EXACT)


def test_a_batch_equals_its_structures_one_by_one(model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    structures = [crystal, molecule, Structure(np.array([8]), np.zeros((1, 3)), multiplicity=3), crystal]
    graphs = [build_graph(structure, model.cutoff, dtype=torch.float64) for structure in structures]
    together = model.predict(collate(graphs), derivatives=FORCES + STRESS)
    alone = [model.predict(graph, derivatives=FORCES + STRESS) for graph in graphs]
    for name, value in together.items():
        expected = torch.cat([single[name] for single in alone])
        torch.testing.assert_close(value, expected, rtol=0, atol=EXACT, equal_nan=True)


def test_forces_are_minus_the_gradient(model: MFMModel, molecule: Structure) -> None:
    step = 1e-4
    outputs = evaluate(model, molecule)
    for atom, axis in ((0, 0), (2, 1), (4, 2)):
        energies = []
        for sign in (1.0, -1.0):
            positions = molecule.positions.copy()
            positions[atom, axis] += sign * step
            energies.append(evaluate(model, moved(molecule, positions=positions)))
        for name, force in zip(ENERGIES, FORCES, strict=True):
            slope = (energies[0][name][0] - energies[1][name][0]) / (2.0 * step)
            assert outputs[force][atom, axis] == pytest.approx(-slope, abs=1e-6)


PRODUCTS = ["hessian_product_low", "hessian_product_high"]


def products(model: MFMModel, structures: list[Structure], probes: list[np.ndarray]) -> dict[str, np.ndarray]:
    graphs = [
        build_graph(
            structure,
            model.cutoff,
            {"probe_low": probe, "probe_high": 2.0 * probe},
            ["probe_low", "probe_high"],
            torch.float64,
        )
        for structure, probe in zip(structures, probes, strict=True)
    ]
    outputs = model.predict(collate(graphs), ENERGIES, derivatives=PRODUCTS)
    return {name: outputs[name].numpy() for name in PRODUCTS}


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_hessian_products_are_slopes_of_the_forces(model: MFMModel, kind: str, request: pytest.FixtureRequest) -> None:
    structure, step = request.getfixturevalue(kind), 1e-4
    probe = np.random.default_rng(0).normal(size=structure.positions.shape)
    found = products(model, [structure], [probe])
    ends = [evaluate(model, moved(structure, positions=structure.positions + s * step * probe)) for s in (1.0, -1.0)]
    for name, force, factor in zip(PRODUCTS, FORCES, (1.0, 2.0), strict=True):
        slope = (ends[1][force] - ends[0][force]) / (2.0 * step)
        assert np.abs(slope).max() > 0.1
        # fifth derivatives of order 1e3 eV/Å^5 with probes of three standard deviations
        np.testing.assert_allclose(found[name], factor * slope, rtol=0, atol=2e-5)


def test_hessian_products_turn_with_the_structure_and_stand_alone_in_a_batch(
    model: MFMModel, molecule: Structure, crystal: Structure
) -> None:
    matrix = -Rotation.random(random_state=4).as_matrix()
    rng = np.random.default_rng(1)
    probes = [rng.normal(size=structure.positions.shape) for structure in (molecule, crystal)]
    straight = products(model, [molecule, crystal], probes)
    turned = moved(molecule, positions=molecule.positions @ matrix.T)
    alone = products(model, [turned], [probes[0] @ matrix.T])
    for name in PRODUCTS:
        np.testing.assert_allclose(alone[name], straight[name][:6] @ matrix.T, rtol=0, atol=1e-8)


def test_stress_is_the_strain_derivative_over_the_volume(model: MFMModel, crystal: Structure) -> None:
    step = 1e-4
    volume = abs(np.linalg.det(crystal.cell))
    stress = evaluate(model, crystal, STRESS)
    for row, column in ((0, 0), (1, 2), (2, 0)):
        energies = []
        for sign in (1.0, -1.0):
            strain = np.zeros((3, 3))
            strain[row, column] += 0.5 * sign * step
            strain[column, row] += 0.5 * sign * step
            deformation = np.eye(3) + strain
            strained = moved(crystal, positions=crystal.positions @ deformation, cell=crystal.cell @ deformation)
            energies.append(evaluate(model, strained, []))
        for name, output in zip(ENERGIES, STRESS, strict=True):
            slope = (energies[0][name][0] - energies[1][name][0]) / (2.0 * step)
            assert stress[output][0, row, column] == pytest.approx(slope / volume, abs=1e-7)


def test_stress_of_a_molecule_is_missing(model: MFMModel, molecule: Structure) -> None:
    assert np.isnan(evaluate(model, molecule, STRESS)["stress_low"]).all()


def test_energy_and_forces_are_smooth_at_the_cutoff(model: MFMModel) -> None:
    def pair(distance: float) -> dict[str, np.ndarray]:
        positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [0.0, 1.1, 0.0]])
        return evaluate(model, Structure(np.array([6, 8, 1]), positions))

    step = 1e-5
    inside, outside = pair(model.cutoff - step), pair(model.cutoff + step)
    for energy, force in zip(ENERGIES, FORCES, strict=True):
        # a long-range part still acts there, with a gradient of its forces below 0.1 eV/Å²
        work = 2.0 * step * outside[force][1, 0]
        np.testing.assert_allclose(inside[energy], outside[energy] + work, rtol=0, atol=1e-9)
        np.testing.assert_allclose(inside[force], outside[force], rtol=0, atol=1e-6 if model.long_range else 1e-9)


def test_an_isolated_atom_has_its_reference_energy(model: MFMModel) -> None:
    for number, multiplicity in ((1, 2), (6, 3), (8, 3)):
        outputs = evaluate(model, Structure(np.array([number]), np.zeros((1, 3)), multiplicity=multiplicity))
        for fidelity in model.fidelities:
            assert outputs[f"energy_{fidelity}"][0] == model.domain.references[fidelity][number]
            assert not outputs[f"forces_{fidelity}"].any()


def test_distant_copies_double_the_energy(model: MFMModel, molecule: Structure) -> None:
    # charged copies repel each other at any distance if the model has a long range, neutral ones as 1/r³; where atoms
    # have charges of their own, forces fall as 1/r² only, since what these lack to the total is shared by all atoms
    charge = 0 if model.long_range else molecule.charge
    molecule = moved(molecule, charge=charge, multiplicity=2 if model.long_range else molecule.multiplicity)
    one = evaluate(model, molecule)
    both = np.concatenate([molecule.positions, molecule.positions + 1e5])
    numbers = np.tile(molecule.atomic_numbers, 2)
    # two of the same state: the shares of charge and unpaired electrons are those of one
    two = evaluate(model, Structure(numbers, both, charge=2 * charge, multiplicity=2 * molecule.multiplicity - 1))
    for name, force in zip(ENERGIES, FORCES, strict=True):
        assert two[name][0] == pytest.approx(2.0 * one[name][0], abs=EXACT)
        np.testing.assert_allclose(two[force][: len(molecule)], one[force], rtol=0, atol=EXACT)


def test_a_supercell_has_the_energy_of_its_cells(model: MFMModel, crystal: Structure) -> None:
    one = evaluate(model, crystal, STRESS)
    positions = np.concatenate([crystal.positions, crystal.positions + crystal.cell[1]])
    cell = crystal.cell * np.array([[1.0], [2.0], [1.0]])
    two = evaluate(model, Structure(np.tile(crystal.atomic_numbers, 2), positions, cell, crystal.pbc), STRESS)
    for name in ENERGIES:
        assert two[name][0] == pytest.approx(2.0 * one[name][0], abs=EXACT)
    for name in STRESS:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=EXACT)


def test_a_box_without_periodicity_is_ignored(model: MFMModel, molecule: Structure) -> None:
    before, after = evaluate(model, molecule), evaluate(model, moved(molecule, cell=np.diag([4.0, 5.0, 6.0])))
    for name in ENERGIES + FORCES:
        np.testing.assert_array_equal(after[name], before[name])


def test_charge_and_multiplicity_change_the_energy(model: MFMModel, molecule: Structure) -> None:
    charged = evaluate(model, molecule)
    for other in (moved(molecule, charge=-1, multiplicity=None), moved(molecule, multiplicity=1)):
        assert abs(evaluate(model, other)["energy_low"][0] - charged["energy_low"][0]) > 1e-6


def test_missing_labels_carry_no_gradient(model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    names = [*ENERGIES, *FORCES, *STRESS, *PRODUCTS, "probe_low", "probe_high"]
    labelled = {"energy_low": np.array(1.0), "forces_low": np.zeros((6, 3))}
    labelled |= {"probe_low": np.ones((6, 3)) * [1.0, 0.0, -1.0], "hessian_product_low": np.zeros((6, 3))}
    graphs = [
        build_graph(molecule, model.cutoff, labelled, names, torch.float64),
        build_graph(crystal, model.cutoff, {}, names, torch.float64),
    ]
    gradients = []
    for batch in (graphs[0], collate(graphs)):
        model.train()
        model.zero_grad()
        outputs = model(batch, derivatives=FORCES + STRESS + PRODUCTS)
        terms = loss_terms(outputs, batch, model.config.tasks, model.domain.scale)
        combine(terms).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None and p.grad.any()])
    assert len(gradients[0]) > 10
    for alone, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_fidelities_differ(model: MFMModel, molecule: Structure) -> None:
    outputs = evaluate(model, molecule)
    offsets = {f: sum(model.domain.references[f][z] for z in molecule.atomic_numbers) for f in model.fidelities}
    low, high = (outputs[f"energy_{f}"][0] - offsets[f] for f in ("low", "high"))
    assert abs(high - low) > 1e-4


def test_config_and_domain_survive_json(model: MFMModel, molecule: Structure) -> None:
    config = ModelConfig.model_validate_json(model.config.model_dump_json())
    domain = Domain.from_dict(json.loads(json.dumps(model.domain.to_dict())))
    twin = MFMModel(config, domain).double()
    twin.load_state_dict(model.state_dict())
    before, after = evaluate(model, molecule), evaluate(twin, molecule)
    for name in ENERGIES + FORCES:
        np.testing.assert_array_equal(after[name], before[name])
