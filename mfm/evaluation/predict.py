"""Predictions for unlabelled structures, file to file."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator

from mfm.evaluation.evaluate import batched
from mfm.graph import AtomicGraph, Structure, build_graph
from mfm.longrange.response import PER_ATOM
from mfm.model import MFMModel
from mfm.properties import PROPERTIES, parse_task

__all__ = ["predict_file", "predict_structures"]


def predict_structures(
    model: MFMModel,
    structures: Iterable[Structure],
    fidelities: Sequence[str] | None = None,
    forces: bool = True,
    quantities: Sequence[str] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """Total energies, forces and electronic properties, structure by structure, computed in batches.

    Parameters
    ----------
    fidelities : sequence of str, optional
        Levels to predict; all if not given.
    forces : bool
        Whether forces are wanted too.
    quantities : sequence of str
        More of what the model knows, such as ``born_effective_charges_dft``; see :meth:`mfm.model.MFMModel.properties`.

    Yields
    ------
    dict
        ``energy_{fidelity}`` (), eV, ``forces_{fidelity}`` (n_atoms, 3), eV/Å, every other task of the fidelities, and
        the quantities. What only molecules have, such as dipoles, is left out for periodic structures, and so are
        densities, which :meth:`mfm.calculator.MFMCalculator.density` gives.

    Raises
    ------
    ValueError
        If the model does not have a fidelity, or a structure is outside of what it, or a fidelity that is named, was
        trained on. If none is named, those that have not seen a structure's elements or charge are left out of it.
    """
    wanted, left_out = list(fidelities or model.fidelities), deque[set[str]]()
    unknown = sorted(set(wanted) - set(model.fidelities))
    if unknown:
        raise ValueError(f"`fidelity` must be one of {', '.join(model.fidelities)}, got `{unknown[0]}`")
    tasks = [task for task in model.tasks if parse_task(task).fidelity in wanted and not task.startswith("density_")]
    derivatives = [f"forces_{parse_task(task).fidelity}" for task in tasks if task in model.energies] if forces else []
    device = next(model.parameters()).device

    def checked() -> Iterator[AtomicGraph]:
        for structure in structures:
            model.domain.check(structure, fidelities or ())
            left_out.append({name for name in wanted if not model.domain.knows(structure, name)})
            yield build_graph(structure, model.cutoff, dtype=model.dtype)

    for is_periodic, graphs in itertools.groupby(checked(), lambda graph: bool(graph.pbc.any())):
        chosen = [task for task in tasks if not (is_periodic and PROPERTIES[parse_task(task).property].isolated)]
        for batch in batched(graphs):
            outputs = model.predict(batch.to(device), chosen, derivatives, quantities)
            outputs = {name: value.cpu() for name, value in outputs.items()}
            bounds = batch.ptr.tolist()
            for i in range(batch.n_structures):
                without = left_out.popleft()
                yield {
                    name: (value[bounds[i] : bounds[i + 1]] if _is_atomic(name) else value[i]).numpy()
                    for name, value in outputs.items()
                    if max((one for one in wanted if name.endswith(f"_{one}")), key=len) not in without
                }


def _is_atomic(name: str) -> bool:
    """Whether an output has a row per atom."""
    kind, _, _ = name.rpartition("_")
    return kind in PER_ATOM or any(
        row.per == "atom" and name.startswith(f"{prop}_") for prop, row in PROPERTIES.items()
    )


def predict_file(
    model: MFMModel, source: Path, target: Path, fidelities: Sequence[str] | None = None, forces: bool = True
) -> int:
    """Predict every structure of a file that ASE reads; writes extended XYZ and returns the number of structures.

    Every value stands under its task, such as ``energy_{fidelity}``; if one fidelity is asked for, what ASE has a name
    for stands under that too, where ASE expects results.

    Raises
    ------
    ValueError
        If the file cannot be read, or see :func:`predict_structures`.
    """
    if not source.exists():
        raise ValueError(f"cannot read structures: `{source}` does not exist")
    try:
        frames = list(ase.io.iread(source, index=":"))
    except (ase.io.formats.UnknownFileTypeError, StopIteration, IndexError, KeyError) as error:
        raise ValueError(f"cannot read structures from `{source}`: {error or 'empty or truncated'}") from error
    if not frames:
        raise ValueError(f"cannot read structures from `{source}`: there are none in it")
    if target.suffix not in (".xyz", ".extxyz"):
        raise ValueError(f"predictions are written as extended XYZ: name a file *.xyz or *.extxyz, got `{target}`")
    results = predict_structures(model, _structures(model, frames, source, fidelities), fidelities, forces)
    for atoms, found in zip(frames, results, strict=True):
        atoms.calc = None
        _forget_labels(atoms, model.fidelities)
        single = len(fidelities or model.fidelities) == 1
        for name, value in found.items():
            if _is_atomic(name):
                atoms.arrays[name] = value
            else:
                atoms.info[name] = float(value) if value.ndim == 0 else value
        if single:
            plain = {parse_task(name).property: value for name, value in found.items()}
            known = {name: value for name, value in plain.items() if name in all_properties}
            atoms.calc = SinglePointCalculator(atoms, **{k: float(v) if v.ndim == 0 else v for k, v in known.items()})
    ase.io.write(target, frames, format="extxyz")
    return len(frames)


def _structures(
    model: MFMModel, frames: Sequence[ase.Atoms], source: Path, fidelities: Sequence[str] | None
) -> Iterator[Structure]:
    """Structures of the frames; what is refused is named with its frame."""
    for number, atoms in enumerate(frames):
        try:
            structure = Structure.from_ase(atoms)
            model.domain.check(structure, fidelities or ())
        except ValueError as error:
            raise ValueError(f"frame {number} of `{source.name}`: {error}; nothing was written") from error
        yield structure


def _forget_labels(atoms: ase.Atoms, fidelities: Sequence[str]) -> None:
    """Take away labels under names that predictions have: a level may refuse a structure, and leave no value."""
    for values in (atoms.info, atoms.arrays):
        for name in [name for name in values if any(name == f"{p}_{f}" for p in PROPERTIES for f in fidelities)]:
            del values[name]
