"""Workers are killed with signal 9: every trial ends once, the search goes on, its best figure can be had again."""

import contextlib
import csv
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from mfm.config import load_config
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from mfm.tuning.run import tune
from tests.tuning.conftest import SPACE

ERROR = "val/energy_high/mae_mev_per_atom"
_SET_STATE, _SET_ATTRIBUTE = 6, 8
"""Operations in the journal."""
_COMPLETE = 1


def _lines(journal: Path) -> list[dict]:
    """Whole records of a journal."""
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]


def _owners(journal: Path) -> list[int]:
    """Processes that have taken a trial, in order."""
    owners = [line["user_attr"].get("mfm.owner") for line in _lines(journal) if line["op_code"] == _SET_ATTRIBUTE]
    return [owner["pid"] for owner in owners if owner]


def _completions(journal: Path) -> Counter:
    """How often each trial was told to be complete."""
    return Counter(
        line["trial_id"] for line in _lines(journal) if line["op_code"] == _SET_STATE and line["state"] == _COMPLETE
    )


def _kill_a_worker(journal: Path, done: threading.Event) -> None:
    """Kill the first worker of this process that has taken a trial."""
    while not done.wait(0.02):
        mine = {child.pid for child in multiprocessing.active_children()}
        taken = [pid for pid in _owners(journal) if pid in mine]
        if taken:
            os.kill(taken[0], signal.SIGKILL)
            return


def test_a_worker_killed_over_a_trial_is_replaced(content, space, options, tmp_path, monkeypatch):
    for name in ("history", "importances", "contour"):
        monkeypatch.setattr(f"mfm.tuning.results.plot_{name}", lambda *args: args[-1].touch())
    content["stages"] = [{"name": "joint", "max_steps": 20}]
    journal, done = tmp_path / "optuna.journal", threading.Event()
    killer = threading.Thread(target=_kill_a_worker, args=(journal, done))
    killer.start()
    try:
        result = tune(content, space, options(n_trials=3, workers=2))
    finally:
        done.set()
        killer.join()
    assert result.finished
    assert "mfm.kills" in journal.read_text()
    assert [(record.number, record.state) for record in result.results.records] == [(n, "complete") for n in range(3)]
    assert _completions(journal) == {0: 1, 1: 1, 2: 1}


@pytest.mark.slow
def test_two_of_four_workers_killed_and_then_their_parent(content, tmp_path):
    rng = np.random.default_rng()
    content |= {"stages": [{"name": "joint", "max_steps": 60}], "tracking": {"experiment": "kills"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    command = [sys.executable, "-m", "mfm.cli", "tune", "run.yaml", "space.yaml", "--trials", "12", "--workers", "4"]
    journal = tmp_path / "mlruns" / "optuna.journal"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "log").open("w") as log:
        search = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
    while len(set(_owners(journal))) < 4:  # all have begun
        assert search.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    workers = [child for child in psutil.Process(search.pid).children() if child.pid in _owners(journal)]
    for worker in rng.choice(workers, 2, replace=False):
        time.sleep(rng.uniform(0, 3))
        worker.kill()
    time.sleep(rng.uniform(0, 3))
    children = psutil.Process(search.pid).children()
    search.kill()
    search.wait()
    assert psutil.wait_procs(children, timeout=300)[1] == []  # without a parent they put their trials back
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    with (tmp_path / "runs" / "morse-tune" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    complete = {int(row["trial"]): float(row[ERROR]) for row in rows if row["state"] == "complete"}
    with contextlib.closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        runs = dict(database.execute("select name, count(*) from runs where name like 'trial-%' group by name"))
    assert runs == {f"trial-{number:03d}": 1 for number in range(12)}
    assert _completions(journal) == dict.fromkeys(complete, 1)
    config = load_config(RunConfig, tmp_path / "runs" / "morse-tune" / "best.yaml", ["tracking=none"])
    again = train(config.model_copy(update={"output": str(tmp_path / "again")}))
    assert again.evaluations["valid"].flat("val")[ERROR] == pytest.approx(min(complete.values()), abs=1e-6)
