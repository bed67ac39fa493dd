"""Labels that lie in a file of their own, joined to the structures they belong to."""

import logging

from mfm.data.geometry_index import GeometryIndex
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.density.basis import merge_bases
from mfm.fidelity import merge_levels

__all__ = ["join_labels"]

_LOGGER = logging.getLogger(__name__)


def join_labels(store: Store, other: Store) -> Store:
    """The records of a store with what another store says about the same structures.

    Structures of the other store that this one lacks are left out: they may be held out on purpose.

    Raises
    ------
    ValueError
        If one fidelity means two levels of theory, or densities of one have two bases.
    """
    index = GeometryIndex()
    for number, record in enumerate(other):
        index.add(record.structure, number)
    joined, found = [], 0
    for record in store:
        matches = index.find(record.structure)
        if matches:
            more = other[matches[0]]
            labels, flags = {**more.labels, **record.labels}, {**more.flags, **record.flags}
            record = Record(record.structure, labels, record.molecule, record.origin, flags)
            found += 1
        joined.append(record)
    level = logging.INFO if found else logging.WARNING  # a held-out part may have none; training says if it lacks them
    _LOGGER.log(level, "%d of %d structures of %s are in %s", found, len(store), store.card.name, other.card.name)
    levels = merge_levels(store.card.levels, other.card.levels, f"`{other.card.name}`")
    bases = merge_bases(store.card.density_bases, other.card.density_bases)
    return Store.from_records(joined, store.card.replace(levels=levels, density_bases=bases))
