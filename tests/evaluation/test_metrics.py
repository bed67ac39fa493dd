import numpy as np
import pytest

from mfm.evaluation.metrics import Prediction, errors, errors_by_element, errors_by_group, report_unit


def _energies() -> Prediction:
    return Prediction(
        predicted=np.array([1.0, 2.0, 4.0]),
        target=np.array([1.1, 2.0, 3.7]),
        structure=np.array([0, 2, 3]),
        n_atoms=np.array([2, 4, 3]),
    )


def test_energy_errors_in_mev_and_per_atom():
    found = errors("energy_dft", _energies())
    assert found["mae_mev"] == pytest.approx((100 + 0 + 300) / 3)
    assert found["rmse_mev"] == pytest.approx(np.sqrt((100**2 + 300**2) / 3))
    assert found["mae_mev_per_atom"] == pytest.approx((50 + 0 + 100) / 3)
    assert found["rmse_mev_per_atom"] == pytest.approx(np.sqrt((50**2 + 100**2) / 3))
    assert found["count"] == 3


def test_force_errors_are_means_over_components_and_by_element():
    target = np.zeros((3, 3))
    predicted = np.array([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.3]])
    prediction = Prediction(predicted, target, np.zeros(3, int), np.full(3, 3), np.array([8, 1, 1]))
    assert errors("forces_dft", prediction)["mae_mev_per_angstrom"] == pytest.approx(600 / 9)
    by_element = errors_by_element("forces_dft", prediction)
    assert by_element["O"]["mae_mev_per_angstrom"] == pytest.approx(100 / 3)
    assert by_element["H"]["mae_mev_per_angstrom"] == pytest.approx(500 / 6)
    assert errors_by_element("energy_dft", _energies()) == {}


def test_groups_are_looked_up_by_structure():
    groups = np.array(["water", "none", "water", "methane"])
    found = errors_by_group("energy_dft", _energies(), groups)
    assert found["water"]["mae_mev"] == pytest.approx(50)
    assert found["methane"]["mae_mev"] == pytest.approx(300)
    assert set(found) == {"water", "methane"}


def test_nothing_predicted_gives_no_errors():
    empty = Prediction(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int))
    assert errors("forces_dft", empty) == {}


def test_dipoles_are_reported_in_debye():
    assert report_unit("dipole_dft").symbol == "mD"
    assert report_unit("dipole_dft").factor == pytest.approx(1e3 / 0.2081943, rel=1e-6)
    predicted = np.array([[0.3, 0.0, 0.4], [0.0, 0.0, 0.0]])
    found = errors("dipole_dft", Prediction(predicted, np.zeros((2, 3)), np.arange(2), np.full(2, 3)))
    assert found["mae_me_angstrom"] == pytest.approx(700 / 6)
    assert found["mae_millidebye"] == pytest.approx(700 / 6 / 0.2081943, rel=1e-6)
    assert found["mean_length_millidebye"] == pytest.approx(250 / 0.2081943, rel=1e-6)
