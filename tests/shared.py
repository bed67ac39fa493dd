"""Fixtures that the tests of several parts share; a conftest that wants one imports it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.morse import morse_store


@pytest.fixture(scope="session")
def morse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 structures of 8 molecules at two levels."""
    path = tmp_path_factory.mktemp("data") / "morse.h5"
    morse_store().write(path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on so little work only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
