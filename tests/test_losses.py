"""Losses against sums written out by hand."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from mfm.graph import Structure, build_graph, collate
from mfm.heads import TaskConfig
from mfm.losses import combine, loss_terms

NAMES = ["energy_dft", "forces_dft", "stress_dft"]
WATER = Structure.from_ase(molecule("H2O"))
SALT = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.6))
SCALE = 0.5


def batch_and_outputs() -> tuple[object, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    labels = [
        {"energy_dft": np.array(1.0), "forces_dft": rng.normal(size=(3, 3))},
        {"forces_dft": rng.normal(size=(2, 3)), "stress_dft": rng.normal(size=(3, 3))},
        {},
    ]
    structures = (WATER, SALT, WATER)
    graphs = [build_graph(s, 4.0, given, NAMES, torch.float64) for s, given in zip(structures, labels, strict=True)]
    batch = collate(graphs)
    generator = torch.Generator().manual_seed(0)
    outputs = {
        name: torch.randn(batch[name].shape, generator=generator, dtype=torch.float64).requires_grad_(True)
        for name in NAMES
    }
    return batch, outputs


def test_terms_are_means_over_labelled_structures() -> None:
    batch, outputs = batch_and_outputs()
    task = TaskConfig(weight=2.0, forces_weight=3.0, stress_weight=5.0)
    terms = loss_terms(outputs, batch, {"energy_dft": task}, SCALE)
    energy = ((outputs["energy_dft"][0] - 1.0) / (3 * SCALE)) ** 2
    squares = ((outputs["forces_dft"] - batch.forces_dft) / SCALE) ** 2
    forces = (squares[:3].mean() + squares[3:5].mean()) / 2
    volume = 5.6**3 / 4
    stress = (((outputs["stress_dft"][1] - batch.stress_dft[1]) * volume / (2 * SCALE)) ** 2).mean()
    assert terms["energy_dft"].count == 1
    assert terms["forces_dft"].count == 2
    assert combine(terms).item() == pytest.approx((2 * energy + 3 * forces + 5 * stress).item())
    assert combine({"energy_dft": terms["energy_dft"]}).item() == pytest.approx(2 * energy.item())


def test_gradients_of_missing_labels_are_zero_not_nan() -> None:
    batch, outputs = batch_and_outputs()
    combine(loss_terms(outputs, batch, {"energy_dft": TaskConfig()}, SCALE)).backward()
    assert outputs["energy_dft"].grad[1:].tolist() == [0.0, 0.0]
    assert not outputs["forces_dft"].grad[5:].any()
    assert outputs["forces_dft"].grad[:5].all()


def test_two_ranks_give_the_gradient_of_one() -> None:
    batch, outputs = batch_and_outputs()
    tasks = {"energy_dft": TaskConfig()}
    combine(loss_terms(outputs, batch, tasks, SCALE)).backward()
    whole = outputs["forces_dft"].grad.clone()
    parts = torch.zeros_like(whole)
    for mine in (torch.arange(0, 3), torch.arange(3, 8)):
        _, fresh = batch_and_outputs()
        masked = batch.clone()
        hidden = torch.ones(8, dtype=torch.bool).index_fill(0, mine, False)
        masked.forces_dft = batch.forces_dft.masked_fill(hidden[:, None], float("nan"))
        terms = loss_terms({"forces_dft": fresh["forces_dft"]}, masked, tasks, SCALE)
        combine(terms, reduce=lambda counts: torch.full_like(counts, 2.0)).backward()
        parts += fresh["forces_dft"].grad
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("join", ["anchor", "conditioned"])
def test_a_joined_level_learns_the_gap_where_both_levels_are_labelled(join: str) -> None:
    names = ["energy_dft", "energy_ccsdt"]
    labels = [{"energy_dft": 1.0, "energy_ccsdt": 1.3}, {"energy_ccsdt": 2.0}, {"energy_dft": 3.0}]
    graphs = [
        build_graph(WATER, 4.0, {k: np.array(v) for k, v in given.items()}, names, torch.float64) for given in labels
    ]
    batch = collate(graphs)
    outputs = {
        "energy_dft": torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64, requires_grad=True),
        "energy_ccsdt": torch.tensor([5.5, 7.0, 9.0], dtype=torch.float64, requires_grad=True),
    }
    tasks = {"energy_dft": TaskConfig(), "energy_ccsdt": TaskConfig.model_validate({join: "energy_dft"})}
    term = loss_terms(outputs, batch, tasks, SCALE, {"energy_ccsdt": 0.02})["energy_ccsdt"]
    # the base is 4 eV off, which the gap does not notice
    gap, energy = (0.5 - 0.3) / (3 * 0.02), (7.0 - 2.0) / (3 * SCALE)
    assert term.count == 2
    assert term.total.item() == pytest.approx(gap**2 + energy**2)
    term.total.backward()
    assert outputs["energy_dft"].grad.tolist() == [-outputs["energy_ccsdt"].grad[0].item(), 0.0, 0.0]
    assert outputs["energy_ccsdt"].grad[2] == 0.0

    def total(gaps: dict[str, float] | None, found: dict[str, torch.Tensor]) -> float:
        return loss_terms(found, batch, tasks, SCALE, gaps)["energy_ccsdt"].total.item()

    energies = ((5.5 - 1.3) / (3 * SCALE)) ** 2 + energy**2
    # without a size of the gap, or without the base, energies are all there is
    assert total(None, outputs) == pytest.approx(energies)
    assert total({"energy_ccsdt": 0.02}, {"energy_ccsdt": outputs["energy_ccsdt"]}) == pytest.approx(energies)
