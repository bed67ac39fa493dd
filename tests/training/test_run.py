import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from mfm.checkpoint import load_model, read_provenance
from mfm.config import validate
from mfm.data import Record, Store, open_dataset
from mfm.data.references import residual_energies
from mfm.graph import Structure
from mfm.heads import TaskConfig
from mfm.training.callbacks import Interruption
from mfm.training.data import fit_domain, prepare_data
from mfm.training.recipe import DataConfig, RunConfig
from mfm.training.resume import load_state, random_state
from mfm.training.run import TrainResult, train
from mfm.training.scales import gap_scales
from mfm.training.stage import validation_rows
from tests.morse import ATOMS, recipe


def _config(file: Path, output: Path, **changes) -> RunConfig:
    return validate(RunConfig, recipe(str(file), str(output), **changes))


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


def _assert_same_bits(one: Path, other: Path) -> None:
    mine, theirs = _weights(one), _weights(other)
    assert mine.keys() == theirs.keys()
    differing = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not differing


@pytest.fixture(scope="module")
def whole(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that was never stopped."""
    return train(_config(morse_file, tmp_path_factory.mktemp("run") / "whole"))


@pytest.fixture(autouse=True)
def _no_figures(whole: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all these runs together; `whole` has drawn them."""
    monkeypatch.setattr("mfm.evaluation.evaluate.plot_parity", lambda *args, **kwargs: args[1].touch())
    monkeypatch.setattr("mfm.training.run.plot_learning_curves", lambda *args, **kwargs: args[1].touch())


def test_a_run_leaves_models_tables_figures_and_curves(whole):
    assert whole.finished
    names = {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "history.jsonl", "model.mfm", "stage-low.mfm", "stage-joint.mfm", "state.pt",
        "evaluation/test.json", "evaluation/test.md", "evaluation/test.csv", "evaluation/test_parity.npz",
        "evaluation/test_parity_low.png", "evaluation/test_parity_high.png",
        "evaluation/learning_curves.png",
    }  # fmt: skip
    assert set(whole.evaluations["test"].metrics) == {"energy_low", "energy_high", "forces_low"}
    _assert_same_bits(whole.folder / "stage-joint.mfm", whole.checkpoint)
    provenance = read_provenance(whole.checkpoint)
    assert provenance["run"]["seed"] == 0
    assert provenance["data"]["n_train"] == 16


def test_the_second_stage_starts_from_the_first(whole, morse_file, tmp_path):
    stages = recipe("", "")["stages"]
    stages[1]["max_steps"] = 1
    stages[1]["lr"] = 1e-30
    result = train(_config(morse_file, tmp_path / "run", stages=stages))
    _assert_same_bits(result.folder / "stage-low.mfm", whole.folder / "stage-low.mfm")
    low, final = _weights(result.folder / "stage-low.mfm"), _weights(result.checkpoint)
    torch.testing.assert_close(final, low, rtol=0, atol=1e-25)  # what a learning rate of 1e-30 can move


@pytest.mark.parametrize(
    "stops",
    [[("low", 6)], [("low", 20)], [("joint", 7)], [("low", 1), ("low", 8), ("joint", 3)]],
    ids=["within an epoch", "between stages", "second stage", "three times"],
)
def test_a_resumed_run_gives_the_same_bits(whole, morse_file, tmp_path, stops):
    config = _config(morse_file, tmp_path / "run")
    for number, stop in enumerate(stops):
        result = train(config, resume=number > 0, stop_after=stop)
        assert result.finished is False or stop == ("low", 20)
    if not result.finished:
        torch.rand(3)  # whatever happens in between must not matter
        result = train(config, resume=True)
    assert result.finished
    _assert_same_bits(result.checkpoint, whole.checkpoint)
    assert (result.folder / "history.jsonl").read_text().count("val/") == (
        (whole.folder / "history.jsonl").read_text().count("val/")
    )


def test_the_callers_random_state_and_signal_handlers_are_kept(morse_file, tmp_path):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    before = random_state()
    train(_config(morse_file, tmp_path / "run", stages=[{"name": "a", "max_steps": 1}]))
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    # python's own generator is not compared: beartype, which checks annotations here, draws from it
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_run_that_can_be_resumed(whole, morse_file, tmp_path, number, caplog):
    config = _config(morse_file, tmp_path / "run")

    class Send(logging.Handler):
        """Sends the signal at the first validation of the first stage, which is in the middle of it."""

        def emit(self, record: logging.LogRecord) -> None:
            if "low  50 %" in record.getMessage():
                os.kill(os.getpid(), number)

    logger = logging.getLogger("mfm.training.callbacks")
    handler = Send()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "mfm"):
            assert not train(config).finished
    finally:
        logger.removeHandler(handler)
    clock = load_state(tmp_path / "run" / "state.pt")["clock"]
    assert clock is not None
    assert clock["step"] == 10
    result = train(config, resume=True)
    _assert_same_bits(result.checkpoint, whole.checkpoint)


def test_a_signal_reaches_what_the_run_is_part_of():
    with Interruption().caught() as search:
        with Interruption().caught() as run:
            os.kill(os.getpid(), signal.SIGTERM)
            assert run.requested
        assert search.requested


def test_a_folder_with_a_run_is_not_overwritten(whole, morse_file):
    with pytest.raises(ValueError, match=r"already holds a run; continue it with `mfm train --resume"):
        train(_config(morse_file, whole.folder))


def test_another_configuration_or_other_data_cannot_resume(whole, morse_file, tmp_path):
    with pytest.raises(ValueError, match=r"its configuration differs in optimizer\.lr;"):
        train(_config(morse_file, whole.folder, optimizer={"lr": 1e-4}), resume=True)
    with pytest.raises(ValueError, match=r"cannot resume: `.*state\.pt` does not exist"):
        train(_config(morse_file, tmp_path / "new"), resume=True)


def test_a_skipped_stage_is_left_out(whole, morse_file, tmp_path):
    stages = recipe("", "")["stages"]
    stages[1]["skip"] = True
    result = train(_config(morse_file, tmp_path / "run", stages=stages))
    assert not (result.folder / "stage-joint.mfm").exists()
    _assert_same_bits(result.checkpoint, whole.folder / "stage-low.mfm")


def test_only_what_is_trainable_moves(whole, morse_file, tmp_path):
    stages = [{"name": "readout", "max_steps": 3, "trainable": ["heads.energy_high.*"]}]
    config = _config(morse_file, tmp_path / "run", stages=stages)
    result = train(config, initial=whole.checkpoint)
    before, after = _weights(whole.checkpoint), _weights(result.checkpoint)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("heads.energy_high.") for name in moved)
    with pytest.raises(ValueError, match=r"`trainable` pattern `head\.\*` fits no parameter; they are backbone"):
        train(_config(morse_file, tmp_path / "b", stages=[{"name": "a", "max_steps": 3, "trainable": ["head.*"]}]))


def test_starting_from_a_parent_is_not_worse_than_the_parent(whole, morse_file, tmp_path):
    stages = [{"name": "again", "max_steps": 1, "lr": 1e-30}]
    result = train(_config(morse_file, tmp_path / "run", stages=stages), initial=whole.checkpoint)
    _assert_same_bits(result.checkpoint, whole.checkpoint)
    assert result.evaluations["test"].metrics == whole.evaluations["test"].metrics
    model = {"backbone": {"n_layers": 2}}
    with pytest.raises(ValueError, match=r"`model\.backbone` must be the parent checkpoint's"):
        train(_config(morse_file, tmp_path / "c", model=model), initial=whole.checkpoint)


def test_a_loss_that_explodes_ends_the_run(morse_file, tmp_path):
    config = _config(morse_file, tmp_path / "run", optimizer={"lr": 1e20, "warmup_steps": 0})
    with pytest.raises(ValueError, match=r"the loss must stay finite, got .* of stage `low`; lower `optimizer\.lr`"):
        train(config)


def test_a_budget_in_minutes_ends_the_schedule_with_it(morse_file, tmp_path):
    stages = [{"name": "short", "max_minutes": 0.02}]
    result = train(_config(morse_file, tmp_path / "run", stages=stages, validations=1))
    clock = read_provenance(result.folder / "stage-short.mfm")["clock"]
    assert 1.2 <= clock["seconds"] < 6
    assert clock["step"] > 5


def test_tasks_without_labels_are_refused(morse_file, tmp_path):
    with pytest.raises(
        ValueError, match=r"task `energy_ccsdt` needs labels in `.*`, which has energy_high, energy_low"
    ):
        train(_config(morse_file, tmp_path / "run", tasks={"energy_ccsdt": {}}, stages=[{"name": "a", "epochs": 1}]))
    data = {"train": str(morse_file), "n_train": 1000, "valid_fraction": 0.25, "test_fraction": 0.25}
    with pytest.raises(ValueError, match=r"`data\.n_train` must be at most the 16 structures"):
        train(_config(morse_file, tmp_path / "run", data=data))
    for device in ("gpux", "meta"):
        with pytest.raises(ValueError, match=f"`device` must be auto, cpu, cuda or cuda:NUMBER, got `{device}`"):
            train(_config(morse_file, tmp_path / "run", device=device))
    assert not (tmp_path / "run").exists()


def test_what_could_not_be_evaluated_in_the_end_is_refused_at_the_beginning(morse_file, tmp_path):
    known = open_dataset(morse_file)
    neon = Record(Structure(np.array([10, 1, 1]), np.eye(3)), known[0].labels)
    Store.from_records([neon], known.card).write(tmp_path / "neon.h5")
    data = {"train": str(morse_file), "test": str(tmp_path / "neon.h5"), "valid_fraction": 0}
    with pytest.raises(ValueError, match=r"test part: elements with `energy_high` .* got \[10\] as well"):
        train(_config(morse_file, tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="weight"):
        _config(morse_file, tmp_path / "run", tasks={"energy_low": {"weight": -1.0}})


def test_a_split_file_divides_the_data(morse_file, tmp_path):
    split = tmp_path / "split.json"
    parts = {"train": ["water", "monoxide"], "valid": ["hydrogen"], "test": ["ketene"]}
    split.write_text(json.dumps({"parts": parts}))
    data = DataConfig(train=str(morse_file), split=str(split))
    divided = prepare_data(data, ["energy_low"])
    assert set(divided.train.molecules) == {"water", "monoxide"}
    assert divided.test is not None
    assert set(divided.test.molecules) == {"ketene"}
    split.write_text(json.dumps({"parts": {"fit": ["water"]}}))
    with pytest.raises(ValueError, match="must have a part `train`, got fit"):
        prepare_data(data, ["energy_low"])


def test_structures_that_no_task_has_labels_of_are_left_out(morse_file):
    """Models of different levels share molecules and parts, not structures that only the other can learn from."""
    data = DataConfig(train=str(morse_file), valid_fraction=0.25, test_fraction=0.25)
    both, high = prepare_data(data, ["energy_low", "energy_high"]), prepare_data(data, ["energy_high"])
    for part in ("train", "valid", "test"):
        every, fewer = getattr(both, part), getattr(high, part)
        assert fewer.coverage("energy_high").all()
        assert len(fewer) == every.coverage("energy_high").sum() == len(every) / 2
        assert set(fewer.molecules) == set(every.molecules)


def test_smaller_training_sets_are_parts_of_larger_ones(morse_file):
    def drawn(count: int) -> set[str]:
        config = DataConfig(train=str(morse_file), n_train=count)
        return {record.structure.content_hash() for record in prepare_data(config, ["energy_low"]).train}

    assert drawn(5) < drawn(9)


def test_the_domain_describes_the_training_set(morse_file):
    store = open_dataset(morse_file)
    domain = fit_domain(store, {"energy_low": TaskConfig(), "energy_high": TaskConfig()}, cutoff=5.0)
    assert domain.references == ATOMS
    assert domain.scale == pytest.approx(np.sqrt(np.mean(store.values("forces_low") ** 2)))
    assert domain.average_neighbours == pytest.approx(np.average(store.n_atoms - 1, weights=store.n_atoms), rel=0.01)
    assert domain.levels["high"].method == "Morse-high"
    assert set(domain.multiplicities) == {1}
    # without forces, the spread of the energies per atom
    energies_only = fit_domain(store, {"energy_high": TaskConfig()}, cutoff=5.0)
    atoms = [sum(ATOMS["high"][z] for z in record.structure.atomic_numbers) for record in store]
    per_atom = (store.energies("energy_high") - atoms) / store.n_atoms
    assert energies_only.scale == pytest.approx(np.nanstd(per_atom), rel=1e-6)


def test_an_anchored_level_takes_references_beside_its_base(morse_file):
    store = open_dataset(morse_file)
    # isolated atoms at one level only: a fit of the other would leave the atomisation energy to the correction
    lopsided = store.with_card(store.card.model_copy(update={"references": {"low": store.card.references["low"]}}))
    tasks = {"energy_low": TaskConfig(), "energy_high": TaskConfig(anchor="energy_low")}
    domain = fit_domain(lopsided, tasks, cutoff=5.0)
    assert domain.references["low"] == ATOMS["low"]
    residuals = {
        level: residual_energies(store, f"energy_{level}", domain.references[level]) for level in ("low", "high")
    }
    gap = (residuals["high"] - residuals["low"]) / store.n_atoms
    alone = fit_domain(lopsided, {**tasks, "energy_high": TaskConfig()}, cutoff=5.0)
    gap_alone = (residual_energies(store, "energy_high", alone.references["high"]) - residuals["low"]) / store.n_atoms
    assert np.nanmax(np.abs(gap)) < 0.3 * np.nanmin(np.abs(gap_alone))


def test_a_base_that_bonds_differently_gives_way(morse_file):
    store = open_dataset(morse_file)
    tasks = {"energy_low": TaskConfig(), "energy_high": TaskConfig(anchor="energy_low")}
    agreeing = fit_domain(store, tasks, cutoff=5.0)
    assert agreeing.references == ATOMS
    # isolated atoms of the low level 3 eV too deep: as with semi-empirical methods, bonding is no longer comparable
    shifted = {level: dict(atoms) for level, atoms in store.card.references.items()}
    shifted["low"] = {symbol: energy - 3.0 for symbol, energy in shifted["low"].items()}
    store = store.with_card(store.card.model_copy(update={"references": shifted}))
    domain = fit_domain(store, tasks, cutoff=5.0)
    assert domain.references["high"] == ATOMS["high"]
    assert all(domain.references["low"][z] > ATOMS["low"][z] - 2.0 for z in ATOMS["low"])
    gap = [residual_energies(store, f"energy_{level}", domain.references[level]) for level in ("high", "low")]
    assert np.sqrt(np.nanmean(((gap[0] - gap[1]) / store.n_atoms) ** 2)) < 0.3
    # who asks for isolated atoms gets them
    asked = fit_domain(store, tasks, 5.0, "isolated_atoms").references["low"]
    assert asked == {z: pytest.approx(energy - 3.0) for z, energy in ATOMS["low"].items()}


def test_a_validation_looks_at_a_share_of_each_fidelity(morse_file):
    store = open_dataset(morse_file)
    tasks = ["energy_low", "forces_low", "energy_high"]
    assert validation_rows(store, tasks, 1000).tolist() == list(range(len(store)))
    few = store.subset(validation_rows(store, tasks, 4))
    assert 4 <= len(few) < 8  # what carries both labels may count for both
    assert len(set(few.molecules)) >= 3  # from all over the set
    assert few.coverage("energy_high").sum() >= 4
    assert validation_rows(store.subset([1]), ["energy_high"], 4).tolist() == []


@pytest.mark.parametrize("join", ["anchor", "conditioned"])
def test_sizes_of_gaps(morse_file, join):
    store = open_dataset(morse_file)
    tasks = {"energy_low": TaskConfig(), "energy_high": TaskConfig.model_validate({join: "energy_low"})}
    residuals = [residual_energies(store, f"energy_{level}", ATOMS[level]) for level in ("high", "low")]
    per_atom = (residuals[0] - residuals[1]) / store.n_atoms
    assert gap_scales(store, tasks, ATOMS) == {"energy_high": pytest.approx(np.sqrt(np.nanmean(per_atom**2)))}
    assert gap_scales(store, tasks, ATOMS, ["forces_low"]) == gap_scales(store, tasks, ATOMS)
    assert gap_scales(store, tasks, ATOMS, ["forces_low", "forces_high"]) == {}
    assert gap_scales(store, {**tasks, "energy_high": TaskConfig()}, ATOMS) == {}
    unpaired = store.subset(~store.coverage("energy_high"))
    assert gap_scales(unpaired, tasks, ATOMS) == {}
