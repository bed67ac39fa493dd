"""Heads: features to one task each. To add one: a file beside this, and a line in the table below."""

from mfm.heads import atomic_dipoles, charges, density, dipole, polarizability, quadrupole
from mfm.heads.base import Head, TaskConfig

__all__ = ["HEADS", "Head", "TaskConfig"]

HEADS: dict[str, Head] = {
    "charges": charges.HEAD,
    "atomic_dipoles": atomic_dipoles.HEAD,
    "dipole": dipole.HEAD,
    "quadrupole": quadrupole.HEAD,
    "polarizability": polarizability.HEAD,
    "density": density.HEAD,
}
"""Property to its head; energies, which forces and stress are derivatives of, are put together by the model."""
