"""Models by name: versions, aliases behind a gate, and opening them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfm import MFMCalculator, tracking
from mfm.checkpoint import save_checkpoint
from mfm.cli import main
from tests.tiny import tiny_model

pytestmark = [
    # MLflow 3.17 uses a loader that sqlalchemy 2.1 is about to remove
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("in_this_process"),
]


@pytest.fixture
def trained(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a recorded run with a model; the folder of runs is the one that is looked at without being named."""
    monkeypatch.setenv("MFM_TRACKING_URI", str(directory))
    folder = tmp_path / "run"
    run = tracking.start_run(folder, "exp", "water", {})
    save_checkpoint(folder / "model.mfm", tiny_model())
    run.child("dft", {}).finish()
    run.log_checkpoint(folder / "model.mfm", "water", {}, {"test/energy_dft/mae_mev": 1.0})
    run.finish()
    return folder


def _passes(path: Path) -> list[str]:
    return []


def test_versions_aliases_and_runs_open_the_same_model(trained):
    identifier = tracking.find_run(tracking.open_store(tracking.locate()), "water").info.run_id
    assert tracking.register(trained, "h2o", "champion", _passes) == ("1", [])
    assert tracking.register(identifier[:12], "h2o", "", _passes) == ("2", [])
    weights = tracking.open_model(trained / "model.mfm").state_dict()
    names = ["models:/h2o@champion", "models:/h2o/2", Path("models:/h2o/1"), f"runs:/{identifier}", "runs:/water"]
    for name in names:
        opened = tracking.open_model(name).state_dict()
        assert all(torch.equal(weights[key], opened[key]) for key in weights)
    assert MFMCalculator("models:/h2o@champion", fidelity="dft").fidelities() == ["dft", "ccsdt"]


def test_a_name_that_may_move_on_is_resolved_to_one_that_stays(trained):
    identifier = tracking.find_run(tracking.open_store(tracking.locate()), "water").info.run_id
    for _ in range(2):
        tracking.register(trained, "h2o", "champion", _passes)
    assert tracking.resolve("models:/h2o@champion") == "models:/h2o/2"
    assert tracking.resolve("models:/h2o/1") == "models:/h2o/1"
    assert tracking.resolve("runs:/water") == f"runs:/{identifier}"
    assert tracking.resolve(trained / "model.mfm") == str(trained / "model.mfm")
    with pytest.raises(ValueError, match="the store has no model `models:/h2o@best`"):
        tracking.resolve("models:/h2o@best")


def test_an_alias_moves_only_past_the_gate(trained):
    asked = []

    def refuses(path: Path) -> list[str]:
        asked.append(tracking.open_model(path).fidelities)
        return ["forces are wrong"]

    assert tracking.register("water", "h2o", "champion", _passes)[1] == []
    assert tracking.register("water", "h2o", "champion", refuses) == ("2", ["forces are wrong"])
    store = tracking.open_store(tracking.locate())
    assert asked == [["dft", "ccsdt"]]
    assert store.version("h2o", alias="champion").version == 1
    assert tracking.register("models:/h2o/2", "h2o", "champion", _passes) == ("2", [])
    assert store.version("h2o", alias="champion").version == 2
    assert len(store._client.search_model_versions("name = 'h2o'")) == 2


def test_a_checkpoint_file_gets_a_run_of_its_own(trained, capsys):
    assert main(["register", str(trained / "model.mfm"), "h2o", "--alias", "champion"]) == 0
    assert capsys.readouterr().out == "models:/h2o/1\nmodels:/h2o@champion\n"
    run = tracking.find_run(tracking.open_store(tracking.locate()), "model")
    assert run.info.status == "FINISHED"
    assert tracking.open_model("models:/h2o@champion").fidelities == ["dft", "ccsdt"]


def test_a_model_that_fails_the_checks_is_registered_but_not_promoted(trained, capsys):
    model = tiny_model()
    next(model.parameters()).data[:] = float("nan")
    save_checkpoint(trained / "broken.mfm", model)
    assert main(["register", str(trained / "broken.mfm"), "h2o", "--alias", "champion"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("models:/h2o/1\nnot promoted to `champion`:\n  dft: energy or forces of ")
    with pytest.raises(ValueError, match="the store has no model `models:/h2o@champion`; registered are: h2o"):
        tracking.open_model("models:/h2o@champion")


def test_what_is_not_there_is_named(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no model `models:/h2o/3`; registered are: none, see `mfm register`"):
        tracking.open_model("models:/h2o/3")
    with pytest.raises(ValueError, match=r"is `models:/NAME@ALIAS` or `models:/NAME/VERSION`, got `models:/h2o`"):
        tracking.open_model("models:/h2o")
    with pytest.raises(ValueError, match=r"no run has the name or id `nope`; the newest are: dft"):
        tracking.open_model("runs:/nope")
    with pytest.raises(ValueError, match=r"run `dft` .* has no model; only a recipe that is finished has one"):
        tracking.open_model("runs:/dft")
    with pytest.raises(ValueError, match="letters, digits"):
        tracking.register(trained, "h2/o", "", _passes)
    with pytest.raises(ValueError, match="`latest` means a version to MLflow"):
        tracking.register(trained, "h2o", "latest", _passes)
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ValueError, match="is no checkpoint"):
        tracking.register(tmp_path / "notes.txt", "h2o", "", _passes)
    tracking.register(trained, "h2o", "", _passes)
    with pytest.raises(ValueError, match="is a version of `h2o` and can be promoted there"):
        tracking.register("models:/h2o/1", "other", "champion", _passes)
    monkeypatch.setenv("MFM_TRACKING_URI", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="holds no runs and models; go to the folder that has them, or set"):
        tracking.open_model("models:/h2o/1")


def test_a_file_is_opened_without_mlflow(tmp_path):
    save_checkpoint(tmp_path / "model.mfm", tiny_model())
    code = (
        "import sys\nfrom mfm import MFMCalculator\n"
        f"MFMCalculator({str(tmp_path / 'model.mfm')!r}, fidelity='dft')\nassert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
