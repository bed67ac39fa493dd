"""Base of every configuration record, and YAML with command-line overrides.

Each component owns a frozen ``XConfig`` beside it. A run is one YAML file; the command line edits the
mapping (``tasks.energy_ccsdt.weight=10``) before it is validated, so an override is checked like the file.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

__all__ = ["Config", "apply_overrides", "load_config", "read_yaml", "validate"]


class Config(pydantic.BaseModel):
    """Frozen record that refuses unknown keys; base of all configuration."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Mapping in a YAML file.

    Raises
    ------
    ValueError
        If the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read configuration `{path}`: {error.strerror}; check the path") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a mapping of keys to values, got {type(content).__name__}")
    return content


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Copy of a nested mapping with ``dotted.key=value`` edits applied; values are YAML.

    A number in a key indexes a list (``stages.0.epochs=5``).

    Raises
    ------
    ValueError
        If an override has no ``=``, or its path runs through something that is not a mapping or list.

    Examples
    --------
    >>> apply_overrides({"tasks": {"energy_dft": {}}}, ["tasks.energy_dft.weight=10"])
    {'tasks': {'energy_dft': {'weight': 10}}}
    """
    # the order of keys is kept: the first task stays the first
    edited: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(content), sort_keys=False))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ValueError(f"an override must read `key.of.setting=value`, got `{override}`")
        _set(edited, path.split("."), yaml.safe_load(text), override)
    return edited


def _set(node: Any, keys: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ValueError(
                    f"override `{override}`: `{key}` must be a number below {len(node)}, it indexes a list"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
        else:
            raise ValueError(f"override `{override}`: `{'.'.join(keys[:depth])}` is {node!r}, it has no key `{key}`")
        if last:
            node[index] = value
            return
        if isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def _known_keys(config: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed beside the unknown one at `location`, as far as the schema can be followed."""
    current: Any = config
    for step in location[:-1]:
        if not (isinstance(current, type) and issubclass(current, pydantic.BaseModel)):
            break
        field = current.model_fields.get(str(step))
        if field is None:
            break
        current = field.annotation
    if isinstance(current, type) and issubclass(current, pydantic.BaseModel):
        return list(current.model_fields)
    return []


def validate(config: type[ConfigT], content: Mapping[str, Any], source: str = "configuration") -> ConfigT:
    """Check a mapping against a configuration class.

    Raises
    ------
    ValueError
        Every problem on its own line: the dotted key, what was expected, what came, the nearest known key.
    """
    try:
        return config.model_validate(dict(content))
    except pydantic.ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            line = f"  `{key}`: {problem['msg']}" if key else f"  {problem['msg']}"
            if problem["type"] == "extra_forbidden":
                known = _known_keys(config, problem["loc"])
                near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
                line = f"  `{key}`: unknown key"
                line += f"; did you mean `{near[0]}`?" if near else ""
                line += f" (known here: {', '.join(known)})" if known else ""
            elif key:
                line += f", got {problem['input']!r}"
            lines.append(line)
        raise ValueError(f"{source} is not valid:\n" + "\n".join(lines)) from error


def load_config(config: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides, validate.

    Raises
    ------
    ValueError
        If the file cannot be read or does not fit the schema.
    """
    return validate(config, apply_overrides(read_yaml(path), overrides), source=f"`{path}`")
