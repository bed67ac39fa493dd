"""From a data configuration to splits, references, scale and batches."""

import dataclasses
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mfm.data.joining import join_labels
from mfm.data.opening import open_dataset
from mfm.data.references import ReferenceMethod, References, fit_references, references_beside, residual_energies
from mfm.data.sampling import AtomBudgetBatchSampler
from mfm.data.splits import Split, by_file, by_molecule, random_frames
from mfm.data.store import Store
from mfm.density.basis import DensityBasis, merge_bases
from mfm.derivatives import DERIVATIVES
from mfm.fidelity import merge_levels
from mfm.graph import AtomicGraph, collate, neighbour_list
from mfm.heads import TaskConfig
from mfm.heads.joins import evaluation_order
from mfm.model import Domain
from mfm.properties import parse_task
from mfm.training.module import TrainingBatch
from mfm.training.ranks import ALONE, Ranks
from mfm.training.recipe import BatchConfig, DataConfig, ReplayConfig
from mfm.training.schedule import Clock

__all__ = [
    "RunData",
    "StageBatches",
    "disagreement",
    "fit_domain",
    "prepare_data",
    "stage_derivatives",
    "stage_sampler",
    "wanted_bases",
]

logger = logging.getLogger(__name__)

_SAME_BONDING = 0.3
"""Difference of atomisation energies, eV per atom (rms), up to which two levels agree; DFT and CCSD(T) differ by less
than 0.1, GFN2-xTB, whose isolated atoms are not meant to be compared, differs from both by more than 1."""

_SAMPLED = 1000
"""Structures whose neighbours are counted; the average hardly moves beyond."""


@dataclasses.dataclass(frozen=True)
class RunData:
    """Data of a run, divided."""

    train: Store
    """The data to learn, and after them those that are replayed."""
    valid: Store | None
    test: Store | None
    n_replayed: int = 0
    """Records at the end of `train` that are replayed from the parent's data."""
    replay_share: float = 0.0
    """Share of the structures of an epoch that are replayed."""
    structures: Store | None = None
    """The training part with the structures that carry no label of the tasks, to denoise; as `train` if not given."""

    @property
    def digest(self) -> str:
        """Of all that is trained on."""
        if self.structures is None:
            return self.train.digest
        return f"{self.train.digest}+{self.structures.digest}"

    @property
    def new(self) -> Store:
        """Training data without those that are replayed."""
        if not self.n_replayed:
            return self.train
        return self.train.subset(np.arange(len(self.train) - self.n_replayed))

    @property
    def replayed(self) -> np.ndarray:
        """(n_train,), whether a training record is replayed."""
        return np.arange(len(self.train)) >= len(self.train) - self.n_replayed


@runtime_checkable
class Graphs(Protocol):
    """Where batches come from."""

    def batch(self, items: Sequence[int], epoch: int) -> list[AtomicGraph]:
        """Graphs of some records, as they are in an epoch."""


class StageBatches:
    """Endless batches of a stage, from the position of a clock on.

    Epochs follow each other without a pause, so that the training loop pays nothing at their ends.
    """

    def __init__(self, dataset: Graphs, sampler: AtomBudgetBatchSampler, clock: Clock) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._clock = clock

    def __iter__(self) -> Iterator[TrainingBatch]:
        epoch = self._clock.epoch
        self._sampler.set_epoch(epoch)
        self._sampler.position = self._clock.batch
        while True:
            for chosen in self._sampler:
                yield TrainingBatch(collate(self._dataset.batch(chosen, epoch)), len(self._sampler))
            epoch += 1
            self._sampler.set_epoch(epoch)


def prepare_data(config: DataConfig, tasks: Sequence[str], inherited: Collection[str] = ()) -> RunData:
    """Open the datasets of a run and divide them.

    Structures without any label at the tasks' levels are left out, after the division: models of different tasks share
    their parts.

    Parameters
    ----------
    tasks : sequence of str
        Tasks of the model.
    inherited : collection of str
        Those that a parent model knows already; they need no labels.

    Raises
    ------
    ValueError
        If a file cannot be read, a task has no label to train on, or two files give a fidelity another meaning.
    """
    train = _open(config, config.train)
    valid, test = (None if name is None else _open(config, name) for name in (config.valid, config.test))
    for name, store in (("valid", valid), ("test", test)):
        if store is not None:
            merge_levels(train.card.levels, store.card.levels, f"`data.{name}`")
    parts = _divide(train, config, wanted=[name for name, store in (("valid", valid), ("test", test)) if store is None])
    valid = train.subset(parts["valid"]) if "valid" in parts and valid is None else valid
    test = train.subset(parts["test"]) if "test" in parts and test is None else test
    train = train.subset(parts["train"])
    # also levels whose tasks were left out since: a resumed run must find the records that the run began with
    fidelities = {parse_task(task).fidelity for task in (*tasks, *inherited)}
    whole, train = train, _labelled(train, fidelities)
    structures = whole if config.n_train is None and len(whole) > len(train) else None
    valid, test = (None if store is None else _labelled(store, fidelities) for store in (valid, test))
    if config.n_train is not None:
        train = _draw(train, config.n_train, config.seed)
    for task in tasks:
        if task not in inherited and not train.coverage(task).any():
            raise ValueError(
                f"task `{task}` needs labels in `{config.train}`, which has {', '.join(train.labels) or 'none'};"
                " leave the task out, or name the level of a foreign file with `data.fidelity`"
            )
    if config.replay is None:
        return RunData(train, valid, test, structures=structures)
    if not inherited:
        raise ValueError("`data.replay` is for a model that starts from another one; give its checkpoint (`--from`)")
    replayed = _replayed(config.replay, inherited)
    levels = merge_levels(train.card.levels, replayed.card.levels, "`data.replay`")
    bases = merge_bases(train.card.density_bases, replayed.card.density_bases)
    card = train.card.replace(levels=levels, density_bases=bases)
    both = Store.from_records(itertools.chain(train, replayed), card)
    return RunData(both, valid, test, len(replayed), config.replay.share, structures)


def _replayed(config: ReplayConfig, tasks: Collection[str]) -> Store:
    """Records of the parent's data that it may see, with a label of one of its tasks, or of those that are chosen."""
    store = open_dataset(config.data)
    if config.tasks is not None:
        unknown = [task for task in config.tasks if task not in tasks]
        if unknown:
            raise ValueError(f"`data.replay.tasks` must be of the parent's {', '.join(tasks)}, got `{unknown[0]}`")
        tasks = config.tasks
        kept = {name for task in tasks for name in [task, *_derived(task)]}
        records = (
            dataclasses.replace(record, labels={name: record.labels[name] for name in record.labels if name in kept})
            for record in store.subset(np.any([store.coverage(task) for task in tasks], axis=0))
        )
        store = Store.from_records(records, store.card)
    seen = ~np.isin(store.molecules, store.card.test_molecules)
    labelled = np.any([store.coverage(task) for task in tasks], axis=0)
    if not (seen & labelled).any():
        raise ValueError(
            f"`data.replay` needs labels of {', '.join(tasks)}, which the model starts with; `{config.data}` has"
            f" {', '.join(store.labels) or 'none'}"
        )
    usable = store.subset(np.flatnonzero(seen & labelled))
    return usable if config.structures is None else _draw(usable, min(config.structures, len(usable)), 0)


def _derived(task: str) -> list[str]:
    prop, fidelity = parse_task(task)
    return [f"{name}_{fidelity}" for name in DERIVATIVES] if prop == "energy" else []


def _divide(store: Store, config: DataConfig, wanted: Sequence[str]) -> Split:
    if config.split.endswith(".json"):
        parts = by_file(store, config.split)
        if "train" not in parts:
            raise ValueError(f"split `{config.split}` must have a part `train`, got {', '.join(parts)}")
        return parts
    shares = {"valid": config.valid_fraction, "test": config.test_fraction}
    fractions = {part: shares[part] for part in wanted if shares[part] > 0}
    if not fractions:
        return {"train": np.arange(len(store))}
    fractions["train"] = 1.0 - sum(fractions.values())
    divide = by_molecule if config.split == "by_molecule" else random_frames
    return divide(store, fractions, config.seed)


def _open(config: DataConfig, source: str) -> Store:
    asked = {"format": config.format, "fidelity": config.fidelity, "keys": config.keys, "units": config.units}
    store = open_dataset(source, **{name: value for name, value in asked.items() if value})  # type: ignore[arg-type]
    return store if config.densities is None else join_labels(store, open_dataset(config.densities))


def _labelled(store: Store, fidelities: set[str]) -> Store:
    """Records with a label at one of these levels; all if there is none."""
    tasks = [task for task in store.labels if parse_task(task).fidelity in fidelities]
    carries = np.any([np.zeros(len(store), dtype=bool), *(store.coverage(task) for task in tasks)], axis=0)
    return store if carries.all() or not carries.any() else store.subset(np.flatnonzero(carries))


def _draw(store: Store, count: int, seed: int) -> Store:
    """So many records at random; those of a smaller count are among those of a larger."""
    if count > len(store):
        raise ValueError(f"`data.n_train` must be at most the {len(store)} structures left for training, got {count}")
    return store.subset(np.sort(np.random.default_rng(seed).permutation(len(store))[:count]))


def fit_domain(
    store: Store, tasks: Mapping[str, TaskConfig], cutoff: float, method: ReferenceMethod = "auto"
) -> Domain:
    """What a model has to know of its training set: references, levels, scale, neighbours, charge states.

    Parameters
    ----------
    tasks : mapping of str to TaskConfig
        Tasks of the model.
    cutoff : float, Å
    method : str
        Of the references, see :func:`mfm.data.references.fit_references`. A task that builds on another takes
        references beside it, unless there are isolated atoms for both. If there are, but the two levels disagree about
        what atoms gain by bonding, ``auto`` lets the base give way: its references are moved beside the other's, so
        that isolated atoms stay right at the level that counts and the correction still starts near zero.
    """
    energies = {name: task for name, task in tasks.items() if parse_task(name).property == "energy"}
    references = _references(store, energies, method)
    return Domain(
        references=references,
        levels={
            fidelity: store.card.levels[fidelity] for fidelity in dict.fromkeys(parse_task(t).fidelity for t in tasks)
        },
        scale=_scale(store, [parse_task(name).fidelity for name in energies], references),
        average_neighbours=_average_neighbours(store, cutoff),
        charges=tuple(sorted({charge for charge, _ in store.charge_states})),
        charges_of=charges_by_level(store, tasks),
        multiplicities=tuple(sorted({multiplicity for _, multiplicity in store.charge_states})),
        atomic_numbers=tuple(store.elements),
        density_bases=wanted_bases(store, tasks),
    )


def charges_by_level(store: Store, tasks: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Fidelity of the tasks → total charges of the structures with a label at that level; not of levels without any."""
    found = {}
    for fidelity in dict.fromkeys(parse_task(task).fidelity for task in tasks):
        labels = [label for label in store.labels if parse_task(label).fidelity == fidelity]
        labelled = np.any([np.zeros(len(store), dtype=bool), *(store.coverage(label) for label in labels)], axis=0)
        if labelled.any():
            found[fidelity] = tuple(int(charge) for charge in np.unique(store.charges[labelled]))
    return found


def wanted_bases(store: Store, tasks: Collection[str]) -> dict[str, DensityBasis]:
    """Fidelity → basis of the densities that tasks predict, as far as the data have it."""
    known = store.card.density_bases
    return {f: known[f] for prop, f in map(parse_task, tasks) if prop == "density" and f in known}


def _references(store: Store, tasks: Mapping[str, TaskConfig], method: ReferenceMethod) -> References:
    references = fit_references(store, [parse_task(task).fidelity for task in tasks], method)
    pairs = [
        (parse_task(name).fidelity, parse_task(base).fidelity)
        for name in evaluation_order(tasks)
        if (base := tasks[name].base) is not None
    ]
    known = store.card.references
    isolated = {pair for pair in pairs if method != "least_squares" and all(known.get(name) for name in pair)}
    for fidelity, base in pairs:
        if (fidelity, base) not in isolated:
            references[fidelity] = references_beside(store, fidelity, base, references[base])
    if method == "auto":
        for fidelity, base in reversed(pairs):  # from the last level down: each base follows what builds on it
            if (fidelity, base) in isolated and disagreement(store, fidelity, base, references) > _SAME_BONDING:
                references[base] = references_beside(store, base, fidelity, references[fidelity])
                logger.info("references of %s are fitted beside those of %s, which builds on it", base, fidelity)
    return references


def disagreement(store: Store, fidelity: str, base: str, references: Mapping[str, Mapping[int, float]]) -> float:
    """Root mean square difference of two levels' energies above their references, eV per atom; 0 without pairs."""
    if not (store.coverage(f"energy_{fidelity}") & store.coverage(f"energy_{base}")).any():
        return 0.0
    one, other = (residual_energies(store, f"energy_{name}", references[name]) for name in (fidelity, base))
    difference = (one - other) / store.n_atoms
    return float(np.sqrt(np.nanmean(np.square(difference))))


def _scale(store: Store, fidelities: Sequence[str], references: Mapping[str, Mapping[int, float]]) -> float:
    """Root mean square force component, eV/Å; without any force, the spread of the energies per atom; else 1."""
    if not fidelities:
        return 1.0
    forces = [f"forces_{fidelity}" for fidelity in fidelities]
    components = [store.values(task).reshape(-1) for task in forces if store.coverage(task).any()]
    if components:
        scale = float(np.sqrt(np.mean(np.square(np.concatenate(components)))))
    else:
        residuals = [
            residual_energies(store, f"energy_{name}", references[name]) / store.n_atoms for name in fidelities
        ]
        spread = np.concatenate([values[np.isfinite(values)] - np.nanmean(values) for values in residuals])
        scale = float(np.sqrt(np.mean(np.square(spread))))
    return scale if scale > 0 else 1.0


def _average_neighbours(store: Store, cutoff: float) -> float:
    chosen = np.unique(np.linspace(0, len(store) - 1, min(len(store), _SAMPLED)).astype(int))
    counts = [neighbour_list(store[int(i)].structure, cutoff)[0].shape[1] for i in chosen]
    return max(float(np.sum(counts) / store.n_atoms[chosen].sum()), 1.0)


def stage_derivatives(store: Store, tasks: Mapping[str, TaskConfig], chosen: Sequence[str]) -> list[str]:
    """Derivatives of energies that a stage learns: those with labels and a weight."""
    wanted = []
    for task in chosen:
        prop, fidelity = parse_task(task)
        if prop != "energy":
            continue
        weights = {
            f"forces_{fidelity}": tasks[task].forces_weight,
            f"stress_{fidelity}": tasks[task].stress_weight,
            f"hessian_product_{fidelity}": tasks[task].hessian_weight,
        }
        wanted += [name for name, weight in weights.items() if weight > 0 and store.coverage(name).any()]
    return wanted


def stage_sampler(
    store: Store,
    tasks: Sequence[str],
    config: BatchConfig,
    seed: int,
    replayed: tuple[np.ndarray, float] | None = None,
    ranks: Ranks = ALONE,
) -> AtomBudgetBatchSampler:
    """Batches of a stage; with `ratios` or `temperature`, fidelities in a stated mixture.

    Parameters
    ----------
    tasks : sequence of str
        Those of the stage. Ratios of other levels count in other stages; of one level there is nothing to mix.
    replayed : (mask, float), optional
        Which records are replayed, and their share of an epoch.
    ranks : Ranks, optional
        Processes that the batches are for.
    """
    groups: dict[str, np.ndarray] | None = None
    ratios, temperature = None, None
    fidelities = dict.fromkeys(parse_task(task).fidelity for task in tasks)
    if replayed is not None:
        mask, share = replayed
        groups, ratios = {"new": ~mask, "replayed": mask}, {"new": 1.0 - share, "replayed": share}
    elif len(fidelities) > 1 and (config.ratios is not None or config.temperature is not None):
        groups = {fidelity: np.zeros(len(store), dtype=bool) for fidelity in fidelities}
        for task in tasks:
            groups[parse_task(task).fidelity] |= store.coverage(task)
        ratios = None if config.ratios is None else {fidelity: config.ratios[fidelity] for fidelity in fidelities}
        temperature = config.temperature
    return AtomBudgetBatchSampler(
        store.n_atoms,
        config.atoms,
        max_structures=config.structures,
        groups=groups,
        ratios=ratios,
        temperature=temperature,
        seed=seed,
        rank=ranks.rank,
        world_size=ranks.size,
    )
