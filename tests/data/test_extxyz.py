"""The extended XYZ reader, against files written by ASE and by hand."""

import gzip

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, given, settings

from mfm.data import open_dataset
from tests.strategies import crystals, molecules

pytestmark = pytest.mark.filterwarnings("error")
UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3", "dipole": "e*Å", "charges": "e"}

FRAME = """2
Properties=species:S:1:pos:R:3:force:R:3 energy=-1.5 dipole="_JSON [[0.1, 0.2, 0.3]]" smiles="[H][H]" pbc="F F F"
H 0 0 0 0.1 0 0
H 0 0 0.74 -0.1 0 0
"""


def write(path, text):
    path.write_text(text)
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(structure=molecules() | crystals())
def test_agrees_with_ase(tmp_path, structure):
    rng = np.random.default_rng(0)
    atoms = structure.to_ase()
    stress = rng.normal(size=6)
    results = {"energy": -3.25, "forces": rng.normal(size=(len(atoms), 3)), "stress": stress}
    atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(tmp_path / "a.xyz", [atoms, atoms], format="extxyz")
    store = open_dataset(tmp_path / "a.xyz", fidelity="dft", units=UNITS)
    assert len(store) == 2
    record = store[1]
    expected = ase.io.read(tmp_path / "a.xyz", index=1)
    np.testing.assert_allclose(record.structure.positions, expected.positions, atol=1e-12)
    np.testing.assert_array_equal(record.structure.atomic_numbers, expected.numbers)
    np.testing.assert_array_equal(record.structure.pbc, expected.pbc)
    np.testing.assert_allclose(record.structure.cell, expected.cell.array, atol=1e-12)
    assert record.structure.charge == structure.charge
    assert record.labels["energy_dft"] == pytest.approx(-3.25)
    np.testing.assert_allclose(record.labels["forces_dft"], expected.get_forces(), atol=1e-12)
    np.testing.assert_allclose(record.labels["stress_dft"], expected.get_stress(voigt=False), atol=1e-12)


def test_keys_json_and_molecule(tmp_path):
    record = open_dataset(write(tmp_path / "a.xyz", FRAME), fidelity="dft", units=UNITS)[0]
    assert set(record.labels) == {"energy_dft", "forces_dft", "dipole_dft"}
    np.testing.assert_allclose(record.labels["dipole_dft"], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(record.labels["forces_dft"][1], [-0.1, 0, 0])
    assert record.molecule == "[H][H]"


def test_units_and_gradients(tmp_path):
    store = open_dataset(
        write(tmp_path / "a.xyz", FRAME),
        keys={"energy_cc": "energy", "forces_cc": "-force"},
        units={"energy": "hartree", "forces": "hartree/bohr", "positions": "bohr"},
    )
    record = store[0]
    assert set(record.labels) == {"energy_cc", "forces_cc"}
    assert record.labels["energy_cc"] == pytest.approx(-1.5 * 27.211386245988)
    assert record.labels["forces_cc"][0, 0] == pytest.approx(-0.1 * 51.422067476)
    assert record.structure.positions[1, 2] == pytest.approx(0.74 * 0.529177210903)


def test_two_levels_in_one_file(tmp_path):
    text = FRAME.replace("energy=-1.5", "e_dft=-1.5 e_cc=-1.7")
    store = open_dataset(
        write(tmp_path / "a.xyz", text), keys={"energy_dft": "e_dft", "energy_ccsdt": "e_cc"}, units=UNITS
    )
    assert store.fidelities == ["dft", "ccsdt"]
    assert store.energies("energy_ccsdt")[0] == -1.7


def test_periodicity_comes_from_pbc(tmp_path):
    lattice = 'Lattice="9 0 0 0 9 0 0 0 9" '
    boxed = open_dataset(write(tmp_path / "a.xyz", FRAME.replace("Prop", lattice + "Prop")), units=UNITS)[0]
    assert not boxed.structure.pbc.any()
    bare = FRAME.replace("Prop", lattice + "Prop").replace('pbc="F F F"', "")
    assert open_dataset(write(tmp_path / "b.xyz", bare), units=UNITS)[0].structure.pbc.all()


def test_charge_and_spin(tmp_path):
    text = FRAME.replace("energy", "charge=1 spin=2 energy")
    structure = open_dataset(write(tmp_path / "a.xyz", text), units=UNITS)[0].structure
    assert (structure.charge, structure.multiplicity) == (1, 2)
    with pytest.raises(ValueError, match=r"frame 0 of `b.xyz`: `multiplicity` 2 does not go with 2 electrons"):
        open_dataset(write(tmp_path / "b.xyz", text.replace("charge=1", "charge=0")), units=UNITS)


def test_gzipped(tmp_path):
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress((FRAME * 3).encode()))
    assert len(open_dataset(tmp_path / "a.xyz.gz", units=UNITS)) == 3
    (tmp_path / "b.xyz.gz").write_bytes((tmp_path / "a.xyz.gz").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot uncompress .* may be truncated"):
        open_dataset(tmp_path / "b.xyz.gz", units=UNITS)


def test_assumed_units_are_announced(tmp_path, caplog):
    store = open_dataset(write(tmp_path / "a.xyz", FRAME), units={"forces": "eV/Å"})
    assert "does not state its units; assumed energy in eV, dipole in e*Å" in caplog.text
    assert not store.card.units_stated
    caplog.clear()
    assert open_dataset(tmp_path / "a.xyz", units=UNITS).card.units_stated
    assert not caplog.text


def test_label_missing_in_the_first_frame(tmp_path):
    first = FRAME.replace(":force:R:3", "").replace("0.1 0 0\n", "\n").replace("H 0 0 0 \n", "H 0 0 0\n")
    first = first.replace("0.74 -\n", "0.74\n")
    store = open_dataset(write(tmp_path / "a.xyz", first + FRAME), keys={"forces": "force"}, units=UNITS)
    np.testing.assert_array_equal(store.coverage("forces_ref"), [False, True])
    recognised = open_dataset(tmp_path / "a.xyz", units=UNITS)
    np.testing.assert_array_equal(recognised.coverage("forces_ref"), [False, True])


def test_energy_missing_in_the_first_frame(tmp_path):
    first = FRAME.replace(" energy=-1.5", "").replace("dipole", "note")
    store = open_dataset(write(tmp_path / "a.xyz", first + FRAME), units=UNITS)
    np.testing.assert_array_equal(store.coverage("energy_ref"), [False, True])
    np.testing.assert_array_equal(store.coverage("dipole_ref"), [False, True])
    other = FRAME.replace("energy=", "REF_energy=")
    with pytest.raises(ValueError, match=r"holds `energy`, `REF_energy`, each of which could be `energy`"):
        open_dataset(write(tmp_path / "b.xyz", FRAME + other), units=UNITS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("smiles=", "charge=0.4 smiles=", "frame 0 of `a.xyz`: `charge` must be a whole number, got 0.4"),
        ("smiles=", "charge=one smiles=", "`charge` in frame 0 of `a.xyz`: must be numbers, got `one`"),
        ("smiles=", "spin=1.9 smiles=", "frame 0 of `a.xyz`: `multiplicity` must be a whole number, got 1.9"),
        ("H 0 0 0.74 -0.1 0 0\n", "", "frame 0 of `a.xyz`: must have 2 atoms, got 1; the file is truncated"),
        ("-0.1 0 0\n", "-0.1 0\n", "must have 7 columns for each of 2 atoms .* got 13 words in all"),
        ("H 0 0 0.74", "Q 0 0 0.74", "frame 0 of `a.xyz`: species must be chemical symbols, got `Q`"),
        ("force:R:3", "force:R", "`Properties` must be name:type:count triples"),
        ("pos:R:3", "place:R:3", "`Properties` must hold `pos` and `species` or `Z`"),
        ("F F F", "F F", "`pbc` must be three of T and F"),
        ("energy=-1.5", "energy=low", "`energy` in frame 0 of `a.xyz`: must be numbers, got `low`"),
        ("0.74", "nan", "frame 0 of `a.xyz`: `positions` must be finite"),
        ("-0.1", "nan", "`forces_ref` must be finite, got NaN .* at atoms .1. beside a finite `energy_ref`"),
        ("[[0.1, 0.2, 0.3]]", "[[0.1, 0.2]]", r"label `dipole_ref` must have shape \(3,\)"),
    ],
)
def test_bad_frames(tmp_path, old, new, message):
    assert old in FRAME
    with pytest.raises(ValueError, match=message):
        open_dataset(write(tmp_path / "a.xyz", FRAME.replace(old, new)), units=UNITS)


def test_second_frame_truncated(tmp_path):
    path = write(tmp_path / "a.xyz", FRAME + FRAME[:-30])
    with pytest.raises(ValueError, match=r"frame 1 of `a.xyz`.*truncated"):
        open_dataset(path, units=UNITS)


def test_key_that_matches_nothing(tmp_path):
    path = write(tmp_path / "a.xyz", FRAME)
    message = "key `forces` for `forces` matches nothing in `a.xyz`, found dipole, energy, force, smiles; did you mean"
    with pytest.raises(ValueError, match=message):
        open_dataset(path, keys={"forces": "forces"}, units=UNITS)
    with pytest.raises(ValueError, match=r"property must be one of .* got `enrgy`; did you mean `energy`"):
        open_dataset(path, keys={"enrgy": "energy"}, units=UNITS)


def test_no_label_and_ambiguous_label(tmp_path):
    bare = write(tmp_path / "a.xyz", "1\nProperties=species:S:1:pos:R:3 U0=-0.5\nH 0 0 0\n")
    with pytest.raises(ValueError, match=r"`a.xyz` must hold a label that its format knows .*found keys U0"):
        open_dataset(bare)
    both = write(tmp_path / "b.xyz", FRAME.replace("energy=", "energy_ref=-1.4 energy="))
    with pytest.raises(ValueError, match=r"holds `energy`, `energy_ref`, each of which could be `energy`"):
        open_dataset(both)


def test_unknown_unit(tmp_path):
    path = write(tmp_path / "a.xyz", FRAME)
    with pytest.raises(ValueError, match=r"got `hartee` in `hartee`; did you mean `hartree`"):
        open_dataset(path, units={"energy": "hartee"})
    with pytest.raises(ValueError, match=r"`bohr` does not measure what `eV` measures"):
        open_dataset(path, units={"energy": "bohr"})
