"""Backbones: structure to per-atom features. To add one: a file beside this, and a name in the list below."""

from mfm.backbones.base import Features
from mfm.backbones.gaunt import GauntBackbone, GauntConfig

__all__ = ["BackboneConfig", "Features", "GauntBackbone", "GauntConfig"]

BackboneConfig = GauntConfig
"""Every backbone a run file may name; a second one makes this a union with `name` as discriminator."""
