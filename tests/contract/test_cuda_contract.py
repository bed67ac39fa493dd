"""A CUDA device gives what the CPU gives, for every model of the contract.

Both compute in float64, in which only the order of sums differs: everything agrees to 1e-9 of its unit or, if that is
more, of its size, which for total energies is 1e-5 eV. Without a device all of this is skipped.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from mfm import MFMCalculator
from mfm.density.evaluator import MolecularDensity, density_at
from mfm.derivatives import CHOSEN
from mfm.graph import AtomicGraph, Structure, build_graph, collate
from mfm.losses import combine, loss_terms
from mfm.model import MFMModel
from tests.contract.test_head_contract import IN_CRYSTALS, POLAR_TENSORS, TASKS, tensors_in_crystals
from tests.contract.test_model_contract import ENERGIES, FORCES, PRODUCTS, STRESS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda")
SAME = 1e-9
HERE = torch.device("cpu")


def on_device(part: Any) -> Any:
    """A copy: models and graphs are moved in place."""
    return copy.deepcopy(part).to(DEVICE)


def labelled_batch(model: MFMModel, structures: list[Structure]) -> AtomicGraph:
    names = [*ENERGIES, *FORCES, "probe_low", "probe_high"]
    graphs = []
    for structure in structures:
        shape = structure.positions.shape
        labels = {"energy_low": np.array(1.0), "energy_high": np.array(2.0), "forces_low": np.full(shape, 0.1)}
        labels |= {"probe_low": np.full(shape, 0.3), "probe_high": np.full(shape, -0.2)}
        graphs.append(build_graph(structure, model.cutoff, labels, names, torch.float64))
    return collate(graphs)


def assert_same(there: dict[str, torch.Tensor], here: dict[str, torch.Tensor]) -> None:
    assert there.keys() == here.keys()
    for name, value in there.items():
        assert value.device.type == "cuda", f"{name} has left the device"
        torch.testing.assert_close(value.cpu(), here[name], rtol=SAME, atol=SAME, equal_nan=True)


def test_energies_and_derivatives(model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    batch = labelled_batch(model, [crystal, molecule, Structure(np.array([8]), np.zeros((1, 3)), multiplicity=3)])
    wanted = [*FORCES, *STRESS, *PRODUCTS]
    assert_same(on_device(model).predict(on_device(batch), ENERGIES, wanted), model.predict(batch, ENERGIES, wanted))


@pytest.mark.parametrize("drawn", [False, True], ids=["all", "drawn"])
def test_gradients_of_the_loss(model: MFMModel, molecule: Structure, crystal: Structure, drawn: bool) -> None:
    gradients = []
    for where in (HERE, DEVICE):
        chosen = copy.deepcopy(model).to(where).train()
        batch = labelled_batch(model, [molecule, crystal]).to(where)
        if drawn:
            batch[CHOSEN] = torch.tensor([0, 1], device=where)
        outputs = chosen(batch, derivatives=FORCES)
        combine(loss_terms(outputs, batch, chosen.config.tasks, chosen.domain.scale)).backward()
        gradients.append({name: p.grad for name, p in chosen.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 10
    assert_same(gradients[1], gradients[0])


def test_heads(electronic_model: MFMModel, molecule: Structure, crystal: Structure) -> None:
    twin = on_device(electronic_model)
    for structure, tasks, tensors in (
        (molecule, TASKS, POLAR_TENSORS),
        (crystal, IN_CRYSTALS, tensors_in_crystals(electronic_model)),
    ):
        graph = build_graph(structure, electronic_model.cutoff, dtype=torch.float64)
        assert_same(
            twin.predict(on_device(graph), tasks, quantities=tensors),
            electronic_model.predict(graph, tasks, quantities=tensors),
        )


def test_calculator(electronic_model: MFMModel, molecule: Structure) -> None:
    atoms = molecule.to_ase()
    results = []
    for device in ("cpu", "cuda"):
        calculator = MFMCalculator(electronic_model, "high", device, "float64")
        found = {}
        for name in calculator.implemented_properties:
            if name == "stress":
                continue
            moved = atoms.copy()
            moved.calc = calculator
            found[name] = calculator.get_property(name, moved)
        results.append(found)
    assert len(results[0]) > 3
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=SAME, atol=SAME, err_msg=name)


def test_density_at_points(electronic_model: MFMModel, molecule: Structure) -> None:
    graph = build_graph(molecule, electronic_model.cutoff, dtype=torch.float64)
    rows = electronic_model.predict(graph, ["density_low"])["density_low"]
    basis = electronic_model.domain.density_bases["low"]
    points = torch.as_tensor(np.random.default_rng(0).normal(scale=2.0, size=(500, 3)))
    numbers = graph.atomic_numbers
    found = [
        density_at(
            points.to(where), MolecularDensity(graph.positions.to(where), numbers.to(where), rows.to(where), basis)
        )
        for where in (HERE, DEVICE)
    ]
    assert found[1].device.type == "cuda"
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=SAME, atol=SAME)
