"""Smooth long-range pair interactions and their Fourier transforms.

An interaction is written as E = ½ Σ_{i≠j} a_i a_j v_ij(r_ij), where v is the long-range part of 1/r or −1/r⁶: it equals
them at large r and is finite at r = 0. Charges are in e for `coulomb`; the amplitudes of `dispersion` are √C6, in
√(eV Å⁶).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from mfm.units import COULOMB_CONSTANT

__all__ = ["KERNELS", "Kernel", "background", "fourier", "pair_potential", "self_potential", "smooth_window"]

Kernel = Literal["coulomb", "dispersion"]
KERNELS: tuple[Kernel, ...] = ("coulomb", "dispersion")

WINDOW_START = 0.9
"""Where the smooth window in reciprocal space begins to fall, as a fraction of its end."""


def pair_potential(kernel: Kernel, distances: Tensor, widths: Tensor) -> Tensor:
    """v_ij(r).

    Coulomb: k_e erf(r/(√2 σ))/r. Dispersion: −[1 − e^{−x²}(1 + x² + x⁴/2)]/r⁶ with x = r/(√2 σ) (Essmann et al.,
    J. Chem. Phys. 103, 8577 (1995), Eq. 5.2).

    Parameters
    ----------
    distances : (n_pairs,), Å
        Positive.
    widths : (n_pairs,), Å
        σ of the pair: σ² is the mean of the squares of the two atoms' widths.

    Returns
    -------
    (n_pairs,), eV e⁻² or Å⁻⁶
    """
    x = distances / (math.sqrt(2.0) * widths)
    if kernel == "coulomb":
        return COULOMB_CONSTANT * torch.erf(x) / distances
    # below x = 0.3 the difference loses digits to cancellation; its series there: Σ_n (−x²)ⁿ / (2 n! (n + 3))
    square = x.clamp(max=0.3) ** 2
    series = torch.zeros_like(square)
    for n in reversed(range(7)):
        series = 1.0 / (2.0 * math.factorial(n) * (n + 3.0)) - square * series
    safe = x.clamp(min=0.3) ** 2
    closed = (1.0 - torch.exp(-safe) * (1.0 + safe + 0.5 * safe**2)) / safe**3
    return -torch.where(x < 0.3, series, closed) / (2.0 * widths**2) ** 3


def self_potential(kernel: Kernel, widths: Tensor) -> Tensor:
    """v_ii(0): what the sum over all i and j counts for i = j.

    Parameters
    ----------
    widths : (n,), Å

    Returns
    -------
    (n,), eV e⁻² or Å⁻⁶
    """
    if kernel == "coulomb":
        return COULOMB_CONSTANT * math.sqrt(2.0 / math.pi) / widths
    return -1.0 / (48.0 * widths**6)


def fourier(kernel: Kernel, k_squared: Tensor, widths: Tensor) -> Tensor:
    """Fourier transform of v over all space, without the Gaussians of Coulomb's charges.

    Coulomb: 4π k_e/k², the Gaussian factors e^{−σ_i²k²/4} belong to the atoms. Dispersion: for a width σ common to
    all atoms, −(π^{3/2}/12) k³ [√π erfc(b) + (1/(2b³) − 1/b) e^{−b²}] with b = kσ/√2 (Essmann et al., as above).

    Parameters
    ----------
    k_squared : any shape, Å⁻²
        Zero gives zero for Coulomb (the background's part, see :func:`background`) and the limit for dispersion.
    widths : broadcastable, Å
        Used by dispersion only.

    Returns
    -------
    Same shape; eV Å e⁻² … or Å⁻³.
    """
    is_zero = k_squared == 0.0
    safe = torch.where(is_zero, 1.0, k_squared)
    if kernel == "coulomb":
        return (4.0 * math.pi * COULOMB_CONSTANT / safe).masked_fill(is_zero, 0.0)
    k = safe.sqrt()
    b = k * widths / math.sqrt(2.0)
    gauss = torch.exp(-(b**2))
    bracket = math.sqrt(math.pi) * torch.erfc(b) + (0.5 / b**3 - 1.0 / b) * gauss
    limit = math.sqrt(2.0) / widths**3
    value = torch.where(is_zero, limit, k**3 * bracket)
    return -(math.pi**1.5 / 12.0) * value


def background(amplitudes: Tensor, widths: Tensor, structures: Tensor, volumes: Tensor) -> Tensor:
    """Energy of net charges in a uniform neutralising background: −(π k_e/V) Q Σ_i q_i σ_i².

    It is the finite part of the Coulomb kernel at k = 0. Without it the energy of a charged cell depends on the widths.

    Parameters
    ----------
    amplitudes : (n_atoms, n_channels), e
    widths : (n_atoms,), Å
    structures : (n_atoms,)
        Structure of each atom.
    volumes : (n_structures,), Å³

    Returns
    -------
    (n_structures,), eV
    """
    shape = (len(volumes), amplitudes.shape[1])
    totals = amplitudes.new_zeros(shape).index_add(0, structures, amplitudes)
    spreads = amplitudes.new_zeros(shape).index_add(0, structures, amplitudes * widths.square().unsqueeze(1))
    return -math.pi * COULOMB_CONSTANT * (totals * spreads).sum(dim=1) / volumes


def smooth_window(k_squared: Tensor, k_cutoff: float) -> Tensor:
    """One below 0.9 k_c, zero above k_c, twice continuously differentiable between.

    Wave vectors enter and leave the sum as a cell breathes; the window makes that invisible in the energy.

    Parameters
    ----------
    k_squared : any shape, Å⁻²
    k_cutoff : float, Å⁻¹
    """
    start = (WINDOW_START * k_cutoff) ** 2
    x = ((k_squared - start) / (k_cutoff**2 - start)).clamp(0.0, 1.0)
    return 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))
