"""Energies and forces of unlabelled structures, file to file."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from mfm.evaluation.evaluate import batched
from mfm.graph import Structure, build_graph
from mfm.longrange.response import PER_ATOM
from mfm.model import MFMModel

__all__ = ["predict_file", "predict_structures"]


def predict_structures(
    model: MFMModel,
    structures: Iterable[Structure],
    fidelities: Sequence[str] | None = None,
    forces: bool = True,
    quantities: Sequence[str] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """Total energies, forces and quantities, structure by structure, computed in batches.

    Parameters
    ----------
    fidelities : sequence of str, optional
        Levels to predict; all if not given.
    forces : bool
        Whether forces are wanted too.
    quantities : sequence of str
        What the long-range part knows, such as ``charges_dft``; see :func:`mfm.longrange.response.quantity`.

    Yields
    ------
    dict
        ``energy_{fidelity}`` (), eV, ``forces_{fidelity}`` (n_atoms, 3), eV/Å, and the quantities.

    Raises
    ------
    ValueError
        If the model does not have a fidelity, or a structure is outside of what it was trained on.
    """
    wanted = list(fidelities or model.fidelities)
    unknown = sorted(set(wanted) - set(model.fidelities))
    if unknown:
        raise ValueError(f"`fidelity` must be one of {', '.join(model.fidelities)}, got `{unknown[0]}`")
    tasks = [f"energy_{fidelity}" for fidelity in wanted]
    derivatives = [f"forces_{fidelity}" for fidelity in wanted] if forces else []
    device = next(model.parameters()).device

    def checked() -> Iterator[Structure]:
        for structure in structures:
            model.domain.check(structure)
            yield structure

    for batch in batched(build_graph(structure, model.cutoff, dtype=model.dtype) for structure in checked()):
        outputs = model.predict(batch.to(device), tasks, derivatives, quantities)
        outputs = {name: value.cpu() for name, value in outputs.items()}
        bounds = batch.ptr.tolist()
        for i in range(batch.n_structures):
            found = {task: outputs[task][i].numpy() for task in tasks}
            for name in (*derivatives, *quantities):
                per_atom = name in derivatives or name.rpartition("_")[0] in PER_ATOM
                found[name] = (outputs[name][bounds[i] : bounds[i + 1]] if per_atom else outputs[name][i]).numpy()
            yield found


def predict_file(
    model: MFMModel, source: Path, target: Path, fidelities: Sequence[str] | None = None, forces: bool = True
) -> int:
    """Predict every structure of a file that ASE reads; writes extended XYZ and returns the number of structures.

    Energies and forces stand under ``energy_{fidelity}`` and ``forces_{fidelity}``; if one fidelity is asked for, also
    under ``energy`` and ``forces``, where ASE expects results.

    Raises
    ------
    ValueError
        If the file cannot be read, or see :func:`predict_structures`.
    """
    if not source.exists():
        raise ValueError(f"cannot read structures: `{source}` does not exist")
    try:
        frames = ase.io.read(source, index=":")
    except (ase.io.formats.UnknownFileTypeError, StopIteration, IndexError, KeyError) as error:
        raise ValueError(f"cannot read structures from `{source}`: {error or 'empty or truncated'}") from error
    results = predict_structures(model, (Structure.from_ase(atoms) for atoms in frames), fidelities, forces)
    for atoms, found in zip(frames, results, strict=True):
        atoms.calc = None
        single = len(fidelities or model.fidelities) == 1
        for name, value in found.items():
            if value.ndim == 0:
                atoms.info[name] = float(value)
            else:
                atoms.arrays[name] = value
        if single:
            plain = {name.split("_")[0]: value for name, value in found.items()}
            atoms.calc = SinglePointCalculator(atoms, **{k: float(v) if v.ndim == 0 else v for k, v in plain.items()})
    ase.io.write(target, frames, format="extxyz")
    return len(frames)
