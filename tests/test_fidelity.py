"""Levels of theory: what may share a fidelity."""

import dataclasses

import pytest

from mfm.fidelity import LevelOfTheory, merge_levels

SPICE = LevelOfTheory("wB97M", "def2-TZVPPD", dispersion="D3(BJ)", program="Psi4", version="1.4.1")


def test_program_and_case_do_not_tell_levels_apart() -> None:
    ours = LevelOfTheory("wb97m", "Def2-TZVPPD", dispersion="d3(bj)", program="PySCF", settings="grid 4")
    assert SPICE.is_compatible(ours)
    assert merge_levels({"dft": SPICE}, {"dft": ours}, "x.h5") == {"dft": SPICE}


@pytest.mark.parametrize(
    "change", [{"basis": "def2-TZVPD"}, {"dispersion": ""}, {"frozen_core": True}, {"cartesian": True}]
)
def test_model_chemistry_tells_levels_apart(change: dict[str, object]) -> None:
    other = dataclasses.replace(SPICE, **change)
    assert not SPICE.is_compatible(other)
    with pytest.raises(ValueError, match=rf"fidelity `dft` must mean one level.*in x\.h5.*{next(iter(change))}"):
        merge_levels({"dft": SPICE}, {"dft": other}, "x.h5")


def test_json_round_trip() -> None:
    assert LevelOfTheory.from_json(SPICE.to_json()) == SPICE
    assert SPICE.label == "wB97M-D3(BJ)/def2-TZVPPD"


def test_bad_records() -> None:
    with pytest.raises(ValueError, match="`method` of a level of theory must not be empty"):
        LevelOfTheory("")
    with pytest.raises(ValueError, match="got unknown functional"):
        LevelOfTheory.from_mapping({"method": "PBE", "functional": "PBE"})
    with pytest.raises(ValueError, match="needs `method`; got only basis"):
        LevelOfTheory.from_mapping({"basis": "def2-SVP"})
