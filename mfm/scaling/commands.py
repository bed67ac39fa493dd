"""``mfm scaling``."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from mfm.study.commands import StudyCommand, add_study

__all__ = ["register"]

_TEXTS = {
    "help": "how errors fall with parameters, data and compute",
    "description": "Train models of several sizes on several numbers of structures for several lengths and seeds, fit"
    " power laws with a floor to their test errors, and report.",
    "epilog": "example: mfm scaling study.yaml --workers 2 seeds=1 structures=[100,1000]",
}


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    add_study(commands, "scaling", _TEXTS, _open)


def _open(study: Path, overrides: Sequence[str], output: Path | None) -> StudyCommand:
    from mfm.config import load_config
    from mfm.scaling.grid import run_grid
    from mfm.scaling.plan import ScalingConfig
    from mfm.scaling.report import write_report

    config = load_config(ScalingConfig, study, overrides)
    folder = output or Path("runs/scaling") / config.name
    return StudyCommand(functools.partial(run_grid, config, folder), functools.partial(write_report, config, folder))
