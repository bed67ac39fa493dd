"""Denoising beside labels: what is displaced, what is told, that nothing is left at inference, and the stage."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.data import Record, Store, open_dataset
from mfm.data.dataset import GraphDataset
from mfm.graph import AtomicGraph, Structure, collate
from mfm.losses import LossTerm
from mfm.model import NOISE, MFMModel
from mfm.training.auxiliary import (
    AuxiliaryLoss,
    DisplacedDataset,
    Displacement,
    WithDenoising,
    add_conditioner,
    remove_conditioner,
)
from mfm.training.denoising import denoising_term
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import morse, morse_store, recipe
from tests.tiny import tiny_model

TASKS = ["energy_low", "energy_high", "forces_low", "hessian_product_low"]
REFERENCES = {level: {1: 0.0, 6: 0.0, 8: 0.0} for level in ("low", "high")}


pytestmark = pytest.mark.usefixtures("no_figures")


def _dataset() -> GraphDataset:
    return GraphDataset(morse_store(), 4.0, TASKS, REFERENCES, torch.float64)


def _displaced(condition: str, share: float = 1.0, atoms: float = 0.5, seed: int = 3) -> DisplacedDataset:
    return DisplacedDataset(_dataset(), 4.0, Displacement(condition, share, atoms, 0.1), seed)  # type: ignore[arg-type]


def _model(condition: str) -> MFMModel:
    """With every weight of what conditions random."""
    model = tiny_model()
    torch.manual_seed(0)
    add_conditioner(model, condition)  # type: ignore[arg-type]
    with torch.no_grad():
        model.denoiser.tensor.output.normal_()
        model.conditioner.mix.weight.normal_()
    return model


def test_moved_atoms_lose_their_forces_and_the_others_keep_theirs():
    store, dataset = morse_store(), _dataset()
    (graph,) = _displaced("forces").batch([16], 0)  # HCO and one more H: two of four atoms move
    moved = torch.isfinite(graph[NOISE]).all(dim=1)
    assert moved.sum() == 2
    record = store[16]
    shifts = graph.positions.numpy() - record.structure.positions
    np.testing.assert_allclose(shifts[moved], 0.1 * graph[NOISE][moved].numpy(), atol=1e-12)
    assert not shifts[~moved].any()
    assert graph["energy_low"].item() == pytest.approx(float(record.labels["energy_low"]))
    assert torch.isnan(graph["forces_low"][moved]).all()
    np.testing.assert_allclose(graph["forces_low"][~moved], record.labels["forces_low"][~moved.numpy()])
    np.testing.assert_allclose(graph["conditioning_forces"][moved], record.labels["forces_low"][moved.numpy()])
    assert not graph["conditioning_forces"][~moved].any()
    # the dataset's own graph is as it was
    assert torch.isfinite(dataset[16]["forces_low"]).all()
    assert NOISE not in dataset[16]


def test_who_is_displaced_is_drawn_anew_in_every_epoch_and_the_same_after_a_resume():
    one, other = _displaced("self", 0.5, 0.25), _displaced("self", 0.5, 0.25)
    for epoch in (0, 7):
        for first, second in zip(one.batch(range(32), epoch), other.batch(range(32), epoch), strict=True):
            torch.testing.assert_close(first.positions, second.positions, rtol=0, atol=0)

    def chosen(dataset: DisplacedDataset, epoch: int) -> list[bool]:
        return [bool(torch.isfinite(graph[NOISE]).any()) for graph in dataset.batch(range(32), epoch)]

    assert chosen(one, 0) != chosen(one, 1)
    assert 0.4 < np.mean([chosen(one, epoch) for epoch in range(20)]) < 0.6
    assert chosen(_displaced("self", 0.5, 0.25, seed=4), 0) != chosen(one, 0)


def test_only_forces_can_condition_on_forces():
    dataset = GraphDataset(morse_store(), 4.0, TASKS[:2], REFERENCES, torch.float64)
    for condition, expected in (("forces", False), ("self", True)):
        displaced = DisplacedDataset(dataset, 4.0, Displacement(condition, 1.0, 0.5, 0.1), 0)
        (graph,) = displaced.batch([0], 0)
        assert bool(torch.isfinite(graph[NOISE]).any()) is expected
    # moved as a whole, a molecule can only be asked for what it can see
    (whole,) = DisplacedDataset(dataset, 4.0, Displacement("self", 1.0, 1.0, 0.1), 0).batch([0], 0)
    np.testing.assert_allclose(whole[NOISE].sum(dim=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("condition", ["forces", "self"])
def test_conditioning_is_exactly_nothing_at_inference(condition: str):
    model, bare = _model(condition), tiny_model()
    plain = collate(_dataset().batch([0, 8, 16], 0))
    still = collate(_displaced(condition, share=1e-12).batch([0, 8, 16], 0))
    tasks, derivatives = ["energy_dft", "energy_ccsdt"], ["forces_dft", "forces_ccsdt"]
    told = WithDenoising(model)(still, tasks, derivatives)
    for name, value in model(plain, tasks, derivatives).items():
        assert torch.equal(told[name], value)
    moved = WithDenoising(model)(collate(_displaced(condition).batch([0, 8, 16], 0)), tasks, derivatives)
    untold = model(collate(_displaced(condition).batch([0, 8, 16], 0)), tasks, derivatives)
    assert not torch.allclose(moved["energy_dft"], untold["energy_dft"])  # it is told something during the stage
    remove_conditioner(model)
    assert list(model.state_dict()) == list(bare.state_dict())
    for name, value in bare(plain, tasks, derivatives).items():
        torch.testing.assert_close(model(plain, tasks, derivatives)[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("condition", ["forces", "self"])
def test_what_is_told_does_not_grow_without_bound(condition: str):
    """Products of three features make infinities of what is large, and features that are told would feed themselves."""
    made = _model(condition).get_submodule("conditioner")
    told = torch.randn((5, 3) if condition == "forces" else (3, 5, made.mix.weight.shape[-2]), dtype=torch.float64)
    tell = made.of_forces if condition == "forces" else made
    once, much = tell(told).abs().max(), tell(1e6 * told).abs().max()
    assert once > 0
    assert much < 30 * once


@pytest.mark.parametrize("condition", ["forces", "self"])
def test_the_noise_turns_with_the_structure_and_what_is_told(condition: str):
    model = _model(condition)
    graph = collate(_displaced(condition).batch([8, 16], 0))
    turn = torch.as_tensor(-Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
    turned = copy.copy(graph)
    for field in ("positions", "conditioning_forces", "original_positions"):
        if field in graph:
            turned[field] = graph[field] @ turn.T
    straight, rotated = (WithDenoising(model)(each, ["energy_dft"]) for each in (graph, turned))
    assert straight[NOISE].abs().max() > 1e-3
    torch.testing.assert_close(rotated[NOISE], straight[NOISE] @ turn.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(rotated["energy_dft"], straight["energy_dft"], rtol=0, atol=1e-10)


def test_the_loss_counts_moved_atoms_of_moved_structures_and_fades():
    batch = collate([*_displaced("self").batch([0, 16], 0), *_displaced("self", share=1e-12).batch([8], 0)])
    predicted = torch.zeros_like(batch.positions)

    def losses(outputs: Any, graph: AtomicGraph) -> tuple[torch.Tensor, dict[str, LossTerm]]:
        assert list(outputs) == ["energy_low"]
        return torch.tensor(2.0, dtype=torch.float64), {}

    total, terms = AuxiliaryLoss(losses, 0.4, lambda: 0.25, None)({NOISE: predicted, "energy_low": predicted}, batch)
    moved = batch[NOISE].isfinite().all(dim=1)
    parts = [batch[NOISE][moved & (batch.batch == k)].square().mean() for k in (0, 1)]
    assert terms[NOISE].count.item() == 2
    assert terms[NOISE].total.item() == pytest.approx(float(sum(parts)))
    assert total.item() == pytest.approx(2.0 + 0.4 * 0.75 * float(sum(parts)) / 2)


def _water(spread: float, count: int) -> Store:
    """Water displaced from rest, with its Morse forces."""
    rng, numbers = np.random.default_rng(0), np.array([8, 1, 1])
    rest = np.array([[0.0, 0.0, 0.0], [1.15, 0.0, 0.0], [-0.3, 1.1, 0.0]])
    records = []
    for _ in range(count):
        positions = rest + spread * rng.normal(size=(3, 3))
        energy, forces = morse(numbers, positions, "low")
        labels = {"energy_low": np.array(energy), "forces_low": forces}
        records.append(Record(Structure(numbers, positions), labels))
    return Store.from_records(records, morse_store(1).card)


@pytest.mark.slow
def test_forces_tell_where_an_atom_came_from():
    """Where structures are spread as far as the noise, most of it cannot be known without forces."""
    store = _water(0.05, 256)
    dataset = GraphDataset(store, 4.0, ["energy_low", "forces_low"], REFERENCES, torch.float32)
    displaced = DisplacedDataset(dataset, 4.0, Displacement("forces", 1.0, 0.3, 0.05), 0)

    def train_noise(told: bool, steps: int = 200) -> float:
        torch.manual_seed(0)
        model = tiny_model(dtype=torch.float32)
        add_conditioner(model, "forces")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
        rng, losses = np.random.default_rng(1), []
        for step in range(steps):
            graph = collate(displaced.batch(rng.choice(len(store), 32, replace=False).tolist(), step))
            noise = (WithDenoising(model)(graph, []) if told else model(graph, [NOISE]))[NOISE]
            term = denoising_term(noise, graph)
            optimizer.zero_grad()
            (term.total / term.count).backward()
            optimizer.step()
            schedule.step()
            losses.append(term.total.item() / term.count.item())
        return float(np.mean(losses[-40:]))

    assert train_noise(True) < 0.7 * train_noise(False)


def _config(file: Path, output: Path, **changes: Any) -> RunConfig:
    stages = [{"name": "low", "tasks": ["energy_low"], "max_steps": 6, **changes}]
    return validate(RunConfig, recipe(str(file), str(output), tasks={"energy_low": {}}, stages=stages))


@pytest.mark.parametrize("condition", ["forces", "self"])
def test_a_stage_resumes_bit_by_bit_and_leaves_no_trace(morse_file, tmp_path, condition):
    beside = {"condition": condition, "share": 0.5, "atoms": 0.5, "weight": 1.0}
    whole = train(_config(morse_file, tmp_path / "whole", auxiliary_denoising=beside))
    config = _config(morse_file, tmp_path / "run", auxiliary_denoising=beside)
    assert not train(config, stop_after=("low", 3)).finished
    resumed = train(config, resume=True)
    one, other = load_model(whole.checkpoint).state_dict(), load_model(resumed.checkpoint).state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert "train/noise/loss" in (whole.folder / "history.jsonl").read_text()
    plain = load_model(train(_config(morse_file, tmp_path / "plain")).checkpoint).state_dict()
    assert plain.keys() == one.keys()
    assert not torch.equal(plain["backbone.embedding.weight"], one["backbone.embedding.weight"])


def test_settings_that_would_do_nothing_are_refused(morse_file, tmp_path):
    with pytest.raises(ValueError, match="stage `low` denoises all structures; leave `auxiliary_denoising` out"):
        _config(morse_file, tmp_path / "x", objective="denoising", tasks="all", auxiliary_denoising={})
    store = open_dataset(str(morse_file))
    assert store.coverage("energy_high").any()
    stages = [{"name": "high", "max_steps": 2, "auxiliary_denoising": {}}]
    config = recipe(str(morse_file), str(tmp_path / "x"), tasks={"energy_high": {}}, stages=stages)
    with pytest.raises(ValueError, match=r"conditioned on forces, of which the training data have none; use"):
        train(validate(RunConfig, config))
