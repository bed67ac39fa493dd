"""What training data say about charges: which level has seen which, and which need charges of their own."""

import dataclasses
import logging

import numpy as np
import pytest

from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.data.store import Store
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.training.data import fit_domain
from mfm.training.ions import start_from_ions
from mfm.training.transfer import inherit_domain
from tests.longrange.test_charges import CUTOFF, METHANOL, WATER, beside, make


def store_of(*rows: tuple[Structure, tuple[str, ...]]) -> Store:
    """Structures with energies, all zero, at the levels named."""
    records = [
        Record(structure, {f"energy_{level}": np.array(0.0) for level in levels}, molecule=str(number))
        for number, (structure, levels) in enumerate(rows)
    ]
    card = DatasetCard(name="ions", levels={level: LevelOfTheory(level) for level in ("low", "high")})
    return Store.from_records(records, card)


def ion(structure: Structure, charge: int = 1) -> Structure:
    return dataclasses.replace(structure, charge=charge, multiplicity=2)


@pytest.mark.parametrize(
    ("structure", "own_charges", "warns"),
    [
        (ion(beside(WATER, METHANOL, 20.0)), False, True),
        (ion(beside(WATER, METHANOL, 20.0)), True, False),
        (ion(beside(WATER, METHANOL, 3.0)), False, False),
        (beside(WATER, METHANOL, 20.0), False, False),
    ],
    ids=["apart", "own charges", "in contact", "neutral"],
)
def test_charged_structures_in_parts_need_charges_of_their_own(
    structure: Structure, own_charges: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of((WATER, ("low",)), (structure, ("low",)), (structure, ("low",)))
    with caplog.at_level(logging.WARNING, "mfm"):
        start_from_ions(make(own_charges), store)
    expected = f"{structure.formula} with charge +1 has parts more than the cutoff of 4 Å apart. Without"
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True] * warns


def test_a_domain_knows_the_charges_of_each_level() -> None:
    store = store_of((WATER, ("low", "high")), (ion(WATER), ("low",)), (ion(WATER, -1), ("low",)), (METHANOL, ("low",)))
    model = make()
    domain = fit_domain(store, model.config.tasks, CUTOFF)
    assert domain.charges == (-1, 0, 1)
    assert domain.charges_of == {"low": (-1, 0, 1), "high": (0,)}
    domain.check(ion(WATER), ["low"])
    with pytest.raises(ValueError, match=r"`high` was trained on charge in \[0\] only\. Ask for `low`, or"):
        domain.check(ion(WATER), ["high"])


def test_a_level_inherits_the_charges_it_has_seen() -> None:
    model, store = make(), store_of((ion(WATER), ("high",)), (WATER, ("high",)), (METHANOL, ("high",)))
    model.domain = dataclasses.replace(model.domain, charges=(-1, 0), charges_of={"low": (-1, 0), "high": (0,)})
    domain = inherit_domain(model, model.config.tasks, store, "auto")
    assert domain.charges == (-1, 0, 1)
    assert domain.charges_of == {"low": (-1, 0), "high": (0, 1)}
    # of a parent from before there was such a list, a level may have seen all charges
    model.domain = dataclasses.replace(model.domain, charges_of={})
    assert inherit_domain(model, model.config.tasks, store, "auto").charges_of == {"low": (-1, 0), "high": (-1, 0, 1)}
