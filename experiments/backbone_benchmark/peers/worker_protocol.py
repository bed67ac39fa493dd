"""How a worker gets its job and answers. Needs only torch."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ANSWER = "answer: "
"""What a line that is meant for the benchmark starts with."""
_WARM_UP_CALLS = 3


def read_job() -> dict[str, Any]:
    """The job named on the command line; binds the process to its core and to one thread."""
    path = Path(sys.argv[1])
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    job["peer"] = path.stem.removeprefix("job_")
    if job["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job["core"]})
    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    return job


def write_account(job: dict[str, Any], account: dict[str, Any]) -> None:
    """Say what a training job did."""
    path = Path(job["folder"]) / f"{job['peer']}.json"
    path.write_text(json.dumps(account, default=str), encoding="utf-8")


def mean_time(call: Callable[[], Any], seconds: float) -> float:
    """Processor time of a call, s, averaged over as many calls as fill `seconds`."""
    n_calls, spent = 0, 0.0
    started = time.process_time()
    while n_calls == 0 or spent < seconds:
        call()
        n_calls += 1
        spent = time.process_time() - started
    return spent / n_calls


def serve(account: dict[str, Any], calls: Callable[[str, str], Callable[[], Any]]) -> None:
    """Answer requests for timings until the input ends.

    Parameters
    ----------
    calls : callable
        From a system's name and ``evaluate`` or ``train`` to what is timed.
    """
    _answer(account)
    known: dict[tuple[str, str], Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["system"], request["kind"])
        if key not in known:
            known[key] = calls(*key)
            for _ in range(_WARM_UP_CALLS):
                known[key]()
        _answer({"seconds": mean_time(known[key], request["seconds"])})


def _answer(content: dict[str, Any]) -> None:
    # on a line of its own with a mark, since packages print what they like
    print("\n" + ANSWER + json.dumps(content), flush=True)
