"""The model beyond the shared contract: configuration errors, domain, joins at the start, precision."""

import numpy as np
import pytest
import torch

from mfm.config import validate
from mfm.graph import Structure, build_graph
from mfm.model import Domain, ModelConfig, build_model
from tests.tiny import tiny_model

WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.4]]))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "must name at least one, such as `energy_dft"),
        ({"stress_dft": {}}, "task `stress_dft`: heads exist for `energy`, `charges`"),
        (
            {"dipole_dft": {"conditioned": "dipole_xtb"}, "dipole_xtb": {}},
            "`conditioned` is for energies; use `anchor`",
        ),
        ({"charges_dft": {"forces_weight": 2}}, "task `charges_dft`: `forces_weight` is for energies; use `weight`"),
        ({"dipole_cc": {"anchor": "charges_dft"}, "charges_dft": {}}, "must build on a task of the same property"),
        (
            {"dipole_b": {"anchor": "dipole_a"}, "dipole_a": {}, "charges_b": {}, "charges_a": {}},
            "`charges_b` share the charges of `b` and must have their anchors at one fidelity, got a and none",
        ),
        (
            {
                "charges_a": {"anchor": "charges_b"},
                "charges_b": {},
                "dipole_b": {"anchor": "dipole_c"},
                "dipole_c": {},
                "quadrupole_c": {"anchor": "quadrupole_a"},
                "quadrupole_a": {},
            },
            "take their charges in a circle",
        ),
        ({"energie_dft": {}}, "did you mean `energy_...`"),
        ({"energy_cc": {"anchor": "energy_dft"}}, "builds on `energy_dft`, which is not among energy_cc"),
        ({"energy_a": {"anchor": "energy_b"}, "energy_b": {"anchor": "energy_a"}}, "in a circle"),
        ({"energy_a": {}, "energy_b": {"anchor": "energy_a", "conditioned": "energy_a"}}, "not both"),
        (
            {"energy_a": {}, "energy_b": {"anchor": "energy_a"}, "energy_c": {"conditioned": "energy_b"}},
            "`conditioned` must name an independent task",
        ),
    ],
)
def test_bad_tasks(tasks: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(ModelConfig, {"tasks": tasks})


def test_an_anchored_or_conditioned_fidelity_starts_equal_to_its_base() -> None:
    tasks = {"energy_c": {"conditioned": "energy_a"}, "energy_b": {"anchor": "energy_a"}, "energy_a": {}}
    zeros = {fidelity: {1: 0.0, 8: 0.0} for fidelity in "abc"}
    model = build_model(ModelConfig(tasks=tasks), Domain(references=zeros, levels={}), seed=0)
    graph = build_graph(WATER, model.cutoff)
    outputs = model.predict(graph, derivatives=["forces_a", "forces_b", "forces_c"])
    for fidelity in "bc":
        assert outputs[f"energy_{fidelity}"] == outputs["energy_a"]
        torch.testing.assert_close(outputs[f"forces_{fidelity}"], outputs["forces_a"])
    assert outputs["forces_a"].any()


def test_energies_keep_more_digits_than_the_network() -> None:
    model = tiny_model(dtype=torch.float32)
    graph = build_graph(WATER, model.cutoff)
    outputs = model.predict(graph)
    residual = model(graph)["energy_dft"].double()
    references = model.domain.references["dft"]
    assert outputs["energy_dft"].dtype == torch.float64
    assert outputs["energy_dft"].item() == pytest.approx(
        residual.item() + references[8] + 2 * references[1], rel=0, abs=1e-9
    )


def test_asking_for_what_is_not_there() -> None:
    model = tiny_model()
    graph = build_graph(WATER, model.cutoff, dtype=torch.float64)
    with pytest.raises(ValueError, match="this model has tasks energy_dft, energy_ccsdt, got `energy_xtb`"):
        model(graph, tasks=["energy_xtb"])
    with pytest.raises(ValueError, match=r"this model has tasks .* got `energy_xtb`"):
        model(graph, derivatives=["forces_xtb"])
    with pytest.raises(ValueError, match="may be forces, stress, hessian_product of a fidelity, got `energy_dft`"):
        model(graph, derivatives=["energy_dft"])


def test_a_fidelity_without_references() -> None:
    config = ModelConfig(tasks={"energy_dft": {}})
    with pytest.raises(ValueError, match="no reference energies for fidelity `dft`, only for xtb"):
        build_model(config, Domain(references={"xtb": {1: 0.0}}, levels={}), seed=0)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure(np.array([7, 1]), np.eye(2, 3)), r"holds N; `.*` of this model knows H, C, O"),
        (Structure(np.array([1, 1]), np.eye(2, 3), charge=-1), r"has charge -1; this model was trained on charge in"),
        (Structure(np.array([8]), np.zeros((1, 3)), multiplicity=3), "has multiplicity 3; this model was trained"),
    ],
)
def test_structures_outside_of_the_domain(structure: Structure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().domain.check(structure)


def test_seeds_are_reproducible_and_leave_the_caller_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    torch.testing.assert_close(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.backbone.embedding.weight, other.backbone.embedding.weight)
