"""What tracking costs, in processor time, which other work on the machine does not change. `-s` shows the figures."""

import contextlib
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from mfm import tracking
from mfm.config import validate
from mfm.tracking.store import MetricPoint
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import morse_store, recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

_N_RUNS = 2000
_N_COMPARED = 20


def test_recording_costs_less_than_a_hundredth_of_training(directory, tmp_path, monkeypatch):
    morse_store().write(tmp_path / "morse.h5")
    spent = []

    def timed(original):
        def wrapper(*args, **kwargs):
            before = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                spent.append(time.process_time() - before)

        return wrapper

    for name in ("log_metrics", "log_params"):
        monkeypatch.setattr(tracking.TrackedRun, name, timed(getattr(tracking.TrackedRun, name)))
    stages = [{"name": "joint", "max_steps": 400}]
    where = {"experiment": "test", "directory": str(directory)}
    content = recipe(str(tmp_path / "morse.h5"), str(tmp_path / "run"), stages=stages, tracking=where)
    content |= {"validations": 20, "log_every": 50}
    started, children = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    assert train(validate(RunConfig, content)).finished
    total = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    sender = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    print(f"\n{len(spent)} calls, {1e3 * sum(spent):.1f} ms of {total:.1f} s; the process that sends: {sender:.1f} s")
    assert sum(spent) < 0.01 * total


def _copies(database: Path, run: str) -> list[str]:
    """Make the other runs by copying rows, which takes seconds; MLflow would take minutes."""
    ids = [uuid.uuid4().hex for _ in range(_N_RUNS - 1)]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
            rows = [dict(row) for row in connection.execute(f"select * from {table} where run_uuid = ?", (run,))]
            names = list(rows[0])
            insert = f"insert into {table} ({', '.join(names)}) values ({', '.join(f':{name}' for name in names)})"
            for number, identifier in enumerate(ids, start=1):
                own = {"run_uuid": identifier} | ({"name": f"run-{number}"} if table == "runs" else {})
                for row in rows:
                    name_tag = {"value": f"run-{number}"} if row.get("key") == "mlflow.runName" else {}
                    connection.execute(insert, row | own | name_tag)
        connection.commit()
    return ids


def test_comparing_among_two_thousand_runs_takes_seconds(directory):
    store = tracking.open_store(tracking.locate(directory))
    run = store.create_run("exp", "run-0", {"mfm.seed": "0", "mfm.data": "0123456789abcdef"})
    store.log_params(run, {f"model.setting_{k}": k for k in range(40)})
    store.log_metrics(run, [MetricPoint(f"test/energy_dft/m{k}_mev", float(k), 0, 0) for k in range(20)])
    ids = [run, *_copies(directory / "mlflow.db", run)]
    keys = [f"run-{number}" for number in range(0, _N_COMPARED, 2)] + ids[-_N_COMPARED // 2 :]
    command = [sys.executable, "-m", "mfm.cli", "compare", *keys, "--directory", str(directory)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = (Path(directory) / "mlflow.db").stat().st_size / 2**20
    print(f"\n{_N_COMPARED} of {_N_RUNS} runs ({size:.0f} MB): {seconds:.1f} s of processor time, {wall:.1f} s in all")
    assert "test/energy_dft/m19_mev" in printed
    assert seconds < 10
