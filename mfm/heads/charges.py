"""Partial charges: the charge state itself, or the charge state with a fidelity's offset."""

from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.heads.base import Head, Moments

__all__ = ["HEAD", "charges"]


def charges(moments: Moments, graph: AtomicGraph) -> Tensor:
    """(n_atoms,), e, float64; they add up to the total charge of each structure."""
    return moments["charges"]


HEAD = Head(charges)
