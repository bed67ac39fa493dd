"""`mfm label` from SMILES to a file that trains, with every kind of bad input on the way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest

from mfm.cli import main
from mfm.data.opening import open_dataset
from mfm.graph import Structure
from mfm.labelling import cluster, prepare
from mfm.labelling.cluster import label_on, open_executor
from mfm.labelling.commands import parse_hours
from mfm.labelling.estimates import LevelCost, estimate_run, format_costs
from mfm.labelling.levels import LEVELS
from mfm.labelling.run import Progress
from mfm.labelling.sampling import Sample
from mfm.labelling.store import Answer, LabelRow, LabelStore

XTB = LEVELS["xtb"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list with a good molecule, an impossible one, and one whose multiplicity contradicts its electrons."""
    folder = tmp_path_factory.mktemp("label")
    (folder / "some.smi").write_text("# a comment\nO water\nC(C\nO.O dimer\n[OH] multiplicity=1\nC#C\n")
    out = folder / "some.labels"
    assert main(["label", str(folder / "some.smi"), "--levels", "xtb:3,mmff:2", "--out", str(out)]) == 0
    return out


def test_the_rest_is_labelled_when_some_is_impossible(labelled: Path) -> None:
    store = LabelStore(labelled, read_only=True)
    # three geometries of three molecules and two atoms at xtb, two geometries each at mmff
    assert store.counts() == {("xtb", "ok"): 3 * 3 + 3, ("mmff", "ok"): 2 * 3}
    rejected = store.rejected()
    assert "SMILES must parse and obey valence rules, got `C(C`" in rejected["C(C"]
    assert "`multiplicity` 1 does not go with 9 electrons" in rejected["[OH]"]
    assert {sample.parent for sample in store.samples().values()} == {"", "O.O"}


def test_export_gives_a_dataset_that_opens(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = labelled.with_suffix(".h5")
    assert main(["label", "export", str(labelled), "--out", str(file), "--licence", "CC0-1.0"]) == 0
    assert f"look into it: mfm data info {file}" in capsys.readouterr().out
    store = open_dataset(file)
    assert set(store.molecules) == {"O", "O.O", "C#C"}
    assert store.coverage("forces_xtb").sum() == 9
    assert store.coverage("forces_mmff").sum() == 6
    assert store.card.references["xtb"].keys() == {"H", "C", "O"}
    assert store.card.levels["xtb"].version
    assert store.card.licence == "CC0-1.0"


def test_running_it_again_adds_only_what_is_new(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    original = prepare._make

    def counted(store: LabelStore, molecules: Any, *rest: Any) -> None:
        made.extend(molecule.smiles for molecule in molecules)
        original(store, molecules, *rest)

    monkeypatch.setattr(prepare, "_make", counted)
    listing = labelled.with_name("more.smi")
    listing.write_text("O\nN\nC#C\n")
    options = ["--levels", "xtb:3,mmff:2", "--out", str(labelled)]
    assert main(["label", str(listing), *options, "--dry-run"]) == 0
    assert made == ["N"]
    # three geometries and one new atom at xtb
    assert "xtb                   4" in capsys.readouterr().out
    assert main(["label", "--out", str(labelled), "--limit", "2"]) == 0
    assert "4 labels are left; go on with: mfm label --out" in capsys.readouterr().out
    assert main(["label", "--out", str(labelled)]) == 0
    assert "4 labels in" in capsys.readouterr().out
    assert main(["label", "--out", str(labelled)]) == 0
    assert "nothing to label" in capsys.readouterr().out


def test_structures_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hydrogen = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    crowded = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.2]], info={"origin": "by hand", "molecule": "[H][H]"})
    odd = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.9]], info={"charge": 1, "spin": 1})
    potassium = ase.Atoms("KH", [[0, 0, 0], [0, 0, 2.2]])
    periodic = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[5, 5, 5], pbc=True)
    ase.io.write(tmp_path / "some.xyz", [hydrogen, crowded, odd, potassium, periodic])
    out = tmp_path / "labels"
    command = ["label", str(tmp_path / "some.xyz"), "--levels", "xtb,dft_lite", "--out", str(out), "--no-atoms"]
    assert main([*command, "--extras", "density"]) == 0
    text = capsys.readouterr().out
    assert "atoms must not overlap, got H (atom 0) and H (atom 1) of H2 at 0.20 Å" in text
    assert "got K (no MBIS shells) in HK; drop this level for it" in text
    assert "no geometries: some.xyz frame 2: `multiplicity` 1 does not go with 1 electrons (charge 1)" in text
    assert "no geometries: some.xyz frame 4: labels are for molecules, got H2 with pbc" in text
    store = LabelStore(out, read_only=True)
    assert store.counts() == {("xtb", "ok"): 2, ("xtb", "failed"): 1, ("dft_lite", "ok"): 1, ("dft_lite", "failed"): 2}
    assert {sample.origin for sample in store.samples().values()} == {"file", "by hand"}
    densities = tmp_path / "density.h5"
    assert main(["label", "export", str(out), "--out", str(tmp_path / "some.h5"), "--density", str(densities)]) == 0
    assert "1 densities at dft_lite" in capsys.readouterr().out
    assert open_dataset(tmp_path / "some.h5").card.noise_floor["forces_dft_lite"] == pytest.approx(3.2e-3)
    assert main(["label", "--out", str(out), "--retry", "--dry-run"]) == 0
    assert "dft_lite              2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "none"], "`mfm label` needs a FILE to label, or a store to go on with; none is none"),
        (["lost.smi", "--out", "a"], "FILE must exist, got lost.smi; give SMILES (.smi), a plan (.yaml) or structures"),
        (["ok.smi", "--out", "a", "--budget", "2"], "`--budget` takes a time with a unit (s, min, h, d)"),
        (["ok.smi", "--out", "a", "--levels", "xtb,b3lyp"], "level must be one of mmff, xtb,"),
        (["ok.smi", "--out", "a", "--levels", "xtb:few"], "`--levels` takes NAME or NAME:NUMBER"),
        (["ok.smi", "--out", "a", "--levels", "dft:1,xtb:9"], "`--levels` must begin with the level of most geom"),
        (["ok.smi", "--out", "a", "--extras", "density"], "must be among none, got density; ask a Kohn-Sham level"),
        (["empty.smi", "--out", "a"], "empty.smi must hold a SMILES on every line, got none that can be used"),
        (["odd.zzz", "--out", "a"], "structures must be in a file that ASE reads, got odd.zzz"),
        (["--out", "text"], "a labelling store must be an SQLite file, got text"),
        (["export", "none", "--out", "x.h5"], "a labelling store must exist to be read, got no file none"),
        (["import", "none.h5", "--out", "x"], "none.h5"),
        (["enumerate", "Xe", "2"], "elements to enumerate must be among"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ok.smi").write_text("O\n")
    Path("empty.smi").write_text("C(C\n")
    Path("odd.zzz").write_text("nothing that anyone reads\n")
    Path("text").write_text("not a database, and long enough to be read as a broken header " * 10)
    assert main(["label", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_enumeration_prints_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "enumerate", "C,O", "2"]) == 0
    assert capsys.readouterr().out.split() == ["C#C", "C=C", "C=O", "CC", "CO"]


@pytest.mark.parametrize("words", [["label"], ["label", "export"], ["label", "import"], ["label", "enumerate"]])
def test_help_needs_no_chemistry(words: list[str]) -> None:
    code = f"import sys; from mfm.cli import main; main({[*words, '--help']!r})"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False
    )
    assert f"usage: mfm {' '.join(words)}" in result.stdout
    assert "pyscf" not in result.stderr
    assert "rdkit" not in result.stderr


def test_hours() -> None:
    assert [parse_hours(text) for text in ("90min", "2h", "1.5 d", "36s")] == [1.5, 2.0, 36.0, 0.01]


def test_estimates_learn_from_the_store(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels")
    store.add_level("xtb", XTB)
    structures = [Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.6 + 0.01 * k]])) for k in range(8)]
    store.enqueue([(Sample(s, "[H][H]", "x"), XTB.identifier) for s in structures])
    (before,) = estimate_run(store)
    assert (before.fidelity, before.n_labels, before.n_measured) == ("xtb", 8, 0)
    for structure in structures[:6]:
        store.record(_row(structure.content_hash(), seconds=36.0), {})
    (after,) = estimate_run(store)
    assert (after.n_labels, after.n_measured) == (2, 6)
    assert after.cpu_hours == pytest.approx(0.02)
    text = format_costs([LevelCost("dft", 10, 4.0, 6)], n_workers=2, hours=1.0)
    assert "corrected by 6 labels of this store" in text
    assert "about 2 h with 2 workers (right to a factor of two): is stopped by the budget of 1 h" in text
    assert "fits" in format_costs([LevelCost("dft", 10, 4.0, 0)], n_workers=2, hours=3.0)


def _row(key: str, seconds: float) -> Any:
    return LabelRow(key, XTB.identifier, "ok", {"energy": np.zeros(())}, {}, "", seconds)


# Executors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def queued(tmp_path: Path) -> Iterator[LabelStore]:
    store = LabelStore(tmp_path / "labels")
    store.add_level("xtb", XTB)
    rows = [np.array([[0.0, 0, 0], [0, 0, 0.6 + 0.01 * k]]) for k in range(12)]
    store.enqueue([(Sample(Structure(np.array([1, 1]), r), "[H][H]", "x"), XTB.identifier) for r in rows])
    yield store
    store.close()


class _Losing(Executor):
    """Runs jobs here and now, but loses some."""

    def __init__(self, losses: int) -> None:
        self.losses = losses

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.losses:
            self.losses -= 1
            future.set_exception(RuntimeError("node went down"))
        else:
            job, request, limit, _ = arguments
            future.set_result((cluster_answer(job, request, limit), {"where": "here"}))
        return future


def cluster_answer(*arguments: Any) -> Any:
    from mfm.labelling.worker import answer

    return answer(*arguments)


def test_progress_reports_by_level(queued: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    """A dear level that has just begun, behind many cheap labels: the time left is that of the dear one."""
    dear = LEVELS["dft_lite"]
    queued.add_level("dft_lite", dear)
    queued.enqueue([(sample, dear.identifier) for sample in queued.samples().values()])
    progress = Progress(queued, queued.levels(), hours=100.0)
    for seconds in [0.01] * 12 + [60.0]:
        progress.record(progress.next_job(), Answer("ok", {"energy": np.zeros(())}, {}, "", seconds), {})
    # 11 labels of a minute are left, and all so far took as long as this test
    elapsed = 90.0
    assert progress._seconds_left(elapsed) == pytest.approx(11 * 60.0 * elapsed / 60.12)
    with caplog.at_level("INFO", logger="mfm.labelling.run"):
        progress.record(progress.next_job(), Answer("failed", {}, {}, "too dear", 1.0), {})
    assert "14/24 done, 1 failed" in caplog.text
    assert "dft_lite 1.0 s too dear" in caplog.text


def test_jobs_of_lost_workers_are_submitted_again(queued: LabelStore) -> None:
    assert label_on(_Losing(2), queued, queued.levels(), 1, hours=1.0)[:3] == (12, 0, 0)
    assert queued.counts() == {("xtb", "ok"): 12}
    assert queued.provenances() == [{"where": "here"}]


def test_a_job_that_loses_three_workers_is_given_up(queued: LabelStore) -> None:
    summary = label_on(_Losing(9), queued, queued.levels(), 1, hours=1.0, max_labels=2)
    assert summary[:3] == (2, 2, 10)
    assert "worker lost (RuntimeError: node went down), 3 times" in queued.failures()[0][2]


def test_any_executor_will_do(queued: LabelStore) -> None:
    """Processes of the standard library, which bound their own memory and time."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert label_on(executor, queued, queued.levels(), 1, hours=1.0)[:3] == (12, 0, 0)
    assert queued.provenances()[0]["pyscf"]


def test_cluster_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.py"
    with pytest.raises(FileNotFoundError, match=r"`--cluster` takes a Python file, got .*config.py, which is none"):
        open_executor(path)
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"config.py must define `config`, a parsl.Config, or `executor\(\)`"):
        open_executor(path)
    path.write_text("from concurrent.futures import ThreadPoolExecutor as executor\n")
    assert type(open_executor(path)).__name__ == "ThreadPoolExecutor"
    path.write_text("config = None\n")
    monkeypatch.setitem(sys.modules, "parsl.concurrent", None)
    with pytest.raises(ValueError, match=r"`config` needs Parsl; install it with: pip install mfm\[cluster\]"):
        open_executor(path)
    assert cluster.__doc__


PARSL = """
import os
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
config = Config(
    executors=[
        HighThroughputExecutor(
            label="two_workers", max_workers_per_node=2, cores_per_worker=0.5, encrypted=False, address="127.0.0.1",
            heartbeat_period=2, heartbeat_threshold=10,
            provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init="export OMP_NUM_THREADS=1"),
        )
    ],
    run_dir={folder!r},
    retries=0,
)
"""
DRIVE = """
import sys
from mfm.cli import main
sys.exit(main(["label", "--out", sys.argv[1], "--workers", "2", "--cluster", sys.argv[2]]))
"""


@pytest.mark.slow
def test_two_parsl_workers_one_killed(tmp_path: Path) -> None:
    """One of two local Parsl workers dies by kill -9 while it computes: every label is there, none failed."""
    pytest.importorskip("parsl")
    import signal
    import time

    import psutil

    config, out = tmp_path / "config.py", tmp_path / "labels"
    config.write_text(PARSL.format(folder=str(tmp_path / "parsl")))
    store = LabelStore(out)
    level = LEVELS["dft_lite"]
    store.add_level("dft_lite", level)
    water = np.array([[0.0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    structures = [Structure(np.array([8, 1, 1]), water * scale) for scale in np.linspace(0.95, 1.2, 20)]
    store.enqueue([(Sample(s, "O", "x"), level.identifier) for s in structures])
    # Parsl starts its own programs, which lie beside the interpreter
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", DRIVE, str(out), str(config)], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while len(store.pending()) > 16 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    # the pool is no child of ours: it is known by the folder that its command names
    pools = [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "parsl") in " ".join(p.info["cmdline"] or [])
    ]
    workers = {
        child.pid: child for pool in pools for child in pool.children(recursive=True) if child.cpu_times().user > 1.0
    }
    busiest = max(workers.values(), key=lambda child: child.cpu_times().user)
    print(f"killed {busiest.pid} ({busiest.name()}) of {len(workers)} workers, {len(store.pending())} labels left")
    busiest.send_signal(signal.SIGKILL)
    assert process.wait(timeout=600) == 0
    assert store.pending() == []
    assert store.counts() == {("dft_lite", "ok"): 20}
