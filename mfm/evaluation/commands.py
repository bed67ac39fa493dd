"""``mfm ui | compare | sync | register``: looking at what was tracked, completing it, naming models."""

import argparse
import sys
from pathlib import Path

from mfm.tracking.location import DEFAULT_DIRECTORY

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a command line; each sets `run` to a function of the parsed options."""
    ui = subparsers.add_parser("ui", help="browse runs", description="Serve the pages of MLflow on this machine.")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--dry-run", action="store_true", help="print the command, do not run it")
    ui.set_defaults(run=_ui)
    compare = subparsers.add_parser(
        "compare", help="table of runs", description="Settings in which runs differ, and their errors."
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folder or name of a run, or the start of its id")
    compare.add_argument("--all", action="store_true", help="also what agrees, and training metrics")
    compare.add_argument(
        "--html", type=Path, metavar="OUT", help="also write it, with learning curves and parity plots, as one page"
    )
    compare.set_defaults(run=_compare)
    sync = subparsers.add_parser(
        "sync",
        help="record runs that the store missed",
        description="Send to the store what it has not got of runs whose folders are given. A run that ended without a"
        " word is marked as killed.",
    )
    sync.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a run, such as runs/NAME")
    sync.set_defaults(run=_sync)
    model = subparsers.add_parser(
        "register",
        help="name a model, and promote it",
        description="Make a model the next version of NAME, which `models:/NAME/VERSION` then opens. With --alias it is"
        " checked, and only if it passes does `models:/NAME@ALIAS` open it from then on.",
    )
    model.add_argument("source", metavar="SOURCE", help="checkpoint, run (folder, name or id), or models:/NAME/VERSION")
    model.add_argument("name", metavar="NAME")
    model.add_argument("--alias", default="", help="such as champion")
    model.set_defaults(run=_register)
    for parser in (ui, compare, sync, model):
        parser.add_argument(
            "--directory", default=DEFAULT_DIRECTORY, help=f"folder of the runs (default: {DEFAULT_DIRECTORY})"
        )


def _ui(options: argparse.Namespace) -> int:
    from mfm import tracking

    command = tracking.ui_command(options.directory, options.port)
    address = tracking.ui_address(options.port, options.directory)
    sys.stdout.write(f"{address}  (ready in about 15 s, stop with Ctrl-C)\n{' '.join(command)}\n")
    sys.stdout.flush()
    return 0 if options.dry_run else tracking.serve(command, options.port)


def _compare(options: argparse.Namespace) -> int:
    from mfm.evaluation.comparison import compare

    found = compare(options.runs, options.directory, every=options.all, figures=options.html is not None)
    if options.html is not None:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(found.to_html(), encoding="utf-8")
    sys.stdout.write(found.to_text() + "\n")
    return 0


def _sync(options: argparse.Namespace) -> int:
    from mfm import tracking

    for folder in options.folders:
        sys.stdout.write(f"{folder}: run {tracking.synchronise(folder, options.directory)[:8]}\n")
    return 0


def _register(options: argparse.Namespace) -> int:
    from mfm import tracking
    from mfm.evaluation.checks import checkpoint_problems

    version, problems = tracking.register(
        options.source, options.name, options.alias, checkpoint_problems, options.directory
    )
    uri = f"models:/{options.name}/{version}"
    sys.stdout.write(uri + "\n")
    if problems:
        reasons = "\n".join(f"  {problem}" for problem in problems)
        sys.stdout.write(f"not promoted to `{options.alias}`:\n{reasons}\n")
        return 1
    if options.alias:
        sys.stdout.write(f"models:/{options.name}@{options.alias}\n")
    return 0
