"""``mfm distill``: structures with the labels of a teacher."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["register"]

_EPILOG = """examples:
  mfm distill --teacher runs/large/model.mfm --fidelity ccsdt --structures mols.h5 --out taught.h5
  mfm distill --teacher calculators.py:gfn2 --structures md.xyz --copies 3 --out taught.h5
  mfm train small.yaml data.train=taught.h5          with the task energy_teacher; hessian_weight weighs the products"""


def register(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    prepare: Callable[[argparse.Namespace], None],
    add_machine: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the command to the command line; `prepare` sets up a process that evaluates models."""
    parser = commands.add_parser(
        "distill",
        help="label structures with a teacher, for a smaller model to learn",
        description="Write structures with a teacher's energies, forces and products of its Hessian with random"
        " displacements. `mfm train` learns them like any other level of theory. Stopped anywhere, the same"
        " command goes on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--teacher", required=True, metavar="WHICH",
        help="model file, models:/NAME@ALIAS, runs:/RUN, or MODULE:FUNCTION that gives an ASE calculator",
    )  # fmt: skip
    parser.add_argument("--structures", required=True, nargs="+", metavar="FILE", help="datasets; labels are ignored")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.h5", help="mfm store to write")
    parser.add_argument("--fidelity", metavar="NAME", help="level of a teacher that has several")
    parser.add_argument("--name", default="teacher", help="fidelity of the labels (default: teacher)")
    parser.add_argument("--probes", type=int, default=1, metavar="N", help="displacements per structure (default 1)")
    parser.add_argument("--copies", type=int, default=0, metavar="N", help="displaced copies of each structure, too")
    parser.add_argument(
        "--displacement", type=float, default=0.05, metavar="Å", help="of every coordinate of a copy (default 0.05)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of displacements (default 0)")
    add_machine(parser)
    parser.set_defaults(run=lambda options: _distill(options, prepare))


def _distill(options: argparse.Namespace, prepare: Callable[[argparse.Namespace], None]) -> int:
    for name, least in (("probes", 0), ("copies", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {getattr(options, name)}")
    if options.displacement <= 0:
        raise ValueError(f"`--displacement` must be above 0, got {options.displacement}")
    # beside parts, the file is from the moment before they were removed, and is written once more
    if options.out.exists() and not options.out.with_name(f"{options.out.name}.parts").exists():
        raise ValueError(f"`{options.out}` exists; remove it, or name another file with `--out`")
    prepare(options)
    from torch.utils.data import ConcatDataset

    from mfm.data import DatasetCard, Record, open_dataset
    from mfm.device import choose_device
    from mfm.properties import task_name
    from mfm.training.distillation import Copies, Questions, open_teacher, write_distilled

    task_name("energy", options.name)
    stores = [open_dataset(source) for source in options.structures]
    teacher = open_teacher(options.teacher, options.fidelity, str(choose_device(options.device)))
    card = DatasetCard(
        name=options.out.stem,
        description=f"Labels of {options.teacher}.",
        levels={options.name: teacher.level},
        references={options.name: dict(teacher.references)} if teacher.references else {},
        test_molecules=tuple(sorted({molecule for store in stores for molecule in store.card.test_molecules})),
        provenance={
            "teacher": options.teacher,
            "structures": ", ".join(f"{store.card.name} {store.digest}" for store in stores),
            "seed": str(options.seed),
        },
    )
    questions = Questions(options.probes, Copies(options.copies, options.displacement), options.seed)
    chained = ConcatDataset[Record](stores)  # type: ignore[arg-type]  # a length and items are all it takes
    write_distilled(options.out, teacher, chained, card, questions)
    total = sum(map(len, stores)) * (1 + options.copies) * max(options.probes, 1)
    sys.stdout.write(f"{options.out}: {total} structures with labels of {teacher.level.label} as `{options.name}`\n")
    return 0
