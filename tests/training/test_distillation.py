"""Distillation: a teacher's labels, the loss on Hessian-vector products, and the way from one model to another."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.emt import EMT

from mfm.calculator import MFMCalculator
from mfm.checkpoint import load_model, save_checkpoint
from mfm.cli import main
from mfm.config import validate
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.data.dataset import GraphDataset
from mfm.graph import collate
from mfm.heads import TaskConfig
from mfm.losses import combine, loss_terms
from mfm.structure import Structure
from mfm.training.distillation import (
    Copies,
    Questions,
    calculator_teacher,
    distilled,
    model_teacher,
    open_teacher,
    write_distilled,
)
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from mfm.training.scales import label_scales
from tests.morse import morse_store, recipe
from tests.tiny import tiny_model

FACTORY = """
from ase.calculators.emt import EMT

def emt():
    return EMT()

def number():
    return 1
"""


pytestmark = pytest.mark.usefixtures("no_figures")


def _records(count: int = 3) -> list[Record]:
    return [morse_store()[place] for place in range(0, 4 * count, 4)]


def test_a_model_teaches_what_any_calculator_would():
    model = tiny_model()
    exact = list(distilled(model_teacher(model, "ccsdt"), _records(), "teacher", Questions(2)))
    other = calculator_teacher(MFMCalculator(model, "ccsdt"), "same")
    differences = list(distilled(other, _records(), "teacher", Questions(2)))
    assert len(exact) == len(differences) == 6
    for one, two, record in zip(exact, differences, np.repeat(_records(), 2), strict=True):
        assert one.molecule == record.molecule
        assert set(one.labels) == {f"{kind}_teacher" for kind in ("energy", "forces", "probe", "hessian_product")}
        np.testing.assert_array_equal(one.structure.positions, record.structure.positions)
        np.testing.assert_array_equal(one.labels["probe_teacher"], two.labels["probe_teacher"])
        for kind, atol in (("energy", 1e-9), ("forces", 1e-9)):
            np.testing.assert_allclose(one.labels[f"{kind}_teacher"], two.labels[f"{kind}_teacher"], rtol=0, atol=atol)
        # what the step of the difference leaves
        size = np.abs(one.labels["hessian_product_teacher"]).max()
        np.testing.assert_allclose(
            one.labels["hessian_product_teacher"], two.labels["hessian_product_teacher"], rtol=0, atol=1e-4 * size
        )
    assert not np.array_equal(exact[0].labels["probe_teacher"], exact[1].labels["probe_teacher"])


def test_copies_are_displaced_and_the_same_again():
    def run(seed: int) -> list[Record]:
        teacher = model_teacher(tiny_model(), "dft")
        return list(distilled(teacher, _records(2), "teacher", Questions(0, Copies(2, 0.1), seed)))

    found = run(0)
    assert len(found) == 6
    assert set(found[0].labels) == {"energy_teacher", "forces_teacher"}
    shifts = np.concatenate([found[k].structure.positions - found[0].structure.positions for k in (1, 2)])
    assert 0.03 < np.std(shifts) < 0.3
    for one, two in zip(found, run(0), strict=True):
        np.testing.assert_array_equal(one.structure.positions, two.structure.positions)
        np.testing.assert_array_equal(one.labels["forces_teacher"], two.labels["forces_teacher"])
    assert not np.array_equal(found[1].structure.positions, run(1)[1].structure.positions)


def test_the_loss_of_a_student_that_is_its_teacher_is_zero_and_grows_with_the_weight():
    model = tiny_model(tasks={"energy_dft": TaskConfig()})
    card = morse_store().card.replace(levels={"dft": model.domain.levels["dft"]}, references={})
    records = [*distilled(model_teacher(model), _records(), "dft"), Record(_records(4)[3].structure, {})]
    store = Store.from_records(records, card)
    tasks, names = {"energy_dft": TaskConfig(hessian_weight=3.0)}, ["energy_dft", "forces_dft", "hessian_product_dft"]
    graph = collate(GraphDataset(store, model.cutoff, names, model.domain.references, torch.float64).batch(range(4), 0))
    sizes = label_scales(store, tasks)
    products = np.concatenate([record.labels["hessian_product_dft"] for record in records[:3]])
    assert sizes == {"hessian_product_dft": pytest.approx(np.sqrt(np.mean(products**2)))}

    def loss(student: torch.nn.Module) -> tuple[float, dict]:
        outputs = student.train()(graph, names[:1], names[1:])
        terms = loss_terms(outputs, graph, tasks, 1.0, label_scales=sizes)
        return combine(terms).item(), {"outputs": outputs, "terms": terms}

    assert loss(model)[0] < 1e-20
    other = tiny_model(tasks={"energy_dft": TaskConfig()}, seed=1)
    _, found = loss(other)
    error = (found["outputs"]["hessian_product_dft"] - graph["hessian_product_dft"]).detach()
    means = [part.square().mean() for part in error.split(graph.atoms_per_structure().tolist())[:3]]
    term = found["terms"]["hessian_product_dft"]
    assert term.total.item() == pytest.approx(float(sum(means)) / sizes["hessian_product_dft"] ** 2)
    assert (term.count.item(), term.weight) == (3.0, 3.0)


def _teacher_file(folder: Path) -> Path:
    model = tiny_model(dtype=torch.float32)
    save_checkpoint(folder / "teacher.mfm", model)
    return folder / "teacher.mfm"


def _student(file: Path, output: Path, weight: float) -> RunConfig:
    return validate(
        RunConfig,
        recipe(
            str(file),
            str(output),
            tasks={"energy_teacher": {"hessian_weight": weight}},
            stages=[{"name": "learn", "max_steps": 6}],
        ),
    )


def test_from_a_checkpoint_to_a_student(morse_file, tmp_path, capsys):
    out = tmp_path / "taught.h5"
    command = ["distill", "--teacher", str(_teacher_file(tmp_path)), "--structures", str(morse_file), "--out", str(out)]
    assert main([*command, "--fidelity", "ccsdt"]) == 0
    assert "32 structures with labels of model" in capsys.readouterr().out
    taught = open_dataset(out)
    assert taught.card.references["teacher"] == {"H": -13.5, "C": -1035.0, "O": -2041.9}
    assert "of CCSD(T)/cc-pVTZ" in taught.card.levels["teacher"].label
    whole = train(_student(out, tmp_path / "whole", 1.0))
    config = _student(out, tmp_path / "run", 1.0)
    assert not train(config, stop_after=("learn", 3)).finished
    resumed = load_model(train(config, resume=True).checkpoint).state_dict()
    student = load_model(whole.checkpoint).state_dict()
    assert [name for name in student if not torch.equal(student[name], resumed[name])] == []
    assert "train/hessian_product_teacher/loss" in (whole.folder / "history.jsonl").read_text()
    assert whole.evaluations["test"].metrics["hessian_product_teacher"]["mae_mev_per_angstrom"] > 0
    plain = train(_student(out, tmp_path / "plain", 0.0))
    assert "train/hessian_product_teacher/loss" not in (plain.folder / "history.jsonl").read_text()
    other = load_model(plain.checkpoint).state_dict()
    assert not torch.equal(other["backbone.embedding.weight"], student["backbone.embedding.weight"])


def test_a_calculator_of_a_file(tmp_path):
    (tmp_path / "calculators.py").write_text(FACTORY)
    teacher = open_teacher(f"{tmp_path / 'calculators.py'}:emt")
    assert teacher.level.program == "EMT"
    (found,) = distilled(teacher, _records(1), "teacher", Questions(0))
    atoms = found.structure.to_ase()
    atoms.calc = EMT()
    np.testing.assert_array_equal(found.labels["forces_teacher"], atoms.get_forces())
    with pytest.raises(ValueError, match="must give an ASE calculator, got int"):
        open_teacher(f"{tmp_path / 'calculators.py'}:number")
    with pytest.raises(ValueError, match="has no function `pet` that gives a calculator"):
        open_teacher(f"{tmp_path / 'calculators.py'}:pet")
    with pytest.raises(ValueError, match="teacher `nowhere:emt` cannot be imported"):
        open_teacher("nowhere:emt")
    with pytest.raises(ValueError, match=r"is a calculator; leave it out"):
        open_teacher("ase.calculators.emt:EMT", fidelity="dft")


def test_stopped_it_goes_on_and_the_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("mfm.training.distillation._PART", 2)
    teacher = model_teacher(tiny_model(), "dft")
    card = DatasetCard(name="taught", levels={"teacher": teacher.level})
    records, questions = _records(5), Questions(2, Copies(1, 0.1), 4)
    whole, stopped = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    write_distilled(whole, teacher, records, card, questions)
    asked: list[int] = []

    def interrupted(questions):
        for count, answer in enumerate(teacher.label(questions)):
            asked.append(count)
            if len(asked) == 11:  # the second structure of the second part
                raise KeyboardInterrupt
            yield answer

    with pytest.raises(KeyboardInterrupt):
        write_distilled(stopped, dataclasses.replace(teacher, label=interrupted), records, card, questions)
    assert not stopped.exists()
    with pytest.raises(ValueError, match=r"stopped.h5.parts` holds part of other labels than these \(see plan.txt"):
        write_distilled(stopped, teacher, records, card, Questions(1, Copies(1, 0.1), 4))
    with pytest.raises(ValueError, match="holds part of other labels"):
        write_distilled(stopped, teacher, [*records[1:], records[0]], card, questions)
    write_distilled(stopped, dataclasses.replace(teacher, label=interrupted), records, card, questions)
    assert len(asked) == 11 + 12  # 20 answers: eight kept, three lost and asked again
    assert open_dataset(stopped).digest == open_dataset(whole).digest
    assert {path.name for path in tmp_path.iterdir()} == {"whole.h5", "stopped.h5"}


def test_what_was_refused_leaves_no_claim(tmp_path):
    """The structure that the teacher refused can be left out, and the same file written."""
    teacher = model_teacher(tiny_model(), "dft")
    card = DatasetCard(name="taught", levels={"teacher": teacher.level})
    strange = Record(Structure(np.array([79]), np.zeros((1, 3))), {})
    with pytest.raises(ValueError, match="the teacher does not know Au"):
        write_distilled(tmp_path / "new.h5", teacher, [*_records(2), strange], card)
    write_distilled(tmp_path / "new.h5", teacher, _records(2), card)
    assert len(open_dataset(tmp_path / "new.h5")) == 2


def test_what_a_teacher_refuses(tmp_path, morse_file, capsys):
    with pytest.raises(ValueError, match="the teacher has energies at dft, ccsdt, name one with `fidelity`"):
        model_teacher(tiny_model())
    one = _records(1)[0]
    strange = dataclasses.replace(one.structure, atomic_numbers=np.array([16, 1, 1]))
    with pytest.raises(ValueError, match="the teacher does not know S of H2S"):
        list(distilled(model_teacher(tiny_model(), "dft"), [Record(strange, {})], "teacher"))

    class Failing(Calculator):
        implemented_properties = ["energy", "forces"]

        def calculate(self, *args: object, **kwargs: object) -> None:
            raise CalculationFailed("no convergence")

    with pytest.raises(ValueError, match="the teacher fails on H2O: no convergence; leave the structure out"):
        list(distilled(calculator_teacher(Failing(), "failing"), [one], "teacher"))
    (tmp_path / "there.h5").touch()
    command = ["distill", "--teacher", "x.mfm", "--structures", str(morse_file), "--out"]
    assert main([*command, str(tmp_path / "there.h5")]) == 2
    assert main([*command, str(tmp_path / "new.h5"), "--probes", "-1"]) == 2
    assert "`--probes` must be at least 0, got -1" in capsys.readouterr().err


def test_a_product_needs_its_probe():
    with pytest.raises(ValueError, match="label `hessian_product_dft` needs `probe_dft` beside it"):
        Record(_records(1)[0].structure, {"hessian_product_dft": np.zeros((3, 3))})
    model = tiny_model()
    graph = collate(GraphDataset(morse_store(1), model.cutoff, [], {}, torch.float64).batch([0], 0))
    with pytest.raises(ValueError, match="`hessian_product_dft` needs a field `probe_dft` of the graph"):
        model.predict(graph, ["energy_dft"], ["hessian_product_dft"])
