"""From an exported file back into a labelling store, so that a dataset grows from machine to machine.

Labels are known by the hash of their structure and the identifier of their level. Nothing that a file holds is
computed again, and nothing enters a store whose level differs in any setting.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ase.data
import numpy as np

from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.fidelity import LevelOfTheory
from mfm.labelling.levels import LEVELS, Level
from mfm.labelling.prepare import GROUND_STATES
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelRow, LabelStore
from mfm.properties import parse_task
from mfm.structure import Structure

__all__ = ["ImportSummary", "import_labels"]


class ImportSummary(NamedTuple):
    """What an import did."""

    added: dict[str, int]
    """Fidelity → labels that the store did not have."""
    known: dict[str, int]
    """Fidelity → labels that it had already."""


def import_labels(store: LabelStore, source: Store) -> ImportSummary:
    """Take over all labels of an exported file, with the isolated atoms of its card and its provenance.

    Parameters
    ----------
    store : LabelStore
        May be new; levels that it has under a name must be those of the file.
    source : Store
        What ``mfm label export`` wrote.

    Raises
    ------
    ValueError
        If a level of the file is not known, with all its settings, under its name, or the multiplicity of an isolated
        atom is not known.
    """
    levels = {fidelity: _level(store, fidelity, source) for fidelity in source.fidelities}
    for fidelity, level in levels.items():
        store.add_level(fidelity, level)
    provenance = source.card.provenance | {"imported_from": source.card.name, "imported_digest": source.digest}
    rows = [*_atoms(store, source.card, levels), *_molecules(source, levels)]
    added, known = {}, {}
    for fidelity, level in levels.items():
        of_level = [(sample, row) for sample, row in rows if row.level == level.identifier]
        added[fidelity] = store.take_over(of_level, provenance)
        known[fidelity] = len(of_level) - added[fidelity]
    return ImportSummary(added, known)


def _level(store: LabelStore, fidelity: str, source: Store) -> Level:
    """Level that the store, or mfm, knows under this name, if it is the file's."""
    named = {name: store.levels()[identifier] for identifier, name in store.fidelities().items()}
    level = named.get(fidelity) or LEVELS.get(fidelity)
    theory = source.card.levels[fidelity]
    if level is None:
        raise ValueError(
            f"fidelity `{fidelity}` of `{source.card.name}` must be a level that {store.path} or mfm knows"
            f" ({', '.join({**LEVELS, **named})}), got {_described(theory)}; queue the plan that describes it first,"
            f" with mfm label PLAN.yaml --dry-run --out {store.path}"
        )
    if not theory.settings.endswith(level.identifier):
        raise ValueError(
            f"fidelity `{fidelity}` of `{source.card.name}` must be {level.identifier}, got {_described(theory)};"
            " labels of two levels must not be mixed: import into a store that has the file's level under this name"
        )
    return level


def _described(theory: LevelOfTheory) -> str:
    return f"{theory.label} ({theory.settings or 'no settings'})"


def _atoms(store: LabelStore, card: DatasetCard, levels: Mapping[str, Level]) -> Iterator[tuple[Sample, LabelRow]]:
    for fidelity, level in levels.items():
        for symbol, energy in card.references.get(fidelity, {}).items():
            numbers = np.array([ase.data.atomic_numbers[symbol]])
            structure = Structure(numbers, np.zeros((1, 3)), multiplicity=_multiplicity(store, card.name, symbol))
            values = {"energy": np.asarray(energy)}
            row = LabelRow(structure.content_hash(), level.identifier, "ok", values, {}, "", 0.0)
            yield Sample(structure, f"[{symbol}]", "isolated atom"), row


def _multiplicity(store: LabelStore, name: str, symbol: str) -> int:
    """Of a free atom, which a card does not state: what a plan asked for in this store, or the ground state."""
    atoms = [sample.structure for sample in store.samples_of(f"[{symbol}]", "")]
    queued = {atom.multiplicity for atom in atoms if len(atom) == 1 and atom.charge == 0}
    if len(queued) == 1 and (only := queued.pop()) is not None:
        return only
    if symbol not in GROUND_STATES:
        raise ValueError(
            f"isolated atoms of `{name}` must have a known multiplicity, got {symbol}, which is not among"
            f" {', '.join(GROUND_STATES)}; first queue a plan that gives it, `atoms: {{{symbol}: ...}}`, with mfm"
            f" label PLAN.yaml --dry-run --out {store.path}"
        )
    return GROUND_STATES[symbol]


def _molecules(source: Store, levels: Mapping[str, Level]) -> Iterator[tuple[Sample, LabelRow]]:
    for record in source:
        sample = Sample(record.structure, record.molecule, record.origin)
        key = record.structure.content_hash()
        flags = _flags(record, levels)
        for fidelity, level in levels.items():
            values = {
                parse_task(task).property: value
                for task, value in record.labels.items()
                if parse_task(task).fidelity == fidelity
            }
            if values:
                seconds = flags[fidelity].pop("seconds", 0.0)
                yield sample, LabelRow(key, level.identifier, "ok", values, flags[fidelity], "", seconds)


def _flags(record: Record, levels: Mapping[str, Level]) -> dict[str, dict[str, float]]:
    """Fidelity → flag → value, from names such as ``gap_dft_lite``."""
    flags: dict[str, dict[str, float]] = {fidelity: {} for fidelity in levels}
    for name, value in record.flags.items():
        # `gap_dft_lite` also ends in the name of a fidelity `lite`
        fidelity = max((f for f in levels if name.endswith(f"_{f}")), key=len, default="")
        if fidelity:
            flags[fidelity][name.removesuffix(f"_{fidelity}")] = value
    return flags
