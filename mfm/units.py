"""Physical constants and the one table of units.

Inside mfm every quantity is in eV, Å, e, amu and combinations of them. A reader converts foreign
numbers once, with :func:`conversion_factor`; nothing else in mfm holds a constant of nature.

All constants are CODATA 2018 (Tiesinga et al., Rev. Mod. Phys. 93, 025010 (2021)). PySCF ships
CODATA 2010 and ASE defaults to CODATA 2014; on the total energy of aspirin those differ from ours by
0.15 meV and 0.14 meV, which is why neither library's constants are used for labels.
"""

import difflib
import math
import re
from typing import NamedTuple

__all__ = [
    "AVOGADRO",
    "BOHR",
    "BOLTZMANN",
    "COULOMB_CONSTANT",
    "DEBYE",
    "HARTREE",
    "SPEED_OF_LIGHT_SQUARED",
    "UNITS",
    "Unit",
    "conversion_factor",
    "parse_unit",
]

HARTREE = 27.211386245988
"""Hartree energy, eV."""
BOHR = 0.529177210903
"""Bohr radius, Å."""
BOLTZMANN = 8.617333262e-5
"""Boltzmann constant, eV/K."""
COULOMB_CONSTANT = HARTREE * BOHR
"""1/(4 π ε₀), eV Å e⁻² (14.3996454…)."""
AVOGADRO = 6.02214076e23
"""Avogadro constant, 1/mol."""
_ELEMENTARY_CHARGE = 1.602176634e-19
_JOULE = 1.0 / _ELEMENTARY_CHARGE
DEBYE = 1e-21 / 299792458.0 / _ELEMENTARY_CHARGE * 1e10
"""One debye, e Å (0.2081943…): 1e-21/c C m, exactly."""
_AMU_KG = 1.66053906660e-27
SPEED_OF_LIGHT_SQUARED = _AMU_KG * 299792458.0**2 / _ELEMENTARY_CHARGE
"""c², eV/amu (931.494102…e6): the energy of one atomic mass unit."""


class Unit(NamedTuple):
    """A unit: its size in eV, Å, e, amu, and the powers of those four that it is made of."""

    factor: float
    energy: float = 0
    length: float = 0
    charge: float = 0
    mass: float = 0

    @property
    def dimension(self) -> tuple[float, float, float, float]:
        """Powers of (energy, length, charge, mass)."""
        return (self.energy, self.length, self.charge, self.mass)


_KCAL_PER_MOL = 4184.0 * _JOULE / AVOGADRO

UNITS: dict[str, Unit] = {
    "1": Unit(1.0),
    "eV": Unit(1.0, energy=1),
    "meV": Unit(1e-3, energy=1),
    "hartree": Unit(HARTREE, energy=1),
    "rydberg": Unit(HARTREE / 2, energy=1),
    "kcal/mol": Unit(_KCAL_PER_MOL, energy=1),
    "kJ/mol": Unit(1000.0 * _JOULE / AVOGADRO, energy=1),
    "Å": Unit(1.0, length=1),
    "bohr": Unit(BOHR, length=1),
    "nm": Unit(10.0, length=1),
    "pm": Unit(0.01, length=1),
    "e": Unit(1.0, charge=1),
    "debye": Unit(DEBYE, length=1, charge=1),
    "GPa": Unit(1e9 * _JOULE * 1e-30, energy=1, length=-3),
    "kbar": Unit(1e8 * _JOULE * 1e-30, energy=1, length=-3),
    "amu": Unit(1.0, mass=1),
    "electron_mass": Unit(9.1093837015e-31 / _AMU_KG, mass=1),
}
"""Every unit a card, a reader or a command line may name."""

_ALIASES = {
    "ev": "eV",
    "mev": "meV",
    "ha": "hartree",
    "eh": "hartree",
    "au": "hartree",
    "ry": "rydberg",
    "kcal": "kcal/mol",
    "a": "Å",
    "ang": "Å",
    "angstrom": "Å",
    "angstroms": "Å",
    "a0": "bohr",
    "d": "debye",
    "dalton": "amu",
    "gpa": "GPa",
}
# "kcal/mol" and "kJ/mol" hold a slash of their own, so they are matched before the expression is split
_TOKEN = re.compile(r"(kcal/mol|kJ/mol|[A-Za-zÅ_]\w*|1)(?:\^(-?\d+))?|([*/ ])")


def _base_unit(name: str, expression: str) -> Unit:
    if name in UNITS:
        return UNITS[name]
    alias = _ALIASES.get(name.lower())
    if alias is None:
        lowered = {key.lower(): key for key in UNITS}
        alias = lowered.get(name.lower())
    if alias is not None:
        return UNITS[alias]
    near = difflib.get_close_matches(name, [*UNITS, *_ALIASES], n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ValueError(
        f"unit must be built from {', '.join(UNITS)} with `*`, `/` and `^n`, got `{name}` in `{expression}`{hint}"
    )


def parse_unit(expression: str) -> Unit:
    """Size and dimension of a unit expression.

    Parameters
    ----------
    expression : str
        Units of :data:`UNITS` joined by ``*`` and ``/`` with integer powers after ``^``.

    Returns
    -------
    Unit
        Factor to eV, Å, e, amu and the powers of each.

    Raises
    ------
    ValueError
        If a name is unknown or the expression does not parse.

    Examples
    --------
    >>> round(parse_unit("hartree/bohr").factor, 5)
    51.42207
    >>> parse_unit("e*bohr^2").dimension
    (0, 2, 1, 0)
    """
    factor, powers, sign, position = 1.0, [0.0, 0.0, 0.0, 0.0], 1, 0
    text = expression.strip()
    if not text:
        raise ValueError("unit must not be empty; write `1` for a pure number")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"unit `{expression}` does not parse at `{text[position:]}`; write e.g. `eV/Å^3`")
        position = match.end()
        if match.group(3):
            sign = -1 if match.group(3) == "/" else 1
            continue
        unit, power = _base_unit(match.group(1), expression), sign * int(match.group(2) or 1)
        factor *= unit.factor**power
        powers = [have + power * new for have, new in zip(powers, unit.dimension, strict=True)]
        sign = 1
    return Unit(factor, *(int(p) for p in powers))


def conversion_factor(source: str, target: str) -> float:
    """Factor that turns a number in `source` units into `target` units.

    Raises
    ------
    ValueError
        If a unit is unknown, or the two do not measure the same thing.

    Examples
    --------
    >>> round(conversion_factor("kcal/mol", "meV"), 4)
    43.3641
    >>> round(conversion_factor("e*bohr", "debye"), 6)
    2.541746
    """
    have, want = parse_unit(source), parse_unit(target)
    if have.dimension != want.dimension:
        raise ValueError(
            f"unit `{source}` does not measure what `{target}` measures"
            f" (powers of energy, length, charge, mass: {have.dimension} against {want.dimension})"
        )
    factor = have.factor / want.factor
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-15) else factor
