"""The scripts of data_scripts/ start, say what they do, and measure what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


def _run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_does(name):
    text = _run(name, "--help")
    assert text.startswith("usage: " + name)
    assert len(text.split("\n\n")[1]) > 40  # a description


def test_rates_of_labels_stand_beside_those_of_the_programs():
    text = _run("measure_throughput.py", "--molecules", "O", "--levels", "xtb", "--labels", "2")
    header, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines())
    assert header == ["level", "molecule", "labels/hour/core", "share of reference", "share of the program"]
    assert [row[:2] for row in rows] == [["PySCF alone", "O"], ["`xtb`", "O"]]
    assert all(float(row[2]) > 100 for row in rows)
    assert all(float(share.rstrip(" %")) > 0 for row in rows for share in row[3:])
