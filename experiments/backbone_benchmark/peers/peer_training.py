"""The loop that trains every peer, and the calls that are timed. Needs only numpy and torch.

Plain torch: Adam with AMSGrad, cosine to zero at the end of the budget, a weight average, clipping, batches drawn in
the same way. It is leaner than the peers' own trainers, so none of them loses time to logging or validation.
Neighbours are found and kernels are compiled before the clock starts.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peer_data import Batch, Facts, Frame, References, collate, facts_of, read_frames
from torch import Tensor, nn
from worker_protocol import read_job, serve, write_account

BATCH_SIZE = 5
CLIP = 10.0
EMA = 0.998
FORCES_WEIGHT = 100.0
ENERGY_WEIGHTS = (1.0, 1000.0)
"""Weight of the squared energy error per atom, in the first three quarters of the budget and in the last."""
_SWITCH = 0.75
_TEST_BATCH = 32
_WARM_UP = 3
"""Gradients computed before the clock starts."""


class Peer(Protocol):
    """A model of a peer in its own package's code."""

    module: nn.Module
    learning_rate: float
    packages: tuple[str, ...]
    """Whose versions are reported."""
    settings: dict[str, Any]

    def __call__(self, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
        """Energies (n_frames,) and forces (n_atoms, 3); in training they can be differentiated."""


class Trainer:
    """Optimiser, weight average and one step of a peer."""

    def __init__(self, peer: Peer, learning_rate: float) -> None:
        self._peer = peer
        self._peak = learning_rate
        self._parameters = [parameter for parameter in peer.module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate, amsgrad=True, fused=True)
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self.step_count = 0

    def gradient(self, batch: Batch, progress: float) -> None:
        """Gradient of the loss; alone, it lets a package compile what it compiles on first use."""
        energies, forces = self._peer(batch, training=True)
        weight = ENERGY_WEIGHTS[progress >= _SWITCH]
        loss = weight * ((energies - batch.energies) / batch.sizes).square().mean()
        loss = loss + FORCES_WEIGHT * (forces - batch.forces).square().mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step(self, batch: Batch, progress: float) -> None:
        """One step; `progress` is the spent fraction of the budget."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        self.gradient(batch, progress)
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self.step_count += 1
        with torch.no_grad():
            decay = min(EMA, (1 + self.step_count) / (10 + self.step_count))
            torch._foreach_lerp_(self._average, self._parameters, 1 - decay)

    @torch.no_grad()
    def keep_average(self) -> None:
        """Give the module the averaged weights."""
        torch._foreach_copy_(self._parameters, self._average)


def _endless_batches(n_frames: int, seed: int) -> Iterator[list[int]]:
    generator = np.random.default_rng(seed)
    size = min(BATCH_SIZE, n_frames)
    while True:
        order = generator.permutation(n_frames)
        for start in range(0, n_frames - size + 1, size):
            yield order[start : start + size].tolist()


def _train(build: Callable[[Facts], Peer], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    frames = read_frames(folder / "train.npz")
    facts = facts_of(frames, job["cutoff"], job["seed"])
    references = References(frames, facts.elements)
    residuals = np.array([frame.energy for frame in frames]) - references(frames)
    peer = build(facts)
    rate = job["learning_rate"] or peer.learning_rate
    trainer = Trainer(peer, rate)
    batches = _endless_batches(len(frames), job["seed"])
    for _ in range(_WARM_UP):
        trainer.gradient(collate(frames[:BATCH_SIZE], residuals[:BATCH_SIZE]), 0.0)
    wall, started = time.perf_counter(), time.process_time()
    spent = 0.0
    while spent < job["cpu_seconds"]:
        chosen = next(batches)
        trainer.step(collate([frames[i] for i in chosen], residuals[chosen]), spent / job["cpu_seconds"])
        spent = time.process_time() - started
    account = {
        **_account(peer),
        "learning_rate": rate,
        "batch_size": BATCH_SIZE,
        "steps": trainer.step_count,
        "cpu_seconds": spent,
        "wall_seconds": time.perf_counter() - wall,
    }
    trainer.keep_average()
    peer.module.eval().requires_grad_(False)
    for name in job["tests"]:
        test = read_frames(folder / f"{name}.npz")
        energies, forces = _predict(peer, test)
        np.savez(folder / f"{job['peer']}_{name}.npz", energies=energies + references(test), forces=forces)
    return account


def _predict(peer: Peer, frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for start in range(0, len(frames), _TEST_BATCH):
        part = frames[start : start + _TEST_BATCH]
        energies, forces = peer(collate(part, [0.0] * len(part)), training=False)
        found.append((energies.detach().double().numpy(), forces.detach().double().numpy()))
    return np.concatenate([e for e, _ in found]), np.concatenate([f for _, f in found])


def _account(peer: Peer) -> dict[str, Any]:
    return {
        "n_parameters": sum(parameter.numel() for parameter in peer.module.parameters()),
        "versions": {name: version(name) for name in ("torch", *peer.packages)},
        "settings": peer.settings,
    }


def _speed_calls(
    build: Callable[[Facts], Peer], job: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], Callable[[str, str], Callable[[], Any]]]:
    systems = {name: read_frames(folder / f"{name}.npz") for name in job["tests"]}
    facts = facts_of([frame for frames in systems.values() for frame in frames], job["cutoff"], job["seed"])
    fixed, trained = build(facts), build(facts)
    fixed.module.eval().requires_grad_(False)
    trainer = Trainer(trained, trained.learning_rate)

    def calls(system: str, kind: str) -> Callable[[], Any]:
        batch = collate(systems[system], [0.0] * len(systems[system]))
        if kind == "train":
            return lambda: trainer.step(batch, 0.5)
        return lambda: fixed(batch, training=False)

    return _account(fixed), calls


def run_peer(build: Callable[[Facts], Peer]) -> None:
    """Do the job named on the command line with a peer."""
    job = read_job()
    folder = Path(job["folder"])
    if job["mode"] == "speed":
        serve(*_speed_calls(build, job, folder))
    else:
        write_account(job, _train(build, job, folder))
