"""The process that sends a journal while a run lasts."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfm import tracking

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

_SCRIPT = """
import sys, time
from pathlib import Path
from mfm import tracking
folder, directory, n_points, wait = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
run = tracking.start_run(folder, "exp", folder.name, {}, directory)
for step in range(n_points):
    run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
print("written", flush=True)
time.sleep(wait)
run.finish()
"""


def _start(folder: Path, directory: Path, n_points: int, wait: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", _SCRIPT, str(folder), str(directory), str(n_points), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_a_killed_process_leaves_a_killed_run_with_its_points(directory, tmp_path):
    process = _start(tmp_path / "run", directory, 20, wait=600)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = tracking.open_store(tracking.locate(directory))
    _wait_for(lambda: [run.info.status for run in store.search()] == ["KILLED"])
    (run,) = store.search()
    assert len(store.history(run.info.run_id, "train/loss")) == 20


def test_a_process_that_cannot_work_is_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mfm.tracking.run.sys.executable", shutil.which("false"))
    with caplog.at_level(logging.WARNING, "mfm"):
        run = tracking.start_run(tmp_path / "run", "exp", "run", {})
        run.log_metrics({"train/loss": 1.0}, 1)
        run.finish()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "the process that records ended with status 1, see `tracking.log` there; nothing is lost" in message
    assert message.endswith(f"`mfm sync {tmp_path / 'run'}` records it later")


@pytest.mark.slow
def test_a_store_that_fails_is_reported_and_not_waited_for(directory, tmp_path, caplog):
    (directory / "mlflow.db").write_bytes(b"garbage" * 1000)
    with caplog.at_level(logging.WARNING, "mfm"):
        tracking.start_run(tmp_path / "run", "exp", "run", {}, directory).finish()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "file is not a database; nothing is lost" in message
    assert f"`mfm sync {tmp_path / 'run'} --directory {directory}` records it later" in message


@pytest.mark.slow
def test_two_processes_that_start_together_on_nothing_lose_no_point(tmp_path):
    for attempt in range(int(os.environ.get("MFM_TEST_STARTS", "20"))):
        directory = tmp_path / f"mlruns-{attempt}"
        processes = [_start(tmp_path / f"{attempt}-{k}", directory, 300) for k in range(2)]
        assert [process.communicate(timeout=300)[0] for process in processes] == ["written\n"] * 2
        assert [process.returncode for process in processes] == [0, 0]
        store = tracking.open_store(tracking.locate(directory))
        runs = store.search()
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        assert [len(store.history(run.info.run_id, "train/loss")) for run in runs] == [300, 300]
