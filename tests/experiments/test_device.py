"""The device benchmark times what it says on the CPU, and refuses a device that is not there."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "backbone_benchmark" / "device.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert stop.value.code == 0


def test_times_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--json", str(tmp_path / "out.json"), "--devices", "cpu", "--largest", "0", "--slowest", "0.001")
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["system"] for row in found["cpu"]["evaluate"]] == ["ethanol"]
    assert [row["structures"] for row in found["cpu"]["train"]] == [16]
    for kind in ("evaluate", "evaluate_long_range", "train", "dynamics"):
        assert found["cpu"][kind][0]["seconds"] > 0
    assert "cpu ethanol" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
def test_an_absent_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run(monkeypatch, "--json", str(tmp_path / "out.json"))
    assert "`--devices cuda` needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
