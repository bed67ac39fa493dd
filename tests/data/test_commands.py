"""``mfm data``: info, convert, split, list."""

import argparse
import json

import pytest

from mfm.data import Store, open_dataset, write_store
from mfm.data.commands import register
from mfm.data.splits import by_file
from tests.strategies import CARD, random_records


def run(*arguments):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    options = parser.parse_args(["data", *map(str, arguments)])
    return options.run(options)


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / "a.h5", random_records(30), CARD)
    return tmp_path / "a.h5"


def test_info(path, capsys):
    assert run("info", path, "--json", path.parent / "info.json") == 0
    assert "structures    30 of 5 molecules" in capsys.readouterr().out
    assert json.loads((path.parent / "info.json").read_text())["structures"]["count"] == 30


def test_convert_and_merge(path, capsys):
    xyz = path.parent / "b.xyz"
    xyz.write_text("1\nProperties=species:S:1:pos:R:3 e=-0.5\nH 0 0 0\n")
    assert run("convert", xyz, "--keys", "energy=e", "--units", "energy=hartree", "-o", path.parent / "b.h5") == 0
    assert "1 structures, energy_ref, digest" in capsys.readouterr().out
    assert Store.open(path.parent / "b.h5").energies("energy_ref")[0] == pytest.approx(-13.605693)
    assert run("convert", path, path, "-o", path.parent / "c.h5") == 0
    assert len(open_dataset(path.parent / "c.h5")) == 60
    with pytest.raises(ValueError, match=r"`--keys` takes LABEL=VALUE, such as energy=E, got `energy`"):
        run("convert", xyz, "--keys", "energy", "-o", path.parent / "d.h5")


def test_split(path, capsys):
    assert run("split", path, "-o", path.parent / "s.json", "--fractions", 0.6, 0.2, 0.2) == 0
    assert "train 18, valid 6, test 6" in capsys.readouterr().out
    assert set(by_file(Store.open(path), path.parent / "s.json")) == {"train", "valid", "test"}
    assert (
        run("split", path, "-o", path.parent / "s.json", "--method", "random_frames", "--fractions", 0.9, 0.1, 0) == 0
    )
    assert set(by_file(Store.open(path), path.parent / "s.json")) == {"train", "valid"}


def test_list(capsys):
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "benchmark:h2co_multifidelity" in out
    assert "dft = B3LYP/cc-pVDZ" in out
