"""The one table of physical properties: shape, unit, parity, extensivity.

Collating, losses, metric names, readers, the calculator and the documentation all derive from
:data:`PROPERTIES`. A *task* is a property at a fidelity and is written ``{property}_{fidelity}``:
``energy_dft``, ``forces_dft``, ``energy_ccsdt``.
"""

import difflib
import functools
import re
from typing import Literal, NamedTuple

__all__ = ["DENSITY_WIDTH", "PROPERTIES", "Property", "Task", "get_property", "parse_task", "task_name"]


DENSITY_WIDTH = 128
"""Room for the density coefficients of an atom: of def2-universal-jkfit, hydrogen needs 18, carbon 75, chlorine 128.
How they are laid out says :class:`mfm.density.DensityBasis`."""


class Property(NamedTuple):
    """One physical quantity."""

    name: str
    per: Literal["atom", "structure"]
    """Whether there is one value per atom or one per structure."""
    shape: tuple[int, ...]
    """Shape of one value; Cartesian components in x, y, z order."""
    unit: str
    """Unit inside mfm (see :mod:`mfm.units`)."""
    parity: Literal[1, -1]
    """Sign under inversion of space."""
    extensive: bool
    """Whether the value of two distant, non-interacting structures is the sum (or union) of theirs."""
    description: str
    isolated: bool = False
    """Whether only structures without periodicity have it: in a crystal it depends on the choice of the cell."""
    traceless: bool = False
    """Whether models learn and predict it without its trace, which labels may have."""

    @property
    def grows(self) -> bool:
        """Whether typical values grow with the number of atoms, so that errors count per atom.

        Energies and polarizabilities do; in a dipole the groups of a molecule cancel as often as they add up.
        """
        return self.extensive and self.parity == 1


PROPERTIES: dict[str, Property] = {
    row.name: row
    for row in (
        Property("energy", "structure", (), "eV", 1, True, "potential energy"),
        Property("forces", "atom", (3,), "eV/Å", -1, False, "minus the gradient of the energy"),
        Property("stress", "structure", (3, 3), "eV/Å^3", 1, False, "strain derivative of the energy over the volume"),
        Property("probe", "atom", (3,), "Å", -1, False, "displacement that the Hessian is multiplied with"),
        Property("hessian_product", "atom", (3,), "eV/Å", -1, False, "Hessian of the energy times the probe"),
        Property("charges", "atom", (), "e", 1, False, "atomic partial charges"),
        Property("atomic_dipoles", "atom", (3,), "e*Å", -1, False, "dipole moments of the atoms about their nuclei"),
        Property(
            "dipole",
            "structure",
            (3,),
            "e*Å",
            -1,
            True,
            "electric dipole; ions: about the nuclear charge centre",
            isolated=True,
        ),
        Property(
            "quadrupole",
            "structure",
            (3, 3),
            "e*Å^2",
            1,
            False,
            "second moment of the charge about the nuclear charge centre; labels with trace, predictions without",
            isolated=True,
            traceless=True,
        ),
        Property(
            "polarizability",
            "structure",
            (3, 3),
            "e^2*Å^2/eV",
            1,
            True,
            "field derivative of the dipole",
            isolated=True,
        ),
        Property(
            "density",
            "atom",
            (DENSITY_WIDTH,),
            "e",
            1,
            False,
            "Gaussian coefficients of the electron density less free atoms; see mfm.density",
            isolated=True,
        ),
    )
}
"""Every property that a label, a task or a head may name."""

_FIDELITY = re.compile(r"[a-z][a-z0-9_]*")


class Task(NamedTuple):
    """A property at a fidelity."""

    property: str
    fidelity: str


def get_property(name: str) -> Property:
    """Row of the property table.

    Raises
    ------
    ValueError
        If there is no such property; the message lists those there are.
    """
    if name in PROPERTIES:
        return PROPERTIES[name]
    near = difflib.get_close_matches(name, PROPERTIES, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ValueError(f"property must be one of {', '.join(PROPERTIES)}, got `{name}`{hint}")


def task_name(property_name: str, fidelity: str) -> str:
    """Name of a property at a fidelity, ``{property}_{fidelity}``.

    Raises
    ------
    ValueError
        If the property is unknown or the fidelity is not lower case letters, digits and ``_``.

    Examples
    --------
    >>> task_name("energy", "ccsdt")
    'energy_ccsdt'
    """
    get_property(property_name)
    if not _FIDELITY.fullmatch(fidelity):
        raise ValueError(
            f"fidelity must be lower-case letters, digits and `_`, starting with a letter, got `{fidelity}`"
        )
    return f"{property_name}_{fidelity}"


@functools.cache
def parse_task(name: str) -> Task:
    """Split ``{property}_{fidelity}`` into its two parts.

    Raises
    ------
    ValueError
        If the name does not start with a known property and an underscore.

    Examples
    --------
    >>> parse_task("atomic_dipoles_dft")
    Task(property='atomic_dipoles', fidelity='dft')
    """
    for prop in sorted(PROPERTIES, key=len, reverse=True):
        if name.startswith(f"{prop}_") and _FIDELITY.fullmatch(name[len(prop) + 1 :]):
            return Task(prop, name[len(prop) + 1 :])
    near = difflib.get_close_matches(name.rsplit("_", 1)[0], PROPERTIES, n=1)
    hint = f"; did you mean `{near[0]}_...`?" if near else ""
    raise ValueError(
        f"task must be `{{property}}_{{fidelity}}` with a property out of {', '.join(PROPERTIES)}, got `{name}`{hint}"
    )
