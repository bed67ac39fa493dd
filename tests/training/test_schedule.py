import time

import pytest

from mfm.training.schedule import Budget, Clock, learning_rate_factor


def test_epochs_count_the_batches_within():
    clock = Clock()
    for _ in range(7):
        clock.advance(batches_in_epoch=4)
    assert (clock.step, clock.epoch, clock.batch) == (7, 1, 3)
    assert Budget("epochs", 2).progress(clock) == pytest.approx(1.75 / 2)
    assert Budget("steps", 14).progress(clock) == pytest.approx(0.5)


def test_epochs_of_different_length_end_where_they_end():
    clock = Clock()
    for length in (3, 2):
        for _ in range(length):
            clock.advance(length)
    assert (clock.epoch, clock.batch) == (2, 0)
    assert Budget("epochs", 2).progress(clock) == 1


def test_minutes_are_processor_time_and_survive_a_restart():
    clock = Clock("cpu")
    time.sleep(0.05)
    assert clock.seconds() < 0.04  # sleeping costs no processor time
    state = {**clock.state_dict(), "seconds": 30.0}
    other = Clock("cpu")
    other.load_state_dict(state)
    assert Budget("minutes", 1).progress(other) == pytest.approx(0.5, abs=0.01)
    assert Clock("cuda").state_dict()["step"] == 0


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(step / 1000, step, warmup_steps=20) for step in range(1001)]
    peak = factors.index(max(factors))
    assert peak == 19
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[-1] == pytest.approx(0, abs=1e-15)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert learning_rate_factor(0.0, 0, warmup_steps=0) == 1
    assert learning_rate_factor(1.3, 1300, warmup_steps=10) == pytest.approx(0, abs=1e-15)
