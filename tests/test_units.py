"""Units against values published by CODATA 2018 and exact definitions."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mfm.units import COULOMB_CONSTANT, DEBYE, UNITS, conversion_factor, parse_unit


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("hartree", "eV", 27.211386245988),
        ("hartree/bohr", "eV/Å", 51.42206747),  # CODATA 2018, atomic unit of force, in eV/Å
        ("kcal/mol", "kJ/mol", 4.184),
        ("kcal/mol/Å", "meV/Å", 43.36410424),
        ("debye", "e*bohr", 0.3934302695),
        ("GPa", "eV/Å^3", 0.006241509074),
        ("kbar", "GPa", 0.1),
        ("nm", "Å", 10.0),
        ("amu", "electron_mass", 1822.888486),
        ("e*bohr^2", "e*Å^2", 0.28002852054),
        ("Ha", "eV", 27.211386245988),
        ("angstrom", "bohr", 1.8897261246),
    ],
)
def test_conversions(source: str, target: str, expected: float) -> None:
    assert conversion_factor(source, target) == pytest.approx(expected, rel=1e-9)


def test_coulomb_constant() -> None:
    # e²/(4 π ε₀) in eV Å; CODATA 2018
    assert pytest.approx(14.3996454784, abs=1e-9) == COULOMB_CONSTANT
    assert pytest.approx(0.20819433, abs=1e-8) == DEBYE


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.integers(-3, 3))
def test_expressions_multiply(left: str, right: str, power: int) -> None:
    unit = parse_unit(f"{left}*{right}^{power}")
    assert unit.factor == pytest.approx(UNITS[left].factor * UNITS[right].factor ** power, rel=1e-12)
    back = conversion_factor(f"{left}/{right}", f"{left}/{right}")
    assert back == 1.0


def test_unknown_unit_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got `hartre`.*did you mean `hartree`"):
        parse_unit("hartre/bohr")


def test_units_of_other_quantities_are_refused() -> None:
    with pytest.raises(ValueError, match="`eV` does not measure what `eV/Å` measures"):
        conversion_factor("eV", "eV/Å")


@pytest.mark.parametrize(("text", "message"), [("", "must not be empty"), ("eV/;", "does not parse at `;`")])
def test_malformed_units(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_unit(text)
