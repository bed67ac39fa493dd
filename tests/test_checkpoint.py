"""Checkpoints: what is written is read, without pickle; everything else is refused with a reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from mfm.checkpoint import FORMAT, load_model, read_provenance, save_checkpoint
from mfm.graph import Structure, build_graph
from mfm.model import MFMModel
from tests.tiny import tiny_model

OLD_CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.fixture(scope="module")
def model() -> MFMModel:
    return tiny_model()


@pytest.fixture
def path(model: MFMModel, tmp_path: Path) -> Path:
    target = tmp_path / "model.mfm"
    save_checkpoint(target, model, {"data": {"digest": "0123abcd"}, "seed": 7})
    return target


def outputs(model: MFMModel) -> dict[str, torch.Tensor]:
    graph = build_graph(Structure.from_ase(molecule("CH3CH2OH")), model.cutoff, dtype=model.dtype)
    return model.predict(graph, derivatives=["forces_dft", "forces_ccsdt"])


def edit(path: Path, **changes: Any) -> None:
    """Rewrite a checkpoint with keys replaced, or removed where the new value is None."""
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None}, path)


def test_round_trip_is_exact(model: MFMModel, path: Path) -> None:
    loaded = load_model(path)
    assert loaded.config == model.config
    assert loaded.domain == model.domain
    assert loaded.dtype == torch.float64
    assert not loaded.training
    for name, value in outputs(model).items():
        assert torch.equal(outputs(loaded)[name], value), name


def test_float32_model_keeps_references_in_float64(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    save_checkpoint(tmp_path / "model.mfm", model)
    loaded = load_model(tmp_path / "model.mfm")
    assert loaded.dtype == torch.float32
    assert loaded.references.dtype == torch.float64
    assert outputs(loaded)["energy_dft"].dtype == torch.float64
    assert torch.equal(outputs(loaded)["energy_dft"], outputs(model)["energy_dft"])


def test_dtype_can_be_chosen(path: Path) -> None:
    single = load_model(path, dtype=torch.float32)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(outputs(single)["energy_ccsdt"], outputs(load_model(path))["energy_ccsdt"], atol=1e-4)


def test_provenance(path: Path) -> None:
    provenance = read_provenance(path)
    assert provenance["data"] == {"digest": "0123abcd"}
    assert provenance["seed"] == 7
    assert provenance["versions"]["torch"] == torch.__version__


def test_writing_replaces_and_leaves_nothing_behind(model: MFMModel, path: Path) -> None:
    save_checkpoint(path, model, {"seed": 8})
    assert read_provenance(path)["seed"] == 8
    assert [entry.name for entry in path.parent.iterdir()] == ["model.mfm"]


def test_a_failed_write_keeps_the_old_file(model: MFMModel, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, model)
    monkeypatch.undo()
    assert read_provenance(path)["seed"] == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["model.mfm"]


def test_loading_runs_no_pickled_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"kind": "mfm model", "format": FORMAT, "config": Malicious()}, tmp_path / "model.mfm")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint without pickle"):
        load_model(tmp_path / "model.mfm")
    assert not marker.exists()


@pytest.mark.parametrize("old", sorted(OLD_CHECKPOINTS.glob("*.mfm")), ids=lambda path: path.stem)
def test_every_format_still_loads_and_predicts_the_same(old: Path) -> None:
    expected = json.loads(old.with_suffix(".json").read_text(encoding="utf-8"))
    predicted = outputs(load_model(old, dtype=torch.float64))
    for task, energy in expected.items():
        assert float(predicted[task]) == pytest.approx(energy, abs=1e-8), task


def test_the_present_format_has_a_file() -> None:
    assert (OLD_CHECKPOINTS / f"format-{FORMAT}.mfm").stat().st_size < 300_000


def test_missing_file_lists_its_neighbours(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at `.*modle.mfm`: it does not exist; .* there is model.mfm"):
        load_model(path.with_name("modle.mfm"))


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at `.*`: it is a folder"):
        load_model(tmp_path)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.mfm").write_text("energy -1.0")
    with pytest.raises(ValueError, match=r"`.*model.mfm` \(11 bytes\) is no checkpoint, or a truncated one"):
        load_model(tmp_path / "model.mfm")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match="truncated"):
        load_model(path)


def test_damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"data.pkl") + 200
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "optimizer_states": []}, "holds the state of a training run, not a model"),
        ({"weights": 1, "biases": 2}, "holds a mapping of biases, weights, not a model"),
        ([1, 2], "holds a list, not a model"),
    ],
)
def test_other_torch_files(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "state.ckpt")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "state.ckpt")


def test_newer_format(path: Path) -> None:
    edit(path, format=FORMAT + 1)
    with pytest.raises(ValueError, match=rf"has checkpoint format {FORMAT + 1}, this version of mfm reads {FORMAT}"):
        load_model(path)


def test_missing_key(path: Path) -> None:
    edit(path, domain=None)
    with pytest.raises(ValueError, match="lacks domain; it was not written by `save_checkpoint`"):
        load_model(path)


def test_configuration_that_does_not_validate(path: Path) -> None:
    edit(path, config='{"tasks": {"energy_dft": {"wieght": 1}}}')
    with pytest.raises(ValueError, match=r"configuration in .* is not valid"):
        load_model(path)


def test_weights_that_do_not_fit(model: MFMModel, path: Path) -> None:
    weights = dict(model.state_dict())
    name = next(key for key, value in weights.items() if value.dim() == 2)
    shape = tuple(weights[name].shape)
    edit(path, state_dict={**weights, name: weights[name][:1]})
    with pytest.raises(ValueError, match=rf"`{name}` has shape .* instead of \({shape[0]}, {shape[1]}\)"):
        load_model(path)
    edit(path, state_dict={**weights, "head": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit its configuration: `head` is unknown"):
        load_model(path)
    edit(path, state_dict={})
    with pytest.raises(ValueError, match=r"is missing; .* is missing; .* is missing and \d+ more"):
        load_model(path)


def test_folder_must_exist(model: MFMModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder `.*absent` does not exist; create it"):
        save_checkpoint(tmp_path / "absent" / "model.mfm", model)


def test_provenance_must_be_json(model: MFMModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`provenance` must hold only what JSON can"):
        save_checkpoint(tmp_path / "model.mfm", model, {"array": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []
