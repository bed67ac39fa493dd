"""What the commands that train a grid of models have in common."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["StudyCommand", "add_study"]

_INTERRUPTED = 130


class StudyCommand(NamedTuple):
    """A study as a command line sees it."""

    train: Callable[[int], bool]
    """Trains what is missing with so many processes; returns whether all is there."""
    report: Callable[[], list[Path]]
    """Writes the report; returns its files, the text first."""


def add_study(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    texts: dict[str, str],
    open_study: Callable[[Path, Sequence[str], Path | None], StudyCommand],
) -> None:
    """Add a command to the command line.

    Parameters
    ----------
    name : str
        Of the command, and of the folder of its studies in ``runs``.
    texts : dict
        ``help``, ``description`` and ``epilog``.
    open_study : callable
        Reads the study from its file with settings changed, to be kept in a folder, by default one of its name.
    """
    parser = commands.add_parser(
        name,
        help=texts["help"],
        description=f"{texts['description']} Stopped, it goes on with the same command.",
        epilog=texts["epilog"],
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the study")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder (default: runs/{name}/NAME)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="models trained at once (default 1)")
    parser.add_argument("--report-only", action="store_true", help="report on the models there are, train none")
    parser.set_defaults(run=lambda options: _run(options, open_study))


def _run(options: argparse.Namespace, open_study: Callable[[Path, Sequence[str], Path | None], StudyCommand]) -> int:
    if options.workers < 1:
        raise ValueError(f"`--workers` must be at least 1, got {options.workers}")
    study = open_study(options.study, options.overrides, options.output)
    if not options.report_only:
        from mfm.training.experiment import begin

        begin()
        if not study.train(options.workers):
            sys.stdout.write("stopped; the same command goes on\n")
            return _INTERRUPTED
    files = study.report()
    sys.stdout.write(files[0].read_text(encoding="utf-8"))
    sys.stdout.write("\nwritten: " + ", ".join(str(path) for path in files) + "\n")
    return 0
