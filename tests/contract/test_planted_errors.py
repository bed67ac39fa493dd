"""The contract finds a planted error of each kind: a test suite that passes proves little otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mfm.backbones.gaunt
import mfm.derivatives
import mfm.graph
import mfm.heads.dipole
import mfm.losses
import mfm.model
import mfm.nn.aggregate
import mfm.nn.charge_state
import mfm.nn.radial
from mfm.backbones.gaunt import GauntBackbone, GauntConfig
from mfm.density.basis import STARTS
from mfm.graph import Structure
from mfm.heads.base import AtomicTensor
from mfm.heads.density import DensityCoefficients
from mfm.model import MFMModel
from mfm.nn.harmonics import SphericalHarmonics
from mfm.properties import DENSITY_WIDTH
from tests.contract import test_head_contract as head_contract
from tests.contract import test_model_contract as contract
from tests.contract.conftest import make_model

Patch = pytest.MonkeyPatch


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace `owner.name` by a function that gets the original's result, then its arguments."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: change(original(*args, **kwargs), *args, **kwargs))


def wrong_harmonic(patch: Patch) -> None:
    scale = torch.ones(16, dtype=torch.float64).index_fill(0, torch.tensor([11]), 1.001)
    wrap(patch, SphericalHarmonics, "forward", lambda value, *_: value * scale)


def axial_vector_added_to_polar(patch: Patch) -> None:
    def add_cross_product(density: Tensor, *_: object) -> Tensor:
        polar = density[1:4]
        axial = torch.linalg.cross(polar, polar.roll(1, dims=2), dim=0)
        return torch.cat([density[:1], polar + axial, density[4:]])

    wrap(patch, mfm.backbones.gaunt._Messages, "forward", add_cross_product)


def energy_depends_on_the_origin(patch: Patch) -> None:
    def shift(features: Any, _: object, graph: Any, *__: object, **___: object) -> Any:
        return features._replace(scalars=features.scalars + 1e-3 * graph.positions[:, :1])

    wrap(patch, GauntBackbone, "forward", shift)


def energy_depends_on_the_order_of_atoms(patch: Patch) -> None:
    def weigh(features: Any, *_: object, **__: object) -> Any:
        order = torch.arange(len(features.scalars), dtype=torch.float64)
        return features._replace(scalars=features.scalars * (1 + 1e-3 * order[:, None]))

    wrap(patch, GauntBackbone, "forward", weigh)


def structures_of_a_batch_talk(patch: Patch) -> None:
    wrap(
        patch,
        GauntBackbone,
        "forward",
        lambda features, *_, **__: features._replace(scalars=features.scalars - 1e-3 * features.scalars.mean(0)),
    )


def wrong_derivative(scale_forces: float, scale_stress: float) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        def scaled(value: tuple[Tensor, Tensor | None], *_: object) -> tuple[Tensor, Tensor | None]:
            return value[0] * scale_forces, None if value[1] is None else value[1] * scale_stress

        wrap(patch, mfm.derivatives, "forces_and_stress", scaled)

    return plant


def hard_cutoff(patch: Patch) -> None:
    patch.setattr(
        mfm.nn.radial, "polynomial_cutoff", lambda distances, cutoff, power=6: (distances < cutoff).to(distances.dtype)
    )


def bias_in_the_readout(patch: Patch) -> None:
    wrap(patch, mfm.model.EnergyHead, "forward", lambda energies, *_: energies + 1e-3)


def global_charge_embedding(patch: Patch) -> None:
    wrap(
        patch,
        mfm.backbones.gaunt.StateEmbedding,
        "forward",
        lambda value, _, graph: value + 0.1 * graph.charge[graph.batch][:, None],
    )


def loss_masked_by_where(patch: Patch) -> None:
    def terms(outputs: Any, graph: Any, tasks: Any, scale: float) -> dict[str, Any]:
        made = {}
        for name, value in outputs.items():
            square = ((value - graph[name]) / scale).square()
            total = torch.where(torch.isfinite(square), square, 0.0).sum()
            made[name] = mfm.losses.LossTerm(total, torch.ones_like(total), 1.0)
        return made

    patch.setattr(contract, "loss_terms", terms)


def periodicity_from_the_cell(patch: Patch) -> None:
    original = mfm.graph.neighbour_list

    def search(structure: Structure, cutoff: float) -> Any:
        periodic = Structure(
            structure.atomic_numbers, structure.positions, structure.cell, structure.cell.any(axis=1), multiplicity=None
        )
        return original(periodic, cutoff)

    patch.setattr(mfm.graph, "neighbour_list", search)


def moments_about_the_origin(patch: Patch) -> None:
    patch.setattr(mfm.heads.dipole, "relative_positions", lambda graph: graph.positions)


def quadrupoles_that_do_not_turn(patch: Patch) -> None:
    wrap(patch, AtomicTensor, "forward", lambda value, *_: value.flip(1))


def offset_that_changes_the_total(patch: Patch) -> None:
    wrap(
        patch, mfm.nn.charge_state.Charges, "corrected", lambda value, *_: value._replace(charges=value.charges + 1e-3)
    )


def atoms_with_a_direction(patch: Patch) -> None:
    wrap(patch, AtomicTensor, "forward", lambda value, *_: value + 1e-3)


def coefficients_with_a_charge(patch: Patch) -> None:
    wrap(
        patch,
        DensityCoefficients,
        "forward",
        lambda value, *_: value + 1e-3 * torch.eye(1, DENSITY_WIDTH, dtype=value.dtype),
    )


def coefficients_with_a_dipole(patch: Patch) -> None:
    def push(value: Tensor, *_: object) -> Tensor:
        return value + 1e-3 * functional.one_hot(torch.tensor(STARTS[1]), DENSITY_WIDTH)

    wrap(patch, DensityCoefficients, "forward", push)


def components_in_another_order(patch: Patch) -> None:
    def reverse(value: Tensor, *_: object) -> Tensor:
        degree = slice(STARTS[2], STARTS[3])
        shells = value[:, degree].reshape(len(value), -1, 5).flip(2)
        return torch.cat([value[:, : degree.start], shells.flatten(1), value[:, degree.stop :]], dim=1)

    wrap(patch, DensityCoefficients, "forward", reverse)


PLANTED_IN_HEADS: dict[str, tuple[Callable[[Patch], None], str, dict[str, Any]]] = {
    "origin": (moments_about_the_origin, "test_moments_of_an_ion_do_not_depend_on_where_it_is", {}),
    "turning": (quadrupoles_that_do_not_turn, "test_heads_turn_with_the_molecule", {"improper": False}),
    "total charge": (offset_that_changes_the_total, "test_charges_add_up_to_the_total", {}),
    "isolated atom": (atoms_with_a_direction, "test_an_isolated_atom_is_a_sphere", {}),
    "electrons": (coefficients_with_a_charge, "test_the_monopoles_of_a_density_are_the_charges", {}),
    "dipole of the density": (coefficients_with_a_dipole, "test_the_dipole_of_a_density_is_the_dipole", {}),
    "order of components": (components_in_another_order, "test_heads_turn_with_the_molecule", {"improper": False}),
}


@pytest.mark.parametrize("kind", PLANTED_IN_HEADS)
def test_planted_error_in_a_head_is_found(
    kind: str, monkeypatch: Patch, molecule: Structure, crystal: Structure
) -> None:
    plant, test, extra = PLANTED_IN_HEADS[kind]
    check: Any = getattr(head_contract, test)
    model = make_model(GauntConfig, None, head_join="anchor")
    available = {"electronic_model": model, "molecule": molecule, "crystal": crystal, **extra}
    wanted = check.__code__.co_varnames[: check.__code__.co_argcount]
    arguments = {name: available[name] for name in wanted}
    check(**arguments)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(**arguments)


PLANTED: dict[str, tuple[Callable[[Patch], None], str, dict[str, Any]]] = {
    "rotation": (wrong_harmonic, "test_rotation_and_reflection", {"kind": "molecule", "improper": False}),
    "reflection": (axial_vector_added_to_polar, "test_rotation_and_reflection", {"kind": "molecule", "improper": True}),
    "translation": (energy_depends_on_the_origin, "test_translation", {}),
    "permutation": (energy_depends_on_the_order_of_atoms, "test_permutation", {}),
    "batching": (structures_of_a_batch_talk, "test_a_batch_equals_its_structures_one_by_one", {}),
    "forces": (wrong_derivative(1.001, 1.0), "test_forces_are_minus_the_gradient", {}),
    "stress": (wrong_derivative(1.0, 1.001), "test_stress_is_the_strain_derivative_over_the_volume", {}),
    "cutoff": (hard_cutoff, "test_energy_and_forces_are_smooth_at_the_cutoff", {}),
    "isolated atom": (bias_in_the_readout, "test_an_isolated_atom_has_its_reference_energy", {}),
    "extensivity": (global_charge_embedding, "test_distant_copies_double_the_energy", {}),
    "missing labels": (loss_masked_by_where, "test_missing_labels_carry_no_gradient", {}),
    "periodicity": (periodicity_from_the_cell, "test_a_box_without_periodicity_is_ignored", {}),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_error_is_found(
    kind: str, monkeypatch: Patch, request: pytest.FixtureRequest, molecule: Structure, crystal: Structure
) -> None:
    plant, test, extra = PLANTED[kind]
    check: Any = getattr(contract, test)
    model: MFMModel = make_model(GauntConfig, "anchor")
    available = {"model": model, "molecule": molecule, "crystal": crystal, "request": request, **extra}
    wanted = check.__code__.co_varnames[: check.__code__.co_argcount]
    arguments = {name: available[name] for name in wanted}
    check(**arguments)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(**arguments)


def test_the_rotation_test_passes_with_the_error_that_only_reflection_shows(
    monkeypatch: Patch, request: pytest.FixtureRequest
) -> None:
    axial_vector_added_to_polar(monkeypatch)
    model = make_model(GauntConfig, "anchor")
    contract.test_rotation_and_reflection(model, "molecule", False, request)
    with pytest.raises(AssertionError):
        contract.test_rotation_and_reflection(model, "molecule", True, request)
