"""Configuration: files, overrides, and messages a user can act on."""

from pathlib import Path

import pytest

from mfm.config import Config, apply_overrides, load_config, read_yaml, validate


class Inner(Config):
    n_layers: int = 2
    rate: float = 1e-3


class Outer(Config):
    inner: Inner = Inner()
    names: list[str] = []


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("inner: {n_layers: 3, rate: 1e-2}\nnames: [a, b]\n")
    config = load_config(Outer, path, ["inner.n_layers=4", "names.1=c"])
    assert config == Outer(inner=Inner(n_layers=4, rate=0.01), names=["a", "c"])
    with pytest.raises(ValueError, match=r"`inner\.n_layers`.*integer.*got 'four'"):
        load_config(Outer, path, ["inner.n_layers=four"])


def test_an_override_makes_the_sections_it_names() -> None:
    assert apply_overrides({}, ["inner.rate=0.5"]) == {"inner": {"rate": 0.5}}


def test_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"`inner\.n_layrs`: unknown key; did you mean `n_layers`\? \(known here"):
        validate(Outer, {"inner": {"n_layrs": 1}})


def test_an_override_keeps_the_order_of_keys() -> None:
    edited = apply_overrides({"tasks": {"energy_dft": {}, "energy_ccsdt": {}}}, ["seed=1"])
    assert list(edited["tasks"]) == ["energy_dft", "energy_ccsdt"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.n_layers", "must read `key.of.setting=value`"),
        ("names.5=x", "`5` must be a number below 2"),
        ("inner.n_layers.deep=1", "`inner.n_layers` is 2, it has no key `deep`"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_overrides({"inner": {"n_layers": 2}, "names": ["a", "b"]}, [override])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read configuration"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping of keys to values, got list"):
        read_yaml(tmp_path / "list.yaml")
