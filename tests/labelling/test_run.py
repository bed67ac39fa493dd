"""The supervisor: failures are rows, dead workers are replaced, a killed run resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfm.graph import Structure
from mfm.labelling import run
from mfm.labelling.levels import DensityFunctionalLevel, Level, TightBindingLevel
from mfm.labelling.run import label
from mfm.labelling.sampling import Sample
from mfm.labelling.store import Job, LabelStore

XTB = TightBindingLevel()
BROKEN = DensityFunctionalLevel(basis="no-such-basis")
LEVELS: dict[str, Level] = {XTB.identifier: XTB, BROKEN.identifier: BROKEN}


def _samples(n_samples: int) -> list[Sample]:
    lengths = np.linspace(0.6, 1.0, n_samples)
    rows = [np.array([[0.0, 0, 0], [0, 0, length]]) for length in lengths]
    return [Sample(Structure(np.array([1, 1]), positions), "[H][H]", "bond") for positions in rows]


def _store(path: Path, n_samples: int) -> LabelStore:
    store = LabelStore(path)
    store.add_level("xtb", XTB, "{}")
    store.add_level("broken", BROKEN, "{}")
    store.enqueue([(sample, XTB.identifier) for sample in _samples(n_samples)])
    return store


def test_failures_and_deaths_do_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job cannot be computed, one kills its worker; all others are labelled."""
    store = _store(tmp_path / "labels.sqlite", 5)
    store.enqueue([(_samples(1)[0], BROKEN.identifier)])
    victim = _samples(5)[2].structure
    assign = run._Worker.assign

    def fatal(worker: Any, job: Job, level: Level) -> None:
        if job.structure == victim:
            worker.process.kill()
            worker.process.wait()
        assign(worker, job, level)

    monkeypatch.setattr(run._Worker, "assign", fatal)
    summary = label(store, LEVELS, n_workers=1, hours=1.0)
    assert (summary.done, summary.failed, summary.left) == (6, 2, 0)
    assert store.counts() == {("xtb", "ok"): 4, ("xtb", "failed"): 1, ("broken", "failed"): 1}
    messages = [row.message for level in LEVELS for row in store.labels(level) if row.status == "failed"]
    assert messages[0] == f"worker ended with exit status {-signal.SIGKILL}"
    assert "no-such-basis" in messages[1] or "nosuchbasis" in messages[1]
    assert store.pending() == []
    assert store.provenances()[0]["threads"] == "1"


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    slow = DensityFunctionalLevel()
    carbons = np.array([[1.4 * np.cos(a), 1.4 * np.sin(a), 0.0] for a in np.arange(6) * np.pi / 3])
    ring = Structure(np.repeat([6, 1], 6), np.concatenate([carbons, carbons * 2.48 / 1.4]))
    store = LabelStore(tmp_path / "labels.sqlite")
    store.add_level("dft", slow, "{}")
    store.enqueue([(Sample(ring, "c1ccccc1", "x"), slow.identifier)])
    summary = label(store, {slow.identifier: slow}, n_workers=1, hours=1.0, job_minutes=0.02)
    assert (summary.done, summary.failed) == (1, 1)
    assert next(store.labels(slow.identifier)).message == "stopped after 0.02 minutes"


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
    with pytest.raises(ValueError, match=r"a worker must start, got: worker ended with exit status"):
        # a Python without its standard library does not get as far as reporting that it is ready
        label(store, LEVELS, n_workers=1, hours=1.0, environment={"PYTHONHOME": str(tmp_path)})


def test_nothing_to_do(tmp_path: Path) -> None:
    store = _store(tmp_path / "labels.sqlite", 0)
    assert label(store, LEVELS, n_workers=2, hours=1.0).done == 0
