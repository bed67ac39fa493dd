"""Complete state of a training run: save, load, refuse what is incomplete.

A state holds plain tensors, numbers and strings, so that it loads without pickle's code execution.
"""

import contextlib
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "FORMAT",
    "TrainingState",
    "isolated_random_state",
    "load_state",
    "random_state",
    "restore_random_state",
    "save_state",
]

FORMAT = 3
"""Of the states that this version writes and reads."""


class TrainingState(TypedDict):
    """What a run needs to go on as if it had never stopped."""

    format: int
    config: str
    """Resolved run configuration, JSON."""
    data_digest: str
    """Digest of the training set; other data cannot continue the run."""
    stage: int
    """Number of the stage in progress, or of the next one."""
    clock: dict[str, float] | None
    """Position in the stage (None between stages)."""
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    """Weight average (None between stages, where the model carries it)."""
    optimizer: dict[str, Any] | None
    random: dict[str, Any]
    domain: str
    """Domain of the model, JSON: a run that started from another model cannot fit it to the data."""
    parent: str
    """Checkpoint that the weights came from; empty if none."""
    inherited: list[str]
    """Tasks that it had."""
    ranks: int
    """Processes that train together; another number would go through the data in another order."""


def random_state() -> dict[str, Any]:
    """State of every random generator of the process: torch (CPU and CUDA), numpy, python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global state is what we want)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.as_tensor(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every random generator to what :func:`random_state` gave.

    Raises
    ------
    ValueError
        If the state is of a machine with another number of CUDA devices.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise ValueError(
            f"the saved random state is for {len(state['cuda'])} CUDA devices, this machine has {devices};"
            " resume on the same kind of machine"
        )
    torch.set_rng_state(state["torch"])
    if devices:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))


@contextlib.contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Context with all generators seeded; the caller's come back at the end."""
    before = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        restore_random_state(before)


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state; a crash while writing leaves the previous one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # through a file of Python's, which says why when the disk is full
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> TrainingState:
    """Read a state and check that nothing is missing.

    Raises
    ------
    ValueError
        If there is no state, it cannot be read, is of another format, or lacks a part.
    """
    if not path.is_file():
        raise ValueError(f"cannot resume: `{path}` does not exist; start the run without `--resume`")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot resume: `{path}` is not a readable training state ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"cannot resume: `{path}` must have format {FORMAT}, got {found}")
    missing = [key for key in TrainingState.__required_keys__ if key not in content]
    in_stage = [content.get(key) is not None for key in ("clock", "average", "optimizer")]
    if any(in_stage) and not all(in_stage):
        absent = zip(("clock", "average", "optimizer"), in_stage, strict=True)
        missing += [key for key, present in absent if not present]
    if missing:
        raise ValueError(
            f"cannot resume: `{path}` lacks {', '.join(sorted(missing))}; a partial resume would be another run"
        )
    return TrainingState(**content)  # type: ignore[typeddict-item]
