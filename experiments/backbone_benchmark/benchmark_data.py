"""Training and test sets of the benchmark, and the files that carry them to the workers."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mfm.data.card import DatasetCard
from mfm.data.opening import open_dataset
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.graph import Structure, neighbour_list

__all__ = ["BENCHMARKS", "Benchmark", "TestSet", "load_benchmark", "write_structures"]

FIDELITY = "reference"
"""What the level of the labels is called in the benchmark, whatever it is."""
ENERGY, FORCES = f"energy_{FIDELITY}", f"forces_{FIDELITY}"
_DRAW_SEED = 0
"""The same frames for every peer and every seed."""


@dataclasses.dataclass(frozen=True)
class _Source:
    train: str
    n_train: int
    tests: dict[str, str]
    fidelity: str


def _rmd17(molecule: str, n_train: int) -> _Source:
    # train and test of one split: those of different splits share frames
    tests = {"test": f"benchmark:rmd17/{molecule}_test_01"}
    return _Source(f"benchmark:rmd17/{molecule}_train_01", n_train, tests, "pbe")


BENCHMARKS = {
    "acac": _Source(
        "benchmark:botnet_acac/train_300K",
        450,
        {"300K": "benchmark:botnet_acac/test_MD_300K", "600K": "benchmark:botnet_acac/test_MD_600K"},
        "dft",
    ),
    "ethanol50": _rmd17("ethanol", 50),
    "ethanol950": _rmd17("ethanol", 950),
    "aspirin": _rmd17("aspirin", 950),
}
"""Published data by name; read from the folder that ``MFM_BENCHMARK_DATA`` names."""


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Labels that the benchmark keeps to itself."""

    digest: str
    energies: np.ndarray
    """(n_frames,), eV."""
    forces: np.ndarray
    """(n_atoms of all frames, 3), eV/Å."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is trained on and tested on; the frames lie in a folder for the workers."""

    n_train: int
    digest: str
    """Of the training set."""
    tests: dict[str, TestSet]


def load_benchmark(name: str, folder: Path, cutoff: float, test_frames: int | None = None) -> Benchmark:
    """Read the data of a benchmark and write them for the workers.

    Writes ``train.h5`` (an mfm store), ``train.npz`` and ``{test}.npz``; the labels of test sets are not written.

    Parameters
    ----------
    name : str
        One of :data:`BENCHMARKS`, or a file with energies and forces, of which a fifth is held out.
    folder : Path
    cutoff : float, Å
    test_frames : int, optional
        Most frames of each test set, evenly spaced; all if not given.

    Raises
    ------
    ValueError
        If the data are not there, or have no level with energies and forces.
    """
    train, tests = _named(BENCHMARKS[name]) if name in BENCHMARKS else _divided(name)
    train.write(folder / "train.h5")
    write_structures(folder / "train.npz", [record.structure for record in train], cutoff, labels=train)
    sets = {}
    for test_name, store in tests.items():
        if test_frames is not None and test_frames < len(store):
            store = store.subset(np.linspace(0, len(store) - 1, test_frames).round().astype(int))
        sets[test_name] = TestSet(store.digest, store.energies(ENERGY), store.values(FORCES))
        write_structures(folder / f"{test_name}.npz", [record.structure for record in store], cutoff)
    return Benchmark(len(train), train.digest, sets)


def _named(source: _Source) -> tuple[Store, dict[str, Store]]:
    train = open_dataset(source.train)
    order = np.random.default_rng(_DRAW_SEED).permutation(len(train))
    drawn = train.subset(np.sort(order[: source.n_train]))
    tests = {name: _plain(open_dataset(where), source.fidelity) for name, where in source.tests.items()}
    return _plain(drawn, source.fidelity), tests


def _divided(name: str) -> tuple[Store, dict[str, Store]]:
    if not Path(name).exists():
        raise ValueError(f"`--data` must be one of {', '.join(BENCHMARKS)}, or a file, got `{name}`")
    store = open_dataset(name)
    usable = [f for f in store.fidelities if {f"energy_{f}", f"forces_{f}"} <= set(store.labels)]
    if not usable:
        raise ValueError(f"`{name}` must have energies and forces, got labels {', '.join(store.labels) or 'none'}")
    labelled = store.coverage(f"energy_{usable[0]}") & store.coverage(f"forces_{usable[0]}")
    rows = np.random.default_rng(_DRAW_SEED).permutation(np.flatnonzero(labelled))
    n_test = len(rows) // 5
    if n_test == 0:
        raise ValueError(f"`{name}` must have at least 5 frames with energies and forces, got {len(rows)}")
    parts = (np.sort(rows[n_test:]), np.sort(rows[:n_test]))
    train, test = (_plain(store.subset(part), usable[0]) for part in parts)
    return train, {"test": test}


def _plain(store: Store, fidelity: str) -> Store:
    """Energies and forces of one level, without the card's isolated atoms: every peer fits its references alike."""
    card = DatasetCard(name=store.card.name, levels={FIDELITY: store.card.levels[fidelity]})

    def records() -> Iterator[Record]:
        for record in store:
            labels = {ENERGY: record.labels[f"energy_{fidelity}"], FORCES: record.labels[f"forces_{fidelity}"]}
            yield Record(record.structure, labels, record.molecule)

    return Store.from_records(records(), card)


def write_structures(path: Path, structures: Sequence[Structure], cutoff: float, labels: Store | None = None) -> None:
    """Frames for the workers, neighbours included.

    Parameters
    ----------
    labels : Store, optional
        The same structures with their labels; energies and forces are written as zero without it.
    """
    n_atoms = np.array([len(structure) for structure in structures])
    found = [neighbour_list(structure, cutoff) for structure in structures]
    np.savez(
        path,
        n_atoms=n_atoms,
        numbers=np.concatenate([structure.atomic_numbers for structure in structures]),
        positions=np.concatenate([structure.positions for structure in structures]),
        # frames that are not periodic may carry a cell, which must not reach the peers
        cell=np.stack([np.where(structure.pbc[:, None], structure.cell, 0.0) for structure in structures]),
        pbc=np.stack([structure.pbc for structure in structures]),
        n_edges=np.array([edges.shape[1] for edges, _ in found]),
        edges=np.concatenate([edges.T for edges, _ in found]),
        shifts=np.concatenate([shifts for _, shifts in found]),
        energies=np.zeros(len(structures)) if labels is None else labels.energies(ENERGY),
        forces=np.zeros((n_atoms.sum(), 3)) if labels is None else labels.values(FORCES),
    )
