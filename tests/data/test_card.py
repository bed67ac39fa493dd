"""Cards are strict, round-trip, and the shipped ones are complete."""

import hashlib

import pytest

from mfm.data.card import CARD_FOLDER, DatasetCard, available_cards, file_sha256, load_card, property_of
from mfm.data.opening import BUILTIN_FOLDER
from mfm.fidelity import LevelOfTheory

TEXT = """
name: water
levels:
  dft: {method: PBE, basis: def2-SVP}
units: {energy: hartree, forces_dft: hartree/bohr, positions: bohr}
references: {dft: {H: -13.6, O: -2040.0}}
noise_floor: {energy_dft: 1.0e-4}
"""


def test_round_trip():
    card = DatasetCard.from_yaml(TEXT)
    assert card.levels["dft"] == LevelOfTheory("PBE", "def2-SVP")
    assert DatasetCard.from_yaml(card.to_yaml()) == card


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: water", "nane: water", "`nane`: unknown key; did you mean `name`"),
        ("method: PBE", "metod: PBE", "got unknown metod"),
        ("energy: hartree", "energy: hartee", "got `hartee` in `hartee`; did you mean `hartree`"),
        ("energy: hartree", "energy: bohr", "`bohr` does not measure what `eV` measures"),
        ("energy: hartree", "enery: hartree", "property must be one of .* did you mean `energy`"),
        ("{H: -13.6", "{Hy: -13.6", "`references.dft` must have chemical symbols as keys, got Hy"),
        ("references: {dft", "references: {pbe", r"`references` must name fidelities of `levels` \(dft\), got `pbe`"),
        ("energy_dft: 1.0e-4", "heat_dft: 1.0e-4", "task must be"),
    ],
)
def test_mistakes_are_named(old, new, message):
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        DatasetCard.from_yaml(TEXT.replace(old, new))


def test_bad_checksum():
    with pytest.raises(ValueError, match=r"64 hexadecimal digits"):
        DatasetCard.from_yaml(TEXT + "files: [{path: a.xyz, sha256: abc}]")


def test_not_a_mapping():
    with pytest.raises(ValueError, match=r"must hold a mapping of keys to values, got list"):
        DatasetCard.from_yaml("- a")
    with pytest.raises(ValueError, match=r"is not valid YAML"):
        DatasetCard.from_yaml("a: [")


def test_default_subset_must_exist():
    files = f"files: [{{path: a.xyz, sha256: {'a' * 64}, subset: train}}]\ndefault_subset: tran\n"
    with pytest.raises(ValueError, match=r"`default_subset` must be one of train, got `tran`"):
        DatasetCard.from_yaml(TEXT + files)


def test_unknown_card():
    with pytest.raises(ValueError, match=r"card must be a path ending in .yaml or one of .*rmd17.* got `nope`"):
        load_card("nope")


def test_property_of_refuses_other_words():
    with pytest.raises(ValueError, match=r"property must be one of"):
        property_of("colour")


@pytest.mark.parametrize("name", available_cards())
def test_shipped_cards_are_complete(name):
    card = load_card(name)
    assert card.name == name
    assert DatasetCard.from_yaml(card.to_yaml()) == card
    is_foreign = not (BUILTIN_FOLDER / f"{name}.h5").is_file()
    needed = ["description", "source", "licence", "levels", "files"] + ["units", "energy_zero"] * is_foreign
    for field in needed:
        assert getattr(card, field), f"{CARD_FOLDER / name}.yaml has no {field}"
    assert {file.fidelity for file in card.files if file.fidelity} <= set(card.levels)


def test_checksum_of_gzipped_content(tmp_path):
    import gzip

    (tmp_path / "a").write_bytes(b"water")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"water"))
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "a.gz") == hashlib.sha256(b"water").hexdigest()
