"""Workers: processes that train and time one peer each, in its own environment.

A worker is ``peers/{peer}_worker.py``. It reads a job, a JSON file whose fields are those of :class:`Job`, and either
trains and writes predictions, or answers requests for timings, one line of JSON each.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "ENVIRONMENTS",
    "HERE",
    "PEERS",
    "Job",
    "SpeedWorker",
    "check_peer",
    "environment_python",
    "train_and_predict",
]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".envs"
"""Where the peers' environments are unless another folder is given."""
PEERS = ("mace", "nequip", "schnetpack", "torchmdnet")
"""Peers; mfm itself runs in the environment that runs the benchmark."""

_ANSWER = "answer: "  # as in peers/worker_protocol.py, which runs in other environments
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
# glibc returns large blocks to the system after every operation and faults them in again, which costs any of the
# packages up to half of its time on a CPU; `mfm.allocator` does the same in mfm's own commands
_TUNED_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is told."""

    mode: Literal["train", "speed"]
    folder: str
    """Where the frames lie and predictions go."""
    tests: list[str]
    """Names of test sets, or of systems to time: ``{name}.npz`` in the folder."""
    cpu_seconds: float = 0.0
    """Budget of training."""
    seed: int = 0
    cutoff: float = 5.0
    """Å."""
    learning_rate: float | None = None
    """In place of the peer's own."""
    overrides: list[str] = dataclasses.field(default_factory=list)
    """``key=value`` edits of mfm's recipe."""
    core: int | None = None
    """Core that the worker binds itself to."""


def environment_python(peer: str, environments: Path) -> Path:
    """Interpreter of a peer."""
    if peer == "mfm":
        return Path(sys.executable)
    return environments / peer / "bin" / "python"


def check_peer(peer: str, environments: Path) -> None:
    """Refuse a peer that is not known or not installed.

    Raises
    ------
    ValueError
        The message says how to install it.
    """
    if peer not in ("mfm", *PEERS):
        raise ValueError(f"`--peer` must be one of mfm, {', '.join(PEERS)}, all, got `{peer}`")
    if not environment_python(peer, environments).exists():
        where = "" if environments == ENVIRONMENTS else f" --envs {environments}"
        raise ValueError(
            f"peer `{peer}` has no environment in `{environments}`; make it with"
            f" `python experiments/backbone_benchmark/setup_peers.py {peer}{where}`"
        )


def _start(peer: str, environments: Path, job: Job, tuned_allocator: bool, **options: Any) -> subprocess.Popen[str]:
    path = Path(job.folder) / f"job_{peer}.json"
    path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    variables = {**os.environ, **_ONE_THREAD, **(_TUNED_ALLOCATOR if tuned_allocator else {})}
    command = [str(environment_python(peer, environments)), str(HERE / "peers" / f"{peer}_worker.py"), str(path)]
    return subprocess.Popen(command, env=variables, text=True, **options)


def train_and_predict(peer: str, environments: Path, job: Job, tuned_allocator: bool = True) -> dict[str, Any]:
    """Run a training job to its end.

    Predictions lie in ``{peer}_{test}.npz`` of the job's folder: ``energies`` (n_frames,) eV and ``forces`` (n_atoms
    of all frames, 3) eV/Å.

    Returns
    -------
    dict
        The worker's own account: steps, seconds, versions, settings.

    Raises
    ------
    RuntimeError
        If the worker fails; the message ends with what it wrote.
    """
    log = Path(job.folder) / f"log_{peer}.txt"
    with log.open("w", encoding="utf-8") as file:
        process = _start(peer, environments, job, tuned_allocator, stdout=file, stderr=subprocess.STDOUT)
        status = process.wait()
    if status:
        raise RuntimeError(f"worker of `{peer}` ended with status {status}:\n{_tail(log)}")
    account: dict[str, Any] = json.loads((Path(job.folder) / f"{peer}.json").read_text(encoding="utf-8"))
    return account


class SpeedWorker:
    """A worker that stays, so that the peers can be timed in turn.

    Parameters
    ----------
    peer : str
    environments : Path
    job : Job
        Of mode ``speed``.
    tuned_allocator : bool
    """

    def __init__(self, peer: str, environments: Path, job: Job, tuned_allocator: bool = True) -> None:
        self.peer = peer
        self._log = Path(job.folder) / f"log_{peer}.txt"
        self._file = self._log.open("w", encoding="utf-8")
        self._process = _start(
            peer, environments, job, tuned_allocator,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._file,
        )  # fmt: skip
        self.account: dict[str, Any] = self._answer()
        """Versions and settings."""

    def measure(self, system: str, kind: Literal["evaluate", "train"], seconds: float) -> float:
        """Mean processor time of one call, s, over as many calls as fill `seconds`.

        Raises
        ------
        RuntimeError
            If the worker fails.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"system": system, "kind": kind, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._file.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        status = self._process.wait()
        raise RuntimeError(f"worker of `{self.peer}` ended with status {status}:\n{_tail(self._log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]
