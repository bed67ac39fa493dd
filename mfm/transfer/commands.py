"""``mfm transfer``."""

import argparse
import sys
from pathlib import Path

__all__ = ["register"]

_INTERRUPTED = 130


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "transfer",
        help="what cheaper labels are worth: strategies, label counts and seeds at equal compute",
        description="Train every strategy with every number of high-level labels and several seeds at the same compute,"
        " and report what a target error costs in labels. Stopped, it goes on with the same command.",
        epilog="example: mfm transfer study.yaml --workers 2 seeds=1 labels=[10,100]",
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the study")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder (default: runs/transfer/NAME)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="models trained at once (default 1)")
    parser.add_argument("--report-only", action="store_true", help="report on the models there are, train none")
    parser.set_defaults(run=_transfer)


def _transfer(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ValueError(f"`--workers` must be at least 1, got {options.workers}")
    from mfm.config import load_config
    from mfm.training.experiment import begin
    from mfm.transfer.grid import run_grid
    from mfm.transfer.plan import TransferConfig
    from mfm.transfer.report import write_report

    config = load_config(TransferConfig, options.study, options.overrides)
    folder = options.output or Path("runs/transfer") / config.name
    if not options.report_only:
        begin()
        if not run_grid(config, folder, options.workers):
            sys.stdout.write("stopped; the same command goes on\n")
            return _INTERRUPTED
    files = write_report(config, folder)
    sys.stdout.write(files[0].read_text(encoding="utf-8"))
    sys.stdout.write("\nwritten: " + ", ".join(str(path) for path in files) + "\n")
    return 0
