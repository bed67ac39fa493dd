"""What tracking costs, in processor time, which other work on the machine does not change. `-s` shows the figures."""

import resource
import subprocess
import sys
import time
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


def test_comparing_among_two_thousand_runs_takes_seconds(directory):
    store = tracking.open_store(tracking.locate(directory))
    ids = []
    for number in range(_N_RUNS):
        run = store.create_run("exp", f"run-{number}", {"mfm.seed": str(number), "mfm.data": "0123456789abcdef"})
        store.log_params(run, {f"model.setting_{k}": number % (k + 1) for k in range(40)})
        points = [MetricPoint(f"test/energy_dft/m{k}_mev", float(k + number), 0, 0) for k in range(20)]
        store.log_metrics(run, points)
        ids.append(run)
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
