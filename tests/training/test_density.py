"""Training of densities: labels of their own file, sizes, runs, parents that had none, commands."""

import dataclasses
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from mfm import MFMCalculator
from mfm.checkpoint import load_model
from mfm.cli import main
from mfm.config import validate
from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.data.dataset import GraphDataset
from mfm.data.joining import join_labels
from mfm.density.metric import overlap_matrix
from mfm.evaluation.densities import record_errors
from mfm.evaluation.evaluate import evaluate
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.graph import collate
from mfm.heads import TaskConfig
from mfm.losses import loss_terms
from mfm.training.data import prepare_data
from mfm.training.history import History
from mfm.training.recipe import DataConfig, RunConfig
from mfm.training.run import TrainResult, train
from mfm.training.scales import label_gaps, label_scales
from mfm.training.transfer import inherited_bases
from tests.densities import toy_basis
from tests.morse import morse_store, recipe

BASIS = toy_basis(1, 6, 8)
LEVELS = {"low": LevelOfTheory(method="Morse-low")}


def made_up(record: Record, size: float = 1.0) -> np.ndarray:
    """A density that follows from the distances: atoms with near neighbours have electrons of the others."""
    positions, numbers = record.structure.positions, record.structure.atomic_numbers
    vectors = positions[None] - positions[:, None]
    weights = np.exp(-np.square(vectors).sum(axis=-1)) - np.eye(len(numbers))
    rows = np.zeros((len(numbers), 128))
    electrons = 0.3 * size * (weights.sum(axis=1) - weights.mean() * len(numbers))
    rows[:, 0] = electrons / np.array([BASIS.charge_row(int(z))[0] for z in numbers])
    rows[:, 13:16] = 0.5 * size * np.einsum("ij,ija->ia", weights, vectors)
    return rows


def densities(store: Store, every: int = 2) -> Store:
    """Densities of every so many structures, in a store of their own."""
    records = [
        Record(record.structure, {"density_low": made_up(record)}, record.molecule, flags={"density_error_low": 0.7})
        for record in list(store)[::every]
    ]
    return Store.from_records(records, DatasetCard(name="dens", levels=LEVELS, density_bases={"low": BASIS}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    store = morse_store()
    store.write(folder / "morse.h5")
    densities(store).write(folder / "dens.h5")
    return folder / "morse.h5", folder / "dens.h5"


def test_labels_of_a_second_file_join_the_structures(files: tuple[Path, Path]) -> None:
    store, other = map(open_dataset, files)
    joined = join_labels(store, other)
    assert len(joined) == len(store)
    np.testing.assert_array_equal(joined.coverage("density_low"), np.arange(len(store)) % 2 == 0)
    np.testing.assert_array_equal(joined[2].labels["density_low"], made_up(store[2]))
    assert joined[2].labels.keys() > store[2].labels.keys()
    assert joined[2].flags["density_error_low"] == 0.7
    assert joined.card.density_bases == {"low": BASIS}
    # structures that only the second file has may be held out
    few = join_labels(store.subset([0, 1]), other)
    assert len(few) == 2
    assert not join_labels(store.subset([1, 3]), other).coverage("density_low").any()
    with pytest.raises(ValueError, match="label `density_low` needs the basis of its coefficients; add it to the card"):
        Store.from_records(list(other), other.card.replace(density_bases={}))


def test_the_loss_is_the_integral_of_the_squared_error(files: tuple[Path, Path]) -> None:
    store = join_labels(*map(open_dataset, files))
    scale = label_scales(store, {"density_low": TaskConfig()})["density_low"]
    dataset = GraphDataset(store, 4.0, ["density_low"], {}, torch.float64)
    batch = collate([dataset[i] for i in (0, 1, 2)])
    predicted = torch.zeros_like(batch["density_low"])
    term = loss_terms(
        {"density_low": predicted}, batch, {"density_low": TaskConfig()}, 1.0, None, {"density_low": scale}
    )
    integrals = []
    for record in (store[0], store[2]):
        coefficients = BASIS.from_rows(made_up(record), record.structure.atomic_numbers)
        integrals.append(coefficients @ overlap_matrix(record.structure, BASIS) @ coefficients / len(record.structure))
    assert term["density_low"].count == 2
    assert term["density_low"].total.item() == pytest.approx(sum(integrals) / 128 / scale**2, rel=1e-10)
    # one in units of the labels, on average
    sizes = [loss_of_nothing(dataset, int(i), scale) for i in np.flatnonzero(store.coverage("density_low"))]
    assert np.mean(sizes) == pytest.approx(1.0, rel=1e-9)


def loss_of_nothing(dataset: GraphDataset, item: int, scale: float) -> float:
    batch = collate([dataset[item]])
    outputs = {"density_low": torch.zeros_like(batch["density_low"])}
    terms = loss_terms(outputs, batch, {"density_low": TaskConfig()}, 1.0, None, {"density_low": scale})
    return terms["density_low"].total.item()


def test_the_gap_of_an_anchored_density(files: tuple[Path, Path]) -> None:
    store = join_labels(*map(open_dataset, files))
    card = store.card.replace(
        levels={**store.card.levels, "fine": LevelOfTheory("fine")}, density_bases={"low": BASIS, "fine": BASIS}
    )
    records = [
        dataclasses.replace(record, labels={**record.labels, "density_fine": made_up(record, 1.1)})
        if "density_low" in record.labels
        else record
        for record in store
    ]
    both = Store.from_records(records, card)
    tasks = {"density_low": TaskConfig(), "density_fine": TaskConfig(anchor="density_low")}
    assert label_gaps(both, tasks)["density_fine"] == pytest.approx(0.1 * label_scales(both, tasks)["density_low"])


def run_of(files: tuple[Path, Path], output: Path, **changes: object) -> RunConfig:
    content = recipe(str(files[0]), str(output), **changes)
    content["data"] = {**content["data"], "densities": str(files[1]), "split": "random_frames"}
    return validate(RunConfig, content)


def trained(files: tuple[Path, Path], folder: Path) -> TrainResult:
    tasks = {"energy_low": {}, "energy_high": {"anchor": "energy_low"}, "density_low": {}}
    stages = [{"name": "joint", "max_steps": 40}]
    optimizer = {"lr": 1e-2, "warmup_steps": 2}
    return train(run_of(files, folder, tasks=tasks, stages=stages, optimizer=optimizer, validations=1))


def test_a_density_trains_beside_energies(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = trained(files, tmp_path / "run")
    curves, _ = History(result.folder / "history.jsonl").curves()
    losses = [value for _, value in curves["train/density_low/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    assert len(curves["val/density_low/error_percent"]) == 1
    found = result.evaluations["test"].metrics["density_low"]
    assert found["electrons_e"] < 1e-6
    assert 0.0 < found["nmae_percent"] < 30.0
    assert 1.0 < found["nmae_free_atoms_percent"] < 30.0
    assert found["nmae_fit_percent"] == pytest.approx(0.7)
    assert "NMAE, %" in result.evaluations["test"].to_markdown()
    model = load_model(result.checkpoint)
    assert model.domain.density_bases == {"low": BASIS}
    record = open_dataset(files[0])[0]
    calculator = MFMCalculator(result.checkpoint, fidelity="low", device="cpu")
    values = calculator.density(record.structure.positions + 0.1, record.structure.to_ase())
    assert (values > 0).all()
    assert "density_low" not in next(predict_structures(model, [record.structure]))
    check_command(result.checkpoint, record, tmp_path)


def check_command(checkpoint: Path, record: Record, folder: Path) -> None:
    source = folder / "in.xyz"
    ase.io.write(source, record.structure.to_ase())
    command = ["density", str(checkpoint), str(source)]
    picture = folder / "deformation.png"
    assert main([*command, "--field", "deformation", "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    for field in ("density", "potential"):
        cube = folder / f"{field}.cube"
        assert main([*command, "--field", field, "--cube", str(cube), "--step", "0.9", "--margin", "1.5"]) == 0
        assert ase.io.read(cube).numbers.tolist() == record.structure.atomic_numbers.tolist()
    assert main([*command, "--cube", str(folder / "x.cube"), "--fidelity", "high"]) == 2
    assert main([*command, "--field", "spin", "--cube", str(folder / "x.cube")]) == 2
    assert main(command) == 2


@pytest.mark.slow
def test_a_child_keeps_the_density(files: tuple[Path, Path], tmp_path: Path) -> None:
    parent = trained(files, tmp_path / "run").checkpoint
    stages = [{"name": "more", "max_steps": 1}]
    child = train(run_of(files, tmp_path / "child", tasks={"density_low": {}}, stages=stages), initial=parent)
    before, after = (load_model(path) for path in (parent, child.checkpoint))
    assert after.domain.density_bases == before.domain.density_bases
    store = join_labels(*map(open_dataset, files))
    one, other = (evaluate(model, store, ["density_low"]).metrics["density_low"] for model in (before, after))
    assert other["error_percent"] == pytest.approx(one["error_percent"], rel=0.2)


def test_the_basis_of_a_child() -> None:
    """What is new joins the parent's; another basis, or an element that its weights have no place for, is refused."""
    known = {"low": toy_basis(1, 6, 8)}
    assert inherited_bases(known, {"low": toy_basis(1, 8), "high": BASIS}) == {**known, "high": BASIS}
    with pytest.raises(
        ValueError, match="`density_low` of the parent must know the elements of the new densities, H, N"
    ):
        inherited_bases(known, {"low": toy_basis(1, 7)})


def test_a_density_without_labels(files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="task `density_low` needs labels in"):
        prepare_data(DataConfig(train=str(files[0])), ["energy_low", "density_low"])


def test_errors_of_a_density_are_those_of_the_electrons_moved(files: tuple[Path, Path]) -> None:
    store = join_labels(*map(open_dataset, files))
    record = store[0]
    label = record.labels["density_low"]
    perfect = record_errors(record, label, "density_low", BASIS)
    assert (perfect["nmae_percent"], perfect["dipole_millidebye"]) == (0.0, 0.0)
    # as free atoms, and half way to them
    free, half = (record_errors(record, share * label, "density_low", BASIS) for share in (0.0, 0.5))
    assert free["nmae_percent"] == pytest.approx(free["nmae_free_atoms_percent"])
    assert half["nmae_percent"] == pytest.approx(0.5 * free["nmae_percent"])
    extra = label.copy()
    extra[0, 0] += 0.01 / BASIS.charge_row(int(record.structure.atomic_numbers[0]))[0]
    assert record_errors(record, extra, "density_low", BASIS)["electrons_e"] == pytest.approx(
        abs(BASIS.electrons(extra, record.structure.atomic_numbers).sum()), abs=1e-12
    )
