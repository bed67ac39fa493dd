"""Datasets: records, cards, stores, readers, splits, references, sampling."""

from mfm.data.card import DatasetCard, FileCard, load_card
from mfm.data.opening import merge_stores, open_dataset
from mfm.data.records import Record
from mfm.data.store import Store, write_store

__all__ = ["DatasetCard", "FileCard", "Record", "Store", "load_card", "merge_stores", "open_dataset", "write_store"]
