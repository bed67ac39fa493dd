"""What every backbone returns and obeys."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Features"]


class Features(NamedTuple):
    """Per-atom features.

    Scalars vanish for an atom without neighbours, so that a head without bias gives an isolated atom exactly
    its reference value.
    """

    scalars: Tensor
    """(n_atoms, n_scalars), invariant."""
    equivariants: Tensor | None
    """((L + 1)² − 1, n_atoms, n_channels), degrees 1 … L in the order of :mod:`mfm.nn.harmonics`, parity (−1)^l;
    None unless the backbone was built to give them."""
