"""Electrons of molecules that a model has not seen: charges, dipoles, quadrupoles, densities.

Trains all of them with energies and forces, where there are labels; on request GFN2-xTB's energies, charges and dipoles
before, and those of `dft` anchored to them. Tells, for the test molecules, how far each is off beside what needs no
training (mean charges of the elements, GFN2-xTB's own, free atoms), and how many cycles an SCF saves that starts from
the density. One JSON file per seed.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from baselines import baselines
from measure import draw, step_ratio, throughput

from mfm.checkpoint import load_model
from mfm.config import validate
from mfm.labelling.levels import LEVELS, DensityFunctionalLevel
from mfm.model import MFMModel
from mfm.training.data import prepare_data
from mfm.training.experiment import (
    FAST_STEPS,
    TINY_BACKBONE,
    add_run_options,
    begin,
    run_model,
    run_settings,
    summary,
)
from mfm.training.recipe import DataConfig

HERE = Path(__file__).parent
LOW = "xtb"
ANCHORED = ("charges", "dipole")
ALONE = ("atomic_dipoles", "quadrupole", "density")


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    options.work.mkdir(parents=True, exist_ok=True)
    level = LEVELS[options.fidelity]
    if options.fast:
        from smoke import FAST_LEVEL, fast_store

        options.data, level = str(options.work / "fast.h5"), FAST_LEVEL
        fast_store(options.fidelity, LOW, [*ANCHORED, *ALONE]).write(options.data)
    assert isinstance(level, DensityFunctionalLevel)
    for seed in options.seeds:
        if not run(seed, options):
            return 130
    if options.scf:
        count_cycles(level, options)
    table = report(options.results, options.fidelity)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:chno-mini", help="dataset with energies, forces, charges, dipoles")
    parser.add_argument("--densities", default="builtin:chno-mini-densities", help="dataset with their densities")
    parser.add_argument("--fidelity", default="dft")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes per model")
    parser.add_argument("--xtb-share", type=float, default=0.0, metavar="SHARE", help="of them at xtb first")
    parser.add_argument("--structures", type=int, default=8, help="most in a batch; raise it on an accelerator")
    parser.add_argument("--scf", type=int, default=10, metavar="N", help="smallest test molecules to start an SCF for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/electrons"), help="folder of the models")
    add_run_options(parser)
    parser.add_argument("--fast", action="store_true", help="a few steps on three molecules, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.seeds, options.scf, options.densities = [0], 1, None
    return options


def recipe(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one seed."""
    fidelity = options.fidelity
    anchored = ("energy", *ANCHORED)
    low: dict[str, dict[str, Any]] = {f"{prop}_{LOW}": {} for prop in anchored} if options.xtb_share else {}
    high: dict[str, dict[str, Any]] = {f"{prop}_{fidelity}": {} for prop in (*anchored, *ALONE)}
    for name, base in zip(high, low, strict=False):
        high[name]["anchor"] = base
    high[f"energy_{fidelity}"]["weight"] = 10

    def stage(name: str, tasks: Mapping[str, Any], share: float, **settings: float) -> dict[str, Any]:
        length = {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes * share}
        return {"name": name, "tasks": list(tasks), **length, **settings}

    stages = [stage("joint", high, 1.0)]
    if low:  # what was learned before is kept by a lower rate
        stages = [stage(LOW, low, options.xtb_share), stage("joint", high, 1.0 - options.xtb_share, lr=1e-3)]
    return {
        "name": f"electrons-{seed}",
        "data": {
            "train": options.data,
            "densities": options.densities,
            "valid_fraction": 0.0,
            **({"test_fraction": 0.34} if options.fast else {}),
        },
        "tasks": {**low, **high},
        "model": {"backbone": TINY_BACKBONE} if options.fast else {},
        "stages": stages,
        "batch": {"structures": options.structures, "atoms": 128 * options.structures},
        "seed": seed,
        "output": str(options.work / f"seed-{seed}"),
        **run_settings(options, "electrons"),
    }


def run(seed: int, options: argparse.Namespace) -> bool:
    """Train and test one model; returns whether it was finished."""
    content, fidelity = recipe(seed, options), options.fidelity

    def describe(model: MFMModel) -> dict[str, Any]:
        # what GFN2-xTB says stands beside the model whether it learned that or not
        compared = [f"{prop}_{LOW}" for prop in ("energy", *ANCHORED)]
        data = prepare_data(validate(DataConfig, content["data"]), [*compared, *content["tasks"]])
        assert data.test is not None
        trained, labelled = (part.subset(part.coverage(f"density_{fidelity}")) for part in (data.train, data.test))
        draw(model, labelled, fidelity, options.results / f"seed-{seed}")
        return {
            "baselines": baselines(data.train, data.test, fidelity, LOW),
            "step_ratio": step_ratio(model, trained, fidelity),
            "points_per_second": throughput(model, labelled, fidelity),
        }

    return run_model(content, options.results / f"seed-{seed}.json", {"seed": seed}, describe)


def count_cycles(level: DensityFunctionalLevel, options: argparse.Namespace) -> None:
    """Start SCFs from the densities of all models that lie in the work folder."""
    # PySCF is needed for nothing else, and a machine that only trains may lack it
    from scf import measure_cycles

    paths = {seed: options.work / f"seed-{seed}" / "model.mfm" for seed in options.seeds}
    models = {seed: load_model(path) for seed, path in paths.items()}
    content = recipe(options.seeds[0], options)
    data = prepare_data(validate(DataConfig, content["data"]), list(content["tasks"]))
    assert data.test is not None
    labelled = data.test.subset(data.test.coverage(f"density_{options.fidelity}"))
    measure_cycles(models, labelled, level, options.scf, options.fidelity, options.results / "scf.json")


ERRORS = {
    "charges": ("charges, me", "mae_me"),
    "dipole": ("dipole, per component, mD", "mae_millidebye"),
    "quadrupole": ("quadrupole, per component, me Å²", "mae_me_angstrom2"),
    "density": ("density, NMAE, %", "nmae_percent"),
}
"""Property to its title and the name of its error."""


def report(results: Path, fidelity: str) -> str:
    """Markdown: errors beside those of guesses, and what else was measured; means and ranges over seeds."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("seed-*.json"))]
    lines = [f"| error at {fidelity}, test molecules | model | element means | {LOW} |", "| --- | --- | --- | --- |"]
    for prop, (title, metric) in ERRORS.items():
        own = [
            cell["metrics"][f"{prop}_{fidelity}"][metric] for cell in cells if f"{prop}_{fidelity}" in cell["metrics"]
        ]
        guesses = cells[0]["baselines"].get(prop, {})
        cheap = f"{guesses[LOW]:.1f}" if LOW in guesses else ""
        mean = f"{guesses['element means']:.1f}" if guesses else ""
        lines.append(f"| {title} | {summary(own)} | {mean} | {cheap} |")
    lines += ["", "| | |", "| --- | --- |", *(f"| {title} | {value} |" for title, value in further(cells, fidelity))]
    if (results / "scf.json").exists():
        rows = json.loads((results / "scf.json").read_text(encoding="utf-8"))
        lines += [f"| {title} | {value} |" for title, value in scf_rows(rows)]
    return "\n".join(lines) + "\n"


def scf_rows(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Mean cycles from each guess, over molecules, then the range over models."""
    seeds = [name for name in rows[0] if name not in ("molecule", "default", "label")]

    def cycles(*guesses: str) -> str:
        return summary([float(np.mean([row[guess]["cycles"] for row in rows])) for guess in guesses])

    shift = max(abs(row[seed]["energy_ev"] - row["default"]["energy_ev"]) for row in rows for seed in seeds)
    fewer = [row[seed]["cycles"] < row["default"]["cycles"] for row in rows for seed in seeds]
    return [
        (f"SCF cycles from PySCF's guess, {len(rows)} molecules", cycles("default")),
        ("from the predicted density", cycles(*seeds)),
        ("from the labelled density", cycles("label")),
        ("share of SCFs that the predicted density shortens, %", f"{100 * np.mean(fewer):.0f}"),
        ("converged energies, largest difference, meV", f"{1e3 * shift:.4f}"),
    ]


def metric(cells: list[dict[str, Any]], task: str, name: str) -> list[float]:
    """An error of every seed that has it."""
    found = [cell["metrics"].get(task, {}) for cell in cells]
    return [errors[name] for errors in found if name in errors]


def further(cells: list[dict[str, Any]], fidelity: str) -> list[tuple[str, str]]:
    """Titles and values of all that has no baseline."""

    def of(prop: str, name: str, digits: int = 1) -> str:
        return summary(metric(cells, f"{prop}_{fidelity}", name), digits)

    electrons = ", ".join(f"{value:.0e}" for value in metric(cells, f"density_{fidelity}", "electrons_e"))
    rate = summary([cell["points_per_second"] / 1e6 for cell in cells])
    ratios = {name: summary([cell["step_ratio"][name] for cell in cells], 2) for name in ("all", "without density")}
    return [
        ("energy, meV per atom", of("energy", "mae_mev_per_atom")),
        ("forces, meV/Å", of("forces", "mae_mev_per_angstrom")),
        ("dipole, mean length of the error, mD", of("dipole", "mean_length_millidebye")),
        ("dipole of the density, likewise", of("density", "dipole_millidebye")),
        ("density labels against exact densities (what the basis leaves), %", of("density", "nmae_fit_percent", 2)),
        ("superposed free atoms against the density labels, %", of("density", "nmae_free_atoms_percent")),
        ("electron number, largest error, e", electrons),
        ("training step over energy and forces alone, all heads", ratios["all"]),
        ("likewise without the density", ratios["without density"]),
        ("density evaluation, million points × atoms per second", rate),
        ("optimiser steps", summary([cell["clock"]["step"] for cell in cells], 0)),
        ("minutes of training", summary([cell["clock"]["seconds"] / 60 for cell in cells])),
    ]


if __name__ == "__main__":
    sys.exit(main())
