"""Descriptions find what was planted, and are silent about sound data."""

import json

import numpy as np
import pytest

from mfm.data import DatasetCard, Record, Store
from mfm.data.info import describe, format_description
from mfm.data.references import free_atom_energy
from mfm.data.suspicions import find_suspicions
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.units import DEBYE, HARTREE

CARD = DatasetCard(name="springs", levels={"dft": LevelOfTheory("PBE"), "cc": LevelOfTheory("CCSD(T)")})
NUMBERS = np.array([8, 1, 1])
CHARGES = np.array([-0.6, 0.3, 0.3])
REST = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def spring_records(n=40, change=None):
    """Water of springs between all atoms: energies and forces that belong together, point charges, their dipole."""
    rng = np.random.default_rng(1)
    lengths = np.linalg.norm(REST[:, None] - REST[None], axis=-1)
    made = []
    for _ in range(n):
        x = REST + 0.05 * rng.normal(size=(3, 3))
        r = x[:, None] - x[None]
        d = np.linalg.norm(r, axis=-1) + np.eye(3)
        stretch = np.where(np.eye(3, dtype=bool), 0.0, d - lengths)
        energy = float(free_atom_energy(NUMBERS).sum()) - 9.0 + 0.5 * 30.0 * float(np.square(stretch).sum()) / 2
        forces = -30.0 * (stretch[..., None] * r / d[..., None]).sum(axis=1)
        dipole = CHARGES @ x
        labels = {
            "energy_dft": np.array(energy),
            "forces_dft": forces,
            "charges_dft": CHARGES,
            "dipole_dft": dipole,
            "dipole_cc": 1.05 * dipole,
        }
        made.append(Record(Structure(NUMBERS, x), {**labels, **(change(labels) if change else {})}))
    return made


def store(change=None, n=40):
    return Store.from_records(spring_records(n, change), CARD)


def test_sound_data_raises_no_question():
    assert find_suspicions(store()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: {"energy_dft": np.array(old["energy_dft"] / HARTREE)}, "`energy_dft` is 0.036.* hartree for eV?"),
        (lambda old: {"energy_dft": np.array(old["energy_dft"] * 23.0605)}, "`energy_dft` is 23.* kcal/mol for eV?"),
        (lambda old: {"forces_dft": -old["forces_dft"]}, "`forces_dft` have the sign of gradients"),
        (lambda old: {"forces_dft": old["forces_dft"] / 51.422}, "forces in hartree/bohr"),
        (
            lambda old: {"forces_dft": old["forces_dft"] * 23.06},
            "`energy_dft` differences are 0.043.* times the work.*forces in kcal/mol/Å",
        ),
        (lambda old: {"forces_dft": old["forces_dft"] + 0.3}, "`forces_dft` do not sum to zero"),
        (lambda old: {"charges_dft": CHARGES + 0.1}, "in 40 structures the charges miss the total charge"),
        (lambda old: {"dipole_dft": old["dipole_dft"] / DEBYE}, r"times the dipole of `charges_dft`.*debye for e\*Å"),
        (lambda old: {"dipole_cc": old["dipole_cc"] / 2.5417}, r"`dipole_dft` is 2.4.* times `dipole_cc`"),
    ],
)
def test_planted_defects(change, message):
    import re

    assert any(re.search(message, line) for line in find_suspicions(store(change))), find_suspicions(store(change))


def test_outliers():
    made = spring_records()
    labels = {**made[7].labels, "energy_dft": np.array(made[7].labels["energy_dft"] + 50.0)}
    made[7] = Record(made[7].structure, labels)
    lines = find_suspicions(Store.from_records(made, CARD))
    assert any("1 structures lie more than 30 robust deviations" in line for line in lines)
    labels = {**made[7].labels, "forces_dft": np.array([[80.0, 0, 0], [-80.0, 0, 0], [0, 0, 0]])}
    made[7] = Record(made[7].structure, labels)
    lines = find_suspicions(Store.from_records(made, CARD))
    assert any("2 forces exceed 50 eV/Å, the largest 80 eV/Å" in line for line in lines)


def test_description():
    made = spring_records(10)
    shifted = {**made[0].labels, "energy_dft": np.array(made[0].labels["energy_dft"] + 1.0)}
    made += [made[1], Record(made[0].structure, shifted, origin="again"), Record(made[2].structure, {})]
    made.append(Record(Structure(NUMBERS, REST, cell=50 * np.eye(3)), {"energy_dft": made[0].labels["energy_dft"]}))
    whole = describe(Store.from_records(made, CARD.replace(licence="MIT", units_stated=False)))
    assert json.loads(json.dumps(whole)) == whole
    assert whole["structures"]["count"] == 14
    assert whole["structures"]["elements"] == {"H": 28, "O": 14}
    assert whole["labels"]["energy_dft"]["count"] == 13
    assert whole["labels"]["forces_dft"]["unit"] == "eV/Å"
    assert whole["duplicates"] == {"geometries": 3, "contradicting": 1}
    assert len(whole["notes"]) == 4
    text = format_description(whole)
    for expected in (
        "structures    14 of 1 molecule, 3 atoms each, 0 periodic",
        "3 geometries occur again, 1 with another energy",
        "the file does not state its units",
        "1 structures have a cell but are not periodic",
        "1 structures have `energy_dft` without `forces_dft`",
        "1 structures carry no label",
        "PBE",
        "licence     MIT",
    ):
        assert expected in text


def test_flags_splits_and_leaks_are_shown():
    made = spring_records(12)
    names = ["A", "B", "C", "D", "A.B", "E"] * 2
    records = [Record(r.structure, r.labels, name, "", {"gap_dft": 9.0}) for r, name in zip(made, names, strict=True)]
    card = CARD.replace(test_molecules=("C", "D"))
    whole = describe(Store.from_records(records, card))
    assert whole["flags"] == {"gap_dft": {"count": 12, "min": 9.0, "mean": 9.0, "max": 9.0}}
    parts = whole["split"]["parts"]
    assert parts["test"] == {"structures": 4, "molecules": 2, "dft": 4, "cc": 0}
    assert parts["train"]["structures"] + parts["valid"]["structures"] == 8
    assert whole["split"]["leaks"] == []
    text = format_description(whole)
    assert "the card names the test molecules" in text
    assert "leakage       none" in text
    # a cluster shows its parts; the same geometry under another name
    again = Record(records[2].structure, records[2].labels, "F")
    leaky = describe(Store.from_records([*records, again], CARD.replace(test_molecules=("A", "C"))))
    assert leaky["split"]["leaks"] == [
        "1 held-out molecules are also outside, alone or in clusters: A",
        "1 held-out geometries are also outside",
    ]
    assert "leakage       1 held-out geometries" in format_description(leaky)
    # one molecule is not split by molecule
    assert describe(store())["split"] == {}


def test_unstated_level_is_noted():
    card = DatasetCard(name="x", levels={"dft": LevelOfTheory("unspecified"), "cc": LevelOfTheory("CCSD(T)")})
    assert (
        "the level of theory of dft is not stated" in describe(Store.from_records(spring_records(3), card))["notes"][0]
    )
