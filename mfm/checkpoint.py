"""Checkpoints: one file with a model's configuration, weights, domain and provenance, read without pickle.

A checkpoint is a ``torch.save`` archive of one mapping:

========== ===================================================================================================
format     integer, see :data:`FORMAT`
kind       ``"mfm model"``, which sets it apart from a training state
config     JSON of :class:`mfm.model.ModelConfig`
domain     JSON of :class:`mfm.model.Domain`: references and level of theory of each fidelity, scale, elements,
           charges and multiplicities of the training data
state_dict tensors only
provenance JSON: run configuration, versions, digests of the data, whatever the writer gave
========== ===================================================================================================
"""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mfm.config import validate
from mfm.model import Domain, MFMModel, ModelConfig, build_model

__all__ = ["FORMAT", "load_model", "read_provenance", "save_checkpoint"]

FORMAT = 1
"""Format this version writes. A change of it adds a migration from the one before and a file in tests/checkpoints."""

_KIND = "mfm model"
_KEYS = {"format", "kind", "config", "domain", "state_dict", "provenance"}


def save_checkpoint(path: str | Path, model: MFMModel, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a model to a file, in full or not at all.

    Parameters
    ----------
    path : path
        Replaced if it exists. The folder must exist.
    model : MFMModel
        On any device.
    provenance : mapping, optional
        Anything JSON can hold: run configuration, data digests, commit. Versions of mfm and torch are added.

    Raises
    ------
    ValueError
        If the folder does not exist, or the provenance holds what JSON cannot.
    """
    import mfm

    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"cannot write `{target}`: folder `{target.parent}` does not exist; create it")
    versions = {"mfm": mfm.__version__, "torch": torch.__version__}
    try:
        provenance_text = json.dumps({"versions": versions, **(provenance or {})}, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"`provenance` must hold only what JSON can: {error}") from error
    content = {
        "format": FORMAT,
        "kind": _KIND,
        "config": model.config.model_dump_json(),
        "domain": json.dumps(model.domain.to_dict(), ensure_ascii=False),
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        "provenance": provenance_text,
    }
    # a reader never sees half a file: written beside the target, then renamed over it
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_model(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> MFMModel:
    """Model of a checkpoint, in evaluation mode.

    Parameters
    ----------
    path : path
        What :func:`save_checkpoint` wrote.
    device : str or torch.device
    dtype : torch.dtype, optional
        Precision of the weights; None keeps that of the checkpoint. Reference energies are float64 in any case.

    Returns
    -------
    MFMModel

    Raises
    ------
    ValueError
        If the file is missing, truncated, no checkpoint of a model, of a newer format, or does not fit its
        configuration.
    """
    content = _read(Path(path))
    config = validate(ModelConfig, json.loads(content["config"]), source=f"configuration in `{path}`")
    weights = content["state_dict"]
    stored = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    # built in its final precision: tables of constants would keep the rounding of a float32 model made float64
    precision = dtype or (stored.pop() if len(stored) == 1 else torch.float32)
    model = build_model(config, Domain.from_dict(json.loads(content["domain"])), seed=0, dtype=precision)
    _check_weights(Path(path), model, weights)
    model.load_state_dict(weights)
    return model.to(device=device).eval()


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says about its origin: versions, and what the writer gave.

    Raises
    ------
    ValueError
        As :func:`load_model`.
    """
    provenance: dict[str, Any] = json.loads(_read(Path(path))["provenance"])
    return provenance


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.mfm"))) if path.parent.is_dir() else ""
        hint = f"; in its folder there is {near}" if near else ""
        raise ValueError(f"no checkpoint at `{path}`: it {'is a folder' if path.is_dir() else 'does not exist'}{hint}")
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise ValueError(f"`{path}` ({size} bytes) is no checkpoint, or a truncated one; copy or train it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"`{path}` cannot be read as a checkpoint without pickle ({reason})") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ValueError(f"`{path}` {_describe(content)}; give the model file that training wrote beside it")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"`{path}` has checkpoint format {content.get('format')}, this version of mfm reads {FORMAT};"
            " install the version that wrote it, or a newer one"
        )
    missing = sorted(_KEYS - content.keys())
    if missing:
        raise ValueError(f"`{path}` lacks {', '.join(missing)}; it was not written by `save_checkpoint`")
    return content


def _describe(content: Any) -> str:
    """What a file holds instead of a model, as far as can be seen."""
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}, not a model"
    if any("optimizer" in str(key) for key in content):
        return "holds the state of a training run, not a model"
    return f"holds a mapping of {', '.join(sorted(map(str, content))[:5])}, not a model"


def _check_weights(path: Path, model: MFMModel, weights: Mapping[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    problems = [f"`{name}` is missing" for name in expected if name not in weights]
    problems += [f"`{name}` is unknown" for name in weights if name not in expected]
    problems += [
        f"`{name}` has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"weights in `{path}` do not fit its configuration: {'; '.join(problems[:3])}{more}")
