"""Going on from a checkpoint: new levels beside the old, low-rank corrections, replay of the parent's data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mfm.calculator import MFMCalculator
from mfm.checkpoint import load_model
from mfm.config import load_config, validate
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.evaluation.evaluate import evaluate
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure, build_graph, collate
from mfm.heads import TaskConfig
from mfm.longrange import LatentEwaldConfig
from mfm.model import ModelConfig
from mfm.training.data import prepare_data, stage_sampler
from mfm.training.lora import add_low_rank, merge_low_rank
from mfm.training.recipe import OptimizerConfig, RunConfig
from mfm.training.run import train
from mfm.training.transfer import FINE_TUNING_RATE, adopt, drop_unusable, start_from
from tests.morse import recipe
from tests.tiny import tiny_model

OFFSETS = {1: 0.7, 6: -300.0, 8: 41.0}
"""eV; a level whose atoms have other energies, as pseudopotentials would give."""


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def parent(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `low` and, anchored to it, `high`."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    return train(validate(RunConfig, recipe(str(morse_file), str(folder), dtype="float64"))).checkpoint


@pytest.fixture(scope="module")
def mine(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's data: energies of level `mine` alone, with a zero of their own."""
    store = open_dataset(str(morse_file))
    records = [
        Record(
            record.structure,
            {
                "energy_mine": np.array(
                    record.labels["energy_low"] + sum(OFFSETS[z] for z in record.structure.atomic_numbers)
                )
            },
            record.molecule,
        )
        for record in store
    ]
    card = store.card.replace(name="mine", levels={"mine": LevelOfTheory(method="Morse-mine")}, references={})
    path = tmp_path_factory.mktemp("data") / "mine.h5"
    Store.from_records(records, card).write(path)
    return path


def _config(file: Path, output: Path, **changes: Any) -> RunConfig:
    content = {
        "data": {"train": str(file), "valid_fraction": 0.25, "test_fraction": 0.25},
        "tasks": {"energy_low": {}, "energy_mine": {"anchor": "energy_low"}},
        "stages": [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 6}],
        "batch": {"structures": 4},
        "validations": 1,
        "dtype": "float64",
        "device": "cpu",
        "output": str(output),
        "tracking": "none",
    }
    return validate(RunConfig, {**content, **changes})


def _still(**changes: Any) -> list[dict[str, Any]]:
    """A stage that moves nothing."""
    return [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 1, "lr": 1e-300, **changes}]


def _energies(checkpoint: Path, data: Path, task: str) -> np.ndarray:
    structures = [record.structure for record in open_dataset(str(data))]
    predictions = predict_structures(load_model(checkpoint), structures, [task.removeprefix("energy_")], forces=False)
    return np.array([float(found[task]) for found in predictions])


def test_a_new_level_starts_where_the_parent_stands(parent, mine, morse_file, tmp_path):
    data = {"train": str(mine), "valid_fraction": 0, "test_fraction": 0}
    result = train(_config(mine, tmp_path / "run", data=data, stages=_still()), initial=parent)
    store = open_dataset(str(mine))
    left = store.energies("energy_mine") - _energies(parent, mine, "energy_low")
    assert np.abs(left).max() > 290.0
    counts = store.composition(store.elements).astype(float)
    left -= counts @ np.linalg.lstsq(counts, left, rcond=None)[0]
    ours = evaluate(load_model(result.checkpoint), store, ["energy_mine"]).metrics["energy_mine"]
    assert ours["rmse_mev"] == pytest.approx(1e3 * float(np.sqrt(np.mean(left**2))), rel=1e-9)
    theirs = evaluate(load_model(parent), open_dataset(str(morse_file)), ["energy_low"]).metrics["energy_low"]
    assert ours["rmse_mev"] < theirs["rmse_mev"]


def test_levels_of_the_parent_keep_the_elements_that_the_new_data_lack(parent, mine, morse_file, tmp_path):
    """Tuned on molecules without carbon, the parent's levels still know it, and the new one says that it does not."""
    store = open_dataset(str(mine))
    bare = store.subset([row for row, record in enumerate(store) if 6 not in record.structure.atomic_numbers])
    bare.write(tmp_path / "bare.h5")
    data = {"train": str(tmp_path / "bare.h5"), "valid_fraction": 0, "test_fraction": 0}
    config = _config(tmp_path / "bare.h5", tmp_path / "run", data=data, stages=_still())
    model = load_model(train(config, initial=parent).checkpoint)
    known = open_dataset(str(morse_file))
    carbon = next(r for r in known if 6 in r.structure.atomic_numbers and "energy_high" in r.labels)
    for tasks in (["energy_low"], ["energy_high"], ["forces_low"]):
        before, after = (evaluate(one, known, tasks).metrics for one in (load_model(parent), model))
        assert after == {task: pytest.approx(found, rel=1e-9) for task, found in before.items()}
    (found,) = predict_structures(model, [carbon.structure])
    assert {name for name in found if name.startswith("energy_")} == {"energy_low", "energy_high"}
    with pytest.raises(ValueError, match=r"holds C; `mine` of this model knows H, O\. Ask for `low`, `high`, or train"):
        next(predict_structures(model, [carbon.structure], ["mine"]))
    atoms = carbon.structure.to_ase()
    atoms.calc = MFMCalculator(model, fidelity="high")
    assert np.isfinite(atoms.get_potential_energy())
    assert "energy_mine" not in atoms.calc.results
    with pytest.raises(ValueError, match="holds C; `mine` of this model knows H, O"):
        atoms.calc.gap("mine", "low", atoms)
    with pytest.raises(ValueError, match="elements with `energy_mine` in `mine` must be among the model's"):
        evaluate(model, store, ["energy_mine"])


def test_the_first_evaluation_is_of_the_parent_and_the_rate_is_low(parent, mine, tmp_path):
    """What is reported at step 0 is what the parent can do, once the offsets of the level are fitted."""
    config = _config(mine, tmp_path / "run")
    assert not train(config, initial=parent, stop_after=("tune", 2)).finished
    resolved = load_config(RunConfig, tmp_path / "run" / "config.yaml")
    assert resolved.optimizer.lr == FINE_TUNING_RATE < OptimizerConfig().lr
    train(resolved, resume=True)
    still = train(_config(mine, tmp_path / "still", stages=_still()), initial=parent)
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    validations = {line["step"]: line for line in lines if any(name.startswith("val/") for name in line["metrics"])}
    assert sorted(validations) == [0, 6]
    first = validations[0]["metrics"]["val/energy_mine/mae_mev"]
    assert first == pytest.approx(still.evaluations["valid"].metrics["energy_mine"]["mae_mev"], rel=1e-9)
    stated = train(_config(mine, tmp_path / "x", optimizer={"lr": 2e-3}), initial=parent, stop_after=("tune", 1))
    assert load_config(RunConfig, stated.folder / "config.yaml").optimizer.lr == 2e-3


def test_heads_of_the_parent_stay_as_they_are(parent, mine, morse_file, tmp_path):
    stages = [{"name": "tune", "max_steps": 6, "tasks": ["energy_mine"], "trainable": ["heads.energy_mine.*"]}]
    fast = {"warmup_steps": 0, "ema": 0.0}
    result = train(_config(mine, tmp_path / "run", stages=stages, optimizer=fast), initial=parent)
    assert load_model(result.checkpoint).fidelities == ["low", "high", "mine"]
    for task in ("energy_low", "energy_high"):
        np.testing.assert_array_equal(
            _energies(result.checkpoint, morse_file, task), _energies(parent, morse_file, task)
        )
    still = train(_config(mine, tmp_path / "still", stages=_still()), initial=parent)
    moved = _energies(result.checkpoint, mine, "energy_mine") - _energies(still.checkpoint, mine, "energy_mine")
    assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "low rank"])
def test_a_resumed_run_keeps_what_it_took_from_the_parent(parent, mine, tmp_path, rank):
    stages = [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 6, "lora_rank": rank}]
    whole = train(_config(mine, tmp_path / "whole", stages=stages), initial=parent)
    stopped = train(_config(mine, tmp_path / "run", stages=stages), initial=parent, stop_after=("tune", 3))
    assert not stopped.finished
    config = load_config(RunConfig, tmp_path / "run" / "config.yaml")
    resumed = train(config, resume=True)  # as the command line does: without the parent
    one, other = load_model(whole.checkpoint), load_model(resumed.checkpoint)
    assert one.domain == other.domain
    weights, again = one.state_dict(), other.state_dict()
    assert weights.keys() == again.keys()
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []


def test_a_stage_whose_loss_nothing_trainable_enters_is_refused(parent, mine, tmp_path):
    stages = [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 3, "trainable": ["heads.energy_high.*"]}]
    with pytest.raises(ValueError, match=r"stage `tune` trains no parameter that `energy_mine`.*widen its `trainable`"):
        train(_config(mine, tmp_path / "run", stages=stages), initial=parent)


def test_charges_that_others_build_on_cannot_be_left_out():
    tasks = {"energy_dft": TaskConfig(), "charges_dft": TaskConfig(), "charges_ccsdt": TaskConfig()}
    theirs = tiny_model(tasks)
    for left, fits in (("charges_ccsdt", True), ("charges_dft", False)):
        config = theirs.config.model_copy(update={"tasks": {k: v for k, v in tasks.items() if k != left}})
        if fits:
            start_from(theirs, config, theirs.domain, 0, torch.float64)
        else:
            with pytest.raises(ValueError, match=r"charges of `ccsdt` are an offset.*another fidelity name"):
                start_from(theirs, config, theirs.domain, 0, torch.float64)


def test_low_rank_corrections_merge_without_a_trace():
    model = tiny_model()
    graph = collate([build_graph(Structure(np.array([8, 1, 1]), np.eye(3)), model.cutoff, dtype=torch.float64)])
    names = list(model.state_dict())
    before = model.predict(graph)["energy_dft"]
    add_low_rank(model.backbone, 2)
    torch.testing.assert_close(model.predict(graph)["energy_dft"], before, rtol=0, atol=1e-10)
    trainable = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".parametrizations.weight.0." in name for name in trainable)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name in trainable:
                parameter.add_(0.1 * torch.ones_like(parameter))
    changed = model.predict(graph)["energy_dft"]
    assert (changed - before).abs() > 1e-3
    merge_low_rank(model.backbone)
    torch.testing.assert_close(model.predict(graph)["energy_dft"], changed, rtol=0, atol=1e-10)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_low_rank_stage_moves_matrices_by_that_rank_and_nothing_else(parent, mine, tmp_path):
    stages = [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 6, "lora_rank": 1}]
    result = train(_config(mine, tmp_path / "run", stages=stages), initial=parent)
    before, after = load_model(parent).backbone, load_model(result.checkpoint).backbone
    theirs, ours = dict(before.named_parameters()), dict(after.named_parameters())
    matrices = {
        f"{name}.weight"
        for name, part in before.named_modules()
        if hasattr(part, "weight") and not isinstance(part, nn.Embedding | nn.LayerNorm)
    }
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert moved
    assert moved <= matrices
    for name in moved:
        difference = (ours[name] - theirs[name]).detach()
        assert int(torch.linalg.matrix_rank(difference, rtol=1e-8).max()) == 1


def test_replay_keeps_what_the_parent_knew(parent, mine, morse_file, tmp_path):
    """The user's molecules pull the backbone away from `high`; with its labels in every batch it stays."""
    asked, known = ["energy_high", "forces_low"], open_dataset(str(morse_file))
    before = evaluate(load_model(parent), known, asked).metrics
    errors = {"before": (before["energy_high"]["rmse_mev"], before["forces_low"]["rmse_mev_per_angstrom"])}
    for name, replay in (("plain", None), ("replayed", {"data": str(morse_file), "share": 0.5})):
        data = {"train": str(mine), "valid_fraction": 0, "test_fraction": 0, "replay": replay}
        stages = [{"name": "tune", "tasks": ["energy_mine"], "max_steps": 80, "lr": 1e-2}]
        result = train(_config(mine, tmp_path / name, data=data, stages=stages), initial=parent)
        found = evaluate(load_model(result.checkpoint), known, asked)
        errors[name] = found.metrics["energy_high"]["rmse_mev"], found.metrics["forces_low"]["rmse_mev_per_angstrom"]
    assert errors["replayed"][0] < 0.8 * errors["plain"][0]
    assert errors["replayed"][1] < 0.8 * errors["plain"][1]
    assert errors["replayed"][0] < 1.05 * errors["before"][0] < errors["plain"][0]
    assert errors["replayed"][1] < 1.05 * errors["before"][1]


def test_what_builds_on_a_task_that_is_left_out_goes_with_it(caplog):
    """`ccsdt` knows fluorine, but is added to `dft`, which does not."""
    parent = tiny_model()
    known = {**parent.domain.references["ccsdt"], 9: -2713.0}
    parent.domain = dataclasses.replace(parent.domain, references={**parent.domain.references, "ccsdt": known})
    fluoride = Structure(np.array([9, 1]), np.array([[0.0, 0, 0], [0.9, 0, 0]]))
    card = DatasetCard(name="mine", levels={"mine": LevelOfTheory(method="x")})
    store = Store.from_records([Record(fluoride, {"energy_mine": np.array(-2727.0)}, "HF")], card)
    stages = [{"name": "noise", "objective": "denoising", "max_steps": 1}, {"name": "tune", "max_steps": 1}]
    alone = adopt(_config(Path("mine"), Path("run"), tasks={"energy_mine": {}}, stages=stages), parent)
    assert [stage.tasks for stage in alone.stages] == ["all", ["energy_mine"]]
    assert list(drop_unusable(alone, parent, store).model.tasks) == ["energy_mine"]
    assert "energy_dft of the parent is left out: it knows no F" in caplog.text
    assert "energy_ccsdt of the parent is left out: it knows no F" in caplog.text
    tasks = {"energy_ccsdt": {}, "energy_mine": {"anchor": "energy_ccsdt"}}
    with pytest.raises(ValueError, match=r"task `energy_mine` needs `energy_dft`, whose parent knows no F"):
        drop_unusable(adopt(_config(Path("mine"), Path("run"), tasks=tasks), parent), parent, store)


def test_a_representation_that_is_stated_loses_nothing_of_the_parent():
    parent = tiny_model(long_range=LatentEwaldConfig())
    tasks = {"energy_mine": {"anchor": "energy_dft"}, "energy_dft": {}}

    def adopted(**model: Any) -> ModelConfig:
        return adopt(_config(Path("mine"), Path("run"), tasks=tasks, model=model), parent).model

    backbone = parent.config.backbone.model_dump()
    assert adopted(backbone=backbone).long_range == adopted().long_range == LatentEwaldConfig()
    assert adopted(backbone=backbone).readout_channels == 8
    with pytest.raises(ValueError, match=r"`model\.readout_channels` must be the parent checkpoint's"):
        adopted(readout_channels=16)
    with pytest.raises(ValueError, match=r"`model\.long_range` must be the parent checkpoint's"):
        adopted(long_range=None)
    parent = tiny_model()
    assert adopted(long_range={"name": "latent_ewald"}).long_range == LatentEwaldConfig()
    parent = tiny_model(tasks={"energy_dft": TaskConfig(), "charges_dft": TaskConfig()})
    with pytest.raises(ValueError, match=r"`model\.long_range` must be the parent checkpoint's"):
        adopted(long_range={"name": "latent_ewald"})


def test_replay_draws_its_share_and_leaves_held_out_molecules_out(mine, morse_file, tmp_path):
    store = open_dataset(str(morse_file))
    held = tmp_path / "held.h5"
    Store.from_records(store, store.card.replace(test_molecules=("water",))).write(held)
    config = _config(mine, tmp_path / "run", data={"train": str(mine), "replay": {"data": str(held), "share": 0.25}})
    data = prepare_data(config.data, ["energy_low", "energy_mine"], ["energy_low"])
    assert data.n_replayed == 28
    assert "water" not in data.train.molecules[data.replayed]
    assert len(data.new) == len(data.train) - 28
    sampler = stage_sampler(data.train, ["energy_mine"], config.batch, 0, (data.replayed, data.replay_share))
    drawn = np.concatenate(sampler.plan())
    assert np.mean(data.replayed[drawn]) == pytest.approx(0.25, abs=0.03)


def test_replay_of_some_tasks_alone(mine, morse_file, tmp_path):
    def replayed(*tasks: str) -> Store:
        replay = {"data": str(morse_file), "tasks": list(tasks)}
        config = _config(mine, tmp_path / "run", data={"train": str(mine), "replay": replay})
        data = prepare_data(config.data, ["energy_low", "energy_mine"], ["energy_low", "energy_high"])
        return data.train.subset(data.replayed)

    def labels(store: Store) -> set[str]:
        return {name for name in store.labels if store.coverage(name).any()}

    assert labels(replayed("energy_high")) == {"energy_high"}
    assert replayed("energy_high").coverage("energy_high").all()
    assert labels(replayed("energy_low")) == {"energy_low", "forces_low"}
    with pytest.raises(ValueError, match=r"`data\.replay\.tasks` must be of the parent's energy_low, .*`energy_x`"):
        replayed("energy_x")


def test_a_level_that_was_left_out_changes_no_data(mine, morse_file, tmp_path):
    """A run began with the parent's levels and is resumed without one: forces of it alone still count as labels."""
    forces = [Record(r.structure, {"forces_low": r.labels["forces_low"]}, r.molecule) for r in open_dataset(morse_file)]
    card = open_dataset(mine).card
    levels = {**card.levels, "low": LevelOfTheory(method="Morse-low")}
    path = tmp_path / "both.h5"
    Store.from_records([*open_dataset(mine), *forces], card.replace(levels=levels)).write(path)
    config = _config(path, tmp_path / "run", data={"train": str(path)}).data
    began = prepare_data(config, ["energy_low", "energy_mine"], ["energy_low"])
    assert prepare_data(config, ["energy_mine"], ["energy_low"]).train.digest == began.train.digest
    assert prepare_data(config, ["energy_mine"]).train.digest != began.train.digest


def test_mistakes_say_what_to_do(parent, mine, morse_file, tmp_path):
    def run(initial: Path | None = parent, **changes: Any) -> None:
        train(_config(mine, tmp_path / "run", **changes), initial=initial)

    replay = {"train": str(mine), "replay": {"data": str(morse_file)}}
    with pytest.raises(ValueError, match=r"`data\.replay` is for a model that starts from another one; give its"):
        run(None, data=replay, tasks={"energy_mine": {}})
    with pytest.raises(ValueError, match=r"give `data\.replay` or `batch\.ratios`, not both"):
        run(data=replay, batch={"ratios": {"mine": 1}})
    with pytest.raises(ValueError, match=r"`data\.replay` needs labels of energy_low, energy_high"):
        run(data={"train": str(mine), "replay": {"data": str(mine)}})
    with pytest.raises(
        ValueError, match=r"task `energy_low` must be joined as in the parent checkpoint \(independent\)"
    ):
        run(tasks={"energy_mine": {}, "energy_low": {"anchor": "energy_mine"}})
    with pytest.raises(
        ValueError, match=r"stage `tune` needs labels of one of its tasks energy_low, the training data"
    ):
        run(stages=[{"name": "tune", "tasks": ["energy_low"], "max_steps": 1}])


def test_elements_new_to_the_parent(parent, tmp_path, caplog):
    rng = np.random.default_rng(0)
    records = [
        Record(
            Structure(np.array([9, 1]), np.array([[0.0, 0, 0], [0.9 + 0.1 * rng.random(), 0, 0]])),
            {"energy_mine": np.array(-2700.0)},
            "HF",
        )
        for _ in range(8)
    ]
    card = open_dataset("builtin:chno-mini").card.replace(
        name="mine", levels={"mine": LevelOfTheory(method="x")}, references={}, test_molecules=()
    )
    path = tmp_path / "fluoride.h5"
    Store.from_records(records, card).write(path)
    data = {"train": str(path), "valid_fraction": 0, "test_fraction": 0}
    with pytest.raises(ValueError, match=r"task `energy_mine` needs `energy_low`, whose parent knows no F"):
        train(_config(path, tmp_path / "a", data=data), initial=parent)
    result = train(_config(path, tmp_path / "b", data=data, tasks={"energy_mine": {}}), initial=parent)
    model = load_model(result.checkpoint)
    assert model.fidelities == ["mine"]
    assert model.elements == [1, 9]
    assert "energy_low of the parent is left out: it knows no F" in caplog.text
