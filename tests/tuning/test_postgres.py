"""A study in a PostgreSQL database, whose workers are killed."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from mfm.config import load_config
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.services import postgres, wait_until
from tests.tuning.conftest import SPACE

ERROR = "val/energy_high/mae_mev_per_atom"
_TRIALS = 4


def _owners(address: str) -> list[int]:
    """Processes that have a trial in hand."""
    import psycopg

    with psycopg.connect(address) as database:
        query = "select to_regclass('trial_user_attributes') is not null"
        if not database.execute(query).fetchone()[0]:
            return []
        rows = database.execute(
            "select value_json::json->>'pid' from trial_user_attributes join trials using (trial_id)"
            " where key = 'mfm.owner' and state = 'RUNNING' and value_json <> 'null'"
        )
        return [int(pid) for (pid,) in rows]


@pytest.mark.slow
def test_a_study_in_a_database_survives_the_death_of_a_worker_and_of_the_search(content, tmp_path):
    content |= {"stages": [{"name": "joint", "max_steps": 40}]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    with postgres() as server:
        storage = f"{server}/tuning"
        command = [sys.executable, "-m", "mfm.cli", "tune", "run.yaml", "space.yaml", "--trials", str(_TRIALS)]
        command += ["--workers", "2", "--storage", storage]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        address = storage.replace("+psycopg", "")
        with (tmp_path / "log").open("w") as log:
            search = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
        owners = wait_until(lambda: search.poll() is not None or _owners(address), "a trial that is taken")
        assert search.poll() is None, (tmp_path / "log").read_text()
        psutil.Process(owners[0]).kill()
        wait_until(lambda: "was killed by signal 9" in (tmp_path / "log").read_text(), "the search to notice")
        time.sleep(1.0)
        children = psutil.Process(search.pid).children()
        search.kill()
        search.wait()
        assert psutil.wait_procs(children, timeout=300)[1] == []
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        assert _owners(address) == []
    with (tmp_path / "runs" / "morse-tune" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(_TRIALS))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    best = min(float(row[ERROR]) for row in rows if row["state"] == "complete")
    config = load_config(RunConfig, tmp_path / "runs" / "morse-tune" / "best.yaml", [f"output={tmp_path / 'again'}"])
    assert train(config).evaluations["valid"].flat("val")[ERROR] == pytest.approx(best, abs=1e-6)
