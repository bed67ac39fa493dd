"""What is searched: settings of a recipe with ranges or choices, checked against the schema before anything starts."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from mfm.config import Config, apply_overrides, read_yaml, validate
from mfm.model import MFMModel
from mfm.training.recipe import RunConfig
from mfm.training.transfer import adopt

__all__ = ["Choice", "Interval", "RangeConfig", "Space", "check_space", "read_space", "with_settings"]

_OWN = ("name", "output")
"""Settings that every trial has for itself."""
_COMPARED_BY = ("tracking", "validations", "valid_structures", "data")
"""Settings by which trials are compared; with others, their figures would not mean the same."""
_SEARCHABLE_DATA = ("data.n_train", "data.references")


class RangeConfig(Config):
    """A range as the file has it: ``{low: 1e-4, high: 1e-2, log: true}``."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether equal ratios are equally likely, rather than equal differences."""
    step: float | None = pydantic.Field(None, gt=0)
    """Distance of neighbouring values."""

    @pydantic.model_validator(mode="after")
    def _not_empty(self) -> "RangeConfig":
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"`low` and `high` must be finite, got {self.low:g} and {self.high:g}")
        if not self.low < self.high:
            raise ValueError(f"the range is empty: `low` must be below `high`, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low` must be above 0 where `log` is true, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("`log` and `step` exclude each other; leave one out")
        if self.step is not None and not _is_whole((self.high - self.low) / self.step):
            raise ValueError(f"`high` must be a whole number of steps above `low`, got steps of {self.step:g}")
        return self


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers between two ends, both included."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool
    """Whether only integers count."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """Smallest and largest value, and the first step."""
        found = (self.low, self.high) if self.step is None else (self.low, self.high, self.low + self.step)
        return tuple(int(value) for value in found) if self.whole else found


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values of any kind."""

    options: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every option."""
        return self.options


@dataclasses.dataclass(frozen=True)
class Space:
    """Dotted keys of a recipe and what they may be."""

    searched: Mapping[str, Interval | Choice]
    fixed: Mapping[str, Any]
    """Settings with one value in every trial."""
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Value that the recipe itself has of a searched setting, where the space holds it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain content, to store with a study."""
        return {key: dataclasses.asdict(setting) for key, setting in self.searched.items()} | dict(self.fixed)


def read_space(path: str | Path, recipe: Mapping[str, Any], parent: MFMModel | None = None) -> Space:
    """Space in a YAML file, see :func:`check_space`."""
    return check_space(read_yaml(path), recipe, f"`{path}`", parent)


def check_space(
    content: Mapping[str, Any], recipe: Mapping[str, Any], source: str = "the space", parent: MFMModel | None = None
) -> Space:
    """Check a mapping of dotted key → range, choices or one value against the schema of a run.

    Every end of every range and every choice is set in the recipe and validated, the others being as the recipe has
    them. Combinations are not tried: one that does not fit ends its trial as failed.

    Parameters
    ----------
    content : mapping
        A mapping with ``low`` and ``high`` is a range, a list holds choices, anything else is the one value of a key.
    recipe : mapping
        Content of a valid run file.
    parent : MFMModel, optional
        Whose weights the trials start from; its representation cannot be searched.

    Raises
    ------
    ValueError
        Every problem on its own line, with the key.
    """
    fixed = {key: value for key, value in content.items() if not isinstance(value, dict | list)}
    problems = [f"`{key}`: {why}" for key in content if (why := _forbidden(str(key), key in fixed))]
    base = dict(recipe)
    for key, value in fixed.items():
        try:
            candidate = with_settings(base, {key: value})
            _check_candidate(candidate, recipe, parent)
            base = candidate
        except ValueError as error:
            problems += _lines(f"`{key}` = {value!r}", error)
    searched: dict[str, Interval | Choice] = {}
    for key, value in content.items():
        if key in fixed:
            continue
        try:
            searched[key] = _setting(key, value, base, parent)
        except ValueError as error:
            problems += _lines(f"`{key}`", error)
    if not searched and not problems:
        problems.append("nothing to search: give at least one key a range `{low: ..., high: ...}` or a list of choices")
    if problems:
        raise ValueError(f"{source} is not valid:\n" + "\n".join(f"  {problem}" for problem in problems))
    return Space(searched, fixed, _own_values(searched, base, parent))


def with_settings(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a recipe's content with dotted keys set.

    Examples
    --------
    >>> with_settings({"optimizer": {"lr": 0.1}}, {"optimizer.ema": 0.99})
    {'optimizer': {'lr': 0.1, 'ema': 0.99}}
    """
    # JSON is YAML, except that YAML takes 1e-05 for text; the schema makes it the same number again
    return apply_overrides(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def _setting(key: str, value: Any, base: Mapping[str, Any], parent: MFMModel | None) -> Interval | Choice:
    if isinstance(value, list):
        if len(value) < 2:
            raise ValueError("a list holds choices, at least two; write a single value without brackets")
        if len({json.dumps(option, sort_keys=True) for option in value}) < len(value):
            raise ValueError(f"choices must differ, got {value}")
        for option in value:
            _check_value(key, option, base, parent)
        return Choice(tuple(value))
    given = validate(RangeConfig, value, f"the range {value}")
    taken = [_check_value(key, end, base, parent) for end in (given.low, given.high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in taken):
        raise ValueError("a range needs a setting that is a number; list the choices instead")
    interval = Interval(given.low, given.high, given.log, given.step, whole=isinstance(taken[0], int))
    if interval.whole and interval.step is not None and not _is_whole(interval.step):
        raise ValueError(f"`step` of whole numbers must be whole, got {interval.step:g}")
    return interval


def _check_value(key: str, value: Any, base: Mapping[str, Any], parent: MFMModel | None) -> Any:
    """The value as the schema takes it.

    Raises
    ------
    ValueError
        If the recipe is not valid with it.
    """
    try:
        config = _check_candidate(with_settings(base, {key: value}), base, parent)
    except ValueError as error:
        raise ValueError("\n".join(_lines(f"with {value!r}", error))) from error
    return _lookup(config, key)


def _lookup(config: RunConfig, key: str) -> Any:
    """Plain value of a dotted key."""
    node: Any = config.model_dump()
    for part in (f"model.{key}" if key.startswith("tasks.") else key).split("."):
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    return node


def _own_values(
    searched: Mapping[str, Interval | Choice], base: Mapping[str, Any], parent: MFMModel | None
) -> dict[str, Any]:
    config, found = validate(RunConfig, base), {}
    for key, setting in searched.items():
        try:
            own = _lookup(config, key)
        except (KeyError, IndexError, TypeError):  # of a part that the recipe leaves out
            continue
        if isinstance(setting, Choice):
            same = [option for option in setting.options if _check_value(key, option, base, parent) == own]
        else:
            same = [own] if _holds(setting, own) else []
        if same:
            found[key] = same[0]
    return found


def _holds(interval: Interval, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    is_step = interval.step is None or _is_whole((value - interval.low) / interval.step)
    return interval.low <= value <= interval.high and is_step


def _check_candidate(candidate: Mapping[str, Any], recipe: Mapping[str, Any], parent: MFMModel | None) -> RunConfig:
    config = validate(RunConfig, candidate)
    known = list(validate(RunConfig, recipe).model.tasks)
    if list(config.model.tasks) != known:
        # a misspelt task would be a new one
        raise ValueError(f"the recipe's tasks are {', '.join(known)}, this makes them {', '.join(config.model.tasks)}")
    if parent is not None:
        adopt(config, parent)
    return config


def _forbidden(key: str, is_fixed: bool) -> str:
    """Why a key may not stand in a space; empty if it may."""
    if key in _OWN:
        return "every trial has its own; name the study with `--study`, its folder with `--output`"
    if not is_fixed and key.split(".")[0] in _COMPARED_BY and key not in _SEARCHABLE_DATA:
        return "trials are compared by it, so it must be the same in all; give it one value"
    return ""


def _lines(prefix: str, error: ValueError) -> list[str]:
    """Problems of an error, one a line; a heading ending in a colon is dropped."""
    lines = [line.strip().removeprefix("Value error, ") for line in str(error).splitlines()]
    return [f"{prefix}: {line}" for line in (lines[1:] if len(lines) > 1 and lines[0].endswith(":") else lines)]


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), abs_tol=1e-9)
