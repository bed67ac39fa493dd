import pytest

from mfm.config import validate
from mfm.training.recipe import RunConfig
from mfm.tuning.space import Choice, Interval, check_space, read_space, with_settings
from tests.morse import recipe

RECIPE = recipe("morse.h5", "")


def test_ranges_choices_and_single_values(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "optimizer.lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "model.backbone.n_channels: [8, 16]\n"
        "batch.structures: {low: 2, high: 8, step: 2}\n"
        "tasks.energy_low.weight: {low: 1, high: 100, log: true}\n"
        "optimizer.betas: [[0.9, 0.99], [0.9, 0.999]]\n"
        "model.long_range: [null, {name: latent_ewald}]\n"
        "stages.1.max_steps: 7\n"
    )
    space = read_space(tmp_path / "space.yaml", RECIPE)
    assert space.searched["optimizer.lr"] == Interval(1e-4, 1e-2, log=True, step=None, whole=False)
    assert space.searched["model.backbone.n_channels"] == Choice((8, 16))
    # the schema tells whole numbers from others, not how the file writes them
    assert space.searched["batch.structures"] == Interval(2, 8, log=False, step=2, whole=True)
    assert space.searched["tasks.energy_low.weight"] == Interval(1, 100, log=True, step=None, whole=False)
    assert space.fixed == {"stages.1.max_steps": 7}


def test_settings_reach_the_recipe_exactly():
    settings = {"optimizer.lr": 1.2345678901234567e-05, "tasks.energy_low.weight": 10, "model.long_range": None}
    config = validate(RunConfig, with_settings(RECIPE, settings))
    assert config.optimizer.lr == 1.2345678901234567e-05
    assert config.model.tasks["energy_low"].weight == 10
    assert RECIPE["tasks"]["energy_low"] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"optimizr.lr": [0.1, 0.2]},
            r"`optimizr\.lr`: with 0\.1: `optimizr`: unknown key; did you mean `optimizer`\?",
        ),
        ({"optimizer.lrr": {"low": 1, "high": 2}}, r"`optimizer\.lrr`: with 1\.0: .*did you mean `lr`\?"),
        (
            {"tasks.energy_lo.weight": [1, 2]},
            r"the recipe's tasks are energy_low, energy_high, this makes them .*energy_lo",
        ),
        ({"stages.2.lr": [0.1, 0.2]}, r"`stages\.2\.lr`: with 0\.1: .*`2` must be a number below 2"),
        (
            {"optimizer.lr": {"low": 0.1, "high": 0.1}},
            r"the range is empty: `low` must be below `high`, got 0\.1 and 0\.1",
        ),
        ({"optimizer.lr": {"low": 0.0, "high": 1, "log": True}}, r"`low` must be above 0 where `log` is true, got 0"),
        ({"optimizer.lr": {"low": 1, "high": float("inf")}}, r"`low` and `high` must be finite, got 1 and inf"),
        ({"optimizer.lr": {"low": 1, "high": 2, "log": True, "step": 1}}, "`log` and `step` exclude each other"),
        (
            {"optimizer.lr": {"low": 1, "high": 2, "step": 0.3}},
            r"a whole number of steps above `low`, got steps of 0\.3",
        ),
        ({"optimizer.lr": {"low": 1, "hihg": 2}}, r"`optimizer\.lr`: `hihg`: unknown key; did you mean `high`\?"),
        ({"optimizer.lr": {"low": "a", "high": 2}}, r"`low`: .* valid number.*, got 'a'"),
        ({"optimizer.lr": {"low": -1, "high": 1}}, r"`optimizer\.lr`: with -1\.0: .*greater than 0"),
        ({"optimizer.lr": [0.1, "fast"]}, r"`optimizer\.lr`: with 'fast': .*valid number"),
        ({"batch.structures": {"low": 1.5, "high": 4}}, r"`batch\.structures`: with 1\.5: .*valid integer"),
        ({"batch.structures": {"low": 1, "high": 4, "step": 1.5}}, r"`step` of whole numbers must be whole, got 1\.5"),
        ({"data.references": {"low": 1, "high": 4}}, r"`data\.references`: with 1\.0: "),
        ({"stages.0.skip": {"low": 0, "high": 1}}, r"a range needs a setting that is a number; list the choices"),
        ({"optimizer.lr": []}, "a list holds choices, at least two"),
        ({"optimizer.lr": [0.1, 0.1]}, r"choices must differ, got \[0\.1, 0\.1\]"),
        ({"optimizer.lr": 0.1}, "nothing to search: give at least one key a range"),
        ({"optimizer.lr": [0.1, 0.2], "seed": "x"}, r"`seed` = 'x': `seed`: .*valid integer"),
        ({"data.seed": [0, 1]}, "`data.seed`: trials are compared by it"),
        ({"validations": [10, 20]}, "`validations`: trials are compared by it"),
        ({"output": "here"}, "`output`: every trial has its own"),
    ],
)
def test_mistakes_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        check_space(content, RECIPE)


def test_every_mistake_is_on_a_line_of_its_own():
    with pytest.raises(ValueError, match="is not valid") as caught:
        check_space({"optimizer.lr": [1], "optimizer.emma": [0.9, 0.99], "seed": [0, 1]}, RECIPE, "`space.yaml`")
    lines = str(caught.value).splitlines()
    assert lines[0] == "`space.yaml` is not valid:"
    assert len(lines) == 3


def test_the_recipe_s_own_settings_are_known_where_the_space_holds_them():
    own = {"optimizer": {"lr": 1e-3}, "batch": {"structures": 4}, "model": {"long_range": {"name": "latent_ewald"}}}
    content = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "batch.structures": {"low": 3, "high": 9, "step": 2},  # 4 is not one of them
        "optimizer.betas": [[0.9, 0.9], [0.8, 0.8]],  # nor are the recipe's
        "model.long_range": [None, {"name": "latent_ewald"}],
        "tasks.energy_low.weight": {"low": 2, "high": 3},
        "stages.1.max_steps": [1, 2],
    }
    space = check_space(content, {**RECIPE, **own, "tasks": {**RECIPE["tasks"], "energy_low": {"weight": 2}}})
    assert space.own == {
        "optimizer.lr": 1e-3,
        "model.long_range": {"name": "latent_ewald"},
        "tasks.energy_low.weight": 2,
    }
