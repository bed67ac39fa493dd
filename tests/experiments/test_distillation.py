"""The experiment on distillation runs: teacher and students train, are compared, and enter the table."""

import json
import subprocess
import sys
from pathlib import Path

from tests.morse import morse_store

SCRIPT = Path(__file__).parents[2] / "experiments" / "distillation" / "run.py"


def test_teacher_and_students_are_trained_and_tabled(tmp_path: Path) -> None:
    morse_store().write(tmp_path / "morse.h5")
    data = ["--train", str(tmp_path / "morse.h5"), "--test", str(tmp_path / "morse.h5"), "--fidelity", "low"]
    folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    command = [sys.executable, str(SCRIPT), "--fast", "--copies", "1", *data, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert set(found) == {"teacher", "cost", "labels-0", "plain-0", "hessian-0.1-0"}
    assert found["labels-0"]["metrics"] == {}
    for name in ("plain-0", "hessian-0.1-0"):
        assert found[name]["metrics"]["hessian_product_teacher"]["count"] > 0
    # the Hessian changes what is learned, and the students learn from the same frames
    assert found["plain-0"]["train_digest"] == found["hessian-0.1-0"]["train_digest"]
    assert found["plain-0"]["against_labels"] != found["hessian-0.1-0"]["against_labels"]
    assert found["cost"]["structures_64"]["ratio"] > 0
    rows = [line.split(" | ")[0] for line in result.stdout.splitlines()]
    assert rows[2:6] == ["| teacher", "| hessian-0.1", "| labels", "| plain"]
