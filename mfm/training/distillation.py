"""Distillation: a teacher labels structures, and a student learns them like any other level of theory.

Beside energies and forces the teacher gives its Hessian times a random displacement of all atoms, one per structure or
several. Matching single rows of Hessians helps small students (Amin, Raja, Krishnapriyan, ICLR 2025,
arXiv:2501.09009); a product with a random vector costs as much as a row and touches every atom. The student's own
product is one more backward pass (:func:`mfm.derivatives.hessian_product`); the teacher's is too if it is a model, and
a central difference of forces if it is any other calculator.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator, CalculatorError
from ase.data import chemical_symbols
from tqdm import tqdm

import mfm
from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.data.store import Store, write_store
from mfm.evaluation.evaluate import batched
from mfm.fidelity import LevelOfTheory
from mfm.graph import AtomicGraph, build_graph
from mfm.model import MFMModel
from mfm.potential import check_fidelity
from mfm.properties import task_name
from mfm.structure import Structure
from mfm.tracking import is_stored, open_model

__all__ = [
    "Copies",
    "Probed",
    "Questions",
    "Records",
    "Teacher",
    "calculator_teacher",
    "distilled",
    "model_teacher",
    "open_teacher",
    "write_distilled",
]

_MOST_ATOMS = 512
"""Of a batch; Hessian-vector products keep the tensors of three passes."""
_STEP = 2e-3
"""Root mean square displacement of a central difference, Å. Morse bonds of range 2 Å⁻¹ bend by 2e-5 of their curvature
over it, and forces that are noisy by 1e-5 eV/Å give products that are noisy by 5e-3 eV/Å beside some 20."""
_PART = 64
"""Structures, with all that is asked of them, that are lost at most when the work is stopped."""
_FACTORY = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*)")


class Probed(NamedTuple):
    """A question to a teacher."""

    structure: Structure
    probe: np.ndarray | None
    """(n_atoms, 3), Å, to multiply the Hessian with; None if it is not asked for."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What labels structures."""

    level: LevelOfTheory
    """Record of the labels; another teacher has another."""
    references: Mapping[str, float]
    """Energies of isolated atoms by symbol, eV; empty if not known."""
    label: Callable[[Iterable[Probed]], Iterator[dict[str, np.ndarray]]]
    """``energy`` (), eV, ``forces`` (n_atoms, 3), eV/Å, and, with a probe, ``hessian_product`` (n_atoms, 3), eV/Å, of
    structures in order."""


@runtime_checkable
class Records(Protocol):
    """A store, several of them, or a list of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int, /) -> Record: ...


class Copies(NamedTuple):
    """Displaced structures beside those given: a teacher can label any."""

    number: int = 0
    """Copies of each structure."""
    displacement: float = 0.05
    """Standard deviation of every coordinate, Å."""


class Questions(NamedTuple):
    """What a teacher is asked of every structure."""

    n_probes: int = 1
    """Probes, of independent normal components. A structure with several stands there several times."""
    copies: Copies = Copies()
    """Displaced structures beside those given, labelled alike."""
    seed: int = 0
    """Of probes and displacements, which depend on it and the structure's place only."""


def open_teacher(source: str, fidelity: str | None = None, device: str = "cpu") -> Teacher:
    """Teacher by name.

    Parameters
    ----------
    source : str
        What :func:`mfm.tracking.open_model` takes, or ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``, where the function
        gives an ASE calculator.
    fidelity : str, optional
        Level of a model that has several.
    device : str
        Of a model.

    Raises
    ------
    ValueError
        If there is no such model, fidelity, module or function, or what the function gives is no calculator.
    """
    found = _FACTORY.fullmatch(source)
    if found is None or is_stored(source) or Path(source).exists():
        # float64: what a student shall learn is the teacher, not its rounding
        return model_teacher(open_model(source, device, torch.float64), fidelity)
    if fidelity is not None:
        raise ValueError(f"`fidelity` chooses a level of a model, but `{source}` is a calculator; leave it out")
    calculator = _function(found["module"], found["name"])()
    if not isinstance(calculator, BaseCalculator):
        raise ValueError(f"`{source}` must give an ASE calculator, got {type(calculator).__name__}")
    return calculator_teacher(calculator, source)


def _function(module: str, name: str) -> Callable[[], object]:
    try:
        if module.endswith(".py"):
            specification = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert specification is not None
            assert specification.loader is not None
            loaded = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(loaded)
        else:
            loaded = importlib.import_module(module)
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(f"teacher `{module}:{name}` cannot be imported: {error}") from error
    if not callable(getattr(loaded, name, None)):
        raise ValueError(f"`{module}` has no function `{name}` that gives a calculator")
    function: Callable[[], object] = getattr(loaded, name)
    return function


def model_teacher(model: MFMModel, fidelity: str | None = None) -> Teacher:
    """A model as a teacher, in the model's precision; its Hessian-vector products are exact.

    Parameters
    ----------
    fidelity : str, optional
        May be left out if the model has energies at one level only.

    Raises
    ------
    ValueError
        If the model has no energy at that level, or at several and none is named.
    """
    known = [name for name in model.fidelities if task_name("energy", name) in model.energies]
    if fidelity is None and len(known) != 1:
        raise ValueError(f"the teacher has energies at {', '.join(known) or 'no level'}, name one with `fidelity`")
    chosen = check_fidelity(known[0] if fidelity is None else fidelity, known)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    taught = model.domain.levels[chosen].label if chosen in model.domain.levels else chosen
    return Teacher(
        LevelOfTheory(f"model {digest.hexdigest()[:12]} of {taught}", program="mfm", version=mfm.__version__),
        {chemical_symbols[z]: energy for z, energy in model.domain.references[chosen].items()},
        lambda questions: _ask_model(model, chosen, questions),
    )


def _ask_model(model: MFMModel, fidelity: str, questions: Iterable[Probed]) -> Iterator[dict[str, np.ndarray]]:
    names = {kind: task_name(kind, fidelity) for kind in ("energy", "forces", "hessian_product", "probe")}
    known = set(model.domain.references[fidelity])
    device = next(model.parameters()).device
    with_product: list[bool] = []

    def graphs() -> Iterator[AtomicGraph]:
        for structure, probe in questions:
            unknown = [chemical_symbols[z] for z in sorted({*structure.atomic_numbers.tolist()} - known)]
            if unknown:
                raise ValueError(f"the teacher does not know {', '.join(unknown)} of {structure.formula}")
            with_product.append(probe is not None)
            labels = {} if probe is None else {names["probe"]: probe}
            yield build_graph(structure, model.cutoff, labels, [names["probe"]], model.dtype)

    place = 0
    for batch in batched(graphs(), _MOST_ATOMS):
        asked = with_product[place : place + batch.n_structures]
        derivatives = [names["forces"], *([names["hessian_product"]] if any(asked) else [])]
        found = model.predict(batch.to(device), [names["energy"]], derivatives)
        outputs = {name: value.cpu().double().numpy() for name, value in found.items()}
        bounds = batch.ptr.tolist()
        for row, (first, last) in enumerate(itertools.pairwise(bounds)):
            answer = {
                "energy": np.asarray(outputs[names["energy"]][row]),
                "forces": outputs[names["forces"]][first:last],
            }
            if asked[row]:
                answer["hessian_product"] = outputs[names["hessian_product"]][first:last]
            yield answer
        place += batch.n_structures


def calculator_teacher(calculator: BaseCalculator, name: str) -> Teacher:
    """Any ASE calculator as a teacher; charge and spin of a structure are in ``atoms.info``.

    Parameters
    ----------
    name : str
        Tells its labels apart from those of other teachers.
    """
    level = LevelOfTheory(f"calculator {name}", program=type(calculator).__name__)
    return Teacher(level, {}, lambda questions: _ask_calculator(calculator, questions))


def _ask_calculator(calculator: BaseCalculator, questions: Iterable[Probed]) -> Iterator[dict[str, np.ndarray]]:
    last: tuple[Structure, dict[str, np.ndarray]] | None = None
    for structure, probe in questions:
        atoms = structure.to_ase()
        atoms.calc = calculator
        try:
            if last is None or last[0] is not structure:
                last = structure, {"forces": atoms.get_forces(), "energy": np.asarray(atoms.get_potential_energy())}
            answer = dict(last[1])
            if probe is not None:
                step = _STEP / float(np.sqrt(np.mean(np.square(probe))))
                ends = []
                for sign in (1.0, -1.0):
                    atoms.positions = structure.positions + sign * step * probe
                    ends.append(atoms.get_forces())
                answer["hessian_product"] = (ends[1] - ends[0]) / (2.0 * step)
        except CalculatorError as error:
            raise ValueError(f"the teacher fails on {structure.formula}: {error}; leave the structure out") from error
        yield answer


def distilled(
    teacher: Teacher, records: Iterable[Record], name: str, questions: Questions | None = None, first: int = 0
) -> Iterator[Record]:
    """Records with the teacher's labels only; molecules and origins stay.

    Parameters
    ----------
    records : iterable of Record
        Whose structures are labelled.
    name : str
        Fidelity of the labels.
    questions : Questions, optional
        What is asked of each.
    first : int
        Place of the first record among all that the questions are about.
    """
    asked, kept = itertools.tee(_asked(records, questions or Questions(), first))
    for (record, probed), answer in zip(kept, teacher.label(question for _, question in asked), strict=True):
        labels = {task_name(kind, name): value for kind, value in answer.items()}
        if probed.probe is not None:
            labels[task_name("probe", name)] = probed.probe
        yield Record(probed.structure, labels, record.molecule, record.origin)


def _asked(records: Iterable[Record], questions: Questions, first: int) -> Iterator[tuple[Record, Probed]]:
    for place, record in enumerate(records, first):
        for copy in range(1 + questions.copies.number):
            rng = np.random.default_rng((questions.seed, place, copy))
            structure = record.structure
            if copy:
                shifts = questions.copies.displacement * rng.normal(size=structure.positions.shape)
                structure = dataclasses.replace(structure, positions=structure.positions + shifts)
            for _ in range(questions.n_probes):
                yield record, Probed(structure, rng.normal(size=structure.positions.shape))
            if not questions.n_probes:
                yield record, Probed(structure, None)


def write_distilled(
    path: Path, teacher: Teacher, records: Records, card: DatasetCard, questions: Questions | None = None
) -> None:
    """Write the teacher's labels of structures to a store, part by part: stopped anywhere, the same call goes on.

    Parts lie beside the file, in a folder with ``.parts`` added to its name, until the file is whole. What is written
    does not depend on where it was stopped.

    Parameters
    ----------
    records : Records
        Whose structures are labelled.
    card : DatasetCard
        Of the file; its one level is the fidelity of the labels.
    questions : Questions, optional
        What is asked of each structure.

    Raises
    ------
    ValueError
        If the parts that are there belong to another card or other questions, or the teacher refuses a structure.
    """
    questions = questions or Questions()
    (name,) = card.levels
    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, f"{card.to_yaml()}{questions}\n{len(records)} structures {_digest(records)}\n")
    parts = [folder / f"{first}.h5" for first in range(0, len(records), _PART)]
    each = (1 + questions.copies.number) * max(questions.n_probes, 1)
    with tqdm(total=len(records) * each, unit="structure", desc=path.stem) as bar:
        for number, part in enumerate(parts):
            first = number * _PART
            places = range(first, min(first + _PART, len(records)))
            if not part.exists():
                some = [records[place] for place in places]
                write_store(part, distilled(teacher, some, name, questions, first), card)
            bar.update(len(places) * each)
    write_store(path, itertools.chain.from_iterable(Store.open(part) for part in parts), card)
    shutil.rmtree(folder)


def _claim(folder: Path, stated: str) -> None:
    """Say in the folder what its parts are of; refuse if they are of something else."""
    plan = folder / "plan.txt"
    if any(folder.glob("*.h5")) and (not plan.exists() or plan.read_text(encoding="utf-8") != stated):
        raise ValueError(
            f"`{folder}` holds part of other labels than these (see {plan.name} in it); remove it, or name another file"
        )
    plan.write_text(stated, encoding="utf-8")


def _digest(records: Records) -> str:
    """Of all structures in order."""
    digest = hashlib.sha256()
    for place in range(len(records)):
        structure = records[place].structure
        for values in (structure.atomic_numbers, structure.positions, structure.cell, structure.pbc):
            digest.update(np.ascontiguousarray(values).tobytes())
        digest.update(f"{structure.charge} {structure.multiplicity}".encode())
    return digest.hexdigest()[:16]
