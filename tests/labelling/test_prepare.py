"""Making geometries: within the time, by processes that end with their parent, per group, with errors that help."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.io
import psutil
import pytest

from mfm.cli import main
from mfm.labelling import prepare
from mfm.labelling.levels import LEVELS
from mfm.labelling.plan import Plan, PlannedMolecule
from mfm.labelling.prepare import plan_from_list, queue_plan, queue_structures
from mfm.labelling.store import LabelStore

XTB = LEVELS["xtb"]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "labels")


def _plan(*molecules: PlannedMolecule) -> Plan:
    return Plan(0, {"xtb": XTB}, list(molecules), {})


MAKE = """
import sys
from mfm.labelling.prepare import plan_from_list, queue_plan
from mfm.labelling.levels import LEVELS
from mfm.labelling.store import LabelStore
from pathlib import Path
if __name__ == "__main__":
    store, levels = LabelStore(sys.argv[2]), {"xtb": LEVELS["xtb"]}
    queue_plan(store, plan_from_list(Path(sys.argv[1]), store, levels, {"xtb": 3}), 1)
"""


def test_killing_it_while_geometries_are_made_leaves_no_orphan(tmp_path: Path) -> None:
    listing, out = tmp_path / "some.smi", tmp_path / "labels"
    listing.write_text("O\nCCO\n")
    command = [sys.executable, "-c", MAKE, str(listing), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (out.is_file() and LabelStore(out).samples_of("O", "seed 0")):
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    assert [child.pid for child in alive] == []
    assert LabelStore(out).samples_of("CCO", "seed 0") == []
    assert subprocess.run(command, check=False).returncode == 0
    assert len(LabelStore(out).pending()) == 6


def test_no_geometries_are_begun_after_the_time(store: LabelStore, caplog: pytest.LogCaptureFixture) -> None:
    plan = _plan(PlannedMolecule("O", {"xtb": 2}), PlannedMolecule("N", {"xtb": 2}))
    with caplog.at_level(logging.WARNING, logger="mfm.labelling.prepare"):
        assert queue_plan(store, plan, 1, hours=0.0) == 0
    assert "the budget was spent before the geometries of 2 of 2 molecules, from `O` on, were made" in caplog.text
    assert store.rejected() == {}
    listing = store.path.with_name("some.smi")
    listing.write_text("O\n")
    assert main(["label", str(listing), "--budget", "0s", "--dry-run", "--out", str(store.path)]) == 0
    assert store.samples() == {}


def test_a_molecule_that_fails_in_one_group_is_made_in_another(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(
        PlannedMolecule("O", {"xtb": 1}, origins=("stretched",)),
        PlannedMolecule("O", {"xtb": 1}),
        PlannedMolecule("N", {"xtb": 1}),
    )
    made: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(
        prepare, "_make", lambda store, molecules, *rest: made.extend((m.smiles, m.origins) for m in molecules)
    )
    store.reject("O", "no distinct geometries", "seed 0, stretched")
    queue_plan(store, plan, 1)
    assert made == [("O", ()), ("N", ())]


def test_one_molecule_with_two_multiplicities(store: LabelStore, tmp_path: Path) -> None:
    listing = tmp_path / "some.smi"
    listing.write_text("[CH2]\n[CH2] methylene multiplicity=3\n")
    assert len(plan_from_list(listing, store, {"xtb": XTB}, {"xtb": 1}).molecules) == 1
    listing.write_text("[CH2]\n[CH2] methylene multiplicity=1\n")
    with pytest.raises(
        ValueError, match=r"some.smi must name a molecule with one multiplicity, got `\[CH2\]` with 3 and 1"
    ):
        plan_from_list(listing, store, {"xtb": XTB}, {"xtb": 1})


def test_elements_whose_atoms_are_not_known_are_named(
    store: LabelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ase.io.write(tmp_path / "some.xyz", ase.Atoms("KH", [[0, 0, 0], [0, 0, 2.2]]))
    with caplog.at_level(logging.WARNING, logger="mfm.labelling.prepare"):
        assert queue_structures(store, tmp_path / "some.xyz", {"xtb": XTB}, (), with_atoms=True) == 2
    assert "isolated atoms of K are not labelled" in caplog.text
    assert "give them in a plan, such as `atoms: {K: 1}`" in caplog.text
