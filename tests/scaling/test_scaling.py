"""Scaling studies: laws with known exponents, the grid and what it resumes, the report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mfm.cli import main
from mfm.config import validate
from mfm.data import open_dataset
from mfm.scaling.fit import fit_law, intervals, is_identifiable
from mfm.scaling.grid import run_grid
from mfm.scaling.plan import Cell, ScalingConfig
from mfm.scaling.report import Findings, Point, fit_points, frontier, write_report
from mfm.study.cells import Layout
from tests.morse import TINY, morse_store

N = np.array([1e3, 4e3, 1.6e4, 6.4e4])
D = np.array([50.0, 200.0, 800.0, 3200.0])
GRID = np.array([(n, d) for n in N for d in D])


def _law(floor: float, a: float, alpha: float, b: float, beta: float) -> np.ndarray:
    return floor + a * GRID[:, 0] ** -alpha + b * GRID[:, 1] ** -beta


def test_known_exponents_are_found() -> None:
    law = fit_law(GRID, _law(3.0, 400.0, 0.6, 900.0, 0.9))
    assert law.floor == pytest.approx(3.0, rel=1e-3)
    assert law.exponents == pytest.approx((0.6, 0.9), rel=1e-3)
    assert (law.amplitude(0), law.amplitude(1)) == pytest.approx((400.0, 900.0), rel=1e-2)
    assert law(np.array([[1e6, 1e5]]))[0] == pytest.approx(3.0 + 400.0 * 1e6**-0.6 + 900.0 * 1e5**-0.9, rel=1e-3)
    alone = fit_law(D[:, None], 20.0 * D**-0.5)
    assert alone.exponents[0] == pytest.approx(0.5, rel=1e-3)
    assert alone.floor < 1e-2


def test_intervals_over_seeds_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    errors = [(value * np.exp(0.05 * rng.normal(size=4))).tolist() for value in _law(3.0, 400.0, 0.6, 900.0, 0.9)]
    law, found = intervals(GRID, errors, lambda law: law.exponents, resamples=60)
    for interval, truth, fitted in zip(found, (0.6, 0.9), law.exponents, strict=True):
        assert interval.value == fitted
        assert interval.low < truth < interval.high
        assert interval.high - interval.low < 0.6
    assert math.isnan(intervals(GRID, [values[:1] for values in errors], lambda law: law.exponents)[1][0].low)


def test_what_cannot_be_told_is_refused() -> None:
    assert not is_identifiable(GRID[:5])  # one size
    with pytest.raises(ValueError, match="a law of 2 terms needs three values of each and more than 5 points, got 4"):
        fit_law(GRID[:4], np.ones(4))
    points = [Point("s", 1000, int(d), 10, 1.0, (20.0 * d**-0.5,)) for d in D]
    larger = [Point("l", 2000, int(d), 10, 1.0, (10.0 * d**-0.5,)) for d in D]
    fit = fit_points([*points, *larger], ["parameters", "structures"])
    # two sizes make no law of parameters; that of structures is the larger size's
    assert fit is not None
    assert fit.axes == ("structures",)
    assert fit.law.exponents[0] == pytest.approx(0.5, rel=1e-3)
    assert fit.law(np.array([[100.0]]))[0] == pytest.approx(1.0, rel=1e-2)
    assert fit_points(points[:3], ["parameters", "structures"]) is None


def test_the_frontier_holds_what_no_cheaper_model_beats() -> None:
    def point(seconds: float, error: float) -> Point:
        return Point("s", 1, 1, 1, seconds, (error,))

    points = [point(1.0, 5.0), point(3.0, 2.0), point(2.0, 6.0), point(9.0, 2.5), point(10.0, 1.0)]
    assert [(p.seconds, round(p.mean, 9)) for p in frontier(points)] == [(1.0, 5.0), (3.0, 2.0), (10.0, 1.0)]


def _content(file: Path | str, **changes: Any) -> dict[str, Any]:
    content = {
        "name": "morse",
        "run": {
            "data": {"train": str(file), "test_fraction": 0.25},
            "tasks": {"energy_low": {}},
            "model": {"backbone": TINY, "readout_channels": 8},
            "batch": {"structures": 4},
            "device": "cpu",
            "tracking": "none",
        },
        "sizes": {"small": {"n_channels": 4}, "large": {"n_channels": 8}},
        "structures": [4, 8],
        "steps": [2],
        "seeds": 1,
    }
    return {**content, **changes}


def _config(file: Path | str, **changes: Any) -> ScalingConfig:
    return validate(ScalingConfig, _content(file, **changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "morse.h5"
    morse_store().write(path)
    return path


def test_a_study_is_trained_resumed_and_reported(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
    monkeypatch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())
    config, folder = _config(file), tmp_path / "study"
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["scaling", str(path), "--output", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "4 of 4 models, 1 seeds" in text
    assert "| energy_low | too few points |" in text
    assert "parameters: 2 values over a factor of" in text
    assert "data:image/png;base64," in (folder / "report.html").read_text()
    layout = Layout(folder)
    cells = {cell: json.loads(layout.result(cell).read_text()) for cell in config.cells()}
    assert {found["clock"]["step"] for found in cells.values()} == {2}
    sizes = {cell.size: found["n_parameters"] for cell, found in cells.items()}
    assert sizes["small"] < sizes["large"]
    small, large = (open_dataset(layout.train(Cell("small", n, 2, 0))) for n in (4, 8))
    assert len(small) == 4
    hashes = [{record.structure.content_hash() for record in store} for store in (small, large)]
    assert hashes[0] < hashes[1]
    before = layout.result(Cell("small", 4, 2, 0)).stat().st_mtime_ns
    assert run_grid(config, folder)
    assert layout.result(Cell("small", 4, 2, 0)).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"a study with another `sizes\.large\.n_channels`; restore"):
        run_grid(_config(file, sizes={"small": {"n_channels": 4}, "large": {"n_channels": 6}}), folder)


def test_the_report_of_known_errors(file: Path, tmp_path: Path) -> None:
    sizes = {f"s{k}": {"n_channels": 4 + k} for k in range(4)}
    config = _config(file, sizes=sizes, structures=[50, 200, 800, 3200], steps=[10, 20], seeds=2)
    layout = Layout(tmp_path)
    layout.result(Cell("s0", 50, 10, 0)).parent.mkdir()
    for cell in config.cells():
        n = float(N[int(cell.size[1])])
        error = (3.0 + 400.0 * n**-0.6 + 900.0 * cell.n_structures**-0.9) * (1.02 if cell.seed else 1 / 1.02)
        found = {
            "metrics": {"energy_low": {"mae_mev_per_atom": error * (30 / cell.steps)}},
            "n_parameters": int(n), "clock": {"step": cell.steps, "seconds": 1e-3 * n * cell.steps},
            "commit": "abc", "test_digest": "def", "processor": "none",
        }  # fmt: skip
        layout.result(cell).write_text(json.dumps(found))
    assert {point.steps for point in Findings(config, tmp_path).longest("energy_low")} == {20}
    text = write_report(config, tmp_path)[0].read_text()
    row = next(line for line in text.splitlines() if line.startswith("| energy_low, meV/atom | 4.50 ("))
    assert "| 0.60 (" in row
    assert "| 0.90 (" in row
    assert "an exponent that predicts needs 5 over 100" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": [8, 4]}, r"`structures` must rise from at least 1"),
        ({"steps": [0]}, r"`steps` must rise from at least 1"),
        ({"sizes": {"a-b": {}}}, r"names of `sizes` must be letters, digits and `_`, got `a-b`"),
        ({"sizes": {"a": {"n_chanels": 4}}}, r"unknown key; did you mean `n_channels`"),
        ({"run": {"data": {"train": "x"}, "tasks": {"energy_low": {}}, "seed": 1}}, r"`run` must leave `seed`"),
    ],
)
def test_mistakes_are_named_before_anything_runs(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(file, **changes)


def test_too_few_structures_and_nothing_to_report(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`structures` asks for 500, the training part has 24 with labels"):
        run_grid(_config(file, structures=[4, 500]), tmp_path)
    with pytest.raises(ValueError, match=r"no model of `morse` is finished"):
        write_report(_config(file), tmp_path)
