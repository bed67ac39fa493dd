"""Records refuse labels that cannot be right."""

import numpy as np
import pytest
from hypothesis import given, settings

from mfm.data.records import Record, formula
from mfm.graph import Structure
from tests.strategies import molecules

WATER = Structure(np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(molecules())
def test_formula_agrees_with_ase(structure):
    assert formula(structure.atomic_numbers) == structure.to_ase().get_chemical_formula("hill")


def test_molecule_defaults_to_formula_with_charge():
    assert Record(WATER, {}).molecule == "H2O"
    hydroxide = Structure(np.array([8, 1]), np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0]]), charge=-1)
    assert Record(hydroxide, {}).molecule == "HO-1"


def test_labels_become_float64():
    record = Record(WATER, {"forces_dft": np.ones((3, 3), dtype=np.float32)})
    assert record.labels["forces_dft"].dtype == np.float64


def test_unknown_property():
    with pytest.raises(ValueError, match=r"task must be .* got `force_dft`; did you mean `forces_...`"):
        Record(WATER, {"force_dft": np.ones((3, 3))})


def test_wrong_shape():
    message = r"label `forces_dft` must have shape \(3, 3\) for a structure of 3 atoms, got \(9,\)"
    with pytest.raises(ValueError, match=message):
        Record(WATER, {"forces_dft": np.ones(9)})


def test_nan_force_beside_a_finite_energy():
    forces = np.zeros((3, 3))
    forces[1, 2] = np.nan
    message = r"`forces_dft` must be finite, got NaN or infinity at atoms \[1\] beside a finite `energy_dft`"
    with pytest.raises(ValueError, match=message):
        Record(WATER, {"energy_dft": np.array(-76.0), "forces_dft": forces})


def test_infinite_energy():
    with pytest.raises(ValueError, match=r"label `energy_dft` must be finite"):
        Record(WATER, {"energy_dft": np.array(np.inf)})


def test_periodic_without_a_cell():
    with pytest.raises(ValueError, match=r"`pbc` is \[True, True, True\] but the cell"):
        Structure(np.array([8]), np.zeros((1, 3)), pbc=np.ones(3, dtype=bool))


def test_positions_that_are_not_finite():
    with pytest.raises(ValueError, match=r"`positions` must be finite"):
        Structure(np.array([8]), np.full((1, 3), np.nan))
