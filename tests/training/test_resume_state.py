import random

import numpy as np
import pytest
import torch

from mfm.training.resume import (
    TrainingState,
    isolated_random_state,
    load_state,
    random_state,
    restore_random_state,
    save_state,
)


def _draw() -> tuple[float, float, float, float]:
    return (float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn()))  # noqa: NPY002


def _state(**changes) -> TrainingState:
    complete = {
        "format": 3,
        "config": "{}",
        "data_digest": "abc",
        "stage": 0,
        "clock": {"step": 3, "epoch": 0, "batch": 3, "batches_in_epoch": 5, "seconds": 1.0},
        "model": {"weight": torch.ones(2)},
        "average": {"weight": torch.ones(2)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "random": random_state(),
        "domain": "{}",
        "parent": "",
        "inherited": [],
        "ranks": 1,
    }
    return TrainingState(**{**complete, **changes})


def test_every_generator_continues_after_a_round_trip_through_a_file(tmp_path):
    _draw()  # leaves numpy with half a pair of normal deviates in store
    save_state(tmp_path / "state.pt", _state())
    expected = [_draw() for _ in range(3)]
    restore_random_state(load_state(tmp_path / "state.pt")["random"])
    assert [_draw() for _ in range(3)] == expected


def test_a_run_does_not_disturb_the_callers_generators():
    before = random_state()
    expected = _draw()
    restore_random_state(before)
    with isolated_random_state(seed=1):
        first = _draw()
    with isolated_random_state(seed=1):
        assert _draw() == first
    assert _draw() == expected


@pytest.mark.parametrize("part", ["model", "random", "data_digest"])
def test_an_absent_part_is_an_error(tmp_path, part):
    state = dict(_state())
    del state[part]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=f"lacks {part}; a partial resume would be another run"):
        load_state(tmp_path / "state.pt")


def test_a_stage_without_its_optimiser_is_an_error_but_a_boundary_is_not(tmp_path):
    save_state(tmp_path / "state.pt", _state(optimizer=None))
    with pytest.raises(ValueError, match="lacks optimizer"):
        load_state(tmp_path / "state.pt")
    save_state(tmp_path / "state.pt", _state(optimizer=None, clock=None, average=None))
    assert load_state(tmp_path / "state.pt")["stage"] == 0


def test_unreadable_states_are_named(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(ValueError, match="does not exist"):
        load_state(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)
    save_state(path, _state())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)
    save_state(path, _state(format=99))
    with pytest.raises(ValueError, match="must have format 3, got 99"):
        load_state(path)


def test_states_of_another_machine_are_refused():
    state = random_state()
    state["cuda"] = [torch.zeros(1)] * 7
    with pytest.raises(ValueError, match="for 7 CUDA devices"):
        restore_random_state(state)


def test_a_failed_save_keeps_the_previous_state(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, _state())
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_state(path, _state(config=lambda: None))
    assert load_state(path)["config"] == "{}"
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
