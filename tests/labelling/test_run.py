"""The supervisor: failures are rows, dead workers are replaced, a killed run resumes."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mfm.graph import Structure
from mfm.labelling import run
from mfm.labelling.levels import LEVELS as LEVELS_BY_NAME
from mfm.labelling.levels import DensityFunctionalLevel, Level, TightBindingLevel, make_request
from mfm.labelling.run import label
from mfm.labelling.sampling import Sample
from mfm.labelling.store import Job, LabelRow, LabelStore

XTB = TightBindingLevel()
BROKEN = DensityFunctionalLevel(basis="no-such-basis")
LEVELS: dict[str, Level] = {XTB.identifier: XTB, BROKEN.identifier: BROKEN}


def _samples(n_samples: int) -> list[Sample]:
    lengths = np.linspace(0.6, 1.0, n_samples)
    rows = [np.array([[0.0, 0, 0], [0, 0, length]]) for length in lengths]
    return [Sample(Structure(np.array([1, 1]), positions), "[H][H]", "bond") for positions in rows]


def _store(path: Path, n_samples: int) -> LabelStore:
    store = LabelStore(path)
    store.add_level("xtb", XTB)
    store.add_level("broken", BROKEN)
    store.enqueue([(sample, XTB.identifier) for sample in _samples(n_samples)])
    return store


def test_failures_and_deaths_do_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job cannot be computed, one kills its worker; all others are labelled."""
    store = _store(tmp_path / "labels.sqlite", 5)
    store.enqueue([(_samples(1)[0], BROKEN.identifier)])
    victim = _samples(5)[2].structure
    assign = run._Worker.assign

    def fatal(worker: Any, job: Job, *rest: Any) -> None:
        if job.structure == victim:
            worker.process.kill()
            worker.process.wait()
        assign(worker, job, *rest)

    monkeypatch.setattr(run._Worker, "assign", fatal)
    summary = label(store, LEVELS, n_workers=1, hours=1.0)
    assert (summary.done, summary.failed, summary.left) == (6, 2, 0)
    assert store.counts() == {("xtb", "ok"): 4, ("xtb", "failed"): 1, ("broken", "failed"): 1}
    messages = [row.message for level in LEVELS for row in store.labels(level) if row.status == "failed"]
    assert messages[0].startswith(
        f"worker ended with exit status {-signal.SIGKILL}, 3 times; memory is the usual cause"
    )
    assert "no-such-basis" in messages[1] or "nosuchbasis" in messages[1]
    assert store.pending() == []
    assert store.provenances()[0]["threads"] == "1"


def test_a_job_too_large_for_its_time_is_not_begun(tmp_path: Path) -> None:
    slow = DensityFunctionalLevel()
    carbons = np.array([[1.4 * np.cos(a), 1.4 * np.sin(a), 0.0] for a in np.arange(6) * np.pi / 3])
    ring = Structure(np.repeat([6, 1], 6), np.concatenate([carbons, carbons * 2.48 / 1.4]))
    store = LabelStore(tmp_path / "labels.sqlite")
    store.add_level("dft", slow)
    store.enqueue([(Sample(ring, "c1ccccc1", "x"), slow.identifier)])
    summary = label(store, {slow.identifier: slow}, n_workers=1, hours=1.0, job_minutes=0.02)
    assert (summary.done, summary.failed) == (1, 1)
    assert next(store.labels(slow.identifier)).message.startswith("a label must fit into 0.02 minutes, C6H6 would take")


def test_a_job_that_overruns_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not answer, whatever was expected of the job."""
    store = _store(tmp_path / "labels.sqlite", 1)
    monkeypatch.setattr(run._Worker, "assign", lambda worker, job, *rest: setattr(worker, "job", job))
    assert label(store, LEVELS, n_workers=1, hours=1.0, job_minutes=0.001)[:2] == (1, 1)
    assert next(store.labels(XTB.identifier)).message.startswith("stopped after 0.001 minutes; raise --job-minutes")


def test_a_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    store = _store(path, 1000)
    code = (
        "from mfm.labelling.run import label; from mfm.labelling.store import LabelStore;"
        "from mfm.labelling.levels import TightBindingLevel as T;"
        f"label(LabelStore({str(path)!r}), {{T().identifier: T()}}, n_workers=1, hours=1.0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not store.counts() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {row.hash for row in store.labels(XTB.identifier)}
    assert 0 < len(done) < 1000
    # no time: nothing is started, nothing is lost
    assert label(store, LEVELS, n_workers=1, hours=0.0).done == 0
    left = len(store.pending())
    assert left + len(done) == 1000


def test_unknown_levels_and_workers_that_cannot_start(tmp_path: Path) -> None:
    store = _store(tmp_path / "labels.sqlite", 1)
    with pytest.raises(ValueError, match=r"queue must name levels out of none, got xtb:GFN2-xTB"):
        label(store, {}, n_workers=1, hours=1.0)
    with pytest.raises(ValueError, match=r"a worker must start, got 3 in a row that did not: worker ended with exit"):
        # a Python without its standard library does not get as far as reporting that it is ready
        label(store, LEVELS, n_workers=1, hours=1.0, environment={"PYTHONHOME": str(tmp_path)})


def test_workers_that_hang_before_they_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, program = _store(tmp_path / "labels.sqlite", 1), tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(program))
    monkeypatch.setattr(run, "_START_LIMIT", 0.5)
    with pytest.raises(ValueError, match=r"got 3 in a row that did not: worker not ready after 0.5 s; run .* by hand"):
        label(store, LEVELS, n_workers=1, hours=1.0)
    started = [int(line) for line in (tmp_path / "started").read_text().split()]
    assert len(started) == 3
    assert not any(psutil.pid_exists(process) for process in started)


def test_nothing_to_do(tmp_path: Path) -> None:
    store = _store(tmp_path / "labels.sqlite", 0)
    assert label(store, LEVELS, n_workers=2, hours=1.0).done == 0


def test_a_worker_that_dies_once_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path / "labels.sqlite", 4)
    assign, killed = run._Worker.assign, []

    def once(worker: Any, job: Job, *rest: Any) -> None:
        if not killed:
            killed.append(worker.process.pid)
            worker.process.kill()
            worker.process.wait()
        assign(worker, job, *rest)

    monkeypatch.setattr(run._Worker, "assign", once)
    # a count bounds the run
    assert label(store, LEVELS, n_workers=1, hours=1.0, max_labels=3)[:3] == (3, 0, 1)
    assert store.counts() == {("xtb", "ok"): 3}
    assert len(store.pending()) == 1


def test_a_worker_does_not_load_torch() -> None:
    """Loading it takes longer than most labels."""
    code = "import sys, mfm.labelling.worker, mfm.labelling.run; print([m for m in sys.modules if m == 'torch'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_memory_of_a_worker_is_bounded() -> None:
    """A label that wants 64 GiB in a worker of 8: a failure that says what to do."""
    code = """
import numpy as np
from mfm.graph import Structure
from mfm.labelling import worker
from mfm.labelling.levels import LEVELS, Request
from mfm.labelling.store import Job
worker.compute = lambda job, request: np.ones(2**33)
worker.limit_memory(8.0)
job = Job("", "", Structure(np.array([2]), np.zeros((1, 3))), "x")
print(worker.answer(job, Request(LEVELS["xtb"]), 900.0).message)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("memory ran out (Unable to allocate 64.0 GiB")
    assert "raise --memory, or use fewer workers" in result.stdout


def test_one_run_at_a_time(tmp_path: Path) -> None:
    store = _store(tmp_path / "labels.sqlite", 1)
    with store.lock(), pytest.raises(OSError, match=r"one run may write to .*labels.sqlite at a time, got another"):
        label(store, LEVELS, n_workers=1, hours=1.0)


@pytest.mark.parametrize(
    ("pragma", "reason"),
    [("max_page_count = 8", "database or disk is full"), ("query_only = 1", "attempt to write a readonly database")],
)
def test_a_full_disk_and_a_read_only_store_end_the_run_and_keep_the_labels(
    tmp_path: Path, pragma: str, reason: str
) -> None:
    store = _store(tmp_path / "labels.sqlite", 40)
    for job in store.pending()[:3]:
        row = LabelRow(job.hash, job.level, "ok", {"energy": np.ones(())}, {}, "", 1.0)
        store.record(row, {"pyscf": "x"})
    before = {row.hash for row in store.labels(XTB.identifier)}
    store._connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(OSError, match=rf"labels must be written to .*labels.sqlite, got: {reason}; free some space"):
        label(store, LEVELS, n_workers=1, hours=1.0)
    store.close()
    again = LabelStore(tmp_path / "labels.sqlite")
    after = {row.hash for row in again.labels(XTB.identifier)}
    assert before <= after
    assert again._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(again.pending()) == 40 - len(after) > 0


SUPERVISE = """
import sys
from mfm.labelling.run import label
from mfm.labelling.store import LabelStore
from mfm.labelling.levels import LEVELS
levels = {level.identifier: level for level in LEVELS.values()}
label(LabelStore(sys.argv[1]), levels, n_workers=2, hours=1.0)
"""


def _n_labels(path: Path) -> int:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)
    (count,) = connection.execute("SELECT count(*) FROM labels").fetchone()
    connection.close()
    return int(count)


def _kill_at_random(path: Path, n_jobs: int, n_kills: int, seed: int) -> int:
    """Supervisors in turn, each killed or losing workers at random times, until the queue is done.

    The kills are spread over the run: each comes a random number of labels after the one before, of those that are left
    for each kill. Returns the number of kills.
    """
    random, kills = np.random.default_rng(seed), 0
    while LabelStore(path).pending():
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while process.poll() is None and kills < n_kills:
            labels = _n_labels(path)
            # all kills must come before the queue is done, however many labels the last ones let through
            when = labels + int(random.integers((n_jobs - labels) // (n_kills - kills) + 1))
            while process.poll() is None and _n_labels(path) < when:
                time.sleep(0.02)
            time.sleep(float(random.uniform(0.0, 0.1)))
            workers = [child.pid for child in psutil.Process(process.pid).children()] if process.poll() is None else []
            victim = process.pid if random.uniform() < 0.4 or not workers else int(random.choice(workers))
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
            if victim == process.pid:
                _, alive = psutil.wait_procs([psutil.Process(w) for w in workers if psutil.pid_exists(w)], timeout=60)
                assert alive == [], "workers must end when their supervisor has died"
                break
        assert process.wait() in (0, -signal.SIGKILL)
    return kills


def _check_nothing_lost(path: Path, monitor: "_Monitor") -> None:
    store = LabelStore(path)
    assert store.pending() == []
    # every label that was ever seen is still there, byte for byte: none was lost, none was computed twice
    assert monitor.seen.items() <= monitor.rows().items()
    assert all(status == "ok" for _, status in store.counts())
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for key in store.request_keys():
        for row in store.labels(key):
            assert np.isfinite(row.values["forces"]).all()


class _Monitor(threading.Thread):
    """Reads the store all the while; what it has seen once must never change."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.seen, self.done = path, {}, False

    def rows(self) -> dict[tuple[str, str], tuple[bytes, str]]:
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=60)
        rows = connection.execute("SELECT hash, level, data, created, seconds FROM labels").fetchall()
        connection.close()
        return {(key, level): tuple(rest) for key, level, *rest in rows}

    def run(self) -> None:
        while not self.done:
            found = self.rows()
            assert self.seen.items() <= found.items()
            self.seen = found
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("n_cheap", "n_dear", "n_kills"), [(20, 5, 2), pytest.param(300, 30, 50, marks=pytest.mark.slow)]
)
def test_killing_at_random_times_loses_nothing(tmp_path: Path, n_cheap: int, n_dear: int, n_kills: int) -> None:
    """kill -9 of supervisors and workers."""
    path = tmp_path / "labels.sqlite"
    store = _store(path, 0)
    dear = make_request(LEVELS_BY_NAME["dft_lite"])
    store.add_level("dft_lite", dear.level)
    jobs = [(sample, XTB.identifier) for sample in _samples(n_cheap)]
    jobs += [(sample, dear.key) for sample in _samples(n_dear)]
    store.enqueue([jobs[k] for k in np.random.default_rng(0).permutation(len(jobs))])
    store.close()
    monitor = _Monitor(path)
    monitor.start()
    kills = _kill_at_random(path, len(jobs), n_kills, seed=1)
    monitor.done = True
    monitor.join()
    print(f"{kills} kills over {len(jobs)} jobs")
    assert kills == n_kills
    assert len(monitor.rows()) == len(jobs)
    _check_nothing_lost(path, monitor)


def _water_store(path: Path, scales: np.ndarray) -> LabelStore:
    store, level = LabelStore(path), LEVELS_BY_NAME["dft_lite"]
    store.add_level("dft_lite", level)
    water = np.array([[0.0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    structures = [Structure(np.array([8, 1, 1]), water * scale) for scale in scales]
    store.enqueue([(Sample(s, "O", "x"), level.identifier) for s in structures])
    return store


ALONE = """
import sys
from pathlib import Path
from mfm.labelling.levels import LEVELS
from mfm.labelling.run import label
from mfm.labelling.store import LabelStore
print(label(LabelStore(Path(sys.argv[1])), {LEVELS["dft_lite"].identifier: LEVELS["dft_lite"]}, 1, hours=1.0).seconds)
"""


@pytest.mark.slow
def test_two_workers_are_as_fast_as_two_runs(tmp_path: Path) -> None:
    """Which is twice as fast as one, where the cores of the machine are. Needs an idle one."""
    scales, seconds = np.linspace(0.95, 1.2, 60), {}
    for n_workers in (1, 2):
        store = _water_store(tmp_path / f"{n_workers}.sqlite", scales)
        levels = {LEVELS_BY_NAME["dft_lite"].identifier: LEVELS_BY_NAME["dft_lite"]}
        seconds[n_workers] = label(store, levels, n_workers, hours=1.0).seconds
    runs = []
    for half in (0, 1):
        path = tmp_path / f"half-{half}.sqlite"
        _water_store(path, scales[half::2]).close()
        runs.append(subprocess.Popen([sys.executable, "-c", ALONE, str(path)], stdout=subprocess.PIPE, text=True))
    apart = max(float(run.communicate()[0]) for run in runs)
    print(f"two workers: {seconds[1] / seconds[2]:.2f} times one; two runs beside each other: {seconds[1] / apart:.2f}")
    assert seconds[2] <= apart / 0.9
