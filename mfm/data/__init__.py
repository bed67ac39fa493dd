"""Datasets: records, cards, stores, readers, splits, references, sampling."""

from mfm.data.card import DatasetCard, FileCard, load_card
from mfm.data.records import Record
from mfm.data.store import Store, write_store

__all__ = ["DatasetCard", "FileCard", "Record", "Store", "load_card", "write_store"]
