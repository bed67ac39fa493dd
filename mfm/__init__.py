"""mfm: interatomic potentials that learn several levels of theory at once.

The names below are loaded when they are first used: ``import mfm`` is instant, and ``from mfm import
MFMCalculator`` loads neither the training loop nor the quantum chemistry.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from mfm.calculator import MFMCalculator as MFMCalculator
    from mfm.checkpoint import load_model as load_model
    from mfm.checkpoint import save_checkpoint as save_checkpoint
    from mfm.data.opening import open_dataset as open_dataset
    from mfm.data.store import Store as Store
    from mfm.fidelity import LevelOfTheory as LevelOfTheory
    from mfm.graph import Structure as Structure
    from mfm.model import MFMModel as MFMModel
    from mfm.training.run import train as train

_HOMES = {
    "LevelOfTheory": "mfm.fidelity",
    "MFMCalculator": "mfm.calculator",
    "MFMModel": "mfm.model",
    "Store": "mfm.data.store",
    "Structure": "mfm.graph",
    "load_model": "mfm.checkpoint",
    "open_dataset": "mfm.data.opening",
    "save_checkpoint": "mfm.checkpoint",
    "train": "mfm.training.run",
}
"""Module that defines each public name."""

__all__ = [
    "LevelOfTheory",
    "MFMCalculator",
    "MFMModel",
    "Store",
    "Structure",
    "load_model",
    "open_dataset",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mfm has no attribute `{name}`; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
