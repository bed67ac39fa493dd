from collections.abc import Callable
from pathlib import Path

import pytest

from mfm.tuning.run import TuneOptions
from mfm.tuning.space import Space, check_space
from tests.morse import recipe
from tests.shared import _one_thread, morse_file

__all__ = ["_one_thread", "morse_file"]

SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True},
    "batch.structures": {"low": 2, "high": 6},
    "tasks.energy_low.weight": [1, 10],
}


@pytest.fixture
def content(morse_file: Path) -> dict[str, object]:
    """A recipe that trains in a fraction of a second."""
    return recipe(str(morse_file), "", stages=[{"name": "joint", "max_steps": 4}])


@pytest.fixture
def space(content: dict[str, object]) -> Space:
    return check_space(SPACE, content)


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., TuneOptions]:
    """Options of a search whose files all lie in the test's folder."""

    def make(**changes) -> TuneOptions:
        places = {"storage": str(tmp_path / "optuna.journal"), "output": str(tmp_path / "study")}
        return TuneOptions(**{"n_trials": 3, **places, **changes})

    return make
