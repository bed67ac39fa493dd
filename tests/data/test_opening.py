"""Opening: detection, cards, benchmark folders, merging."""

import logging

import numpy as np
import pytest

from mfm.data import DatasetCard, Record, Store, merge_stores, open_dataset, opening, write_store
from mfm.data import card as card_module
from mfm.data.card import file_sha256
from mfm.data.geometry_index import GeometryIndex
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from tests.strategies import CARD, random_records

XYZ = """1
Properties=species:S:1:pos:R:3 energy={energy} pbc="F F F"
H 0 0 0
1
Properties=species:S:1:pos:R:3 energy=-2 pbc="F F F"
H 0 0 0.5
"""


@pytest.fixture
def xyz(tmp_path):
    path = tmp_path / "h.xyz"
    path.write_text(XYZ.format(energy=-0.5))
    return path


def test_store_file(tmp_path):
    write_store(tmp_path / "a.mfm", random_records(4), CARD)
    store = open_dataset(tmp_path / "a.mfm")
    assert store.digest == Store.from_records(random_records(4), CARD).digest
    assert open_dataset(str(tmp_path / "a.mfm"), fidelity="dft").labels == store.labels
    with pytest.raises(ValueError, match=r"fidelity must be one of dft, ccsdt of `generated`, got `xtb`"):
        open_dataset(tmp_path / "a.mfm", fidelity="xtb")
    with pytest.raises(ValueError, match=r"is an mfm store, it takes no format, keys, units or card"):
        open_dataset(tmp_path / "a.mfm", units={"energy": "hartree"})


def test_empty_file_and_unknown_formats(tmp_path):
    (tmp_path / "a.xyz").touch()
    with pytest.raises(ValueError, match=r"`.*a.xyz` must hold at least one structure, got an empty file"):
        open_dataset(tmp_path / "a.xyz")
    (tmp_path / "a.txt").write_text("hello\nworld\n")
    with pytest.raises(ValueError, match=r"format of `.*a.txt` is not known; mfm reads its own stores and rmd17"):
        open_dataset(tmp_path / "a.txt")
    (tmp_path / "a.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"Python pickles can run code when opened and are never read"):
        open_dataset(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"format must be one of rmd17, .*extxyz, got `xyz`"):
        open_dataset(tmp_path / "a.txt", format="xyz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"format of `.*folder` is not known"):
        open_dataset(tmp_path / "folder")


def test_card_of_a_foreign_file(xyz):
    text = """
name: hydrogen
levels: {cc: {method: CCSD(T), basis: cc-pVTZ}}
units: {energy: hartree}
references: {cc: {H: -13.6}}
files: [{path: h.xyz, sha256: SUM, fidelity: cc, corrections: {energy: 2.0}}]
""".replace("SUM", file_sha256(xyz))
    store = open_dataset(xyz, card=DatasetCard.from_yaml(text))
    assert store.card.units_stated
    assert store.card.levels["cc"].label == "CCSD(T)/cc-pVTZ"
    assert store.card.references == {"cc": {"H": -13.6}}
    np.testing.assert_allclose(store.energies("energy_cc"), 2 * 27.211386245988 * np.array([-0.5, -2]))
    (xyz.parent / "card.yaml").write_text(text)
    assert open_dataset(xyz, card=xyz.parent / "card.yaml").digest == store.digest
    # a file that the card does not list gets what the card says of all: levels and units, but no correction
    other = xyz.rename(xyz.parent / "other.xyz")
    energies = open_dataset(other, card=DatasetCard.from_yaml(text), fidelity="cc").energies("energy_cc")
    np.testing.assert_allclose(energies, 27.211386245988 * np.array([-0.5, -2]))
    xyz.write_text(XYZ.format(energy=-0.9))
    with pytest.raises(ValueError, match=r"h.xyz` must have SHA-256"):
        open_dataset(xyz, card=DatasetCard.from_yaml(text))


@pytest.fixture
def benchmark(tmp_path, xyz, monkeypatch):
    """A benchmark of two files: the same geometries at two levels, the last bits of the second apart."""
    other = tmp_path / "cc.xyz"
    other.write_text(XYZ.format(energy=-0.6).replace("0.5\n", "0.50000000001\n"))
    text = f"""
name: toy
source: a paper
levels: {{dft: {{method: PBE}}, cc: {{method: CCSD(T)}}}}
units: {{energy: eV}}
files:
  - {{path: h.xyz, sha256: "{file_sha256(xyz)}", fidelity: dft}}
  - {{path: cc.xyz, sha256: "{file_sha256(other)}", fidelity: cc}}
  - {{path: cc.xyz, sha256: "{file_sha256(other)}", fidelity: cc, subset: cc_only}}
"""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "toy.yaml").write_text(text)
    monkeypatch.setattr(card_module, "CARD_FOLDER", tmp_path / "cards")
    monkeypatch.setenv(opening.BENCHMARK_VARIABLE, str(tmp_path))
    return tmp_path


def test_benchmark(benchmark):
    store = open_dataset("benchmark:toy")
    assert len(store) == 2
    assert store.labels == ["energy_cc", "energy_dft"]
    np.testing.assert_allclose(store.energies("energy_cc"), [-0.6, -2])
    assert open_dataset("benchmark:toy/cc_only").labels == ["energy_cc"]


def test_benchmark_mistakes(benchmark, monkeypatch):
    with pytest.raises(ValueError, match=r"subset of `toy` must be one of all, cc_only, got `train`"):
        open_dataset("benchmark:toy/train")
    with pytest.raises(ValueError, match=r"`benchmark:toy` has a card that says all of it, it takes no units"):
        open_dataset("benchmark:toy", units={"energy": "eV"})
    (benchmark / "h.xyz").write_text(XYZ.format(energy=-0.7))
    with pytest.raises(
        ValueError, match=r"h.xyz` must have SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}; it is not the file"
    ):
        open_dataset("benchmark:toy")
    (benchmark / "h.xyz").unlink()
    with pytest.raises(ValueError, match=r"h.xyz` of benchmark `toy` does not exist; check MFM_BENCHMARK_DATA"):
        open_dataset("benchmark:toy")
    monkeypatch.delenv(opening.BENCHMARK_VARIABLE)
    with pytest.raises(ValueError, match=r"benchmark `toy` needs MFM_BENCHMARK_DATA: set it to the folder .*`h.xyz`"):
        open_dataset("benchmark:toy")
    with pytest.raises(ValueError, match=r"card must be .* one of toy, got `nope`"):
        open_dataset("benchmark:nope")


def test_builtin(benchmark, monkeypatch):
    monkeypatch.setattr(opening, "BUILTIN_FOLDER", benchmark)
    write_store(benchmark / "small.h5", random_records(3), CARD)
    assert len(open_dataset("builtin:small")) == 3
    with pytest.raises(ValueError, match=r"builtin dataset must be one of small, got `large`"):
        open_dataset("builtin:large")
    path = benchmark / "small.h5"
    card = CARD.replace(name="small", files=({"path": "small.h5", "sha256": file_sha256(path)},), licence="MIT")
    (benchmark / "cards" / "small.yaml").write_text(card.to_yaml())
    assert open_dataset("builtin:small").card.licence == "MIT"
    (benchmark / "cards" / "small.yaml").write_text(card.to_yaml().replace(file_sha256(path), "a" * 64))
    with pytest.raises(ValueError, match=r"must have SHA-256 a{64}"):
        open_dataset("builtin:small")


def test_two_levels_of_theory_under_one_fidelity():
    one = Store.from_records(random_records(3), CARD)
    other_card = CARD.replace(name="other", levels={**CARD.levels, "dft": LevelOfTheory("B3LYP", "def2-SVP")})
    other = Store.from_records(random_records(3, seed=1), other_card)
    message = r"fidelity `dft` must mean one level of theory, got `PBE/def2-SVP` and, in `other`, `B3LYP/def2-SVP`"
    with pytest.raises(ValueError, match=message):
        merge_stores([one, other], CARD)


def test_levels_that_nobody_states_do_not_mix(xyz, caplog):
    caplog.set_level(logging.ERROR)
    store = open_dataset(xyz)
    with pytest.raises(ValueError, match=r"fidelity `ref` is not stated by .* name the levels in a card"):
        merge_stores([store, open_dataset(xyz)], store.card)


def test_merge_keeps_structures_labelled_twice():
    store = Store.from_records(random_records(4), CARD)
    assert len(merge_stores([store, store], CARD)) == 8
    bare = [Record(record.structure, {}, record.molecule) for record in random_records(4)]
    merged = merge_stores([Store.from_records(bare, CARD), store], CARD)
    assert len(merged) == 4
    assert merged.digest == store.digest


def test_geometry_index_has_no_gaps():
    # 5e-7 is where rounding to 1e-6 breaks
    x = np.array([[0.0, 0.0, 0.0], [0.9999995, 0.0, 0.0]])
    one, other = (Structure(np.array([1, 8]), x + shift) for shift in (0.0, -1e-9))
    assert one.content_hash() != other.content_hash()
    index = GeometryIndex()
    index.add(one, 7)
    assert index.find(other) == [7]
    assert index.find(Structure(np.array([1, 8]), x, charge=1)) == []
    assert index.find(Structure(np.array([1, 8]), x * (1 + 2e-6))) == []
