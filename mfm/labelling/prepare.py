"""From a plan, a list of SMILES or a file of structures to a queue of labels in a store.

Geometries are kept in the store as they are made, so that extending a plan makes only those that are new, and a run
that was killed goes on where it was. What cannot be made is recorded, with the reason, and does not stop the rest.
"""

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import ase
import ase.data
import ase.io
from ase.io.formats import UnknownFileTypeError

from mfm.labelling.geometries import canonical_smiles, molecule_name, spin_multiplicity
from mfm.labelling.levels import DensityFunctionalLevel, ForceFieldLevel, Level, make_request
from mfm.labelling.plan import Plan, PlannedMolecule, interleave, isolated_atoms, sample_planned
from mfm.labelling.processes import start_helper
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelStore
from mfm.structure import Structure

__all__ = ["GROUND_STATES", "plan_from_list", "queue_plan", "queue_structures"]

_LOG = logging.getLogger(__name__)

GROUND_STATES = {
    "H": 2, "He": 1, "Li": 2, "Be": 1, "B": 2, "C": 3, "N": 4, "O": 3, "F": 2, "Ne": 1,
    "Na": 2, "Mg": 1, "Al": 2, "Si": 3, "P": 4, "S": 3, "Cl": 2, "Ar": 1, "Br": 2, "I": 2,
}  # fmt: skip
"""Multiplicities of free atoms, by Hund's rules."""


def plan_from_list(path: Path, store: LabelStore, levels: Mapping[str, Level], counts: Mapping[str, int]) -> Plan:
    """Plan of a list of SMILES, one a line: ``SMILES [name] [multiplicity=2S+1]``.

    A line that begins with ``# `` is a comment. Lines that do not name a molecule are recorded in the store, with
    the reason.

    Raises
    ------
    ValueError
        If the file holds no molecule at all, or one molecule with two multiplicities.
    """
    found: dict[str, PlannedMolecule] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        # a triple bond is a # too: only a whole line is a comment
        words = [] if line.lstrip().startswith("# ") else line.split()
        if not words:
            continue
        try:
            smiles = canonical_smiles(words[0])
            stated = [word.partition("=")[2] for word in words[1:] if word.startswith("multiplicity=")]
            multiplicity = int(stated[0]) if stated else None
        except ValueError as error:
            store.reject(words[0], str(error))
            continue
        first = found.setdefault(smiles, PlannedMolecule(smiles, dict(counts), multiplicity=multiplicity))
        states = [state or spin_multiplicity(smiles) for state in (first.multiplicity, multiplicity)]
        if states[0] != states[1]:
            raise ValueError(
                f"{path} must name a molecule with one multiplicity, got `{smiles}` with {states[0]} and {states[1]};"
                " drop one of the lines, or label the other state into a store of its own"
            )
    if not found:
        raise ValueError(f"{path} must hold a SMILES on every line, got none that can be used: {store.rejected()}")
    return Plan(0, dict(levels), list(found.values()), {})


def queue_plan(
    store: LabelStore,
    plan: Plan,
    n_workers: int,
    with_atoms: bool = False,
    memory_gib: float = 8.0,
    hours: float = math.inf,
) -> int:
    """Make the geometries that the store lacks, and queue all labels of the plan; returns the number added.

    Parameters
    ----------
    with_atoms : bool
        Also label the isolated atoms of all elements, in their ground states.
    memory_gib : float
        Address-space limit of a process that makes geometries.
    hours : float
        Geometries of no further molecule are begun after this time; what is made by then is queued.
    """
    for name, level in plan.levels.items():
        store.add_level(name, level)
    wanted = _not_rejected(store, [molecule for molecule in plan.molecules if molecule.n_geometries], plan.seed)
    missing = [m for m in wanted if len(_known(store, m, plan.seed)) < m.n_geometries]
    if missing:
        _make(store, missing, plan.seed, n_workers, memory_gib, hours)
    samples = [_known(store, m, plan.seed)[: m.n_geometries] for m in wanted]
    kept = [(molecule, made) for molecule, made in zip(wanted, samples, strict=True) if made]
    if with_atoms:
        plan = plan._replace(atoms=_atoms(sample.structure for _, made in kept for sample in made))
    plan = plan._replace(molecules=[molecule for molecule, _ in kept])
    return store.enqueue(interleave(plan, [made for _, made in kept]))


def _not_rejected(store: LabelStore, molecules: Sequence[PlannedMolecule], seed: int) -> list[PlannedMolecule]:
    """Without what gave no geometries before in these ways; another group may make the same molecule otherwise."""
    sources = [_source(molecule, seed) for molecule in molecules]
    rejected = {source: store.rejected(source) for source in set(sources)}
    return [m for m, source in zip(molecules, sources, strict=True) if m.smiles not in rejected[source]]


def _known(store: LabelStore, molecule: PlannedMolecule, seed: int) -> list[Sample]:
    """Geometries of a molecule that were made in its way."""
    return store.samples_of(molecule.smiles, _source(molecule, seed))


def _source(molecule: PlannedMolecule, seed: int) -> str:
    """What the geometries of a molecule depend on besides its name."""
    parts = [f"seed {seed}", *molecule.origins]
    if not molecule.has_equilibrium:
        parts.append("without equilibrium")
    if molecule.multiplicity is not None:
        parts.append(f"multiplicity {molecule.multiplicity}")
    return ", ".join(parts)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started meanwhile use one thread: more would be slower, and change the last bits."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _make(
    store: LabelStore,
    molecules: Sequence[PlannedMolecule],
    seed: int,
    n_workers: int,
    memory_gib: float,
    hours: float,
) -> None:
    """Make the geometries of molecules that need them, until the time is over."""
    _LOG.info("making geometries of %d molecules", len(molecules))
    until, left = time.monotonic() + 3600 * hours, deque(molecules)
    running: dict[Future[list[Sample]], PlannedMolecule] = {}
    pool = ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=start_helper, initargs=(os.getpid(), memory_gib)
    )
    with _one_thread(), pool:
        while running or (left and time.monotonic() < until):
            # no more than can run: what waits in the pool could not be taken back when the time is over
            while left and len(running) < n_workers and time.monotonic() < until:
                molecule = left.popleft()
                running[pool.submit(sample_planned, molecule, seed)] = molecule
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                molecule = running.pop(job)
                message = _keep(store, job, molecule, seed)
                done = len(molecules) - len(left) - len(running)
                _LOG.info("%d/%d geometries of %s %s", done, len(molecules), molecule.smiles, message)
    if left:
        _LOG.warning(
            "the budget was spent before the geometries of %d of %d molecules, from `%s` on, were made; the same"
            " command makes and labels them",
            *(len(left), len(molecules), left[0].smiles),
        )


def _keep(store: LabelStore, job: "Future[list[Sample]]", molecule: PlannedMolecule, seed: int) -> str:
    """Store what was made, or why there is nothing; returns the reason."""
    source = _source(molecule, seed)
    try:
        samples = job.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"a process that makes geometries was killed, perhaps over `{molecule.smiles}` and for want of memory; run"
            " the same command again: those made so far are kept"
        ) from error
    # one molecule must never stop the rest: tight binding, optimiser and RDKit raise what they like
    except Exception as error:  # noqa: BLE001
        message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        store.reject(molecule.smiles, message, source)
        return message
    store.add_samples(samples, source)
    if lacking := molecule.n_geometries - len(_known(store, molecule, seed)):
        return f"({lacking} fewer than wanted: the store has them from another group or under another name)"
    return ""


def _atoms(structures: Iterator[Structure]) -> dict[str, int]:
    """Multiplicities of the free atoms of all elements, as far as they are known."""
    numbers = {int(z) for structure in structures for z in structure.atomic_numbers}
    symbols = [ase.data.chemical_symbols[z] for z in sorted(numbers)]
    if unknown := [symbol for symbol in symbols if symbol not in GROUND_STATES]:
        _LOG.warning(
            "isolated atoms of %s are not labelled, so that their energies have no reference: mfm does not know the"
            " multiplicities of their ground states; give them in a plan, such as `atoms: {%s: 1}`, for the same store",
            *(", ".join(unknown), unknown[0]),
        )
    return {symbol: GROUND_STATES[symbol] for symbol in symbols if symbol in GROUND_STATES}


def _frames(path: Path) -> Iterator[ase.Atoms]:
    try:
        yield from ase.io.iread(path, index=":")
    except UnknownFileTypeError as error:
        raise ValueError(
            f"structures must be in a file that ASE reads, got {path}; give .xyz, or .smi for SMILES, .yaml for a plan"
        ) from error


def queue_structures(
    store: LabelStore, path: Path, levels: Mapping[str, Level], extras: Sequence[str], with_atoms: bool = False
) -> int:
    """Queue every structure of a file that ASE reads, at every level; returns the number of labels added.

    Charge and multiplicity come from ``charge`` and ``spin`` or ``multiplicity`` of each frame, the molecule from its
    ``molecule`` or its bonds. Frames that are no molecule are recorded in the store, with the reason.
    """
    for name, level in levels.items():
        store.add_level(name, level)
    samples = []
    for k, atoms in enumerate(_frames(path)):
        try:
            structure = Structure.from_ase(atoms)
            if structure.pbc.any():
                raise ValueError(f"labels are for molecules, got {structure.formula} with pbc {structure.pbc.tolist()}")
        except ValueError as error:
            store.reject(f"{path.name} frame {k}", str(error))
            continue
        molecule = atoms.info.get("molecule") or molecule_name(structure)
        samples.append(Sample(structure, str(molecule), str(atoms.info.get("origin", "file"))))
    store.add_samples(samples, "file")
    jobs = []
    if with_atoms:
        atoms_plan = Plan(0, dict(levels), [], _atoms(sample.structure for sample in samples))
        jobs = [
            (sample, level.identifier)
            for sample in isolated_atoms(atoms_plan)
            for level in levels.values()
            if not isinstance(level, ForceFieldLevel)
        ]
    for sample in samples:
        for level in levels.values():
            jobs.append((sample, make_request(level, extras if isinstance(level, DensityFunctionalLevel) else ()).key))
    return store.enqueue(jobs)
