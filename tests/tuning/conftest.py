from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mfm.tuning.run import TuneOptions
from mfm.tuning.space import Space, check_space
from tests.morse import morse_store, recipe

SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True},
    "batch.structures": {"low": 2, "high": 6},
    "tasks.energy_low.weight": [1, 10],
}


@pytest.fixture(scope="session")
def morse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 structures of 8 molecules at two levels."""
    path = tmp_path_factory.mktemp("data") / "morse.h5"
    morse_store().write(path)
    return path


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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on so little work only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
