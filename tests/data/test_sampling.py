"""The sampler: budget, mixture, ranks, resume."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mfm.data.sampling import AtomBudgetBatchSampler, mixing_shares

SIZES = np.random.default_rng(0).integers(1, 30, 200)

sizes = st.lists(st.integers(1, 20), min_size=4, max_size=60).map(np.array)


@settings(deadline=None)
@given(sizes, st.integers(20, 60), st.integers(1, 4), st.integers(0, 3), st.none() | st.integers(1, 5))
def test_ranks_together_are_the_plan(n_atoms, budget, world_size, epoch, max_structures):
    ranks = [
        AtomBudgetBatchSampler(n_atoms, budget, max_structures=max_structures, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    plan = ranks[0].plan()
    shares = [list(sampler) for sampler in ranks]
    # equal steps on every rank; read step by step they are the plan that one process would make
    assert {len(share) for share in shares} == {len(ranks[0])}
    assert [batch for step in zip(*shares, strict=True) for batch in step] == plan
    # every structure exactly once, every batch in its budget; batches of one structure may have to come again
    drawn = sorted(i for batch in plan for i in batch)
    assert set(drawn) == set(range(len(n_atoms)))
    assert len(drawn) == len(n_atoms) or all(len(batch) == 1 for batch in plan)
    assert all(batch and n_atoms[batch].sum() <= budget for batch in plan)
    assert all(max_structures is None or len(batch) <= max_structures for batch in plan)


def test_two_ranks_equal_one():
    one = AtomBudgetBatchSampler(SIZES, 100)
    two = [AtomBudgetBatchSampler(SIZES, 100, rank=rank, world_size=2) for rank in (0, 1)]
    for epoch in range(3):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        union = [batch for pair in zip(*two, strict=True) for batch in pair]
        single = list(one)
        if len(single) % 2 == 0:
            assert union == single
        assert sorted(itertools.chain(*union)) == sorted(itertools.chain(*single)) == list(range(200))


def test_length_holds_in_every_epoch():
    sampler = AtomBudgetBatchSampler(SIZES, 64, world_size=2)
    orders = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        orders.add(str(batches))
    assert len(orders) == 40


def test_uniform_sizes_fill_the_budget():
    sampler = AtomBudgetBatchSampler(np.full(50, 9), 1000, max_structures=5)
    assert len(sampler) == 10
    assert {len(batch) for batch in sampler} == {5}


GROUPS = {"dft": np.ones(200, dtype=bool), "ccsdt": np.arange(200) % 10 == 0}


def drawn(sampler):
    counts = Counter(i for batch in sampler.plan() for i in batch)
    n_cc = sum(n for i, n in counts.items() if i % 10 == 0)
    return counts, n_cc, sum(counts.values()) - n_cc


def test_groups_without_a_mixture_are_passed_once():
    counts, n_cc, n_dft = drawn(AtomBudgetBatchSampler(SIZES, 100, groups=GROUPS))
    assert (n_cc, n_dft) == (20, 180)
    assert set(counts.values()) == {1}


def test_ratios_hold_in_every_batch():
    sampler = AtomBudgetBatchSampler(np.full(200, 3), 60, groups=GROUPS, ratios={"dft": 3, "ccsdt": 1})
    counts, n_cc, n_dft = drawn(sampler)
    assert (n_cc, n_dft) == (50, 150)
    # 50 draws of 20 structures: each comes twice before any comes a third time
    assert {counts[i] for i in range(0, 200, 10)} == {2, 3}
    for batch in sampler.plan():
        assert 3 <= sum(i % 10 == 0 for i in batch) <= 7


def test_group_that_is_all_in_a_rarer_one():
    groups = {"dft": np.ones(200, dtype=bool), "ccsdt": np.ones(200, dtype=bool)}
    sampler = AtomBudgetBatchSampler(SIZES, 100, groups=groups, ratios={"dft": 3, "ccsdt": 1})
    counts, _, _ = drawn(sampler)
    assert set(counts.values()) == {1}


def test_temperature():
    _, n_cc, n_dft = drawn(AtomBudgetBatchSampler(SIZES, 100, groups=GROUPS, temperature=2.0))
    share = 20**0.5 / (20**0.5 + 180**0.5)
    assert n_cc == round(200 * share)
    assert n_cc + n_dft == 200
    _, n_cc, n_dft = drawn(AtomBudgetBatchSampler(SIZES, 100, groups=GROUPS, temperature=float("inf")))
    assert n_cc == n_dft == 100


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10), st.integers(0, 3))
def test_resume_continues_exactly(steps, epoch):
    def sampler():
        return AtomBudgetBatchSampler(SIZES, 200, groups=GROUPS, ratios={"dft": 1, "ccsdt": 1}, seed=5)

    whole = sampler()
    whole.set_epoch(epoch)
    expected = list(whole)
    stopped = sampler()
    stopped.set_epoch(epoch)
    running = iter(stopped)
    first = [next(running) for _ in range(steps)]
    resumed = sampler()
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(epoch)
    assert first + list(resumed) == expected
    # the next epoch starts from its beginning
    resumed.set_epoch(epoch + 1)
    whole.set_epoch(epoch + 1)
    assert list(resumed) == list(whole)


def test_resume_with_a_loader_that_fetches_ahead():
    sampler = AtomBudgetBatchSampler(SIZES, 200)
    running = iter(sampler)
    for _ in range(4):
        next(running)
    assert sampler.state_dict()["position"] == 4
    assert sampler.state_dict(position=3)["position"] == 3


def test_resume_of_another_run_is_refused():
    state = AtomBudgetBatchSampler(SIZES, 100).state_dict()
    for other in (
        AtomBudgetBatchSampler(SIZES[:-1], 100),
        AtomBudgetBatchSampler(SIZES, 101),
        AtomBudgetBatchSampler(SIZES, 100, seed=1),
        AtomBudgetBatchSampler(SIZES, 100, world_size=2),
        AtomBudgetBatchSampler(SIZES, 100, groups=GROUPS),
    ):
        with pytest.raises(ValueError, match=r"must have the data, budget, mixture, seed and number of ranks"):
            other.load_state_dict(state)


def test_loader_and_lightning_see_it():
    sampler = AtomBudgetBatchSampler(SIZES, 100)
    assert sampler.sampler is sampler
    loader = DataLoader(list(range(200)), batch_sampler=sampler, collate_fn=torch.tensor)
    assert len(loader) == len(list(loader)) == len(sampler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_atoms": 10},
            r"`max_atoms` must hold the largest structure: structure \d+ has 29 atoms, the budget is 10",
        ),
        ({"max_structures": 0}, r"`max_structures` must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"`rank` must lie in 0 to 1, got 2"),
        (
            {"n_atoms": SIZES[:3], "world_size": 4, "rank": 0},
            r"at least one structure for each of 4 ranks, got 3; use fewer",
        ),
        ({"n_atoms": SIZES[:0]}, r"at least one structure for each of 1 ranks, got 0"),
        ({"groups": {"dft": GROUPS["ccsdt"]}}, r"every structure must be in a group, structure 1 and 179 more"),
        ({"groups": {"dft": np.ones(3, dtype=bool)}}, r"group `dft` must be a mask of shape \(200,\), got \(3,\)"),
        ({"groups": GROUPS, "ratios": {"dft": 1}}, r"`ratios` must give a positive weight to each of dft, ccsdt"),
        ({"groups": GROUPS, "ratios": {"dft": 1, "ccsdt": 0}}, r"`ratios` must give a positive weight"),
        ({"groups": GROUPS, "ratios": {"dft": 1, "ccsdt": 1}, "temperature": 2.0}, r"give `ratios` or `temperature`"),
        ({"groups": GROUPS, "temperature": 0.5}, r"`temperature` must be at least 1, got 0.5"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        AtomBudgetBatchSampler(**{"n_atoms": SIZES, "max_atoms": 100, **changes})


def test_mixing_shares_sum_to_one():
    shares = mixing_shares({"a": 5, "b": 17, "c": 100}, 3.0)
    assert sum(shares.values()) == pytest.approx(1.0)
