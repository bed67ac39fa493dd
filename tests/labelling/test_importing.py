"""Labels of one machine go on in a store of another: nothing twice, nothing mixed."""

from pathlib import Path

import numpy as np
import pytest

from mfm.cli import main
from mfm.data.opening import open_dataset
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.graph import Structure
from mfm.labelling.commands import _card
from mfm.labelling.export import export_records
from mfm.labelling.importing import import_labels
from mfm.labelling.levels import LEVELS, DensityFunctionalLevel, Request, TightBindingLevel
from mfm.labelling.plan import Plan, isolated_atoms
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelRow, LabelStore
from mfm.labelling.worker import compute, provenance

XTB, LITE = LEVELS["xtb"], LEVELS["dft_lite"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three geometries of water and two isolated atoms at xtb, as a file."""
    path = tmp_path_factory.mktemp("import") / "first.labels"
    store = LabelStore(path)
    store.add_level("xtb", XTB)
    water = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])
    samples = [Sample(Structure(np.array([8, 1, 1]), water * scale), "O", "by hand") for scale in (0.95, 1.0, 1.05)]
    samples += isolated_atoms(Plan(0, {}, [], {"H": 2, "O": 3}))
    store.enqueue([(sample, XTB.identifier) for sample in samples])
    for job in store.pending():
        labels = compute(job, Request(XTB))
        store.record(LabelRow(job.hash, job.level, "ok", labels.values, labels.flags, "", 0.5), provenance())
    store.close()
    assert main(["label", "export", str(path), "--out", str(path.with_name("some.h5"))]) == 0
    return path.with_name("some.h5")


def test_what_was_labelled_elsewhere_is_not_labelled_again(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, listing = tmp_path / "second.labels", tmp_path / "some.smi"
    assert main(["label", "import", str(exported), "--out", str(out)]) == 0
    assert "xtb: 5 labels added, 0 known" in capsys.readouterr().out
    # these were made by hand, and are not what a list asks for; the atoms are
    listing.write_text("O\n")
    assert main(["label", str(listing), "--levels", "xtb:1", "--out", str(out), "--dry-run"]) == 0
    assert "xtb                   1" in capsys.readouterr().out
    assert main(["label", "import", str(exported), "--out", str(out)]) == 0
    assert "xtb: 0 labels added, 5 known" in capsys.readouterr().out


PLAN = """
seed: 3
levels: [xtb, mmff]
atoms: {H: 2, O: 3}
groups:
  - {name: plain, xtb: 4, mmff: 2, molecules: [O]}
  - {name: chosen, xtb: 3, mmff: 1, origins: [stretched, modes], molecules: [O]}
  - {name: radicals, xtb: 1, radicals_of: [plain]}
"""


def test_an_import_and_its_plan_give_the_jobs_of_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Part of a plan is labelled, exported and imported elsewhere: the rest of the plan is left, and nothing else."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    paths = [tmp_path / name for name in ("first.labels", "second.labels")]
    file = tmp_path / "some.h5"
    assert main(["label", str(plan), "--out", str(paths[0]), "--limit", "8"]) == 0
    assert main(["label", "export", str(paths[0]), "--out", str(file)]) == 0
    assert main(["label", "import", str(file), "--out", str(paths[1])]) == 0
    assert main(["label", str(plan), "--out", str(paths[1]), "--dry-run"]) == 0
    first, second = (LabelStore(path, read_only=True) for path in paths)
    # two atoms, four, three and one geometries at xtb, two and one of them at mmff
    assert len(_jobs(first)) == 2 + 4 + 3 + 1 + 2 + 1
    assert _jobs(second) == _jobs(first)
    assert {job[:2] for job in second.pending()} == {job[:2] for job in first.pending()}
    assert second.samples().keys() == first.samples().keys()
    assert all(sample == first.samples()[key] for key, sample in second.samples().items())
    assert {sample.parent for sample in second.samples().values()} == {"", "O"}
    assert second.rejected() == {}
    capsys.readouterr()


def _jobs(store: LabelStore) -> set[tuple[str, str]]:
    return set(store._connection.execute("SELECT hash, level FROM queue"))


def test_atoms_of_unknown_multiplicity(exported: Path, tmp_path: Path) -> None:
    source, store = open_dataset(exported), LabelStore(tmp_path / "labels")
    references = {"xtb": {"Fe": -30.0, "O": -100.0}}
    card = source.card.model_copy(update={"references": references})
    iron = Store.from_records(list(source), card)
    with pytest.raises(
        ValueError, match=r"isolated atoms of `some` must have a known multiplicity, got Fe, .*first queue a plan .*Fe:"
    ):
        import_labels(store, iron)
    # a plan has said what they are: not the ground state of oxygen here
    store.add_level("xtb", XTB)
    atoms = isolated_atoms(Plan(0, {}, [], {"Fe": 5, "O": 1}))
    store.enqueue([(atom, XTB.identifier) for atom in atoms])
    assert import_labels(store, iron).added == {"xtb": 5}
    assert store.pending() == []


def test_labels_flags_and_provenance_come_back_as_they_were(exported: Path, tmp_path: Path) -> None:
    source, store = open_dataset(exported), LabelStore(tmp_path / "labels")
    assert import_labels(store, source).added == {"xtb": 5}
    again = export_records(store)
    assert again.references == source.card.references
    for record, original in zip(again.records, source, strict=True):
        assert record.structure == original.structure
        assert (record.molecule, record.origin, record.flags) == (original.molecule, original.origin, original.flags)
        assert record.labels.keys() == original.labels.keys()
        for task, value in record.labels.items():
            np.testing.assert_array_equal(value, original.labels[task])
    (provenance,) = store.provenances()
    assert provenance["processor"] == source.card.provenance["processor"]
    assert provenance["imported_digest"] == source.digest
    # written again it is the same dataset
    card = _card(store, again, "some", [], "unknown")
    assert Store.from_records(again.records, card).digest == source.digest


def test_what_the_store_has_stays(exported: Path, tmp_path: Path) -> None:
    source, store = open_dataset(exported), LabelStore(tmp_path / "labels")
    store.add_level("xtb", XTB)
    structure = source[0].structure
    store.enqueue([(Sample(structure, "O", "x"), XTB.identifier)])
    mine = LabelRow(structure.content_hash(), XTB.identifier, "ok", {"energy": np.ones(())}, {}, "", 1.0)
    store.record(mine, {})
    assert import_labels(store, source) == ({"xtb": 4}, {"xtb": 1})
    kept = next(row for row in store.labels(XTB.identifier) if row.hash == mine.hash)
    assert kept.values["energy"] == 1.0


def test_flags_of_fidelities_whose_names_end_alike(tmp_path: Path) -> None:
    first = LabelStore(tmp_path / "first")
    levels = {"dft_lite": LITE, "lite": DensityFunctionalLevel(basis="sto-3g", grid=3)}
    structure = Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.8]]))
    for number, (fidelity, level) in enumerate(levels.items()):
        first.add_level(fidelity, level)
        first.enqueue([(Sample(structure, "[H][H]", "x"), level.identifier)])
        values, flags = {"energy": np.asarray(-30.0)}, {"gap": float(number)}
        first.record(LabelRow(structure.content_hash(), level.identifier, "ok", values, flags, "", 2.0), {})
    exported = export_records(first)
    source = Store.from_records(exported.records, _card(first, exported, "two", [], "unknown"))
    second = LabelStore(tmp_path / "second")
    second.add_level("lite", levels["lite"])
    assert import_labels(second, source).added == {"dft_lite": 1, "lite": 1}
    for number, level in enumerate(levels.values()):
        (row,) = second.labels(level.identifier)
        assert (row.flags, row.seconds) == ({"gap": float(number)}, 2.0)


def test_levels_that_differ_are_refused(exported: Path, tmp_path: Path) -> None:
    source, store = open_dataset(exported), LabelStore(tmp_path / "labels")
    store.add_level("xtb", TightBindingLevel(accuracy=0.1))
    with pytest.raises(
        ValueError, match=r"fidelity `xtb` of `some` must be xtb:GFN2-xTB:\w+, got GFN2-xTB \(.*must not be mixed"
    ):
        import_labels(store, source)
    assert store.counts() == {}
    renamed = source.card.model_dump() | {"levels": {"cheap": source.card.levels["xtb"]}, "references": {}}
    card = type(source.card).model_validate(renamed)
    records = [Record(r.structure, {"energy_cheap": r.labels["energy_xtb"]}, r.molecule) for r in source]
    with pytest.raises(
        ValueError,
        match=r"fidelity `cheap` of `some` must be a level that .*, got GFN2-xTB.*queue the plan .* --dry-run",
    ):
        import_labels(store, Store.from_records(records, card))
    assert main(["label", "import", str(tmp_path / "none.h5"), "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
