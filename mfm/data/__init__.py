"""Datasets: records, cards, stores, readers, splits, references, sampling.

Like those of :mod:`mfm`, the names below are loaded when they are first used, so that the command line can list its
commands at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfm.data.card import DatasetCard as DatasetCard
    from mfm.data.card import FileCard as FileCard
    from mfm.data.card import load_card as load_card
    from mfm.data.opening import merge_stores as merge_stores
    from mfm.data.opening import open_dataset as open_dataset
    from mfm.data.records import Record as Record
    from mfm.data.store import Store as Store
    from mfm.data.store import write_store as write_store

_HOMES = {
    "DatasetCard": "mfm.data.card",
    "FileCard": "mfm.data.card",
    "Record": "mfm.data.records",
    "Store": "mfm.data.store",
    "load_card": "mfm.data.card",
    "merge_stores": "mfm.data.opening",
    "open_dataset": "mfm.data.opening",
    "write_store": "mfm.data.store",
}
"""Module that defines each public name."""

__all__ = ["DatasetCard", "FileCard", "Record", "Store", "load_card", "merge_stores", "open_dataset", "write_store"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mfm.data has no attribute `{name}`; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
