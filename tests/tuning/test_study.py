import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mfm.tuning import owner
from mfm.tuning.space import Choice, Interval, Space
from mfm.tuning.study import Study, open_study, storage_errors

SPACE = Space(
    searched={
        "optimizer.lr": Interval(1e-4, 1e-2, log=True, step=None, whole=False),
        "batch.structures": Interval(2, 8, log=False, step=2, whole=True),
        "model.long_range": Choice((None, {"name": "latent_ewald"})),
    },
    fixed={},
)
FACTS = {"objective": ["error"], "seed": 0, "space": SPACE.to_dict()}


@pytest.fixture(params=["journal", "database"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "j") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "j")


def _open(place: str, n_objectives: int = 1, **changes) -> Study:
    with storage_errors(place):
        return open_study(place, "s", SPACE, n_objectives, {**FACTS, **changes})


def _states(study: Study) -> dict[int, str]:
    return {record.number: record.state for record in study.records()}


def _dead_process() -> dict[str, object]:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    return {**owner.this_process(), "pid": process.pid, "started": started}


def test_trials_of_killed_processes_go_on_under_their_number(place, monkeypatch):
    study = _open(place)
    with monkeypatch.context() as patch:
        patch.setattr("mfm.tuning.study.this_process", _dead_process)
        killed = study.claim(3)
    again = _open(place).claim(3)
    assert again.number == killed.number == 0
    assert again.settings == killed.settings
    study.complete(again, [1.0], {"error": 1.0})
    study.complete(killed, [7.0], {"error": 7.0})  # it lived after all, and is late
    assert _states(study)[0] == "complete"
    assert study.records()[0].values == (1.0,)
    assert study.records()[0].metrics == {"error": 1.0}


def test_there_are_never_more_trials_than_asked_for(place):
    study, other = _open(place), _open(place)
    first, second = study.claim(2), other.claim(2)
    assert {first.number, second.number} == {0, 1}
    assert study.claim(2) is None
    assert first.settings != second.settings
    # one more is begun between looking and taking: it waits for a search that goes on
    extra = study.claim(3)
    study.put_back(extra)
    assert other.claim(2) is None
    again = other.claim(3)
    assert again.number == 2
    assert again.settings == extra.settings


def test_a_trial_that_kills_its_processes_fails(journal, monkeypatch):
    study = _open(journal)
    monkeypatch.setattr("mfm.tuning.study.this_process", _dead_process)
    numbers = [study.claim(1).number for _ in range(3)]
    assert numbers == [0, 0, 0]
    assert study.claim(1) is None
    (record,) = study.records()
    assert record.state == "failed"
    assert record.reason == "3 processes were killed while they worked on it; too little memory?"


def test_silence_tells_that_another_machine_is_gone(journal, monkeypatch):
    study = _open(journal)
    with monkeypatch.context() as patch:
        patch.setattr(owner, "_machine", lambda: "elsewhere/1")
        trial = study.claim(1)
        assert study.beat(trial)
    assert study.claim(1) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    again = study.claim(1)
    assert again.number == 0
    assert not study.beat(trial)  # it wakes up: the trial is not its own any more
    study.put_back(trial)
    assert _states(study) == {0: "running"}
    assert study.beat(again)


def test_a_living_process_keeps_its_trial(journal):
    trial = _open(journal).claim(1)
    assert owner.is_gone({**owner.this_process(), "started": psutil.Process().create_time() - 60})
    assert not owner.is_gone(owner.this_process())
    assert os.getpid() == owner.this_process()["pid"]
    assert _open(journal).claim(1) is None
    assert trial.number == 0


def test_suggestions_depend_on_seed_and_number_alone(tmp_path):
    def suggestions(name: str) -> list[dict]:
        study = _open(str(tmp_path / name))
        trials = [study.claim(4) for _ in range(4)]
        return [trial.settings for trial in trials]

    first = suggestions("one")
    assert first == suggestions("two")
    assert len({settings["optimizer.lr"] for settings in first}) == 4
    for settings in first:
        assert 1e-4 <= settings["optimizer.lr"] <= 1e-2
        assert settings["batch.structures"] in (2, 4, 6, 8)
        assert settings["model.long_range"] in (None, {"name": "latent_ewald"})


def test_the_sampler_finds_what_is_better(journal):
    study = _open(journal)
    for _ in range(30):
        trial = study.claim(30)
        study.complete(trial, [abs(trial.settings["optimizer.lr"] - 3e-3)], {})
    late = [record.values[0] for record in study.records()[20:]]
    early = [record.values[0] for record in study.records()[:10]]
    assert sum(late) / len(late) < 0.7 * sum(early) / len(early)
    assert next(iter(study.importances(0))) == "optimizer.lr"
    best = min(study.records(), key=lambda record: record.values)
    assert study.front() == [best.number]


def test_worse_trials_are_pruned_and_steps_are_reported_once(journal):
    study = _open(journal)
    for _ in range(6):
        trial = study.claim(8)
        assert not study.report(trial, 1, 1.0)
        study.complete(trial, [1.0], {})
    worse = study.claim(8)
    assert study.report(worse, 1, 2.0)
    assert study.report(worse, 1, 0.0)  # as a process does that goes on with the trial of a killed one
    study.prune(worse)
    assert _states(study)[worse.number] == "pruned"
    better = study.claim(8)
    assert not study.report(better, 1, 0.5)


def test_the_front_holds_what_nothing_beats(journal):
    study = _open(journal, n_objectives=2)
    for values in ([3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [3.0, 3.0]):
        study.complete(study.claim(4), values, {})
    assert study.front() == [1, 2, 0]


def test_another_search_of_the_same_name_is_refused(journal):
    _open(journal)
    with pytest.raises(ValueError, match=r"the study `s` was begun with another seed, space; .*`--study`"):
        _open(journal, seed=1, space={})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("postgresql://me:secret@localhost:1/db", r"cannot reach the study's storage at `postgresql://localhost:1/db`"),
        (
            "sqlite:////nonexistent/study.db",
            r"storage at `sqlite:////nonexistent/study.db`: .*unable to open.*`--storage`",
        ),
        ("nonsense://host/db", r"cannot reach the study's storage at `nonsense://host/db`: Can't load plugin"),
        ("/proc/optuna.journal", r"cannot keep the study in `/proc/optuna.journal`: .*; name another `--storage`"),
    ],
)
def test_storage_that_cannot_be_reached_is_named_without_passwords(place, message):
    with pytest.raises(ValueError, match=message) as caught:
        _open(place)
    assert "secret" not in str(caught.value)


def test_the_first_trial_has_the_recipe_s_own_settings(place):
    own = {"optimizer.lr": 2e-3, "model.long_range": {"name": "latent_ewald"}}
    space = Space(SPACE.searched, SPACE.fixed, own)
    with storage_errors(place):
        study = open_study(place, "s", space, 1, FACTS)
        trials = [study.claim(3) for _ in range(3)]
    assert {key: trials[0].settings[key] for key in own} == own
    assert trials[0].settings["batch.structures"] in (2, 4, 6, 8)
    assert all(trial.settings["optimizer.lr"] != 2e-3 for trial in trials[1:])
