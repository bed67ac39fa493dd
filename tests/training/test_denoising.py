"""Denoising: what an equivariant model can see of noise, the floor of the loss, and the stage in a recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.graph import Structure, build_graph, collate
from mfm.model import NOISE
from mfm.training.data import RunData, prepare_data
from mfm.training.denoising import (
    NoisyDataset,
    add_denoiser,
    denoising_term,
    remove_denoiser,
    structures_to_denoise,
    visible_part,
)
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import recipe
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(("name", "n_invisible"), [("H2O", 6), ("CH3OH", 6), ("CO2", 5), ("O2", 5)])
def test_what_is_visible_of_noise(name, n_invisible):
    positions = molecule(name).positions
    n_atoms = len(positions)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, n_atoms, 3))
    seen = np.array([visible_part(sample, positions) for sample in noise])
    # no momentum, no angular momentum
    np.testing.assert_allclose(seen.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(positions, seen).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(visible_part(seen[0], positions), seen[0], atol=1e-12)
    expected = 1 - n_invisible / (3 * n_atoms)
    assert np.mean(seen**2) == pytest.approx(expected, rel=0.04)
    rigid = rng.normal(size=3) + np.cross(rng.normal(size=3), positions)
    np.testing.assert_allclose(visible_part(rigid, positions), 0, atol=1e-12)


def test_a_crystal_cannot_be_turned():
    positions = np.random.default_rng(0).normal(size=(4, 3))
    noise = np.cross([0.0, 0.0, 1.0], positions)
    np.testing.assert_allclose(visible_part(noise, positions, periodic=True), noise - noise.mean(axis=0))
    np.testing.assert_array_equal(visible_part(noise[:1], positions[:1]), np.zeros((1, 3)))


def _spread_store(spread: float, n: int, seed: int = 0) -> Store:
    """A bent molecule of three different atoms, displaced at random."""
    rng = np.random.default_rng(seed)
    rest = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [-0.5, 1.0, 0.0]])
    records = [
        Record(Structure(np.array([6, 8, 1]), rest + spread * rng.normal(size=(3, 3)), multiplicity=2), {}, "x")
        for _ in range(n)
    ]
    return Store.from_records(records, DatasetCard(name="spread"))


def _train_denoiser(spread: float, sigma: float, steps: int) -> float:
    """Mean loss over the last fifth of a short training, with noise that is always new."""
    torch.manual_seed(0)
    model = tiny_model(dtype=torch.float32)
    add_denoiser(model)
    dataset = NoisyDataset(_spread_store(spread, 512), model.cutoff, sigma, 0, torch.float32)
    parameters = [*model.backbone.parameters(), *model.denoiser.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    rng, losses = np.random.default_rng(1), []
    for step in range(steps):
        graph = collate(dataset.batch(rng.choice(512, 32, replace=False).tolist(), step))
        term = denoising_term(model(graph, [NOISE])[NOISE], graph)
        loss = term.total / term.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-steps // 5 :]))


@pytest.mark.parametrize("spread", [0.025, pytest.param(0.05, marks=pytest.mark.slow)])
def test_the_loss_reaches_its_floor(spread):
    """Of σ ε it sees the sum with the structures' own spread s a: s²/(s² + σ²) of the visible variance stays."""
    sigma = 0.05
    floor = spread**2 / (spread**2 + sigma**2) * 3 / 9
    assert _train_denoiser(spread, sigma, 250) == pytest.approx(floor, rel=0.1)


def test_the_prediction_turns_with_the_molecule():
    model = tiny_model()
    torch.manual_seed(0)
    add_denoiser(model)
    with torch.no_grad():
        model.denoiser.tensor.output.normal_()
    positions = molecule("CH3OH").positions
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix() @ np.diag([1.0, 1.0, -1.0])
    numbers = molecule("CH3OH").numbers

    def predict(at: np.ndarray) -> np.ndarray:
        graph = build_graph(Structure(numbers, at), model.cutoff, dtype=torch.float64)
        return model(collate([graph]), [NOISE])[NOISE].detach().numpy()

    straight = predict(positions)
    assert np.abs(straight).max() > 1e-3
    np.testing.assert_allclose(predict(positions @ turn.T + 3.0), straight @ turn.T, atol=1e-10)


def test_the_denoiser_leaves_no_trace():
    model = tiny_model()
    names = list(model.state_dict())
    graph = collate([build_graph(_spread_store(0.1, 1)[0].structure, model.cutoff, dtype=torch.float64)])
    before = model.predict(graph)["energy_dft"]
    add_denoiser(model)
    assert any(name.startswith("denoiser.") for name in model.state_dict())
    torch.testing.assert_close(model.predict(graph)["energy_dft"], before, rtol=0, atol=1e-12)
    remove_denoiser(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.predict(graph)["energy_dft"], before, rtol=0, atol=0)


def test_noise_is_new_in_every_epoch_and_the_same_after_a_resume():
    store = _spread_store(0.1, 3)
    one, other = (NoisyDataset(store, 4.0, 0.1, 7, torch.float64) for _ in range(2))
    first, again = one.batch([1, 2], 5), other.batch([2], 5)
    torch.testing.assert_close(first[1].positions, again[0].positions, rtol=0, atol=0)
    assert not torch.equal(first[1].positions, one.batch([2], 6)[0].positions)
    shift = (first[0].positions.numpy() - store[1].structure.positions) / 0.1
    np.testing.assert_allclose(first[0][NOISE], visible_part(shift, first[0].positions.numpy()), atol=1e-12)


def _config(file: Path, output: Path, **denoise: Any) -> RunConfig:
    stages = [
        {"name": "denoise", "objective": "denoising", "max_steps": 6, **denoise},
        {"name": "low", "tasks": ["energy_low"], "max_steps": 4},
    ]
    return validate(RunConfig, recipe(str(file), str(output), stages=stages))


def test_a_stage_of_denoising_resumes_bit_by_bit_and_hands_its_weights_on(morse_file, tmp_path):
    whole = train(_config(morse_file, tmp_path / "whole"))
    config = _config(morse_file, tmp_path / "run")
    for stop in (("denoise", 2), ("denoise", 5)):
        resume = (tmp_path / "run").exists()
        assert not train(config, resume=resume, stop_after=stop).finished
    resumed = train(config, resume=True)
    one, other = load_model(whole.checkpoint).state_dict(), load_model(resumed.checkpoint).state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    after = load_model(whole.folder / "stage-denoise.mfm").state_dict()
    assert after.keys() == one.keys()  # no head for noise is left
    plain = train(_config(morse_file, tmp_path / "plain", skip=True))
    skipped = load_model(plain.checkpoint).state_dict()
    assert not torch.equal(skipped["backbone.embedding.weight"], one["backbone.embedding.weight"])
    history = (whole.folder / "history.jsonl").read_text()
    assert "train/noise/loss" in history


def test_other_structures_without_those_that_are_held_out(morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    data = prepare_data(_config(morse_file, tmp_path / "x").data, ["energy_low"])
    assert structures_to_denoise(data, None) is data.train
    found = structures_to_denoise(data, str(morse_file))
    held_out = {*data.valid.molecules, *data.test.molecules}
    assert set(found.molecules) == set(store.molecules) - held_out
    with pytest.raises(ValueError, match=r"all of `.*` is held out by the run"):
        structures_to_denoise(RunData(data.train, None, store), str(morse_file))


def test_structures_without_labels_are_denoised_too(morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    bare = [Record(r.structure, r.labels if k % 3 else {}, r.molecule, r.origin) for k, r in enumerate(store)]
    path = tmp_path / "bare.h5"
    Store.from_records(bare, store.card).write(path)
    config = _config(path, tmp_path / "run")
    data = prepare_data(config.data, ["energy_low"])
    found = structures_to_denoise(data, None)
    assert len(found) > len(data.train)
    assert set(found.molecules).isdisjoint({*data.valid.molecules, *data.test.molecules})
    assert data.digest != data.train.digest
    assert train(config, stop_after=("denoise", 1)).finished is False
    Store.from_records([r for k, r in enumerate(store) if k % 3], store.card).write(path)
    with pytest.raises(ValueError, match="the data have changed"):
        train(config, resume=True)


def test_one_molecule_on_both_sides_is_told_apart_by_its_geometries(morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    one = Store.from_records([Record(r.structure, r.labels, "ArX", "modes") for r in store], store.card)
    one.write(tmp_path / "one.h5")
    config = _config(tmp_path / "one.h5", tmp_path / "run").data.model_copy(update={"split": "random_frames"})
    data = prepare_data(config, ["energy_low"])
    found = structures_to_denoise(data, str(tmp_path / "one.h5"))
    assert len(found) == len(store) - len(data.valid) - len(data.test) == len(data.train)


def test_denoising_of_chosen_origins(morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    named = [Record(r.structure, r.labels, r.molecule, "md300" if k % 2 else "modes") for k, r in enumerate(store)]
    Store.from_records(named, store.card).write(tmp_path / "named.h5")
    data = prepare_data(_config(tmp_path / "named.h5", tmp_path / "run").data, ["energy_low"])
    assert set(structures_to_denoise(data, None, ["md300"]).origins) == {"md300"}
    with pytest.raises(ValueError, match=r"`origins` must be of .* training part has, md300, modes; got `x`"):
        structures_to_denoise(data, None, ["md300", "x"])


def test_settings_that_would_do_nothing_are_refused(morse_file, tmp_path):
    with pytest.raises(ValueError, match="stage `denoise` denoises, which trains no task; leave `tasks` out"):
        _config(morse_file, tmp_path / "x", tasks=["energy_low"])
    stages = [{"name": "low", "max_steps": 4, "noise": 0.1}]
    with pytest.raises(ValueError, match="stage `low`: `noise` is for `objective: denoising`"):
        validate(RunConfig, recipe(str(morse_file), "x", stages=stages))
