"""Levels that others build on keep their place while the others train."""

import json

import pytest
import torch

from mfm.config import validate
from mfm.model import build_model
from mfm.training.data import fit_domain, prepare_data
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from mfm.training.stage import build_stage
from tests.morse import recipe

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def config(morse_file, tmp_path):
    """One stage on each level, the higher one anchored to the lower."""
    stages = [{"name": level, "tasks": [f"energy_{level}"], "max_steps": 2} for level in ("low", "high")]
    return validate(RunConfig, recipe(str(morse_file), str(tmp_path / "run"), stages=stages, log_every=1))


def test_a_stage_learns_what_its_tasks_build_on_where_its_structures_carry_the_labels(config):
    data = prepare_data(config.data, list(config.model.tasks))
    domain = fit_domain(data.train, config.model.tasks, config.model.backbone.cutoff)
    stage = build_stage(build_model(config.model, domain, 0), data, config, 1, None)
    n_paired = int(data.train.coverage("energy_high").sum())
    assert n_paired < len(data.train)
    seen = 0
    for batch, _ in zip(stage.batches, range(-(-n_paired // config.batch.structures)), strict=False):
        graph = batch.graph
        seen += graph.n_structures
        for task in ("energy_high", "energy_low", "forces_low"):
            assert torch.isfinite(graph[task]).all()
    assert seen == n_paired


def test_errors_of_the_base_are_part_of_the_loss(config):
    result = train(config)
    rows = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    for stage, expected in (
        ("low", {"energy_low", "forces_low"}),
        ("high", {"energy_low", "forces_low", "energy_high"}),
    ):
        metrics = next(row["metrics"] for row in rows if row["stage"] == stage and "train/loss" in row["metrics"])
        assert {name.split("/")[1] for name in metrics if name.endswith("/loss") and name.count("/") == 2} == expected
