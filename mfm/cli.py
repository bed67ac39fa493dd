"""Command line: ``mfm label | train | tune | distill | transfer | eval | predict | density | data | ui | compare …``.

Subcommands import what they need when they run, so that ``mfm --help`` is instant.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["main"]

_CHECKPOINT = "model file, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN"
_INTERRUPTED = 130
"""Exit status of a run that a signal stopped, as shells have it for Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 bad input, 130 interrupted."""
    parser = _parser()
    options = _parse(parser, _two_words(sys.argv[1:] if arguments is None else arguments))
    if options.command is None:
        parser.print_help()
        return 0
    try:
        with _logging(options.verbose):
            return int(options.run(options) or 0)
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("mfm: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"mfm: error: {error}", file=sys.stderr)
        return 2


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a command; ``key=value`` may also stand after other options, where argparse leaves it over."""
    options, left = parser.parse_known_args(arguments)
    if left and (not hasattr(options, "overrides") or any(word.startswith("-") or "=" not in word for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides = [*options.overrides, *left]
    return options


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Log on standard error while a command runs; who calls `main` from Python keeps the logging of their own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("mfm")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def _prepare(options: argparse.Namespace) -> None:
    """Process-wide settings that only a program of its own may make."""
    from mfm.allocator import tune_allocator

    tune_allocator()
    import torch

    torch.set_num_threads(options.threads)


def _train(options: argparse.Namespace) -> int:
    _prepare(options)
    from mfm.config import load_config
    from mfm.training.ranks import ALONE, launched_ranks
    from mfm.training.recipe import RunConfig
    from mfm.training.run import RESOLVED_CONFIG, train

    if options.resume is not None:
        if options.recipe is not None or options.initial is not None:
            raise ValueError("`--resume DIR` continues the run of that folder, it takes no recipe and no `--from`")
        config = load_config(RunConfig, options.resume / RESOLVED_CONFIG)
        if Path(config.folder).resolve() != options.resume.resolve():
            raise ValueError(f"`{options.resume}` holds a run of the folder `{config.folder}`; resume it there")
    elif options.recipe is None:
        raise ValueError("`mfm train` needs a recipe (run.yaml), or `--resume DIR`")
    else:
        overrides = list(options.overrides)
        if options.output is not None:
            overrides.append(f"output={json.dumps(str(options.output))}")
        config = load_config(RunConfig, options.recipe, overrides)
    with launched_ranks() if options.distributed else contextlib.nullcontext(ALONE) as ranks:
        if not ranks.writes:
            logging.getLogger("mfm").setLevel(logging.WARNING)
        result = train(config, initial=options.initial, resume=options.resume is not None, ranks=ranks)
    if not ranks.writes:
        return 0 if result.finished else _INTERRUPTED
    if not result.finished:
        print(f"stopped; continue with: mfm train --resume {result.folder}")
        return _INTERRUPTED
    for split, evaluation in result.evaluations.items():
        print(f"\n{split}: {evaluation.to_markdown()}")
    print(f"model: {result.checkpoint}\ntry:   mfm eval {result.checkpoint} FILE     mfm ui")
    return 0


def _eval(options: argparse.Namespace) -> int:
    _prepare(options)
    from mfm.data.opening import open_dataset
    from mfm.data.splits import held_out_rows
    from mfm.evaluation.evaluate import evaluate
    from mfm.tracking import open_model

    model = open_model(options.checkpoint, device=_device(options.device))
    store = open_dataset(
        options.file,
        format=options.format,
        fidelity=options.fidelity,
        keys=_pairs(options.keys, "--keys"),
        units=_pairs(options.units, "--units"),
    )
    if options.held_out:
        store = store.subset(held_out_rows(store))
    evaluation = evaluate(model, store, options.tasks)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(evaluation.to_json(), encoding="utf-8")
    if options.output is not None:
        evaluation.write(options.output, "evaluation")
    print(evaluation.to_markdown())
    if options.by_element:
        print(evaluation.groups_to_markdown("element"))
    if options.by_molecule:
        print(evaluation.groups_to_markdown("molecule"))
    return 0


def _predict(options: argparse.Namespace) -> int:
    _prepare(options)
    from mfm.evaluation.predict import predict_file
    from mfm.tracking import open_model

    model = open_model(options.checkpoint, device=_device(options.device))
    count = predict_file(model, options.input, options.output, options.fidelity, forces=not options.no_forces)
    print(f"{options.output}: {count} structures")
    return 0


def _device(name: str) -> str:
    from mfm.device import choose_device

    return str(choose_device(name))


def _pairs(texts: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """``["energy=E"]`` as a mapping."""
    pairs = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise ValueError(f"`{option}` takes PROPERTY=NAME, got `{text}`")
        pairs[name] = value
    return pairs or None


def _parser() -> argparse.ArgumentParser:
    # abbreviations would make every new option a possible break of somebody's script
    parser = argparse.ArgumentParser(
        prog="mfm",
        description="Interatomic potentials that learn several levels of theory at once.",
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("--verbose", action="store_true", help="report more")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_train(commands)
    _add_tune(commands)
    _add_distill(commands)
    _add_eval(commands)
    _add_predict(commands)
    _add_density(commands)
    _add_tracking(commands)
    _add_data(commands)
    _add_label(commands)
    _add_studies(commands)
    return parser


def _add_studies(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.scaling.commands import register as register_scaling
    from mfm.transfer.commands import register as register_transfer

    register_transfer(commands)
    register_scaling(commands)


def _add_density(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.evaluation.density_commands import register

    register(commands, _CHECKPOINT)


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.tuning.commands import register

    register(commands, _prepare)


def _add_distill(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.training.commands import register

    register(commands, _prepare, _add_machine)


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.data.commands import register

    register(commands)


def _add_label(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.labelling.commands import register

    register(commands)


def _two_words(arguments: Sequence[str]) -> list[str]:
    """``label export`` and the like as one argument: the other ``mfm label FILE`` takes a file there."""
    words = list(arguments)
    for k, word in enumerate(words[:-1]):
        if word == "label" and words[k + 1] in ("export", "import", "enumerate"):
            return [*words[:k], f"label {words[k + 1]}", *words[k + 2 :]]
        if not word.startswith("-"):
            break
    return words


def _add_machine(parser: argparse.ArgumentParser, device: bool = True) -> None:
    # one by default: small molecules are fastest so, and the bits of a sum depend on how threads share it
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    if device:
        parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "train",
        help="train a model from a recipe",
        description="Train every stage of a recipe. Ctrl-C or SIGTERM stops after the step in progress; the run"
        " then continues with --resume as if it had never stopped.",
        epilog="example: mfm train run.yaml tasks.energy_ccsdt.weight=10 stages.0.epochs=5",
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the recipe")
    parser.add_argument("--from", dest="initial", metavar="CKPT", help=f"start from the weights of a {_CHECKPOINT}")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run of this folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--distributed", action="store_true", help="train one model with the processes that torchrun or srun started"
    )
    _add_machine(parser, device=False)
    parser.set_defaults(run=_train)


def _add_eval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "eval", help="errors of a model on labelled structures", description="Errors of a model, a row per task."
    )
    parser.add_argument("checkpoint", metavar="CKPT", help=_CHECKPOINT)
    parser.add_argument("file", metavar="FILE", help="dataset: builtin:NAME, an mfm file or a foreign file")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all errors, by element and molecule too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write tables and a parity plot")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="labels to compare (default: all)")
    parser.add_argument(
        "--held-out", action="store_true", help="only molecules that the dataset's card keeps for tests, not training"
    )
    parser.add_argument("--fidelity", help="level of theory of a foreign file that does not name it")
    parser.add_argument("--format", help="format of a foreign file (default: found from its content)")
    parser.add_argument("--keys", nargs="+", metavar="PROPERTY=KEY", help="keys in a foreign file: energy=E")
    parser.add_argument("--units", nargs="+", metavar="PROPERTY=UNIT", help="units in a foreign file: energy=hartree")
    parser.add_argument("--by-element", action="store_true", help="also print errors of each element")
    parser.add_argument("--by-molecule", action="store_true", help="also print errors of each molecule")
    _add_machine(parser)
    parser.set_defaults(run=_eval)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "predict",
        help="energies, forces and what else a model predicts of structures in a file",
        description="Predict structures of any file that ASE reads; writes extended XYZ.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help=_CHECKPOINT)
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT.xyz")
    parser.add_argument("--fidelity", nargs="+", help="levels to predict (default: all)")
    parser.add_argument("--no-forces", action="store_true", help="energies only")
    _add_machine(parser)
    parser.set_defaults(run=_predict)


def _add_tracking(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from mfm.evaluation.commands import register

    register(commands)


if __name__ == "__main__":
    sys.exit(main())
