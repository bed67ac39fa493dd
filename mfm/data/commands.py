"""``mfm data info | convert | split | list``: looking into datasets, converting and splitting them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfm.data.store import Store

__all__ = ["convert", "info", "list_datasets", "register", "split"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``data`` and its subcommands to a command line; each sets `run` to a function of the parsed options."""
    parser = subparsers.add_parser("data", help="look into, convert and split datasets", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("info", help="counts, elements, fidelities, coverage, ranges, what looks wrong")
    _add_source(command)
    command.add_argument("--json", type=Path, metavar="OUT", help="also write it as JSON")
    command.set_defaults(run=_run_info)
    command = commands.add_parser("convert", help="write one or more files of any format as one mfm store")
    _add_source(command, several=True)
    command.add_argument("--output", "-o", type=Path, required=True, metavar="OUT.h5", help="file to write")
    command.set_defaults(run=_run_convert)
    command = commands.add_parser("split", help="divide a dataset into train, valid, test")
    _add_source(command)
    command.add_argument("--output", "-o", type=Path, required=True, metavar="SPLIT.json", help="file to write")
    command.add_argument("--method", choices=["by_molecule", "random_frames"], default="by_molecule")
    command.add_argument(
        "--fractions", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VALID", "TEST")
    )
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_run_split)
    command = commands.add_parser("list", help="datasets that come with mfm, and benchmark datasets it knows")
    command.set_defaults(run=_run_list)


def info(store: "Store") -> str:
    """Text that ``mfm data info`` shows."""
    from mfm.data.info import describe, format_description

    return format_description(describe(store))


def convert(stores: Sequence["Store"], output: Path) -> str:
    """Write stores as one; returns the line to show.

    Raises
    ------
    ValueError
        If the stores mean different levels of theory by one fidelity, or the file cannot be written.
    """
    from mfm.data.opening import merge_stores
    from mfm.data.store import Store

    store = stores[0] if len(stores) == 1 else merge_stores(stores, stores[0].card)
    store.write(output)
    written = Store.open(output)
    return f"{output}: {len(written)} structures, {', '.join(written.labels)}, digest {written.digest}"


def split(store: "Store", output: Path, method: str, fractions: Sequence[float], seed: int) -> str:
    """Write a split; returns the line to show.

    Raises
    ------
    ValueError
        If the fractions or the data do not allow it.
    """
    from mfm.data.splits import by_molecule, random_frames, write_split

    shares = {part: share for part, share in zip(("train", "valid", "test"), fractions, strict=True) if share > 0}
    divided = (by_molecule if method == "by_molecule" else random_frames)(store, shares, seed)
    write_split(output, divided, store)
    return f"{output}: " + ", ".join(f"{part} {len(indices)}" for part, indices in divided.items())


def list_datasets() -> str:
    """Names that ``open_dataset`` takes, with their levels and licences."""
    from mfm.data.card import available_cards, load_card
    from mfm.data.opening import BUILTIN_FOLDER

    lines = []
    for name in available_cards():
        card = load_card(name)
        scheme = "builtin" if (BUILTIN_FOLDER / f"{name}.h5").is_file() else "benchmark"
        levels = ", ".join(f"{fidelity} = {level.label}" for fidelity, level in card.levels.items())
        lines.append(f"{scheme}:{name}\n    {levels}; {card.licence}")
        if len(card.subsets) > 1:
            lines.append(f"    subsets: {', '.join(card.subsets)}")
    return "\n".join(lines)


def _add_source(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "source",
        nargs="+" if several else None,
        metavar="FILE",
        help="builtin:NAME, benchmark:NAME[/SUBSET], an mfm store, or a file or folder in a foreign format",
    )
    parser.add_argument("--format", help="foreign format (default: found from the content)")
    parser.add_argument("--fidelity", help="name of the level of theory, or the one to keep of several")
    parser.add_argument(
        "--keys", nargs="+", default=[], metavar="LABEL=KEY", help="key of a label in the file, such as forces=force"
    )
    parser.add_argument(
        "--units", nargs="+", default=[], metavar="LABEL=UNIT", help="unit of a label, such as energy=kcal/mol"
    )
    parser.add_argument("--card", help="card of the file: a YAML file, or a name of `mfm data list`")


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise ValueError(f"`{option}` takes LABEL=VALUE, such as energy=E, got `{text}`")
        pairs[name] = value
    return pairs


def _open(source: str, options: argparse.Namespace) -> "Store":
    from mfm.data.opening import open_dataset

    return open_dataset(
        source,
        format=options.format,
        fidelity=options.fidelity,
        keys=_pairs(options.keys, "--keys"),
        units=_pairs(options.units, "--units"),
        card=options.card,
    )


def _run_info(options: argparse.Namespace) -> int:
    from mfm.data.info import describe, format_description

    description = describe(_open(options.source, options))
    if options.json is not None:
        options.json.write_text(json.dumps(description, indent=1), encoding="utf-8")
    sys.stdout.write(format_description(description))
    return 0


def _run_convert(options: argparse.Namespace) -> int:
    sys.stdout.write(convert([_open(source, options) for source in options.source], options.output) + "\n")
    return 0


def _run_split(options: argparse.Namespace) -> int:
    store = _open(options.source, options)
    sys.stdout.write(split(store, options.output, options.method, options.fractions, options.seed) + "\n")
    return 0


def _run_list(options: argparse.Namespace) -> int:
    del options
    sys.stdout.write(list_datasets() + "\n")
    return 0
