"""``mfm label``: geometries and quantum-chemistry labels of molecules, resumable at any moment."""

import argparse
import logging
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfm.data.card import DatasetCard
    from mfm.labelling.export import Export
    from mfm.labelling.levels import Level
    from mfm.labelling.run import RunSummary
    from mfm.labelling.store import LabelStore

__all__ = ["parse_hours", "register"]

_LOG = logging.getLogger(__name__)
_HOURS = {"s": 1 / 3600, "min": 1 / 60, "m": 1 / 60, "h": 1.0, "d": 24.0}
_EPILOG = """examples:
  mfm label molecules.smi --levels xtb:50,dft:10,ccsdt:5 --budget 2h --out water.labels
  mfm label --out water.labels --budget 8h             go on with what is queued
  mfm label export water.labels --out water.h5         write the file to train on
  mfm label import water.h5 --out more.labels          take over what another machine has labelled
  mfm label enumerate C,N,O 3 > molecules.smi          every stable molecule of three heavy atoms"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``label`` and its companions to a command line; each sets `run` to a function of the parsed options."""
    label = subparsers.add_parser(
        "label",
        help="compute labels with quantum chemistry",
        description="Make geometries of molecules and label them. Labels go to a store that survives being killed;"
        " running the same command again goes on where it was.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(label)
    _add_how(label)
    label.set_defaults(run=_run_label)
    export = subparsers.add_parser("label export", help="write a labelling store as a file to train on")
    export.add_argument("store", type=Path, metavar="STORE")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.h5", help="file to write")
    export.add_argument("--name", help="name of the dataset (default: that of the file)")
    export.add_argument("--base", metavar="LEVEL", help="keep only structures that have this level")
    export.add_argument("--plan", type=Path, metavar="PLAN.yaml", help="take the held-out molecules from this plan")
    export.add_argument("--licence", default="unknown", help="SPDX name of the licence")
    export.add_argument(
        "--contamination", type=float, default=0.1, metavar="X",
        help="leave out labels whose <S^2> is further off than this (default 0.1; stretched bonds are up to 1 off)",
    )  # fmt: skip
    export.add_argument("--density", type=Path, metavar="FILE.h5", help="also write density coefficients to this file")
    export.set_defaults(run=_run_export)
    importing = subparsers.add_parser(
        "label import", help="take over the labels of an exported file", description="Add the labels of a file that"
        " `mfm label export` wrote to a store, so that they are not computed again.",
    )  # fmt: skip
    importing.add_argument("source", type=Path, metavar="FILE", help="exported file, or builtin:NAME")
    importing.add_argument("--out", type=Path, required=True, metavar="STORE", help="store to add to, may be new")
    importing.set_defaults(run=_run_import)
    listing = subparsers.add_parser("label enumerate", help="list all small molecules of some elements")
    listing.add_argument("elements", metavar="ELEMENTS", help="heavy elements, such as C,N,O")
    listing.add_argument("heavy_atoms", type=int, metavar="N", help="number of heavy atoms, 1 to 6")
    listing.add_argument("--unstable", action="store_true", help="also those that would not keep")
    listing.set_defaults(run=_run_enumerate)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to label")
    what.add_argument(
        "source", nargs="?", type=Path, metavar="FILE",
        help="list of SMILES (.smi, .txt), plan (.yaml) or structures (.xyz and all that ASE reads)",
    )  # fmt: skip
    what.add_argument(
        "--out", type=Path, required=True, metavar="STORE", help="labelling store; continued if it exists"
    )
    what.add_argument(
        "--levels", default="xtb", metavar="NAME[:N],...",
        help="levels, each with its number of geometries, the first with most (default: xtb)",
    )  # fmt: skip
    what.add_argument("--geometries", type=int, default=10, metavar="N", help="geometries where no number is given")
    what.add_argument("--extras", default="", metavar="NAMES", help="density, polarizability: at Kohn-Sham levels")
    what.add_argument("--no-atoms", action="store_true", help="do not label isolated atoms, the references of energies")
    what.add_argument("--retry", action="store_true", help="try again what has failed")


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how to compute")
    how.add_argument("--workers", type=int, default=1, metavar="N", help="processes, one thread each (default 1)")
    how.add_argument("--budget", default="1000h", metavar="TIME", help="start nothing after this time: 90min, 2h, 1d")
    how.add_argument("--limit", type=int, metavar="N", help="start at most this many labels")
    how.add_argument("--job-minutes", type=float, default=15.0, help="time that one label may take (default 15)")
    how.add_argument("--memory", type=float, default=8.0, metavar="GIB", help="memory of a worker (default 8)")
    how.add_argument("--coretype", metavar="NAME", help="OPENBLAS_CORETYPE of the workers; measure before setting it")
    how.add_argument("--cluster", type=Path, metavar="CONFIG.py", help="compute on a cluster, through Parsl")
    how.add_argument("--dry-run", action="store_true", help="queue and estimate, compute nothing")


def parse_hours(text: str) -> float:
    """Time with a unit, in hours.

    Raises
    ------
    ValueError
        If it does not parse.

    Examples
    --------
    >>> parse_hours("90min")
    1.5
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text.strip())
    if match is None:
        raise ValueError(f"`--budget` takes a time with a unit (s, min, h, d), such as 90min or 2h; got `{text}`")
    return float(match.group(1)) * _HOURS[match.group(2)]


def _parse_levels(text: str, n_default: int) -> "tuple[dict[str, Level], dict[str, int]]":
    """``xtb:50,dft`` as fidelity → level, and fidelity → number of geometries."""
    from mfm.labelling.levels import read_level

    levels, counts = {}, {}
    for item in text.split(","):
        name, _, number = item.strip().partition(":")
        levels[name] = read_level(name, None)
        if number and not number.isdigit():
            raise ValueError(f"`--levels` takes NAME or NAME:NUMBER, separated by commas, got `{item}`")
        counts[name] = int(number) if number else n_default
    first = next(iter(counts))
    if most := [name for name, count in counts.items() if count > counts[first]]:
        raise ValueError(
            f"`--levels` must begin with the level of most geometries, got {counts[most[0]]} for `{most[0]}` and"
            f" {counts[first]} for `{first}`; put `{most[0]}` first"
        )
    return levels, counts


def _run_label(options: argparse.Namespace) -> int:
    from mfm.labelling.estimates import estimate_run, format_costs
    from mfm.labelling.store import LabelStore

    hours, started = parse_hours(options.budget), time.monotonic()
    if options.source is None and not options.out.is_file():
        raise ValueError(f"`mfm label` needs a FILE to label, or a store to go on with; {options.out} is none")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    store = LabelStore(options.out)
    try:
        with store.lock():
            if options.retry:
                _LOG.info("%d failures are tried again", store.forget_failures())
            if options.source is not None:
                _LOG.info("%d labels queued", _queue(store, options, hours))
        # making geometries has taken its share of the budget
        hours = max(hours - (time.monotonic() - started) / 3600, 0.0)
        sys.stdout.write(format_costs(estimate_run(store), options.workers, hours))
        sys.stdout.flush()
        if options.dry_run:
            return 0
        summary = _compute(store, options, hours)
        sys.stdout.write(_summarise(store, summary, options.out))
    finally:
        store.close()
    return 0


def _queue(store: "LabelStore", options: argparse.Namespace, hours: float) -> int:
    from mfm.labelling.levels import DensityFunctionalLevel, make_request
    from mfm.labelling.plan import read_plan
    from mfm.labelling.prepare import plan_from_list, queue_plan, queue_structures

    suffix = options.source.suffix.lower()
    if not options.source.is_file():
        raise FileNotFoundError(
            f"FILE must exist, got {options.source}; give SMILES (.smi), a plan (.yaml) or structures"
        )
    if suffix in (".yaml", ".yml"):
        plan = read_plan(options.source)
        return queue_plan(store, plan, options.workers, memory_gib=options.memory, hours=hours)
    levels, counts = _parse_levels(options.levels, options.geometries)
    extras = [name for name in options.extras.split(",") if name]
    asked = [level for level in levels.values() if isinstance(level, DensityFunctionalLevel)]
    # refuse unknown extras, and extras that no level can give, before anything is made
    make_request(asked[0] if asked else next(iter(levels.values())), extras)
    with_atoms = not options.no_atoms
    if suffix not in (".smi", ".smiles", ".txt", ".csv"):
        return queue_structures(store, options.source, levels, extras, with_atoms)
    for name, level in levels.items():
        if level in asked:
            counts |= {f"{name}.{extra}": counts[name] for extra in extras}
    plan = plan_from_list(options.source, store, levels, counts)
    return queue_plan(store, plan, options.workers, with_atoms, options.memory, hours)


def _compute(store: "LabelStore", options: argparse.Namespace, hours: float) -> "RunSummary":
    from mfm.labelling.run import label

    levels = store.levels()
    if options.cluster is None:
        environment = {"OPENBLAS_CORETYPE": options.coretype} if options.coretype else {}
        return label(
            store, levels, options.workers, hours, options.job_minutes, options.memory, environment, options.limit
        )
    from mfm.labelling.cluster import label_on, open_executor

    with open_executor(options.cluster) as executor:
        return label_on(
            executor, store, levels, options.workers, hours, options.job_minutes, options.memory, options.limit
        )


def _summarise(store: "LabelStore", summary: "RunSummary", path: Path) -> str:
    """What a run did, what the store holds, what went wrong, what to do next."""
    from mfm.labelling.levels import base_identifier

    lines = [f"{summary.done} labels in {summary.seconds / 60:.1f} min, {summary.failed} of them failed"]
    for (fidelity, status), count in sorted(store.counts().items()):
        lines.append(f"  {fidelity:14s} {status:7s} {count:8d}")
    failures, fidelities = store.failures(), store.fidelities()
    for molecule, key, message in failures[-5:]:
        lines.append(f"  failed: {molecule} at {fidelities[base_identifier(key)]}: {message}")
    rejected = store.rejected()
    for molecule, message in list(rejected.items())[-5:]:
        lines.append(f"  no geometries: {molecule}: {message}")
    if hidden := max(len(failures) - 5, 0) + max(len(rejected) - 5, 0):
        lines.append(f"  and {hidden} more failures; --retry tries all of them again")
    if summary.left:
        lines.append(f"{summary.left} labels are left; go on with: mfm label --out {path}")
    lines.append(f"write the file to train on: mfm label export {path} --out {path.with_suffix('.h5')}")
    return "\n".join(lines) + "\n"


def _run_export(options: argparse.Namespace) -> int:
    from mfm.data.store import write_store
    from mfm.labelling.density_file import write_densities
    from mfm.labelling.export import QualityRules, export_records
    from mfm.labelling.plan import read_plan
    from mfm.labelling.store import LabelStore

    store = LabelStore(options.store, read_only=True)
    rules = QualityRules(spin_contamination=options.contamination)
    exported = export_records(store, options.base, rules=rules)
    test = read_plan(options.plan).test_molecules if options.plan else []
    card = _card(store, exported, options.name or options.out.stem, test, options.licence)
    write_store(options.out, exported.records, card)
    lines = [f"{options.out}: {len(exported.records)} structures, {', '.join(card.levels)}"]
    lines += [f"left out: {count} {reason}" for reason, count in exported.left_out.items()]
    if options.density:
        for identifier, fidelity in store.fidelities().items():
            level = store.levels()[identifier]
            if any(key.startswith(f"{identifier}|density") for key in store.request_keys()):
                count = write_densities(store, fidelity, level, options.density, rules)
                lines.append(f"{options.density}: {count} densities at {fidelity}")
    sys.stdout.write("\n".join([*lines, f"look into it: mfm data info {options.out}"]) + "\n")
    return 0


def _run_import(options: argparse.Namespace) -> int:
    from mfm.data.opening import open_dataset
    from mfm.labelling.importing import import_labels
    from mfm.labelling.store import LabelStore

    source = open_dataset(str(options.source))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    store = LabelStore(options.out)
    try:
        with store.lock():
            summary = import_labels(store, source)
    finally:
        store.close()
    lines = [f"{name}: {count} labels added, {summary.known[name]} known" for name, count in summary.added.items()]
    sys.stdout.write("\n".join([*lines, f"label what is new: mfm label PLAN.yaml --out {options.out}"]) + "\n")
    return 0


def _card(store: "LabelStore", exported: "Export", name: str, test: list[str], licence: str) -> "DatasetCard":
    """Card of an exported store."""
    from mfm.data.card import DatasetCard
    from mfm.labelling.export import noise_floors, whole_provenance
    from mfm.properties import parse_task

    provenance = whole_provenance(store)
    present = {parse_task(task).fidelity for record in exported.records for task in record.labels}
    levels: Mapping[str, Level] = {
        fidelity: level
        for identifier, level in store.levels().items()
        if (fidelity := store.fidelities()[identifier]) in present
    }
    theories = {fidelity: level.level_of_theory("") for fidelity, level in levels.items()}
    molecules = {record.molecule for record in exported.records}
    hours = sum(seconds for *_, seconds in store.seconds()) / 3600
    return DatasetCard(
        name=name,
        description=f"{len(exported.records)} geometries of {len(molecules)} molecules, labelled by `mfm label` in"
        f" {hours:.3g} CPU-hours.",
        source="computed by mfm",
        licence=licence,
        levels={
            fidelity: level.level_of_theory(provenance.get(theories[fidelity].program.lower(), ""))
            for fidelity, level in levels.items()
        },
        references={fidelity: atoms for fidelity, atoms in exported.references.items() if fidelity in levels},
        energy_zero="total",
        noise_floor=noise_floors(levels),
        test_molecules=tuple(sorted(set(test) & molecules)),
        provenance=provenance,
    )


def _run_enumerate(options: argparse.Namespace) -> int:
    from mfm.labelling.enumeration import enumerate_molecules

    elements = [element.strip() for element in options.elements.split(",")]
    molecules = enumerate_molecules(elements, options.heavy_atoms, options.unstable)
    sys.stdout.write("".join(f"{smiles}\n" for smiles in molecules))
    return 0
