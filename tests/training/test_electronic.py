"""Training of charges and moments: scales, runs without energies, parents that had only energies."""

import dataclasses
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from mfm import MFMCalculator
from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.data.dataset import GraphDataset
from mfm.data.targets import label_target
from mfm.evaluation.metrics import report_unit
from mfm.evaluation.predict import predict_file
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure, build_graph, collate
from mfm.heads import TaskConfig
from mfm.losses import loss_terms
from mfm.training.data import fit_domain, stage_derivatives, stage_sampler
from mfm.training.history import History
from mfm.training.recipe import BatchConfig, RunConfig
from mfm.training.run import train
from mfm.training.scales import label_gaps, label_scales
from tests.morse import MOLECULES, TINY, geometry, recipe

VALENCE = {1: 0.3, 6: 0.1, 8: -0.5}


def charges_of(numbers: np.ndarray, level: str) -> np.ndarray:
    """Charges of the element, less their mean; a tenth larger at the high level."""
    raw = np.array([VALENCE[int(z)] for z in numbers])
    return (raw - raw.mean()) * (1.1 if level == "high" else 1.0)


def polar_store() -> Store:
    """Charges and the dipole they make at ``low``, and at ``high`` the dipole of every second geometry."""
    rng = np.random.default_rng(0)
    records = []
    for name, listed in MOLECULES.items():
        numbers = np.array(listed)
        for frame in range(4):
            positions = geometry(listed, rng)
            charges = charges_of(numbers, "low")
            second = np.einsum("i,ia,ib->ab", charges, positions, positions)
            labels = {
                "charges_low": charges, "dipole_low": charges @ positions, "quadrupole_low": second + np.eye(3),
                "polarizability_low": len(numbers) * 0.05 * np.eye(3),
            }  # fmt: skip
            if frame % 2 == 0:
                labels["dipole_high"] = charges_of(numbers, "high") @ positions
            records.append(Record(Structure(numbers, positions), labels, molecule=name, origin="random"))
    levels = {level: LevelOfTheory(method=f"charges-{level}") for level in ("low", "high")}
    return Store.from_records(records, DatasetCard(name="polar", levels=levels))


@pytest.fixture(scope="module")
def polar_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "polar.h5"
    polar_store().write(path)
    return path


def test_sizes_of_labels_and_gaps() -> None:
    store = without_charges(polar_store())
    tasks = {
        "charges_low": TaskConfig(), "dipole_low": TaskConfig(), "quadrupole_low": TaskConfig(),
        "polarizability_low": TaskConfig(), "dipole_high": TaskConfig(anchor="dipole_low"),
    }  # fmt: skip
    scales = label_scales(store, tasks)
    assert scales["dipole_low"] == pytest.approx(np.sqrt(np.mean(store.values("dipole_low") ** 2)))
    assert scales["polarizability_low"] == pytest.approx(0.05 / np.sqrt(3))  # per atom, of nine components
    quadrupoles = store.values("quadrupole_low")
    traces = np.trace(quadrupoles, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
    assert scales["quadrupole_low"] == pytest.approx(np.sqrt(np.mean((quadrupoles - traces) ** 2)))
    # the high dipole is a tenth larger
    assert label_gaps(store, tasks)["dipole_high"] == pytest.approx(0.1 / 1.1 * scales["dipole_high"])
    assert label_gaps(store.subset(~store.coverage("dipole_high")), tasks) == {}


def moments_times(store: Store, factor: float) -> Store:
    scaled = [
        dataclasses.replace(
            record, labels={k: v if k.startswith("charges") else factor * v for k, v in record.labels.items()}
        )
        for record in store
    ]
    return Store.from_records(scaled, store.card)


def without_charges(store: Store) -> Store:
    records = [
        dataclasses.replace(record, labels={k: v for k, v in record.labels.items() if not k.startswith("charges")})
        for record in store
    ]
    return Store.from_records(records, store.card)


def test_units_of_moments_lie_between_labels_and_independent_charges() -> None:
    """Estimated by drawing such charges; the labels of these moments cancel to a tenth of theirs."""
    store = moments_times(polar_store(), 0.1)
    tasks = {name: TaskConfig() for name in ("charges_low", "dipole_low", "quadrupole_low")}
    scales = label_scales(store, tasks)
    rng = np.random.default_rng(1)
    size = np.sqrt(np.mean(np.concatenate([record.labels["charges_low"] for record in store]) ** 2))
    dipoles, quadrupoles = [], []
    for record in store:
        numbers, positions = record.structure.atomic_numbers, record.structure.positions
        vectors = positions - numbers @ positions / numbers.sum()
        charges = rng.normal(scale=size, size=(1000, len(numbers)))
        dipoles.append(charges @ vectors)
        second = np.einsum("ki,ia,ib->kab", charges, vectors, vectors)
        quadrupoles.append(second - np.trace(second, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3))
    assert scales["charges_low"] == pytest.approx(size)
    labels = np.sqrt(np.mean(label_target("dipole_low", store.values("dipole_low")) ** 2))
    independent = np.sqrt(np.mean(np.square(dipoles)))
    assert independent > 2 * labels
    assert scales["dipole_low"] == pytest.approx(np.sqrt(labels * independent), rel=0.02)
    labels = np.sqrt(np.mean(label_target("quadrupole_low", store.values("quadrupole_low")) ** 2))
    independent = np.sqrt(np.mean(np.square(quadrupoles)))
    assert independent > 2 * labels
    assert scales["quadrupole_low"] == pytest.approx(np.sqrt(labels * independent), rel=0.02)
    # gaps are in units of themselves
    joined = {**tasks, "dipole_high": TaskConfig(anchor="dipole_low")}
    gap = np.sqrt(np.mean(store.values("dipole_high") ** 2)) / 1.1 * 0.1
    assert label_gaps(store, joined)["dipole_high"] == pytest.approx(gap)
    # labels that are larger than that count themselves
    far = moments_times(store, 100.0)
    assert label_scales(far, tasks)["dipole_low"] == pytest.approx(np.sqrt(np.mean(far.values("dipole_low") ** 2)))


def test_errors_of_heads_in_the_loss() -> None:
    names = ["charges_low", "dipole_low", "polarizability_low", "dipole_high"]
    structures = [Structure(np.array([8, 1]), np.eye(2, 3), charge=-1), Structure(np.array([1, 1]), np.eye(2, 3))]
    labels = [{"charges_low": np.zeros(2), "dipole_low": np.zeros(3), "dipole_high": np.ones(3)}, {}]
    pairs = zip(structures, labels, strict=True)
    batch = collate([build_graph(structure, 3.0, given, names, torch.float64) for structure, given in pairs])
    outputs = {
        "charges_low": torch.tensor([0.2, -0.4, 9.0, 9.0], dtype=torch.float64),
        "dipole_low": torch.tensor([[0.3, 0.0, 0.0], [9.0, 9.0, 9.0]], dtype=torch.float64),
        "polarizability_low": torch.full((2, 3, 3), 9.0, dtype=torch.float64),
        "dipole_high": torch.tensor([[1.5, 1.0, 1.0], [9.0, 9.0, 9.0]], dtype=torch.float64),
    }
    tasks = {name: TaskConfig(anchor="dipole_low" if name == "dipole_high" else None) for name in names}
    terms = loss_terms(outputs, batch, tasks, 1.0, {"dipole_high": 0.1}, {"charges_low": 0.5, "dipole_low": 2.0})
    assert {name: term.count.item() for name, term in terms.items()} == {
        "charges_low": 1.0, "dipole_low": 1.0, "polarizability_low": 0.0, "dipole_high": 1.0,
    }  # fmt: skip
    assert terms["charges_low"].total.item() == pytest.approx((0.4**2 + 0.8**2) / 2)
    assert terms["dipole_low"].total.item() == pytest.approx(0.15**2 / 3)
    # the gap should be (1, 1, 1) and is (1.2, 1, 1)
    assert terms["dipole_high"].total.item() == pytest.approx(2.0**2 / 3)
    assert terms["polarizability_low"].total.item() == 0.0


def test_quadrupoles_lose_their_trace_on_the_way_to_the_model() -> None:
    store = polar_store()
    graph = GraphDataset(store, 4.0, ["quadrupole_low"], {}, torch.float64)[3]
    label = store[3].labels["quadrupole_low"]
    np.testing.assert_allclose(graph.quadrupole_low[0], label - np.trace(label) / 3 * np.eye(3), atol=1e-14)


def test_a_periodic_structure_with_a_dipole_is_refused() -> None:
    structure = Structure(np.array([8, 1]), np.eye(2, 3), 5.0 * np.eye(3), np.array([False, False, True]), charge=-1)
    card = DatasetCard(name="wire", levels={"low": LevelOfTheory(method="any")})
    store = Store.from_records([Record(structure, {"dipole_low": np.ones(3)}, molecule="a", origin="a")], card)
    with pytest.raises(ValueError, match=r"`dipole_low` must belong to a structure without periodicity, got `pbc`"):
        GraphDataset(store, 4.0, ["dipole_low"], {})[0]


def test_a_domain_without_energies() -> None:
    store = polar_store()
    domain = fit_domain(store, {"dipole_low": TaskConfig(), "charges_low": TaskConfig()}, cutoff=4.0)
    assert (domain.references, domain.scale, domain.elements) == ({}, 1.0, [1, 6, 8])
    assert list(domain.levels) == ["low"]
    assert stage_derivatives(store, {"dipole_low": TaskConfig()}, ["dipole_low"]) == []
    sampler = stage_sampler(store, ["dipole_low", "dipole_high"], BatchConfig(ratios={"low": 1, "high": 1}), seed=0)
    assert len(sampler) > 0


def test_two_fidelities_of_dipoles_train_without_energies(polar_file: Path, tmp_path: Path) -> None:
    tasks = {"charges_low": {}, "dipole_low": {}, "dipole_high": {"anchor": "dipole_low"}}
    content = recipe(
        str(polar_file), str(tmp_path / "run"), tasks=tasks, stages=[{"name": "all", "max_steps": 40}],
        optimizer={"lr": 1e-2, "warmup_steps": 10, "ema": 0.9}, log_every=5,
    )  # fmt: skip
    result = train(validate(RunConfig, content))
    assert set(result.evaluations["test"].metrics) == set(tasks)
    curves, _ = History(result.folder / "history.jsonl").curves()
    for task in tasks:
        losses = [value for _, value in curves[f"train/{task}/loss"]]
        assert losses[-1] < 0.7 * losses[0]
        assert len(curves[f"val/{task}/mae_{report_unit(task).suffix}"]) == 2
    store = polar_store()
    assert (result.folder / "evaluation" / "test_parity_low.png").exists()
    assert load_model(result.checkpoint).elements == [1, 6, 8]
    _check_calculator_and_file(result.checkpoint, store, tmp_path)


def _check_calculator_and_file(checkpoint: Path, store: Store, folder: Path) -> None:
    atoms = store[0].structure.to_ase()
    atoms.calc = MFMCalculator(checkpoint, fidelity="low", device="cpu")
    dipole = atoms.get_dipole_moment()
    ase.io.write(folder / "in.xyz", store[0].structure.to_ase(), format="extxyz")
    model = load_model(checkpoint)
    assert predict_file(model, folder / "in.xyz", folder / "out.xyz", ["low"]) == 1
    written = ase.io.read(folder / "out.xyz")
    np.testing.assert_allclose(written.info["dipole_low"], dipole, atol=1e-6)
    np.testing.assert_allclose(written.get_dipole_moment(), dipole, atol=1e-6)
    np.testing.assert_allclose(written.arrays["charges_low"], atoms.get_charges(), atol=1e-6)


def test_a_parent_with_energies_alone_lends_its_weights(morse_file: Path, polar_file: Path, tmp_path: Path) -> None:
    stages = [{"name": "one", "max_steps": 2}]
    parent = train(validate(RunConfig, recipe(str(morse_file), str(tmp_path / "parent"), stages=stages)))
    tasks = {"charges_low": {}, "dipole_low": {}}
    content = recipe(str(polar_file), str(tmp_path / "child"), tasks=tasks, stages=stages)
    with pytest.raises(ValueError, match="level"):  # the two files give the fidelity another meaning
        train(validate(RunConfig, content), initial=parent.checkpoint)
    card = polar_store().card.model_copy(update={"levels": open_dataset(morse_file).card.levels})
    polar_store().with_card(card).write(tmp_path / "same.h5")
    content = recipe(str(tmp_path / "same.h5"), str(tmp_path / "child"), tasks=tasks, stages=[
        {"name": "one", "max_steps": 1, "lr": 1e-12},
    ])  # fmt: skip
    child = load_model(train(validate(RunConfig, content), initial=parent.checkpoint).checkpoint)
    theirs = load_model(parent.checkpoint).backbone.embedding.weight
    torch.testing.assert_close(child.backbone.embedding.weight, theirs, rtol=0, atol=1e-6)
    assert TINY["equivariant_degree"] == child.config.backbone.equivariant_degree


def test_a_parent_without_energies_lends_its_dipoles(polar_file: Path, tmp_path: Path) -> None:
    """The new data know nothing of the parent's level; only energies have a scale to fit."""
    stages = [{"name": "one", "max_steps": 1}]
    parent = recipe(str(polar_file), str(tmp_path / "parent"), tasks={"dipole_low": {}}, stages=stages)
    checkpoint = train(validate(RunConfig, parent)).checkpoint
    records = [
        Record(r.structure, {"dipole_mine": r.labels["dipole_low"], "energy_mine": np.array(-float(len(r.structure)))})
        for r in polar_store()
    ]
    card = DatasetCard(name="mine", levels={"mine": LevelOfTheory(method="mine")})
    Store.from_records(records, card).write(tmp_path / "mine.h5")
    anchored = {"dipole_low": {}, "dipole_mine": {"anchor": "dipole_low"}}
    for name, tasks in (("dipole", anchored), ("energy", {"energy_mine": {}})):
        content = recipe(
            str(tmp_path / "mine.h5"), str(tmp_path / name), tasks=tasks, stages=stages,
            data={"train": str(tmp_path / "mine.h5"), "valid_fraction": 0, "test_fraction": 0},
        )  # fmt: skip
        model = load_model(train(validate(RunConfig, content), initial=checkpoint).checkpoint)
        assert model.tasks == list({"dipole_low": {}, **tasks})
