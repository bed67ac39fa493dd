"""Cosines between gradients of tasks: known ones, and those that a run records without changing what it learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.losses import LossTerm
from mfm.model import NOISE
from mfm.training.cosines import GradientCosines
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import recipe


def _term(total: torch.Tensor, count: float = 1.0, weight: float = 1.0) -> LossTerm:
    return LossTerm(total, torch.tensor(count, dtype=total.dtype), weight)


def test_known_cosines() -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    elsewhere = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    terms = {
        # gradients (3, 0) / 3 and 2 · (0, 2) / 2 make (1, 2) of one task
        "energy_dft": _term(3.0 * weights[0], 3.0),
        "forces_dft": _term(weights[1] * 2.0, 2.0, 2.0),
        "energy_ccsdt": _term(-weights[0] * elsewhere),
        "dipole_dft": _term(0.0 * weights[0], 0.0),
        NOISE: _term(elsewhere.square()),
    }
    found = GradientCosines([weights], 5).measure(terms)
    assert len(found) == 6
    cosine, count = found["gradient_cosine/energy_dft/energy_ccsdt"]
    assert cosine.item() == pytest.approx(-1.0 / 5.0**0.5)
    assert count.item() == 1.0
    for other in ("dipole_dft", NOISE):
        assert [value.item() for value in found[f"gradient_cosine/energy_dft/{other}"]] == [0.0, 0.0]
    assert weights.grad is None
    sum(term.total for term in terms.values()).backward()  # the graph is still there
    assert GradientCosines([weights], 5).measure({"energy_dft": terms["energy_dft"]}) == {}
    assert [step for step in range(11) if GradientCosines([weights], 5).is_due(step)] == [0, 5, 10]


def test_two_ranks_measure_the_gradient_of_both() -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    terms = {"energy_a": _term(weights[0] + weights[1]), "energy_b": _term(weights[0])}

    def reduction(values: torch.Tensor) -> torch.Tensor:
        """The other rank has the same counts, and (1, −1) and (0, 2) for gradients."""
        if values.dim() == 1:
            return 2.0 * values
        return values + torch.tensor([[0.5, -0.5], [0.0, 1.0]], dtype=values.dtype)

    cosine, _ = GradientCosines([weights], 1, reduction).measure(terms)["gradient_cosine/energy_a/energy_b"]
    # (1, 0) and (0.5, 1)
    assert cosine.item() == pytest.approx(0.5 / 1.25**0.5)


def test_a_run_records_them_and_learns_the_same(
    morse_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
    monkeypatch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())

    def run(name: str, **changes: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        stages = [{"name": "joint", "max_steps": 6}]
        content = recipe(str(morse_file), str(tmp_path / name), stages=stages, **changes)
        folder = train(validate(RunConfig, content)).folder
        lines = (folder / "history.jsonl").read_text().splitlines()
        return load_model(folder / "model.mfm").state_dict(), [json.loads(line) for line in lines]

    plain, without = run("plain")
    measured, with_them = run("measured", gradient_cosines=1)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    name = "train/gradient_cosine/energy_low/energy_high"
    assert name not in json.dumps(without)
    assert name in json.dumps(with_them)
    values = [line["metrics"][name] for line in with_them if name in line.get("metrics", {})]
    assert values
    assert all(-1.0 <= value <= 1.0 for value in values)
