"""Runs on a server with PostgreSQL behind it, as a group would have it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mfm import tracking
from tests.morse import morse_store, recipe
from tests.services import free_port, postgres, serving

pytestmark = pytest.mark.slow

_POINTS = 100


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with postgres() as database:
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += [
            "--backend-store-uri",
            f"{database}/tracking",
            "--artifacts-destination",
            str(tmp_path / "artifacts"),
        ]
        # without the processes of MLflow's own jobs
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = tmp_path / "server.log"
        with serving([*command, "--workers", "1"], f"{address}/health", log, env=environment):
            monkeypatch.setenv("MFM_TRACKING_URI", address)
            yield address


def test_two_runs_at_once_arrive_whole_and_their_models_open(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    morse_store().write(Path("morse.h5"))
    processes = []
    for name in ("one", "two"):
        stages = [{"name": "low", "tasks": ["energy_low"], "max_steps": 20}, {"name": "joint", "max_steps": _POINTS}]
        content = recipe("morse.h5", "", name=name, stages=stages, tracking={"experiment": "morse"})
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**content, "log_every": 1}))
        processes.append(subprocess.Popen([sys.executable, "-m", "mfm.cli", "train", f"{name}.yaml"]))
    assert [process.wait(600) for process in processes] == [0, 0]
    assert not Path("mlruns").exists()
    store = tracking.open_store(tracking.locate())
    records = tracking.read_runs(store, ["one", "two"])
    for record in records:
        assert record.status == "FINISHED"
        assert record.metrics["test/energy_high/count"] == 4
        assert len(tracking.read_curves(store, record, ["train/loss"])["train/loss"]) == 20 + _POINTS
        assert {"config.yaml", "test_parity_low.png"} <= set(store.files(record.id))
    assert tracking.register("one", "morse", "champion", lambda path: []) == ("1", [])
    assert tracking.resolve("models:/morse@champion") == "models:/morse/1"
    assert sorted(tracking.open_model("models:/morse@champion").fidelities) == ["high", "low"]
    assert tracking.open_model("runs:/two").fidelities == ["high", "low"]
    compared = [sys.executable, "-m", "mfm.cli", "compare", "one", "two", "--html", "page.html"]
    assert "test/energy_high/mae_mev" in subprocess.run(compared, check=True, capture_output=True, text=True).stdout
    assert "data:image/png" in Path("page.html").read_text(encoding="utf-8")
