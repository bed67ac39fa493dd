"""Gradients that a PySCF release gets wrong without saying so; mfm refuses them and says why."""

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

__all__ = ["check_gradient"]


class _Defect(NamedTuple):
    """A wrong gradient."""

    applies: Callable[[bool, bool, bool], bool]
    """Of (is_open_shell, has_triples, is_fitted)."""
    last: tuple[int, ...]
    """Last release that has it."""
    what: str


_DEFECTS = (
    _Defect(
        lambda is_open_shell, has_triples, is_fitted: is_open_shell and has_triples,
        (2, 14, 0),
        "the UCCSD(T) gradient is up to 69 meV/Å off finite differences (pyscf issue 3305)",
    ),
    _Defect(
        lambda is_open_shell, has_triples, is_fitted: is_fitted,
        (2, 14, 0),
        "the gradient of density-fitted coupled cluster takes exact integrals and is 2 meV/Å off (pyscf issue 3425)",
    ),
)
"""Measured on H2O+ and H2O, against central differences of the energies."""


def check_gradient(is_open_shell: bool, has_triples: bool, is_fitted: bool, installed: str | None = None) -> None:
    """Refuse a coupled-cluster gradient that the installed PySCF is known to get wrong.

    Parameters
    ----------
    installed : str, optional
        PySCF version; the installed one if not given.

    Raises
    ------
    ValueError
        If it is wrong; the message gives the reason and what to use instead.
    """
    name = installed or version("pyscf")
    release = tuple(int(number) for number in re.findall(r"\d+", name)[:3])
    for defect in _DEFECTS:
        if defect.applies(is_open_shell, has_triples, is_fitted) and release <= defect.last:
            raise ValueError(
                f"forces must be right to be a label, but in PySCF {name} {defect.what}; set `forces: false` at this"
                " level, or use CCSD without (T) and exact integrals, whose gradients are right"
            )
