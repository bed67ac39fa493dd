"""Dipole moment of a molecule: its charges and its atomic dipoles."""

from torch import Tensor

from mfm.graph import AtomicGraph
from mfm.heads.atomic_dipoles import AtomicDipoles
from mfm.heads.base import Head, Moments
from mfm.nn.moments import relative_positions, sum_over_atoms

__all__ = ["HEAD", "dipole"]


def dipole(moments: Moments, graph: AtomicGraph) -> Tensor:
    """Σ q_i (r_i − c) + Σ μ_i about the nuclear charge centre c.

    With MBIS charges and atomic dipoles this is the dipole of the density exactly (Verstraelen et al., J. Chem. Theory
    Comput. 12, 3894 (2016)), so labels of all three train the same quantities.

    Returns
    -------
    (n_structures, 3), e Å, float64
    """
    per_atom = moments["charges"].unsqueeze(1) * relative_positions(graph) + moments["atomic_dipoles"]
    return sum_over_atoms(per_atom, graph)


HEAD = Head(dipole, {"atomic_dipoles": AtomicDipoles})
