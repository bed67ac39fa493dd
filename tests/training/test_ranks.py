"""Two processes that train together against one that sees the batches of both."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mfm.checkpoint import load_model
from mfm.cli import main
from mfm.data.sampling import AtomBudgetBatchSampler
from mfm.training import data as training_data
from mfm.training.ranks import ALONE, Ranks, launched_ranks
from mfm.training.run import Supervision, train
from mfm.training.schedule import Clock
from tests.morse import morse_store
from tests.training.two_ranks import CASES, DATA, SIGNALLED, config_of, watched_train

ROOT = Path(__file__).parents[2]


class UnionSampler(AtomBudgetBatchSampler):
    """Hands out what two ranks get at the same step as one batch."""

    def __init__(self, *arguments: Any, rank: int, world_size: int, **options: Any) -> None:
        super().__init__(*arguments, **options, rank=0, world_size=2)

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan()
        while self.position < len(self):
            self.position += 1
            yield plan[2 * self.position - 2] + plan[2 * self.position - 1]
        self.position = 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with every case as two processes trained it."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, make in DATA.items():
        make().write(folder / f"{name}.h5")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.two_ranks", str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        messages = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(messages)
    return folder


def _loaded(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def _history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", [case for case in CASES if case != "minutes"])
def test_two_ranks_train_as_one_does(trained: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "AtomBudgetBatchSampler", UnionSampler)
    finished, alone = watched_train(config_of(case, trained, f"one-{case}"))
    assert finished
    for together in _loaded(trained, case):
        assert together["clock"]["step"] == alone["clock"]["step"]
        torch.testing.assert_close(together["weights"], alone["weights"], rtol=0, atol=1e-6)
        torch.testing.assert_close(together["average"], alone["average"], rtol=0, atol=1e-6)
    # and report the same: losses and errors of the union
    ours, theirs = (_history(trained / f"{number}-{case}") for number in ("two", "one"))
    assert [(line["stage"], line["step"]) for line in ours] == [(line["stage"], line["step"]) for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        timing = "train/steps_per_second"
        one, two = ({name: v for name, v in line["metrics"].items() if name != timing} for line in (mine, other))
        assert one == pytest.approx(two, rel=1e-6, abs=1e-6)


def test_the_cases_hold_what_they_are_for(trained: Path) -> None:
    """Unequal numbers of atoms, and steps at which one rank has no label of a fidelity and the other has."""
    config = config_of("anchored", trained, "unused")
    found = training_data.prepare_data(config.data, list(config.model.tasks)).train
    samplers = [
        training_data.stage_sampler(found, list(config.model.tasks), config.batch, 1000, ranks=Ranks(rank, 2))
        for rank in range(2)
    ]
    steps = list(zip(*samplers, strict=True))
    high = found.coverage("energy_high")
    assert any(high[one].any() != high[other].any() for one, other in steps)
    assert any(found.n_atoms[one].sum() != found.n_atoms[other].sum() for one, other in steps)
    assert not {i for one, _ in steps for i in one} & {i for _, other in steps for i in other}


def test_ranks_stay_together_bit_by_bit(trained: Path) -> None:
    for case in CASES:
        first, second = _loaded(trained, case)
        for part in ("weights", "average"):
            assert all(torch.equal(value, second[part][name]) for name, value in first[part].items()), case
        assert first["clock"] == second["clock"]
    # a stage counted in minutes ends where the slower rank's clock does
    assert _loaded(trained, "minutes")[0]["clock"]["seconds"] >= 60 * 0.015


def test_a_signal_to_one_rank_stops_all_and_the_resumed_run_is_the_same(trained: Path) -> None:
    for whole, stopped in zip(_loaded(trained, "steps"), _loaded(trained, "stopped"), strict=True):
        assert all(torch.equal(value, stopped["weights"][name]) for name, value in whole["weights"].items())
    assert SIGNALLED < whole["clock"]["step"] == stopped["clock"]["step"]
    two, one = (load_model(trained / f"two-{name}" / "model.mfm").state_dict() for name in ("steps", "stopped"))
    assert all(torch.equal(value, one[name]) for name, value in two.items())


def test_another_number_of_ranks_cannot_resume(trained: Path, tmp_path: Path) -> None:
    config = config_of("steps", trained, "two-steps")
    shutil.copytree(config.folder, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"continued by as many processes as before, 2, got 1"):
        train(config, resume=True)


def test_time_that_ranks_agree_on_goes_with_the_steps() -> None:
    clock = Clock(agree=lambda seconds: seconds + 100.0)
    assert clock.seconds() == 0.0
    clock.advance(10)
    agreed = clock.seconds()
    assert 100.0 <= agreed < 200.0
    assert clock.seconds() == agreed
    other = Clock(agree=lambda seconds: seconds)
    other.load_state_dict(clock.state_dict())
    assert other.seconds() == agreed
    other.advance(10)
    assert other.seconds() >= agreed


def test_one_process_has_nobody_to_ask() -> None:
    values = torch.ones(2)
    assert ALONE.sum(values) is values
    assert (ALONE.largest(3.0), ALONE.share(5), ALONE.writes, Ranks(1, 2).writes) == (3.0, 1.0, True, False)


def test_what_several_ranks_cannot_do(tmp_path: Path) -> None:
    morse_store().write(tmp_path / "morse.h5")
    config = config_of("steps", tmp_path, "run")
    search = Supervision("", {}, lambda *_: False, lambda *_: {})
    with pytest.raises(ValueError, match="a run of a search trains in one process"):
        train(config, supervision=search, ranks=Ranks(0, 2))
    with pytest.raises(ValueError, match=r"`device` must be auto, cpu or cuda, got `cuda:1`"):
        train(config.model_copy(update={"device": "cuda:1"}), ranks=Ranks(0, 2))
    assert not (tmp_path / "run").exists()


def test_distributed_needs_a_launcher(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    (trained / "run.yaml").write_text(config_of("steps", trained, "unlaunched").model_dump_json())
    assert main(["train", str(trained / "run.yaml"), "--distributed"]) == 2
    assert "neither torchrun nor srun started this one" in capsys.readouterr().err
    assert not (trained / "unlaunched").exists()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ValueError, match=r"--ntasks-per-node=2"), launched_ranks():
        pass


@pytest.mark.slow
def test_torchrun_trains_one_model(trained: Path) -> None:
    config = config_of("steps", trained, "torchrun")
    (trained / "torchrun.yaml").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "mfm.cli", "train", str(trained / "torchrun.yaml"), "--distributed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=trained, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    launched, spawned = (load_model(trained / name / "model.mfm").state_dict() for name in ("torchrun", "two-steps"))
    assert all(torch.equal(value, spawned[name]) for name, value in launched.items())
