"""All stages of one recipe: denoising, cheap labels, two levels mixed, fine-tuning; stopped anywhere, each skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.data import open_dataset
from mfm.training.data import stage_sampler
from mfm.training.recipe import RunConfig
from mfm.training.run import TrainResult, train
from tests.morse import recipe

STEPS = 6
DENOISE, CHEAP, JOINT, TUNE = "denoise", "cheap", "joint", "fine-tune"
STAGES: list[dict[str, Any]] = [
    {"name": DENOISE, "objective": "denoising", "trainable": ["backbone.*"]},
    {"name": CHEAP, "tasks": ["energy_low"], "auxiliary_denoising": {"share": 0.5}, "trainable": ["heads.*"]},
    {"name": JOINT, "tasks": ["energy_low", "energy_high"], "lr": 1e-3},
    {"name": TUNE, "tasks": ["energy_high"], "lora_rank": 2, "trainable": ["heads.energy_high.*"]},
]
_random = np.random.default_rng(20261126)
POSITIONS = [(str(_random.choice([s["name"] for s in STAGES])), int(_random.integers(1, STEPS))) for _ in range(5)]


pytestmark = pytest.mark.usefixtures("no_figures")


def _config(file: Path, output: Path, skip: str = "", **changes: Any) -> RunConfig:
    stages = [{**stage, "max_steps": STEPS, "skip": stage["name"] == skip} for stage in STAGES]
    changes = {"stages": stages, "batch": {"structures": 4, "ratios": {"low": 1, "high": 2}}, **changes}
    return validate(RunConfig, recipe(str(file), str(output), **changes))


@pytest.fixture(scope="module")
def whole(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(_config(morse_file, tmp_path_factory.mktemp("whole")))


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


@pytest.mark.parametrize(("stage", "step"), [*POSITIONS, (DENOISE, 3), (CHEAP, 2), (TUNE, 4)])
def test_stopped_at_any_step_of_any_stage_it_ends_with_the_same_bits(whole, morse_file, tmp_path, stage, step):
    config = _config(morse_file, tmp_path / "run")
    assert not train(config, stop_after=(stage, step)).finished
    resumed = train(config, resume=True)
    one, other = _weights(whole.checkpoint), _weights(resumed.checkpoint)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_each_stage_moves(whole):
    before, after = (_weights(whole.folder / f"stage-{name}.mfm") for name in (DENOISE, CHEAP))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"heads"}
    before, after = (_weights(whole.folder / f"stage-{name}.mfm") for name in (JOINT, TUNE))
    moved = {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if not name.startswith("backbone")} == {"heads.energy_high"}
    assert any(name.startswith("backbone") for name in moved)


@pytest.mark.parametrize("stage", [DENOISE, TUNE])
def test_a_stage_is_left_out_by_one_key(whole, morse_file, tmp_path, stage):
    result = train(_config(morse_file, tmp_path / "run", skip=stage))
    assert result.finished
    assert not (result.folder / f"stage-{stage}.mfm").exists()
    if stage == TUNE:  # what goes before is as it was
        one, other = (_weights(folder / f"stage-{JOINT}.mfm") for folder in (whole.folder, result.folder))
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_ratios_count_where_several_levels_train_and_are_checked_before(morse_file, tmp_path):
    def config(ratios: dict[str, float]) -> RunConfig:
        return _config(morse_file, tmp_path / "x", batch={"structures": 4, "ratios": ratios})

    with pytest.raises(ValueError, match=r"`batch.ratios` must be of the tasks' levels low, high, got `hihg`"):
        config({"low": 1, "hihg": 2})
    with pytest.raises(ValueError, match=r"must give `high` a share, which stage `joint` trains too"):
        config({"low": 1})
    with pytest.raises(ValueError, match=r"`ratios` must be positive"):
        config({"low": 1, "high": 0})


def test_a_temperature_brings_the_shares_of_levels_together(morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    high = store.coverage("energy_high")
    store = store.subset(np.sort(np.concatenate([np.flatnonzero(~high), np.flatnonzero(high)[:4]])))
    rare = store.coverage("energy_high")
    tasks = ["energy_low", "energy_high"]

    def share(**batch: Any) -> float:
        config = _config(morse_file, tmp_path / "x", batch={"structures": 4, **batch}).batch
        sampler = stage_sampler(store, tasks, config, 0)
        return float(np.mean([rare[i] for batch in sampler.plan() for i in batch]))

    assert share(temperature=1) == pytest.approx(rare.mean(), abs=0.05)
    assert rare.mean() + 0.02 < share(temperature=2) < share(temperature=1000)
    assert share(temperature=1000) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="give `ratios` or `temperature`, not both"):
        share(temperature=2, ratios={"low": 1, "high": 1})
