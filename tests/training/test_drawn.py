"""Forces of several levels in one pass: each structure learns those of one level at a time."""

import numpy as np
import pytest
import torch

from mfm import derivatives
from mfm.config import validate
from mfm.data import Record, Store
from mfm.data.dataset import GraphDataset
from mfm.derivatives import CHOSEN
from mfm.graph import AtomicGraph, Structure, build_graph, collate
from mfm.heads import TaskConfig
from mfm.losses import combine, loss_terms
from mfm.model import NOISE, build_model
from mfm.training.auxiliary import DisplacedDataset, Displacement
from mfm.training.data import fit_domain
from mfm.training.drawn import DrawnLevels
from mfm.training.recipe import RunConfig
from mfm.training.run import train
from tests.morse import morse, morse_store, recipe
from tests.tiny import CUTOFF, tiny_model

pytestmark = pytest.mark.usefixtures("no_figures")

FORCES = ["forces_high", "forces_low"]
TASKS = ["energy_low", "energy_high", *FORCES]
REFERENCES = {level: {1: 0.0, 6: 0.0, 8: 0.0} for level in ("low", "high")}
EPOCHS = 400


def _store() -> Store:
    """All structures with forces of ``low``, every second one with forces of ``high`` too."""
    records = []
    store = morse_store()
    for record in store:
        labels = dict(record.labels)
        if "energy_high" in labels:
            labels["forces_high"] = morse(record.structure.atomic_numbers, record.structure.positions, "high")[1]
        records.append(Record(record.structure, labels, record.molecule, record.origin))
    return Store.from_records(records, store.card)


def _drawn(held: tuple[str, ...] = (), seed: int = 3) -> DrawnLevels:
    return DrawnLevels(GraphDataset(_store(), CUTOFF, TASKS, REFERENCES, torch.float64), FORCES, held, seed)


def _levels(dataset: DrawnLevels, item: int) -> list[str]:
    """Level whose forces a structure carries, over epochs."""
    found = []
    for epoch in range(EPOCHS):
        (graph,) = dataset.batch([item], epoch)
        having = [name for name in FORCES if torch.isfinite(graph[name]).all()]
        assert len(having) == 1
        assert FORCES[graph[CHOSEN].item()] == having[0]
        found.append(having[0].removeprefix("forces_"))
    return found


@pytest.mark.parametrize(("held", "share"), [((), 0.5), (("low",), 0.25), (("low", "high"), 0.5)])
def test_levels_are_drawn_evenly_and_those_that_are_held_a_quarter_of_the_time(held, share):
    found = np.mean([level == "low" for level in _levels(_drawn(held), 0)])
    assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / EPOCHS))


def test_a_structure_with_forces_of_one_level_keeps_them():
    assert set(_levels(_drawn(), 1)) == set(_levels(_drawn(("low",)), 1)) == {"low"}


def test_an_epoch_without_forces_changes_nothing_of_later_ones():
    dataset = GraphDataset(_store(), CUTOFF, TASKS, REFERENCES, torch.float64)
    # every atom of every other structure is displaced and has lost its forces, another structure in each epoch
    how = Displacement("self", 0.5, 1.0, 0.1)
    fresh = [DrawnLevels(DisplacedDataset(dataset, CUTOFF, how, 3), FORCES, (), 3) for _ in range(21)]
    resumed, kept = fresh[:20], fresh[20]
    n_lost = 0
    for epoch, other in enumerate(resumed):
        for graph, again in zip(kept.batch(range(8), epoch), other.batch(range(8), epoch), strict=True):
            assert graph[CHOSEN].item() == again[CHOSEN].item()
            n_lost += all(bool(torch.isnan(graph[name]).all()) for name in FORCES)
        # the second has forces of `low` alone: it keeps them unless it is displaced
        (graph,) = kept.batch([1], epoch)
        assert torch.isfinite(graph["forces_low"]).all() or torch.isfinite(graph[NOISE]).all()
    assert 40 < n_lost < 120


def test_draws_are_the_same_after_a_resume_and_leave_the_dataset_as_it_was():
    dataset = GraphDataset(_store(), CUTOFF, TASKS, REFERENCES, torch.float64)
    one, other = DrawnLevels(dataset, FORCES, (), 3), _drawn()
    other.batch(range(8), 0)
    drawn = [one.batch(range(8), epoch) for epoch in (1, 2)]
    for graphs, epoch in zip(drawn, (1, 2), strict=True):
        for graph, again in zip(graphs, other.batch(range(8), epoch), strict=True):
            assert graph[CHOSEN].item() == again[CHOSEN].item()
    assert any(a[CHOSEN].item() != b[CHOSEN].item() for a, b in zip(*drawn, strict=True))
    assert torch.isfinite(dataset[0]["forces_high"]).all()
    assert torch.isfinite(dataset[0]["forces_low"]).all()
    assert CHOSEN not in dataset[0]


def test_each_structure_has_the_derivatives_of_its_level():
    model = tiny_model()
    generator = np.random.default_rng(0)
    numbers, cell, pbc = np.array([8, 1, 6]), 4.0 * np.eye(3), np.ones(3, dtype=bool)
    structures = [Structure(numbers, generator.normal(size=(3, 3)), cell, pbc) for _ in range(3)]
    graph = collate([build_graph(structure, CUTOFF, dtype=torch.float64) for structure in structures])
    names = ["forces_dft", "stress_dft", "forces_ccsdt", "stress_ccsdt"]
    separate = model(graph, derivatives=names)
    chosen = torch.tensor([1, 0, 1])  # of ccsdt, dft
    graph[CHOSEN] = chosen
    together = model(graph, derivatives=names)
    for prop, owners in (("forces", graph.batch), ("stress", torch.arange(3))):
        is_dft = (chosen[owners] == 1).view(-1, *[1] * (separate[f"{prop}_dft"].dim() - 1))
        expected = torch.where(is_dft, separate[f"{prop}_dft"], separate[f"{prop}_ccsdt"])
        assert (separate[f"{prop}_dft"] - separate[f"{prop}_ccsdt"]).abs().max() > 1e-3
        for level in ("dft", "ccsdt"):
            torch.testing.assert_close(together[f"{prop}_{level}"], expected, rtol=0.0, atol=1e-12)


def test_the_gradient_is_that_of_separate_passes_over_what_was_drawn():
    dataset = _drawn()
    store = _store()
    tasks = {"energy_low": TaskConfig(), "energy_high": TaskConfig(anchor="energy_low")}
    config = validate(RunConfig, recipe("none.h5", "none"))
    model = build_model(config.model, fit_domain(store, tasks, 4.0), 0, torch.float64)
    graph = collate(dataset.batch(range(8), 0))
    assert 0 < graph[CHOSEN].sum() < 8

    def gradient() -> list[torch.Tensor]:
        outputs = model(graph, list(tasks), FORCES)
        loss = combine(loss_terms(outputs, graph, tasks, 1.0))
        return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]

    together = gradient()
    del graph[CHOSEN]
    separate = gradient()
    assert len(together) == len(separate) > 5
    for one, other in zip(together, separate, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_stage_takes_one_pass_for_all_levels(tmp_path, monkeypatch):
    _store().write(tmp_path / "both.h5")
    stages = [{"name": "high", "tasks": ["energy_high"], "max_steps": 12}]
    config = validate(RunConfig, recipe(str(tmp_path / "both.h5"), str(tmp_path / "run"), stages=stages))
    drawn, original = [], derivatives.forces_and_stress

    def observed(
        energies: torch.Tensor, graph: AtomicGraph, strain: torch.Tensor | None, create_graph: bool, retain_graph: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if create_graph:  # a step, not a validation
            drawn.append(graph[CHOSEN])
        return original(energies, graph, strain, create_graph, retain_graph)

    monkeypatch.setattr(derivatives, "forces_and_stress", observed)
    train(config)
    assert len(drawn) == 12
    # `low` is only held in its place, so most structures learn forces of `high`
    assert 0.0 < torch.cat(drawn).double().mean() < 0.5
