"""``mfm scaling``."""

import argparse
import sys
from pathlib import Path

__all__ = ["register"]

_INTERRUPTED = 130


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "scaling",
        help="how errors fall with parameters, data and compute",
        description="Train models of several sizes on several numbers of structures for several lengths and seeds, fit"
        " power laws with a floor to their test errors, and report. Stopped, it goes on with the same command.",
        epilog="example: mfm scaling study.yaml --workers 2 seeds=1 structures=[100,1000]",
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the study")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder (default: runs/scaling/NAME)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="models trained at once (default 1)")
    parser.add_argument("--report-only", action="store_true", help="report on the models there are, train none")
    parser.set_defaults(run=_scaling)


def _scaling(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ValueError(f"`--workers` must be at least 1, got {options.workers}")
    from mfm.config import load_config
    from mfm.scaling.grid import run_grid
    from mfm.scaling.plan import ScalingConfig
    from mfm.scaling.report import write_report
    from mfm.training.experiment import begin

    config = load_config(ScalingConfig, options.study, options.overrides)
    folder = options.output or Path("runs/scaling") / config.name
    if not options.report_only:
        begin()
        if not run_grid(config, folder, options.workers):
            sys.stdout.write("stopped; the same command goes on\n")
            return _INTERRUPTED
    files = write_report(config, folder)
    sys.stdout.write(files[0].read_text(encoding="utf-8"))
    sys.stdout.write("\nwritten: " + ", ".join(str(path) for path in files) + "\n")
    return 0
