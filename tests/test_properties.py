"""Tasks: names of a property at a fidelity."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mfm.properties import PROPERTIES, get_property, parse_task, task_name
from mfm.units import parse_unit

FIDELITIES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@given(st.sampled_from(sorted(PROPERTIES)), FIDELITIES)
def test_names_split_into_what_made_them(name: str, fidelity: str) -> None:
    assert parse_task(task_name(name, fidelity)) == (name, fidelity)


@pytest.mark.parametrize("row", PROPERTIES.values(), ids=lambda row: row.name)
def test_units_of_the_table_are_internal(row: object) -> None:
    assert parse_unit(row.unit).factor == 1.0


def test_unknown_property() -> None:
    with pytest.raises(ValueError, match="got `force`; did you mean `forces`"):
        get_property("force")


@pytest.mark.parametrize("name", ["energy", "force_dft", "energy_CCSD(T)", "energy_"])
def test_malformed_task(name: str) -> None:
    with pytest.raises(ValueError, match=r"task must be `\{property\}_\{fidelity\}`"):
        parse_task(name)


def test_malformed_fidelity() -> None:
    with pytest.raises(ValueError, match=r"fidelity must be lower-case.*got `CCSD\(T\)`"):
        task_name("energy", "CCSD(T)")
