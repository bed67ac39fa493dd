import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfm.config import validate
from mfm.data import open_dataset
from mfm.training.recipe import RunConfig
from tests.morse import recipe


def _content(**changes):
    return recipe("data.h5", "runs/test", **changes)


def test_a_short_file_is_enough():
    config = validate(
        RunConfig,
        {
            "data": {"train": "builtin:chno-mini", "split": "by_molecule"},
            "tasks": {"energy_dft": {}, "energy_ccsdt": {"anchor": "energy_dft"}},
            "stages": [{"name": "dft", "tasks": ["energy_dft"], "epochs": 100}, {"name": "joint", "epochs": 50}],
        },
    )
    assert config.folder == "runs/run"
    assert config.stage_tasks(config.stages[0]) == ["energy_dft"]
    assert config.stage_tasks(config.stages[1]) == ["energy_dft", "energy_ccsdt"]


def test_the_resolved_configuration_reads_back():
    config = validate(RunConfig, _content())
    assert validate(RunConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"name": "a"}]}, "needs exactly one of `epochs`, `max_steps` and `max_minutes`, got none"),
        ({"stages": [{"name": "a", "epochs": 1, "max_steps": 2}]}, "got epochs, max_steps"),
        ({"stages": [{"name": "a", "epochs": 1}] * 2}, "different names, got a, a"),
        ({"stages": [{"name": "a", "epochs": 1, "skip": True}]}, "every stage is skipped"),
        ({"stages": [{"name": "a", "epochs": 1, "tasks": ["energy_x"]}]}, "trains `energy_x`, which is not among"),
        ({"stages": [{"name": "a", "epochs": 1, "taks": []}]}, r"`stages.0.taks`: unknown key"),
        ({"stages": []}, r"`stages`: List should have at least 1 item"),
        ({"optimizr": {}}, r"`optimizr`: unknown key; did you mean `optimizer`"),
        ({"optimizer": {"lr": "fast"}}, r"`optimizer.lr`: .*, got 'fast'"),
        ({"model": {"tasks": {}}}, "at the top level or in `model`, not in both"),
        ({"tracking": "wandb"}, r"`tracking"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        validate(RunConfig, _content(**changes))


def _documented() -> list[tuple[str, dict[str, Any]]]:
    """Recipes that the documentation shows."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    return [(block, content) for block in blocks if "stages" in (content := yaml.safe_load(block))]


def test_recipes_of_the_documentation_are_valid():
    usual = {"data": {"train": "builtin:chno-mini"}, "tasks": {"energy_dft": {}}}
    found = [validate(RunConfig, {**usual, **content}) for _, content in _documented()]
    assert len(found) >= 5
    whole = next(config for config in found if len(config.stages) == 5)
    assert [stage.name for stage in whole.stages] == ["denoise", "cheap", "dft", "joint", "fine-tune"]
    known = set(open_dataset("builtin:chno-mini").origins)
    assert set(whole.stages[0].origins or []) <= known


def test_going_on_from_a_checkpoint_takes_at_most_eight_lines():
    (block,) = [block for block, content in _documented() if "energy_mine" in content.get("tasks", {})]
    assert len(block.strip().splitlines()) <= 8
