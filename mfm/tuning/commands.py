"""``mfm tune``: the settings of a recipe that are best on its validation set."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["register"]

_INTERRUPTED = 130
_EPILOG = """examples:
  mfm tune run.yaml space.yaml --trials 40 --workers 4
  mfm tune run.yaml space.yaml --trials 80             go on with the same study
  mfm tune run.yaml space.yaml --trials 40 --objective val/energy_ccsdt/mae_mev_per_atom cost/microseconds_per_atom
  mfm tune run.yaml space.yaml --trials 200 --storage postgresql://user@host/optuna      on each machine of a cluster

space.yaml:
  optimizer.lr: {low: 1e-4, high: 1e-2, log: true}     a range
  model.backbone.n_channels: [32, 48, 64]              a choice
  stages.0.epochs: 20                                  the same in every trial"""


def register(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    prepare: Callable[[argparse.Namespace], None],
) -> None:
    """Add ``tune`` to a command line; `prepare` sets up a process that will train."""
    parser = subparsers.add_parser(
        "tune",
        help="search for better settings of a recipe",
        description="Train a recipe again and again with settings out of a space, and find those with the smallest"
        " errors on its validation set. Killed at any moment, the same command goes on where it was; the same command"
        " on several machines shares the work.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML file of the run")
    parser.add_argument("space", type=Path, help="YAML file of the settings to search")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the recipe")
    parser.add_argument(
        "--from", dest="initial", default="", metavar="CKPT",
        help="start every trial from the weights of a checkpoint, as `mfm train --from`",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, required=True, metavar="N", help="trials of the study in all")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument(
        "--objective", nargs="+", default=[], metavar="METRIC",
        help="what to minimise, one or more (default: error per atom of the highest level)",
    )  # fmt: skip
    parser.add_argument("--study", default="", metavar="NAME", help="name of the study (default: NAME-tune)")
    parser.add_argument(
        "--storage", default="", metavar="WHERE",
        help="journal file, or URL of a database (default: mlruns/optuna.journal)",
    )  # fmt: skip
    parser.add_argument("--output", default="", metavar="DIR", help="folder of the trials (default: runs/STUDY)")
    parser.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of a worker (default 1)")
    parser.set_defaults(run=lambda options: _tune(options, prepare))


def _tune(options: argparse.Namespace, prepare: Callable[[argparse.Namespace], None]) -> int:
    prepare(options)
    from mfm import tracking
    from mfm.config import apply_overrides, read_yaml, validate
    from mfm.training.recipe import RunConfig
    from mfm.tuning.space import read_space

    try:
        from mfm.tuning.run import TuneOptions, tune
    except ModuleNotFoundError as error:
        raise ValueError(f"`mfm tune` needs {error.name}; install it with: pip install mfm[tune]") from error

    # `--objective` takes all that follows it
    overrides = [*options.overrides, *(text for text in options.objective if "=" in text)]
    recipe = apply_overrides(read_yaml(options.recipe), overrides)
    validate(RunConfig, recipe, source=f"`{options.recipe}`")
    initial = tracking.resolve(options.initial)
    parent = tracking.open_model(initial) if initial else None
    space = read_space(options.space, recipe, parent)
    result = tune(
        recipe,
        space,
        TuneOptions(
            n_trials=options.trials,
            workers=options.workers,
            objectives=[text for text in options.objective if "=" not in text],
            study=options.study,
            storage=options.storage,
            output=options.output,
            prune=not options.no_pruning,
            threads=options.threads,
            initial=initial,
        ),
    )
    results = result.results
    lines = ["", results.to_markdown(), "", f"table, figures: {results.search.folder}"]
    if result.finished:
        start = f" --from {results.search.initial}" if results.search.initial else ""
        lines += [*(f"try: mfm train {path}{start}" for path in results.recipes.values()), "     mfm ui"]
    else:
        lines.append("stopped; the same command goes on")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if result.finished else _INTERRUPTED
