"""Charges are conserved in total and between fragments; fields, dipoles and Born charges follow from them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from mfm.backbones import GauntConfig
from mfm.config import Config
from mfm.fidelity import LevelOfTheory
from mfm.graph import AtomicGraph, Structure, build_graph, collate
from mfm.longrange import LatentEwaldConfig
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from mfm.nn.charge_state import ChargeState

CUTOFF = 4.0


def make(own_charges: bool = False, **options: object) -> MFMModel:
    elements = {1: -1.0, 6: -2.0, 7: -2.5, 8: -3.0, 11: -4.0, 17: -5.0}
    domain = Domain(
        references={"low": elements, "high": elements},
        levels={name: LevelOfTheory(name) for name in ("low", "high")},
        charges=(-1, 0, 1, 2),
        multiplicities=(1, 2, 3),
    )
    config = ModelConfig(
        backbone=GauntConfig(cutoff=CUTOFF, n_channels=16, n_product_channels=16, n_layers=2),
        tasks={"energy_low": {}, "energy_high": {"anchor": "energy_low"}},
        long_range=LatentEwaldConfig(own_charges=own_charges, **options),
    )
    model = build_model(config, domain, seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def graph_of(structure: Structure, **fields: Tensor) -> AtomicGraph:
    graph = build_graph(structure, CUTOFF, dtype=torch.float64)
    for name, value in fields.items():
        graph[name] = value
    return graph


WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.1], [0.8, 0.0, 0.7], [-0.7, 0.1, 0.7]]))
METHANOL = Structure(
    np.array([6, 8, 1, 1, 1, 1]),
    np.array(
        [[0.0, 0.0, 0.0], [1.4, 0.0, 0.1], [1.7, 0.9, 0.0], [-0.4, 1.0, 0.0], [-0.4, -0.5, 0.9], [-0.4, -0.5, -0.9]]
    ),
)


def ice(scale: int = 1) -> Structure:
    generator = np.random.default_rng(1)
    cell = np.array([[4.4, 0.0, 0.0], [0.3, 4.2, 0.0], [-0.2, 0.4, 4.6]])
    positions = np.concatenate([WATER.positions, WATER.positions[:, [1, 2, 0]] + [2.2, 2.1, 2.3]])
    positions = positions + 0.05 * generator.standard_normal(positions.shape)
    shifts = np.arange(scale)[:, None] * cell[0]
    return Structure(
        np.tile(np.tile(WATER.atomic_numbers, 2), scale),
        (positions[None] + shifts[:, None]).reshape(-1, 3),
        cell * [[scale], [1], [1]],
        np.ones(3, dtype=bool),
    )


def beside(one: Structure, other: Structure, distance: float, charge: int = 0) -> Structure:
    return Structure(
        np.concatenate([one.atomic_numbers, other.atomic_numbers]),
        np.concatenate([one.positions, other.positions + np.array([distance, 0.0, 0.0])]),
        charge=charge,
    )


def charges(model: MFMModel, structure: Structure) -> np.ndarray:
    return model.predict(graph_of(structure), quantities=["charges_low"])["charges_low"].numpy()


@pytest.mark.parametrize("fidelities", ["shared", "scaled", "own"])
@pytest.mark.parametrize("own_charges", [False, True])
def test_charges_add_up_to_the_total_charge(own_charges: bool, fidelities: str) -> None:
    """Also where energies are scaled: a factor acts on energies, not on the charges that are reported."""
    model = make(own_charges, n_channels=2, fidelities=fidelities)
    structures = [WATER, dataclasses.replace(METHANOL, charge=1, multiplicity=2), ice()]
    graph = collate([graph_of(structure) for structure in structures])
    found = model.predict(graph, quantities=["charges_low", "charges_high"])
    for name in ("charges_low", "charges_high"):
        total = torch.zeros(3, dtype=torch.float64).index_add(0, graph.batch, found[name])
        torch.testing.assert_close(total, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
        assert found[name].abs().max() > 1e-3


def test_float32_charges_add_up_too() -> None:
    model = make().float()
    graph = build_graph(dataclasses.replace(METHANOL, charge=-1, multiplicity=2), CUTOFF)
    assert float(model.predict(graph, quantities=["charges_low"])["charges_low"].sum()) == pytest.approx(
        -1.0, abs=1e-12
    )


def test_neutral_fragments_keep_their_charges_exactly() -> None:
    """Not so where only the total is conserved: the shares would carry one fragment's residual to the other."""
    model = make()
    both = charges(model, beside(WATER, METHANOL, 20.0))
    np.testing.assert_allclose(both[:3], charges(model, WATER), rtol=0, atol=1e-14)
    np.testing.assert_allclose(both[3:], charges(model, METHANOL), rtol=0, atol=1e-14)


def test_equal_ions_keep_their_charges() -> None:
    model = make()
    ion = dataclasses.replace(WATER, charge=1, multiplicity=2)
    pair = dataclasses.replace(beside(WATER, WATER, 20.0, charge=2), multiplicity=3)
    np.testing.assert_allclose(charges(model, pair), np.tile(charges(model, ion), 2), rtol=0, atol=1e-12)


def test_distant_ions_of_opposite_charge_keep_their_own_once_trained() -> None:
    """Fitted on single ions and on a pair in contact, asked about the pair at 20 Å."""
    model = make(own_charges=True)
    sodium = Structure(np.array([11, 1]), np.array([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]]), charge=1)
    chloride = Structure(np.array([17, 8]), np.array([[0.0, 0.0, 0.0], [1.7, 0.0, 0.0]]), charge=-1)
    batch = collate([graph_of(s) for s in (sodium, chloride, beside(sodium, chloride, 6.0))])
    state = model.long_range.owners["all"].state
    optimizer = torch.optim.Adam(state.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch, quantities=["charge_residual_low"])["charge_residual_low"].square().sum().backward()
        optimizer.step()
    far = charges(model, beside(sodium, chloride, 20.0))
    assert far[:2].sum() == pytest.approx(1.0, abs=0.02)
    assert far[2:].sum() == pytest.approx(-1.0, abs=0.02)
    energies, expected = [], []
    for pair in (beside(sodium, chloride, 20.0), beside(sodium, chloride, 40.0)):
        found = model.predict(graph_of(pair), quantities=["energy_long_range_low"])["energy_long_range_low"]
        distances = np.linalg.norm(pair.positions[:2, None] - pair.positions[None, 2:], axis=2)
        energies.append(float(found))
        # monopoles and the dipoles of the bonds
        expected.append(14.3996454784 * float(np.sum(np.outer(far[:2], far[2:]) / distances)))
    assert energies[0] - energies[1] == pytest.approx(expected[0] - expected[1], rel=0.01)


def test_dipole_is_that_of_the_charges_and_ignores_where_a_neutral_molecule_is() -> None:
    model = make()
    for structure in (METHANOL, dataclasses.replace(METHANOL, charge=1, multiplicity=2)):
        found = model.predict(graph_of(structure), quantities=["dipole_low"])["dipole_low"][0].numpy()
        numbers = structure.atomic_numbers
        centre = numbers @ structure.positions / numbers.sum()
        np.testing.assert_allclose(found, charges(model, structure) @ (structure.positions - centre), atol=1e-12)
    assert np.isnan(model.predict(graph_of(ice()), quantities=["dipole_low"])["dipole_low"].numpy()).all()


@pytest.mark.parametrize("structure", [METHANOL, ice()], ids=["molecule", "crystal"])
def test_born_effective_charges_are_slopes_of_the_polarisation(structure: Structure) -> None:
    model = make(fidelities="scaled")
    name = "born_effective_charges_low"
    found = model.predict(graph_of(structure), quantities=[name])[name].numpy()
    np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=1e-10)
    if structure.pbc.any():
        assert np.abs(found).max() > 1e-2
        twice = model.predict(graph_of(ice(2)), quantities=[name])[name].numpy()
        np.testing.assert_allclose(twice, np.tile(found, (2, 1, 1)), rtol=0, atol=1e-12)
        shifts = np.random.default_rng(2).integers(-3, 4, (len(structure), 3))
        elsewhere = dataclasses.replace(structure, positions=structure.positions + shifts @ structure.cell)
        wrapped = model.predict(graph_of(elsewhere), quantities=[name])[name].numpy()
        np.testing.assert_allclose(wrapped, found, rtol=0, atol=1e-10)
        return
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        moments = []
        for sign in (1.0, -1.0):
            positions = structure.positions.copy()
            positions[atom, axis] += sign * step
            moved = dataclasses.replace(structure, positions=positions)
            moments.append(charges(model, moved) @ positions)
        np.testing.assert_allclose(found[atom, :, axis], (moments[0] - moments[1]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("structure", [METHANOL, ice()], ids=["molecule", "crystal"])
def test_a_field_gives_an_enthalpy_with_its_own_forces(structure: Structure) -> None:
    """F_i = −∂(E − P·F)/∂r_i, which is the force without the field plus Z_i·F."""
    model = make()
    field = torch.tensor([[0.05, -0.1, 0.2]], dtype=torch.float64)

    def evaluate(moved: Structure, with_field: bool) -> dict[str, np.ndarray]:
        graph = graph_of(moved, electric_field=field) if with_field else graph_of(moved)
        found = model.predict(graph, derivatives=["forces_low"], quantities=["born_effective_charges_low"])
        return {name: value.numpy() for name, value in found.items()}

    alone, polarised = evaluate(structure, False), evaluate(structure, True)
    extra = np.einsum("iab,a->ib", alone["born_effective_charges_low"], field[0].numpy())
    np.testing.assert_allclose(polarised["forces_low"], alone["forces_low"] + extra, atol=1e-10)
    if not structure.pbc.any():
        moment = model.predict(graph_of(structure), quantities=["dipole_low"])["dipole_low"][0]
        assert polarised["energy_low"][0] == pytest.approx(alone["energy_low"][0] - float(moment @ field[0]), abs=1e-10)
    step = 1e-4
    energies = []
    for sign in (1.0, -1.0):
        positions = structure.positions.copy()
        positions[1, 2] += sign * step
        energies.append(evaluate(dataclasses.replace(structure, positions=positions), True)["energy_low"][0])
    assert polarised["forces_low"][1, 2] == pytest.approx(
        -(energies[0] - energies[1]) / (2 * step), rel=1e-7, abs=1e-6
    )  # crystals here have forces of 40 eV/Å


def test_fidelities_share_scale_or_own_their_charges() -> None:
    names = ["charges_low", "charges_high"]
    shared, scaled, own = (
        make(fidelities=kind).predict(graph_of(METHANOL), quantities=names) for kind in ("shared", "scaled", "own")
    )
    torch.testing.assert_close(shared["charges_low"], shared["charges_high"], rtol=0, atol=0)
    torch.testing.assert_close(scaled["charges_low"], scaled["charges_high"], rtol=0, atol=0)
    ratio = own["charges_high"] / own["charges_low"]
    assert float(ratio.std()) > 1e-3


def test_a_scaled_fidelity_has_another_energy_of_the_same_charges() -> None:
    """The factor acts on the energy; dipole, Born effective charges and what a field does are those of the charges."""
    model, structure = make(fidelities="scaled"), dataclasses.replace(METHANOL, charge=1, multiplicity=2)
    factors = {name: float(factor.detach()) for name, factor in model.long_range.factors.items()}
    assert abs(factors["energy_low"] / factors["energy_high"] - 1.0) > 1e-3
    field = torch.tensor([[0.05, -0.1, 0.2]], dtype=torch.float64)
    kinds = ("energy_long_range", "energy_field", "dipole", "born_effective_charges")
    names = [f"{kind}_{fidelity}" for kind in kinds for fidelity in ("low", "high")]
    found = model.predict(graph_of(structure, electric_field=field), quantities=names)
    ratio = float(found["energy_long_range_low"] / found["energy_long_range_high"])
    assert ratio == pytest.approx((factors["energy_low"] / factors["energy_high"]) ** 2, rel=1e-12)
    for kind in kinds[1:]:
        torch.testing.assert_close(found[f"{kind}_low"], found[f"{kind}_high"], rtol=0, atol=0)
    total = found["born_effective_charges_low"].sum(dim=0)
    torch.testing.assert_close(total, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)
    moment = charges(model, structure) @ structure.positions
    assert float(found["energy_field_low"]) == pytest.approx(-moment @ field[0].numpy(), abs=1e-12)


def test_an_ion_and_a_distant_neutral_molecule_keep_their_charges_only_with_own_charges() -> None:
    """One charge per element that adds up to both totals: 2 H + O = 1, C + O + 4 H = 0."""
    model = make(own_charges=True)
    state = model.long_range.owners["all"].state
    with torch.no_grad():
        state.own_output.weight.zero_()
        for number, charge in {1: 0.2, 8: 0.6, 6: -1.4}.items():
            state.own_elements[number] = charge
    pair = dataclasses.replace(beside(WATER, METHANOL, 20.0, charge=1), multiplicity=2)
    found = charges(model, pair)
    assert found[:3].sum() == pytest.approx(1.0, abs=1e-12)
    assert found[3:].sum() == pytest.approx(0.0, abs=1e-12)
    # what docs/long_range.md warns of: shares of the total charge do not know which part is the ion
    shared = charges(make(), pair)
    assert 0.1 < shared[3:].sum() < 0.9
    assert shared.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("own_charges", [False, True])
def test_polarisations_that_depend_on_the_images_are_refused(own_charges: bool) -> None:
    model = make(own_charges)
    crystal = ice() if own_charges else dataclasses.replace(ice(), charge=1, multiplicity=2)
    graph = graph_of(crystal)
    cause = r"own_charges.*Train without `own_charges`" if own_charges else r"net charge of \+1 e.*Give the cell no net"
    batch = collate([graph_of(METHANOL), graph])
    with pytest.raises(ValueError, match=rf"Born effective charges must not .* structure 1 of the batch.*{cause}"):
        model.predict(batch, quantities=["born_effective_charges_low"])
    graph.electric_field = torch.tensor([[0.0, 0.1, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"electric field along a periodic direction must not .*{cause}"):
        model.predict(graph, derivatives=["forces_low"])
    # what does not need a polarisation is there
    assert np.isfinite(charges(model, crystal)).all()
    alone = model.predict(graph_of(METHANOL), quantities=["born_effective_charges_low"])
    assert torch.isfinite(alone["born_effective_charges_low"]).all()


def test_the_long_range_part_of_distant_molecules_is_that_of_their_dipoles() -> None:
    model = make()
    name = "energy_long_range_low"

    def far(structure: Structure) -> float:
        return float(model.predict(graph_of(structure), quantities=[name])[name])

    one, other = (
        model.predict(graph_of(s), quantities=["dipole_low"])["dipole_low"][0].numpy() for s in (WATER, METHANOL)
    )
    distance = 1000.0
    found = far(beside(WATER, METHANOL, distance)) - far(WATER) - far(METHANOL)
    expected = 14.3996454784 * (one @ other - 3 * one[0] * other[0]) / distance**3
    assert found == pytest.approx(expected, rel=0.05)


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(ValueError, match=r"this model has quantities charges_low, .*got `charges_dft`"):
        make().predict(graph_of(WATER), quantities=["charges_dft"])
    local: dict[str, Config] = {"long_range": None}  # type: ignore[dict-item]
    model = make()
    bare = build_model(model.config.model_copy(update=local), model.domain, seed=0, dtype=torch.float64)
    with pytest.raises(ValueError, match="this model has quantities none, got `charges_low`"):
        bare.predict(graph_of(WATER), quantities=["charges_low"])
    with pytest.raises(ValueError, match="an electric field acts on charges, which this model has not"):
        bare.predict(graph_of(WATER, electric_field=torch.zeros(1, 3)))
    with pytest.raises(ValueError, match=r"`smallest_width` must be below `largest_width`, got 2\.0 and 1\.5"):
        LatentEwaldConfig(smallest_width=2.0, largest_width=1.5)


def test_charges_start_as_bond_dipoles_along_electronegativity() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    graph = build_graph(Structure(np.array([8, 1, 1]), positions), 5.0, dtype=torch.float64)
    state = ChargeState(16, 5.0, n_channels=2).double()
    charges = state(torch.zeros(3, 16, dtype=torch.float64), graph).charges
    # 0.75 e × (3.44 − 2.20) e^{−r²/2ℓ²} for each bond, up to the four terms of the basis and its envelope
    bond = 0.75 * 1.24 * np.exp(-0.5 * (0.96 / 0.95) ** 2)
    assert charges[:, 0].tolist() == pytest.approx([-2.0 * bond, bond, bond], rel=0.1)
    assert charges[:, 1].abs().max() == 0.0
