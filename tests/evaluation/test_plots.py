import matplotlib
import numpy as np
import pytest

from mfm.evaluation.metrics import Prediction
from mfm.evaluation.plots import plot_learning_curves, plot_parity


def _prediction(n: int) -> Prediction:
    values = np.linspace(0, 1, n)
    return Prediction(values + 0.01, values, np.arange(n), np.full(n, 3))


def test_figures_are_written_and_leave_matplotlib_alone(tmp_path):
    backend = matplotlib.rcParams["backend"]
    plot_parity({"energy_dft": _prediction(50), "energy_ccsdt": _prediction(1), "forces_dft": _prediction(0)},
                tmp_path / "parity.png", title="test")  # fmt: skip
    history = {"val/energy_dft/mae_mev": [(0, 3.0), (10, 1.0)], "train/loss": [(0, 0.0), (5, 1.0)]}
    plot_learning_curves(history, tmp_path / "curves.png", {"dft": 0, "joint": 5})
    for name in ("parity.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert matplotlib.rcParams["backend"] == backend


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a parity plot needs labels"):
        plot_parity({"energy_dft": _prediction(0)}, tmp_path / "parity.png")
    with pytest.raises(ValueError, match="need at least one metric"):
        plot_learning_curves({}, tmp_path / "curves.png")
