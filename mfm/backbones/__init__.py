"""Backbones: structure to per-atom features. To add one: a file beside this, and a name in the list below."""

from mfm.backbones.base import Features
from mfm.backbones.gaunt import GauntBackbone, GauntConfig

__all__ = ["BACKBONES", "BackboneConfig", "Features", "GauntBackbone", "GauntConfig"]

BACKBONES = (GauntConfig,)
"""Every backbone a run file may name; contract tests run over this list."""

BackboneConfig = GauntConfig
"""The union of :data:`BACKBONES`, told apart by `name`."""
