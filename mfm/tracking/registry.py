"""Models by name: registering them, promoting them, and opening ``models:/NAME@ALIAS`` and ``runs:/ID``."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfm.tracking.environment import code_version
from mfm.tracking.location import DEFAULT_DIRECTORY, locate
from mfm.tracking.queries import find_run
from mfm.tracking.store import RefusedError, Store, open_store

if TYPE_CHECKING:
    import torch

    from mfm.model import MFMModel

__all__ = ["Gate", "checkpoint_file", "is_stored", "open_model", "register", "resolve"]

Gate = Callable[[Path], Sequence[str]]
"""Receives a checkpoint and says what speaks against promoting it: nothing if it passes."""

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_EXPERIMENT = "registered"
"""Experiment of the runs that only carry a checkpoint file that was registered."""


def is_stored(source: str | Path) -> bool:
    """Whether `source` names a model of the store, and not a file."""
    return str(source).startswith(("models:/", "runs:/"))


def open_model(
    source: str | Path,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    directory: str | Path = DEFAULT_DIRECTORY,
) -> "MFMModel":
    """Model of a checkpoint file, of ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/RUN``.

    Parameters
    ----------
    source : str or path
        A run is named by its name or the start of its id. MLflow is imported only for what is not a file.
    device, dtype
        As in :func:`mfm.checkpoint.load_model`.
    directory : path
        Folder of runs, where ``MFM_TRACKING_URI`` names none.

    Raises
    ------
    ValueError
        If the store has no such model, or the checkpoint cannot be read.
    """
    from mfm.checkpoint import load_model

    with checkpoint_file(source, directory) as path:
        return load_model(path, device=device, dtype=dtype)


def resolve(source: str | Path, directory: str | Path = DEFAULT_DIRECTORY) -> str:
    """Name by which a model can be found later: an alias may move on, and another run may get the same name.

    Returns
    -------
    str
        ``models:/NAME/VERSION`` for an alias, ``runs:/ID`` for a run; anything else as it is.

    Raises
    ------
    ValueError
        If the store has no such model or run.
    """
    text = str(source)
    if not is_stored(text):
        return text
    store = _open(directory)
    if text.startswith("runs:/"):
        return f"runs:/{find_run(store, text.removeprefix('runs:/')).info.run_id}"
    version = _version(store, text)
    return f"models:/{version.name}/{version.version}"


@contextmanager
def checkpoint_file(source: str | Path, directory: str | Path = DEFAULT_DIRECTORY) -> Iterator[Path]:
    """Context with the local file of what :func:`open_model` takes; from a server it is there only within."""
    if not is_stored(source):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="mfm-") as folder:
        store = _open(directory)
        yield _fetch(store, str(source), Path(folder))


def _open(directory: str | Path) -> Store:
    location = locate(directory)
    if location.directory is not None and not location.directory.is_dir():
        raise ValueError(
            f"`{location.directory}` holds no runs and models; go to the folder that has them, or set"
            " `MFM_TRACKING_URI`"
        )
    return open_store(location)


def _fetch(store: Store, source: str, folder: Path) -> Path:
    if source.startswith("runs:/"):
        uri = store.model_location(_model_of(find_run(store, source.removeprefix("runs:/"))))
    else:
        uri = str(_version(store, source).source)
    fetched = store.fetch(uri, folder)
    files = [fetched] if fetched.is_file() else sorted(fetched.glob("*.mfm"))
    if len(files) != 1:
        raise ValueError(f"`{source}` must hold one checkpoint, got {len(files)} in {uri}; register it again")
    return files[0]


def _model_of(run: Any) -> str:
    outputs = [] if run.outputs is None else run.outputs.model_outputs
    if not outputs:
        raise ValueError(
            f"run `{run.info.run_name}` ({run.info.run_id[:8]}, {run.info.status}) has no model; only a recipe that is"
            " finished has one, not its stages"
        )
    return str(outputs[-1].model_id)


def _version(store: Store, source: str) -> Any:
    parts = _REGISTERED.fullmatch(source)
    if parts is None:
        raise ValueError(f"a registered model is `models:/NAME@ALIAS` or `models:/NAME/VERSION`, got `{source}`")
    try:
        return store.version(parts["name"], parts["version"] or "", parts["alias"] or "")
    except RefusedError as error:
        known = [f"{name}{f'@{alias}' * bool(alias)}" for name, aliases in store.registered().items()
                 for alias in aliases or [""]]  # fmt: skip
        raise ValueError(
            f"the store has no model `{source}`; registered are: {', '.join(known) or 'none, see `mfm register`'}"
        ) from error


def register(
    source: str | Path, name: str, alias: str, gate: Gate, directory: str | Path = DEFAULT_DIRECTORY
) -> tuple[str, Sequence[str]]:
    """Make a model the next version of a registered model, and promote it to an alias if it passes the gate.

    Parameters
    ----------
    source : str or path
        Checkpoint file, name or id of a run, or ``models:/NAME/VERSION`` of the same name, which gets no new version.
    alias : str
        Such as ``champion``; none if empty, and the gate is not asked.
    gate : Gate
        Asked about the stored checkpoint.

    Returns
    -------
    version : str
    problems : sequence of str
        Why the version did not get the alias; empty if it did or was not to.

    Raises
    ------
    ValueError
        If the model is not found, or a name is not one that MLflow takes.
    """
    for text in filter(None, (name, alias)):
        if not _NAME.fullmatch(text):
            raise ValueError(f"names of models and aliases are letters, digits, `_`, `.` and `-`, got `{text}`")
    if re.fullmatch(r"latest|v[0-9]+", alias):
        raise ValueError(
            f"`{alias}` means a version to MLflow and cannot be an alias; take another, such as `champion`"
        )
    store = open_store(locate(directory))
    if str(source).startswith("models:/"):
        found = _version(store, str(source))
        if found.name != name:
            raise ValueError(f"`{source}` is a version of `{found.name}` and can be promoted there, not as `{name}`")
        version = str(found.version)
    else:
        run, model = _logged_model(store, source)
        version = store.add_version(name, run, model, {"mfm.commit": code_version()})
    if not alias:
        return version, []
    with checkpoint_file(f"models:/{name}/{version}", directory) as path:
        problems = gate(path)
    if not problems:
        store.set_alias(name, alias, version, {"mfm.gate": "passed"})
    return version, problems


def _logged_model(store: Store, source: str | Path) -> tuple[str, str]:
    """Run and logged model of a run's name, or new ones for a file."""
    path = Path(source)
    if not path.is_file():
        run = find_run(store, str(source).removeprefix("runs:/"))
        return run.info.run_id, _model_of(run)
    from mfm.checkpoint import read_provenance

    read_provenance(path)  # refuses what is no checkpoint
    identifier = store.create_run(_EXPERIMENT, path.stem, {"mfm.commit": code_version()})
    model = store.log_model(identifier, path, path.stem, {})
    store.close(identifier, "FINISHED")
    return identifier, model
