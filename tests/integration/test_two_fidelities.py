"""Eight molecules, two fidelities, a few steps: from labels to a calculator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml

from mfm import MFMCalculator
from mfm.checkpoint import load_model
from mfm.cli import main
from mfm.config import validate
from mfm.data import Store, open_dataset
from mfm.evaluation.evaluate import evaluate
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.training.history import History
from mfm.training.recipe import RunConfig
from mfm.training.run import TrainResult, train
from tests.morse import recipe

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    folder = tmp_path_factory.mktemp("trained") / "run"
    stages = [{"name": "joint", "max_steps": 60}]
    optimizer = {"lr": 5e-3, "warmup_steps": 10}
    return train(validate(RunConfig, recipe(str(morse_file), str(folder), stages=stages, optimizer=optimizer)))


def test_the_loss_falls(trained):
    curves, _ = History(trained.folder / "history.jsonl").curves()
    losses = [value for _, value in curves["train/loss"]]
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    forces = [value for _, value in curves["val/forces_low/mae_mev_per_angstrom"]]
    assert len(forces) == 2


def test_checkpoint_calculator_and_prediction_give_the_same_numbers(trained, morse_file):
    store = open_dataset(morse_file)
    model = load_model(trained.checkpoint)
    predicted = list(predict_structures(model, [store[i].structure for i in range(5)]))
    for i, found in enumerate(predicted):
        atoms = store[i].structure.to_ase()
        atoms.calc = MFMCalculator(trained.checkpoint, fidelity="high")
        # single precision network: a batch sums in another order than a single structure
        assert atoms.get_potential_energy() == pytest.approx(float(found["energy_high"]), abs=1e-3)
        np.testing.assert_allclose(atoms.get_forces(), found["forces_high"], atol=1e-3)


def test_forces_come_for_a_level_that_has_only_energies(trained, morse_file):
    model = load_model(trained.checkpoint)
    found = next(predict_structures(model, [open_dataset(morse_file)[0].structure], ["high"]))
    assert set(found) == {"energy_high", "forces_high"}
    assert found["energy_high"].dtype == np.float64


def test_evaluation_does_not_depend_on_the_batches(trained, morse_file):
    store, model = open_dataset(morse_file), load_model(trained.checkpoint)
    one, many = evaluate(model, store, max_atoms=1), evaluate(model, store, max_atoms=1000)
    for task, row in many.metrics.items():
        assert one.metrics[task] == pytest.approx(row, rel=1e-3)
    assert many.metrics["energy_high"]["count"] == 16
    assert set(many.by_molecule["energy_high"]) == set(store.molecules)
    assert set(many.by_element["forces_low"]) == {"H", "C", "O"}
    content = json.loads(many.to_json())
    assert content["metrics"]["energy_low"]["mae_mev"] == many.metrics["energy_low"]["mae_mev"]
    # structures without the label are not looked at, and positions still count in the whole dataset
    some = evaluate(model, store, ["energy_high"])
    assert list(some.metrics) == ["energy_high"]
    np.testing.assert_array_equal(
        some.predictions["energy_high"].structure, np.flatnonzero(store.coverage("energy_high"))
    )


def test_what_cannot_be_evaluated_is_named(trained, morse_file, tmp_path):
    model = load_model(trained.checkpoint)
    with pytest.raises(ValueError, match=r"predicts energy_low, energy_high, but the .* structures of `morse` have"):
        evaluate(model, open_dataset(morse_file), ["energy_other"])
    store = open_dataset(morse_file)
    other = store.card.replace(levels={**store.card.levels, "low": LevelOfTheory(method="Lennard-Jones")})
    with pytest.raises(ValueError, match="must mean one level of theory, got `Morse-low` and, in `morse`, `Lennard"):
        evaluate(model, Store.from_records(store, other))
    (tmp_path / "neon.xyz").write_text(
        '2\nProperties=species:S:1:pos:R:3 energy=-1.0 pbc="F F F"\nNe 0 0 0\nH 0 0 1\n', encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"must be among the model's \[1, 6, 8\] at that level, got \[10\]"):
        evaluate(model, open_dataset(tmp_path / "neon.xyz", fidelity="low"))


def test_command_line_from_recipe_to_prediction(morse_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mfm.cli._prepare", lambda options: None)  # the allocator belongs to a process of its own
    shutil.copy(morse_file, "morse.h5")
    stages = [{"name": "joint", "max_steps": 2}]
    content = recipe("morse.h5", "", stages=stages, tracking={"experiment": "test"})
    Path("run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["train", "run.yaml", "stages.0.max_steps=3", "seed=1", "--output", "out"]) == 0
    assert "| high | Morse-high | energy_high | 4 | meV |" in capsys.readouterr().out
    assert main(["eval", "out/model.mfm", "morse.h5", "--json", "eval.json", "--by-element", "--by-molecule"]) == 0
    assert json.loads(Path("eval.json").read_text())["metrics"]["energy_low"]["count"] == 32
    printed = capsys.readouterr().out
    assert "| ketene |" in printed
    assert "| element |" in printed
    assert main(["eval", "out/model.mfm", "morse.h5", "--held-out"]) == 2
    assert "the card of `morse` must hold out molecules, got none" in capsys.readouterr().err
    store = open_dataset("morse.h5")
    Store.from_records(store, store.card.replace(test_molecules=("ketene",))).write(Path("held.h5"))
    assert main(["eval", "out/model.mfm", "held.h5", "--held-out", "--json", "held.json"]) == 0
    assert json.loads(Path("held.json").read_text())["metrics"]["energy_low"]["count"] == 4
    ase.io.write("in.xyz", [open_dataset("morse.h5")[i].structure.to_ase() for i in range(3)])
    assert main(["predict", "out/model.mfm", "in.xyz", "out.xyz", "--fidelity", "high"]) == 0
    frames = ase.io.read("out.xyz", index=":")
    assert len(frames) == 3
    assert frames[0].get_potential_energy() == pytest.approx(frames[0].info["energy_high"])
    assert frames[0].get_forces().shape == (3, 3)
    # labels of the input under names of predictions are not passed off as such, nor is half a file written
    labelled = open_dataset("morse.h5")[0].structure.to_ase()
    labelled.info |= {"energy_low": -1.0, "REF_energy": -2.0}
    ase.io.write("in.xyz", [labelled, ase.Atoms("Ne")], format="extxyz")
    assert main(["predict", "out/model.mfm", "in.xyz", "again.xyz", "--fidelity", "high"]) == 2
    assert "frame 1 of `in.xyz`: Ne holds Ne" in capsys.readouterr().err
    assert not Path("again.xyz").exists()
    ase.io.write("in.xyz", labelled, format="extxyz")
    assert main(["predict", "out/model.mfm", "in.xyz", "again.xyz", "--fidelity", "high"]) == 0
    info = ase.io.read("again.xyz").info
    assert info["REF_energy"] == -2.0
    assert "energy_low" not in info
    assert main(["predict", "out/model.mfm", "in.xyz", "again.traj"]) == 2
    assert "name a file *.xyz" in capsys.readouterr().err
    assert main(["compare", "morse", "joint"]) == 0
    assert "test/energy_low/mae_mev" in capsys.readouterr().out
    assert main(["ui", "--dry-run"]) == 0
    assert "mlflow.db" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "needs a recipe"),
        (["train", "missing.yaml"], "cannot read configuration `missing.yaml`"),
        (["train", "--resume", "missing"], "cannot read configuration `missing/config.yaml`"),
        (["train", "run.yaml", "--resume", "x"], "it takes no recipe"),
        (["eval", "missing.mfm", "x.xyz"], "missing.mfm"),
        (["eval", "missing.mfm", "x.xyz", "--keys", "energy"], "missing.mfm"),
        (["predict", "missing.mfm", "a", "b"], "missing.mfm"),
        (["predict", "missing.mfm", "a", "b", "--device", "gpu"], "`device` must be auto, cpu, cuda or cuda:NUMBER"),
        (["predict", "missing.mfm", "a", "b", "--device", "cuda:99"], "`device` `cuda:99` needs CUDA device 99"),
        (["ui", "--directory", "nothing"], "holds no runs yet"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mfm.cli._prepare", lambda options: None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mfm: error: ")
    assert message in error
    assert "Traceback" not in error


def test_traceback_is_shown_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mfm.cli._prepare", lambda options: None)
    with pytest.raises(ValueError, match="cannot read configuration"):
        main(["--traceback", "train", "missing.yaml"])


def test_help_loads_neither_torch_nor_the_data_libraries():
    code = (
        "import sys, contextlib, io\nimport mfm.cli\nwith contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert mfm.cli.main([]) == 0\n"
        "loaded = {'torch', 'mlflow', 'lightning', 'h5py', 'ase', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
