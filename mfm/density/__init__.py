"""Electron densities in atom-centred Gaussians: basis, values at points, metric, potential, cube files."""

from mfm.density.basis import DensityBasis, ElementBasis, Shell

__all__ = ["DensityBasis", "ElementBasis", "Shell"]
