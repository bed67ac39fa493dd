import pytest

from mfm.config import validate
from mfm.model import build_model
from mfm.training.data import RunData, fit_domain, prepare_data
from mfm.training.recipe import DataConfig, RunConfig
from mfm.tuning.objectives import COST, check_objectives, default_objective, microseconds_per_atom


@pytest.fixture(scope="module")
def data(morse_file) -> RunData:
    return prepare_data(DataConfig(train=str(morse_file), valid_fraction=0.25), ["energy_low", "energy_high"])


def test_the_default_is_the_error_of_the_level_that_builds_on_all_others(content):
    tasks = {"energy_high": {"anchor": "energy_low"}, "energy_low": {}}
    assert default_objective(validate(RunConfig, content)) == "val/energy_high/mae_mev_per_atom"
    assert default_objective(validate(RunConfig, {**content, "tasks": tasks})) == "val/energy_high/mae_mev_per_atom"
    dipoles = {"dipole_low": {}, "dipole_high": {"anchor": "dipole_low"}}
    assert default_objective(validate(RunConfig, {**content, "tasks": dipoles})) == "val/dipole_high/mae_millidebye"


def test_objectives_that_no_trial_would_have_are_refused(content, data):
    config = validate(RunConfig, content)
    check_objectives(["val/energy_high/rmse_mev", "val/forces_low/mae_mev_per_angstrom", COST], config, data)
    with pytest.raises(ValueError, match=r"got `val/energy_hig/mae_mev_per_atom`; did you mean `val/energy_high/mae"):
        check_objectives(["val/energy_hig/mae_mev_per_atom"], config, data)
    with pytest.raises(ValueError, match="objectives must differ, got cost"):
        check_objectives([COST, COST], config, data)
    with pytest.raises(ValueError, match=r"needs labels of `forces_high` in the validation set, which has energy_high"):
        check_objectives(["val/forces_high/mae_mev_per_angstrom"], config, data)
    with pytest.raises(ValueError, match=r"the recipe keeps none: set `data\.valid_fraction`"):
        check_objectives([COST], config, RunData(data.train, None, None))


def test_cost_is_the_median_time_per_atom(content, data, monkeypatch):
    """Seven calls after the first take 1 to 7 ms: 4 ms over the atoms of the batch."""
    calls = []

    class FakeClock:
        def __init__(self, device_type: str) -> None:
            calls.append(device_type)

        def seconds(self) -> float:
            return 1e-3 * (len(calls) - 1)

    config = validate(RunConfig, content).model
    domain = fit_domain(data.train, config.tasks, config.backbone.cutoff)
    model = build_model(config, domain, seed=0)
    real = microseconds_per_atom(model, data.valid)
    assert 0.1 < real < 1e5
    monkeypatch.setattr("mfm.tuning.objectives.Clock", FakeClock)
    assert microseconds_per_atom(model, data.valid) == pytest.approx(4000 / data.valid.n_atoms.sum())
    assert calls == ["cpu"] * 8
