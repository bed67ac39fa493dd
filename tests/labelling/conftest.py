"""PySCF leaves temporary files to the garbage collector; they are collected here, and not warned about."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(autouse=True, scope="module")
def _collect_temporary_files() -> Iterator[None]:
    yield
    gc.collect()
