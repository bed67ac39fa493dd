"""Training on a CUDA device: the same model as on the CPU, resumed where it stopped, usable without the device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.data import Record, Store, open_dataset
from mfm.evaluation.evaluate import evaluate
from mfm.training.recipe import RunConfig
from mfm.training.run import TrainResult, train
from tests.morse import morse, morse_store, recipe

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("no_figures"),
]

LONG_RANGE = {"backbone": recipe("", "")["model"]["backbone"], "readout_channels": 8, "long_range": {"n_channels": 1}}


def run(file: Path, output: Path, device: str, **changes: object) -> RunConfig:
    return validate(RunConfig, recipe(str(file), str(output), device=device, **changes))


@pytest.fixture(scope="module")
def trained(morse_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    folder = tmp_path_factory.mktemp("devices")
    return {device: train(run(morse_file, folder / device, device)) for device in ("cpu", "cuda")}


def test_a_run_is_that_of_the_cpu(trained: dict[str, TrainResult]) -> None:
    """Sums in another order move float32 weights a little over thirty steps."""
    here, there = (load_model(trained[device].checkpoint).state_dict() for device in ("cpu", "cuda"))
    assert all(value.device.type == "cpu" for value in there.values())
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=0, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")
    one, other = (trained[device].evaluations["test"].metrics for device in ("cpu", "cuda"))
    assert one.keys() == other.keys()
    for task, metrics in one.items():
        assert other[task] == pytest.approx(metrics, rel=1e-2)


def test_a_stopped_run_goes_on(trained: dict[str, TrainResult], morse_file: Path, tmp_path: Path) -> None:
    config = run(morse_file, tmp_path / "run", "cuda")
    assert not train(config, stop_after=("joint", 4)).finished
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert len(state["random"]["cuda"]) == torch.cuda.device_count()
    result = train(config, resume=True)
    assert result.finished
    whole, resumed = (load_model(path).state_dict() for path in (trained["cuda"].checkpoint, result.checkpoint))
    for name, value in whole.items():
        # the device may add in another order each time
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=2e-3)


def test_forces_of_levels_in_turn(tmp_path: Path) -> None:
    """Two levels with forces, of which each structure learns one at a time."""
    store, records = morse_store(), []
    for record in store:
        structure, labels = record.structure, dict(record.labels)
        if "energy_high" in labels:
            labels["forces_high"] = morse(structure.atomic_numbers, structure.positions, "high")[1]
        records.append(Record(structure, labels, record.molecule, record.origin))
    file = tmp_path / "both.h5"
    Store.from_records(records, store.card).write(file)
    results = [train(run(file, tmp_path / device, device)) for device in ("cpu", "cuda")]
    here, there = (load_model(result.checkpoint).state_dict() for result in results)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=0, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_long_range_charges_and_pretraining(morse_file: Path, tmp_path: Path) -> None:
    stages = [
        {"name": "denoise", "objective": "denoising", "max_steps": 5},
        {"name": "joint", "max_steps": 10, "auxiliary_denoising": {}},
    ]
    result = train(run(morse_file, tmp_path / "run", "cuda", stages=stages, model=LONG_RANGE))
    assert result.finished
    model = load_model(result.checkpoint, dtype=torch.float64)
    store = open_dataset(morse_file)
    found = [evaluate(model.to(device), store, ["energy_low", "forces_low"]).metrics for device in ("cpu", "cuda")]
    for task, metrics in found[0].items():
        assert np.isfinite(list(metrics.values())).all()
        assert found[1][task] == pytest.approx(metrics, rel=1e-9)
