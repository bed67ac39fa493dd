"""``mfm transfer``."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from mfm.study.commands import StudyCommand, add_study

__all__ = ["register"]

_TEXTS = {
    "help": "what cheaper labels are worth: strategies, label counts and seeds at equal compute",
    "description": "Train every strategy with every number of high-level labels and several seeds at the same compute,"
    " and report what a target error costs in labels.",
    "epilog": "example: mfm transfer study.yaml --workers 2 seeds=1 labels=[10,100]",
}


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    add_study(commands, "transfer", _TEXTS, _open)


def _open(study: Path, overrides: Sequence[str], output: Path | None) -> StudyCommand:
    from mfm.config import load_config
    from mfm.transfer.grid import run_grid
    from mfm.transfer.plan import TransferConfig
    from mfm.transfer.report import write_report

    config = load_config(TransferConfig, study, overrides)
    folder = output or Path("runs/transfer") / config.name
    return StudyCommand(functools.partial(run_grid, config, folder), functools.partial(write_report, config, folder))
