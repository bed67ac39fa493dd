"""The experiment on denoising beside labels: its arms and its table."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mfm.checkpoint import load_model
from mfm.data import Record, Store
from tests.morse import morse_store

SCRIPT = Path(__file__).parents[2] / "experiments" / "auxiliary_denoising" / "run.py"
pytestmark = pytest.mark.usefixtures("no_figures")


def dft_store() -> Store:
    """The cheaper Morse level, called DFT."""
    store = morse_store(isolated_atoms=False)
    records = [
        Record(
            record.structure,
            {"energy_dft": record.labels["energy_low"], "forces_dft": record.labels["forces_low"]},
            record.molecule,
            record.origin,
        )
        for record in store
    ]
    return Store.from_records(records, store.card.replace(levels={"dft": store.card.levels["low"]}))


def test_arms_differ_in_what_they_are_told_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dft_store().write(tmp_path / "data.h5")
    specification = importlib.util.spec_from_file_location("auxiliary_denoising_run", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    data = ["--train", tmp_path / "data.h5", "--test", tmp_path / "data.h5"]
    words = ["run.py", "--fast", *data, "--results", tmp_path / "r", "--work", tmp_path / "w"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert script.main() == 0
    cells = {arm: json.loads((tmp_path / "r" / f"{arm}-0.json").read_text(encoding="utf-8")) for arm in script.ARMS}
    assert len({cell["clock"]["step"] for cell in cells.values()}) == 1
    assert len({cell["train_digest"] for cell in cells.values()}) == 1
    # the denoising head and what conditions it are not in the checkpoints, but the weights have moved otherwise
    states = [load_model(tmp_path / "w" / f"{arm}-0" / "model.mfm").state_dict() for arm in script.ARMS]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(any(not value.equal(other[name]) for name, value in states[0].items()) for other in states[1:])
    assert "forces over `off` with the same seed | 1.000 |" in capsys.readouterr().out
