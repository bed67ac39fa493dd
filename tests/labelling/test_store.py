"""The labelling store: a queue that remembers answers and failures."""

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mfm.data.store import Store
from mfm.graph import Structure
from mfm.labelling.density_file import write_densities
from mfm.labelling.export import QualityRules, export_records
from mfm.labelling.levels import LEVELS, make_request
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelRow, LabelStore
from mfm.units import BOHR

LOW, HIGH = LEVELS["dft"], LEVELS["ccsdt"]


def _sample(length: float, molecule: str = "[H][H]") -> Sample:
    return Sample(Structure(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, length]])), molecule, "bond")


def _values(energy: float, n_atoms: int = 2) -> dict[str, np.ndarray]:
    return {"energy": np.asarray(energy), "forces": np.zeros((n_atoms, 3)), "charges": np.zeros(n_atoms)}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = LabelStore(tmp_path / "labels.sqlite")
    made.add_level("low", LOW)
    made.add_level("high", HIGH)
    return made


def _answer(store: LabelStore, sample: Sample, level: str, status: str = "ok", **flags: float) -> None:
    values = _values(-30.0, len(sample.structure)) if status == "ok" else {}
    store.record(LabelRow(sample.structure.content_hash(), level, status, values, flags, "", 1.0), {"pyscf": "x"})


def test_queue_keeps_order_and_forgets_nothing(store: LabelStore) -> None:
    samples = [_sample(length) for length in (0.9, 0.7, 0.8)]
    assert store.enqueue([(sample, LOW.identifier) for sample in samples]) == 3
    assert store.enqueue([(samples[0], LOW.identifier), (samples[0], HIGH.identifier)]) == 1
    pending = store.pending()
    assert [job.structure for job in pending] == [
        samples[0].structure,
        *[s.structure for s in samples[1:]],
        samples[0].structure,
    ]
    _answer(store, samples[1], LOW.identifier, "failed")
    _answer(store, samples[0], LOW.identifier, net_force=1e-9)
    store.close()
    again = LabelStore(store.path)
    assert [(job.level, job.origin) for job in again.pending()] == [(LOW.identifier, "bond"), (HIGH.identifier, "bond")]
    assert again.counts() == {("low", "ok"): 1, ("low", "failed"): 1}
    rows = list(again.labels(LOW.identifier))
    assert [row.status for row in rows] == ["failed", "ok"]
    np.testing.assert_array_equal(rows[1].values["forces"], np.zeros((2, 3)))
    assert rows[1].flags == {"net_force": 1e-9}
    assert again.provenances() == [{"pyscf": "x"}]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("not a database, and long enough to be read as a broken header " * 10)
    with pytest.raises(ValueError, match=r"labelling store must be an SQLite file, got .*labels.txt"):
        LabelStore(path)


def test_a_missing_or_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a labelling store must exist to be read, got no file .*none.sqlite"):
        LabelStore(tmp_path / "none.sqlite", read_only=True)
    with pytest.raises(OSError, match=r"labels must be written to .*, got: unable to open database file; free some"):
        LabelStore(tmp_path / "no/such/folder/labels.sqlite")


def test_reading_writes_nothing(store: LabelStore) -> None:
    sample = _sample(0.9)
    store.enqueue([(sample, LOW.identifier)])
    _answer(store, sample, LOW.identifier)
    store.close()
    files = sorted(store.path.parent.iterdir())
    reader = LabelStore(store.path, read_only=True)
    assert reader.counts() == {("low", "ok"): 1}
    assert list(reader.samples().values()) == [sample]
    with pytest.raises(OSError, match="attempt to write a readonly database"):
        _answer(reader, sample, HIGH.identifier)
    reader.close()
    assert sorted(store.path.parent.iterdir()) == files


def test_a_fidelity_keeps_its_level(store: LabelStore) -> None:
    """A changed setting is another level, which must not slip in under the old name."""
    with pytest.raises(ValueError, match=r"fidelity `low` of .* must stay dft:.*, got composite:.*; give the changed"):
        store.add_level("low", HIGH)


def test_extras_are_not_asked_for_twice(store: LabelStore) -> None:
    sample, other = _sample(0.9), _sample(0.8)
    full = make_request(LOW, ["density"]).key
    assert store.enqueue([(sample, full), (sample, LOW.identifier), (other, LOW.identifier), (other, full)]) == 3
    assert [job.level for job in store.pending()] == [full, LOW.identifier, full]
    assert store.request_keys() == [LOW.identifier, full]
    values = _values(-30.0) | {"density_coefficients": np.arange(36.0)}
    for pushed in (sample, other):
        row = LabelRow(
            pushed.structure.content_hash(),
            full,
            "ok",
            values,
            {"density_error": 0.7, "density_baseline": 9.0},
            "",
            2.0,
        )
        store.record(row, {})
    _answer(store, other, LOW.identifier)
    assert store.counts() == {("low", "ok"): 3}
    records = export_records(store).records
    assert [set(record.labels) for record in records] == [{"energy_low", "forces_low", "charges_low"}] * 2
    assert [record.flags["seconds_low"] for record in records] == [2.0, 2.0]
    path = store.path.with_suffix(".density.h5")
    assert write_densities(store, "low", LOW, path) == 2
    written = Store.open(path)
    assert [record.structure for record in written] == [s.structure for s in (sample, other)]
    basis, rows = written.card.density_bases["low"], written[0].labels["density_low"]
    np.testing.assert_allclose(basis.from_rows(rows, np.array([1, 1])) * BOHR**1.5, np.arange(36.0), rtol=1e-12)
    assert written[1].flags == {"density_error_low": 0.7, "density_baseline_low": 9.0}
    assert basis.elements[1].degrees == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"densities must have been asked for, got none at `high` in .*label with --e"):
        write_densities(store, "high", HIGH, path)


def test_failures_can_be_tried_again(store: LabelStore) -> None:
    samples = [_sample(0.9), _sample(0.8)]
    store.enqueue([(sample, LOW.identifier) for sample in samples])
    _answer(store, samples[0], LOW.identifier, "failed")
    _answer(store, samples[1], LOW.identifier)
    store.reject("C(C", "no SMILES")
    assert store.rejected() == {"C(C": "no SMILES"}
    assert store.failures() == [("[H][H]", LOW.identifier, "")]
    assert store.forget_failures() == 1
    assert [job.structure for job in store.pending()] == [samples[0].structure]
    assert store.rejected() == {}
    assert [taken for *_, taken in store.seconds()] == [1.0]


def test_geometries_are_kept_by_source(store: LabelStore) -> None:
    ours = [dataclasses.replace(_sample(length), parent="[HH]") for length in (0.7, 0.8)]
    store.add_samples(ours, "seed 1")
    store.add_samples([_sample(0.9)], "seed 2")
    assert store.samples_of("[H][H]", "seed 1") == ours
    assert store.pending() == []


def test_geometries_without_a_source_get_it_when_they_are_made_again(store: LabelStore) -> None:
    """What an import brought, in its own order: the source, the parent and the order are those of the making."""
    made = [dataclasses.replace(_sample(length), parent="[HH]") for length in (0.7, 0.8, 0.9)]
    store.enqueue([(_sample(length), LOW.identifier) for length in (0.9, 0.7, 1.0)])
    assert store.samples_of("[H][H]", "seed 1") == []
    store.add_samples(made, "seed 1")
    assert store.samples_of("[H][H]", "seed 1") == made
    assert store.samples_of("[H][H]", "") == [_sample(1.0)]
    # a source that is known stays
    store.add_samples(made[:1], "seed 2")
    assert store.samples_of("[H][H]", "seed 1") == made
    assert [job.structure for job in store.pending()] == [_sample(length).structure for length in (0.9, 0.7, 1.0)]


def test_rejections_count_for_their_source(store: LabelStore) -> None:
    store.reject("C(C", "no SMILES")
    store.reject("O", "too few", "seed 1, stretched")
    assert store.rejected("seed 1") == {"C(C": "no SMILES"}
    assert store.rejected("seed 1, stretched") == store.rejected() == {"C(C": "no SMILES", "O": "too few"}
    store.close()
    assert LabelStore(store.path, read_only=True).rejected("seed 1, stretched") == {"C(C": "no SMILES", "O": "too few"}
    again = LabelStore(store.path)
    again.forget_failures()
    assert again.rejected() == {}


def test_stores_of_the_first_version_open(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE structures (hash TEXT PRIMARY KEY, molecule TEXT NOT NULL, origin TEXT NOT NULL,"
            " geometry BLOB NOT NULL)"
        )
    connection.close()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE rejected (molecule TEXT PRIMARY KEY, message TEXT NOT NULL)")
        connection.execute("INSERT INTO rejected VALUES ('O', 'why')")
    connection.close()
    assert LabelStore(path, read_only=True).rejected() == {"O": "why"}
    store = LabelStore(path)
    store.add_level("low", LOW)
    store.enqueue([(_sample(0.7), LOW.identifier)])
    assert next(iter(store.samples().values())).parent == ""
    assert store.rejected("any") == {"O": "why"}
    store.close()


def test_export_keeps_what_is_good(store: LabelStore) -> None:
    kept, only_low, pushed, failed = (_sample(length) for length in (0.7, 0.8, 0.9, 1.0))
    atom = Sample(Structure(np.array([1]), np.zeros((1, 3)), multiplicity=2), "[H]", "isolated atom")
    store.enqueue([(sample, LOW.identifier) for sample in (kept, only_low, pushed, failed, atom)])
    _answer(store, kept, LOW.identifier, net_force=1e-6, dipole_error=1e-5, s_squared=0.0)
    _answer(store, kept, HIGH.identifier, t1=0.01, d1=0.02)
    _answer(store, only_low, LOW.identifier, dipole_error=0.1)
    _answer(store, only_low, HIGH.identifier, t1=0.03, d1=0.07)
    _answer(store, pushed, LOW.identifier, net_force=0.01, s_squared=0.4)
    _answer(store, failed, LOW.identifier, "failed")
    _answer(store, atom, LOW.identifier, s_squared=0.75)
    result = export_records(store, "low", {"low": ("net_force",), "high": ("t1",)})
    assert [record.structure for record in result.records] == [kept.structure, only_low.structure]
    assert set(result.records[0].labels) == {
        "energy_low", "forces_low", "charges_low", "energy_high", "forces_high", "charges_high"
    }  # fmt: skip
    assert result.records[0].flags == {"net_force_low": 1e-6, "t1_high": 0.01, "seconds_low": 1.0, "seconds_high": 1.0}
    # charges that do not give the dipole are dropped, energies and forces are not
    assert set(result.records[1].labels) == {"energy_low", "forces_low"}
    assert result.references == {"low": {"H": -30.0}}
    assert result.left_out == {
        "low: net force, spin contamination": 1,
        "low: failed": 1,
        "high: t1, d1": 1,
    }


def test_the_lowest_state_of_an_atom_is_its_reference(store: LabelStore) -> None:
    energies = {3: -1030.0, 1: -1027.0}
    for order in ((3, 1), (1, 3)):
        fresh = LabelStore(store.path.with_name(f"{order[0]}.sqlite"))
        fresh.add_level("low", LOW)
        atoms = {m: Structure(np.array([6]), np.zeros((1, 3)), multiplicity=m) for m in order}
        samples = [Sample(atoms[m], "[C]", "isolated atom") for m in order]
        fresh.enqueue([(sample, LOW.identifier) for sample in [*samples, _sample(0.7)]])
        for m in order:
            values = {"energy": np.asarray(energies[m])}
            fresh.record(LabelRow(atoms[m].content_hash(), LOW.identifier, "ok", values, {}, "", 1.0), {})
        _answer(fresh, _sample(0.7), LOW.identifier)
        assert export_records(fresh).references == {"low": {"C": -1030.0}}
        fresh.close()


def test_rules_judge_contamination_against_the_spin() -> None:
    row = LabelRow("", "", "ok", {}, {"s_squared": 0.76}, "", 1.0)
    assert QualityRules().reason(row, multiplicity=2) == ""
    assert QualityRules().reason(row, multiplicity=1) == "spin contamination"
    assert QualityRules(spin_contamination=1.0).reason(row, multiplicity=1) == ""
    singles = LabelRow("", "", "ok", {}, {"t1": 0.025}, "", 1.0)
    assert QualityRules().reason(singles, multiplicity=1) == "t1"
    assert QualityRules().reason(singles, multiplicity=2) == ""


def test_an_empty_store_has_nothing_to_export(store: LabelStore) -> None:
    with pytest.raises(ValueError, match=r"must hold accepted `low` labels of molecules, got none in .*labels.sqlite"):
        export_records(store, "low", {})
