"""Runs side by side, as text and as a page."""

import re
from pathlib import Path

import numpy as np
import pytest

from mfm import tracking
from mfm.cli import main
from mfm.evaluation.comparison import compare

pytestmark = [
    # MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("in_this_process"),
]


@pytest.fixture
def runs(directory: Path, tmp_path: Path) -> list[str]:
    """Folders of three runs: two that only their seed sets apart, and one with another learning rate."""
    folders = []
    for name, rate, seed, error in (("one", 0.1, 0, 1.0), ("two", 0.1, 1, 2.0), ("three", 0.2, 0, 4.0)):
        folder = tmp_path / name
        run = tracking.start_run(folder, "exp", name, {"mfm.seed": str(seed)}, directory)
        run.log_params({"optimizer.lr": rate, "same": 1, "seed": seed, "name": name, "output": str(folder)})
        for stage in ("low", "high"):
            child = run.child(stage, {})
            child.log_params({"epochs": 5})
            for step in (1, 2):
                child.log_metrics({"train/loss": error / step, "val/energy_dft/mae_mev": error}, step)
            child.finish()
        values = np.arange(4.0)
        np.savez(folder / "test_parity.npz", **{"target/energy_dft": values, "predicted/energy_dft": values + error})
        run.log_artifacts([folder / "test_parity.npz"])
        run.log_metrics({"test/energy_dft/mae_mev": error, "val/energy_dft/mae_mev": error, "train/loss": 1.0}, 0)
        run.finish()
        folders.append(str(folder))
    return folders


def _rows(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if len(line.split()) > 1}


def test_what_differs_errors_and_seeds(directory, runs):
    found = compare(runs, directory)
    text = found.to_text()
    rows = {table.title: {row[0]: row[1:] for row in table.rows} for table in found.tables}
    settings = rows["Settings that differ"]
    assert settings["optimizer.lr"] == ["0.1", "0.1", "0.2"]
    assert settings.keys() == {"status", "mfm.seed", "optimizer.lr", "seed"}
    errors = rows["Errors at dft, and differences to the first run"]
    assert errors["test/energy_dft/mae_mev"] == ["1.000", "2.000 (+1.000)", "4.000 (+3.000)"]
    (title,) = [title for title in rows if title.startswith("Over 2 seeds: one ")]
    assert rows[title]["test/energy_dft/mae_mev"] == ["1.500", "0.707", "1.000", "2.000"]
    assert "train/loss" not in text
    assert _rows(text)["optimizer.lr"].split()[1:] == ["0.1", "0.1", "0.2"]
    every = _rows(compare(runs, directory, every=True).to_text())
    assert {"train/loss", "same", "low.epochs", "output"} <= every.keys()
    assert found.figures == {}


def test_the_page_stands_alone(directory, runs, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["compare", *runs, "--html", str(page), "--directory", str(directory)]) == 0
    content = page.read_text(encoding="utf-8")
    assert [*re.findall(r"<h2>(.*?)</h2>", content)][-2:] == ["Learning curves", "Parity, test, dft"]
    assert content.count('src="data:image/png;base64,iVBOR') == 2
    # nothing is fetched: no address, and every source is in the page itself
    assert not re.search(r'https?://|<link|<script|src="(?!data:)', content)
    cells = {cell for row in re.findall(r"<tr>(.*?)</tr>", content) for cell in re.findall(r"<t[dh]>(.*?)</t", row)}
    printed = capsys.readouterr().out
    assert "4.000 (+3.000)" in cells
    assert [cell for cell in cells if cell not in printed] == []


def test_curves_run_on_over_the_stages(directory, runs):
    store = tracking.open_store(tracking.locate(directory))
    (record,) = tracking.read_runs(store, ["two"])
    curves = tracking.read_curves(store, record, ["train/loss", "missing"])
    assert curves == {"train/loss": [(1, 2.0), (2, 1.0), (3, 2.0), (4, 1.0)]}


def test_runs_that_are_not_there_are_named(directory, runs):
    with pytest.raises(ValueError, match=r"no run has the name or id `four`; the newest are: .*three \("):
        compare(["one", "four"], directory)
    with pytest.raises(ValueError, match="no run has the name or id `it's`"):
        compare(["it's"], directory)


def test_a_start_that_several_ids_share_is_refused(directory, monkeypatch):
    store = tracking.open_store(tracking.locate(directory))
    monkeypatch.setattr(tracking.Store, "search", lambda self, condition="", most=0: [condition] * most)
    with pytest.raises(ValueError, match="`a1` fits several run ids; give more characters"):
        tracking.find_run(store, "a1")
