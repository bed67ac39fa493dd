"""Electrons of molecules that a model has not seen: charges, dipoles, quadrupoles, densities.

Trains all of them with energies and forces: first GFN2-xTB's energies, charges and dipoles, then those of `dft`,
anchored to them, with quadrupoles and densities where there are labels. Tells, for the test molecules, how far each is
off beside what needs no training (mean charges of the elements, GFN2-xTB's own, free atoms), and how many cycles an SCF
saves that starts from the density. One JSON file per seed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from baselines import baselines
from measure import draw, scf_cycles, step_ratio, throughput

from mfm.config import validate
from mfm.data import DatasetCard, Record, Store
from mfm.labelling.density_basis import density_basis
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import LEVELS, DensityFunctionalLevel, TightBindingLevel
from mfm.labelling.xtb import label_xtb
from mfm.model import MFMModel
from mfm.structure import Structure
from mfm.training.data import prepare_data
from mfm.training.experiment import (
    FAST_STEPS,
    TINY_BACKBONE,
    add_run_options,
    begin,
    run_model,
    run_settings,
    summary,
)  # fmt: skip
from mfm.training.recipe import DataConfig
from mfm.units import BOHR

HERE = Path(__file__).parent
LOW = "xtb"
ANCHORED = ("charges", "dipole")
ALONE = ("atomic_dipoles", "quadrupole", "density")
FAST_LEVEL = DensityFunctionalLevel(functional="pbe", basis="def2-svp", fitting_basis="def2-universal-jfit", grid=1)
FAST_MOLECULES = {
    "O": ([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]]),
    "[H][H]": ([1, 1], [[0, 0, 0], [0, 0, 0.76]]),
    "OO": ([8, 8, 1, 1], [[0, 0.73, -0.06], [0, -0.73, -0.06], [0.8, 0.9, 0.45], [-0.8, -0.9, 0.45]]),
}


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.fast:
        options.data = str(options.work / "fast.h5")
        fast_store(options.fidelity).write(options.data)
    level = FAST_LEVEL if options.fast else LEVELS[options.fidelity]
    assert isinstance(level, DensityFunctionalLevel)
    for seed in options.seeds:
        if not run(seed, level, options):
            return 130
    table = report(options.results, options.fidelity)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:chno-mini", help="dataset with energies, forces, charges, dipoles")
    parser.add_argument("--densities", default="builtin:chno-mini-densities", help="dataset with their densities")
    parser.add_argument("--fidelity", default="dft")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes per model, a third of them at xtb")
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


def fast_store(fidelity: str) -> Store:
    """A few distorted geometries of three molecules, labelled here."""
    generator, records = np.random.default_rng(0), []
    basis, xtb = density_basis(FAST_LEVEL.basis, FAST_LEVEL.fitting_basis, [1, 8]), TightBindingLevel()
    for name, (numbers, positions) in FAST_MOLECULES.items():
        for _ in range(2):
            moved = np.array(positions) + 0.03 * generator.normal(size=(len(numbers), 3))
            structure = Structure(np.array(numbers), moved)
            found = label_dft(structure, FAST_LEVEL, extras=("density",))
            rows = basis.to_rows(found.values["density_coefficients"] * BOHR**-1.5, structure.atomic_numbers)
            values = {**found.values, "density": rows}
            labels = {f"{prop}_{fidelity}": values[prop] for prop in ("energy", "forces", *ANCHORED, *ALONE)}
            labels |= {f"{prop}_{LOW}": value for prop, value in label_xtb(structure, xtb).values.items()}
            flags = {f"density_error_{fidelity}": found.flags["density_error"]}
            records.append(Record(structure, labels, molecule=name, flags=flags))
    levels = {fidelity: FAST_LEVEL.level_of_theory(""), LOW: xtb.level_of_theory("")}
    return Store.from_records(records, DatasetCard(name="fast", levels=levels, density_bases={fidelity: basis}))


def recipe(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one seed."""
    fidelity = options.fidelity
    low = {f"{prop}_{LOW}": {} for prop in ("energy", *ANCHORED)}
    high = {f"{prop}_{fidelity}": {"anchor": f"{prop}_{LOW}"} for prop in ("energy", *ANCHORED)}
    high |= {f"{prop}_{fidelity}": {} for prop in ALONE}
    high[f"energy_{fidelity}"]["weight"] = 10
    shares = {LOW: 1 / 3, "joint": 2 / 3}
    length = {
        name: {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes * share}
        for name, share in shares.items()
    }
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
        "stages": [
            {"name": LOW, "tasks": list(low), **length[LOW]},
            {"name": "joint", "tasks": list(high), "lr": 1e-3, **length["joint"]},
        ],
        "seed": seed,
        "output": str(options.work / f"seed-{seed}"),
        **run_settings(options, "electrons"),
    }


def run(seed: int, level: DensityFunctionalLevel, options: argparse.Namespace) -> bool:
    """Train and test one model; returns whether it was finished."""
    content, fidelity = recipe(seed, options), options.fidelity

    def describe(model: MFMModel) -> dict[str, Any]:
        data = prepare_data(validate(DataConfig, content["data"]), list(content["tasks"]))
        assert data.test is not None
        trained, labelled = (part.subset(part.coverage(f"density_{fidelity}")) for part in (data.train, data.test))
        draw(model, labelled, fidelity, options.results / f"seed-{seed}")
        return {
            "baselines": baselines(data.train, data.test, fidelity, LOW),
            "scf": scf_cycles(model, labelled, level, options.scf, fidelity),
            "step_ratio": step_ratio(model, trained, fidelity),
            "points_per_second": throughput(model, labelled, fidelity),
        }

    return run_model(content, options.results / f"seed-{seed}.json", {"seed": seed}, describe)


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
    return "\n".join(lines) + "\n"


def metric(cells: list[dict[str, Any]], task: str, name: str) -> list[float]:
    """An error of every seed that has it."""
    found = [cell["metrics"].get(task, {}) for cell in cells]
    return [errors[name] for errors in found if name in errors]


def further(cells: list[dict[str, Any]], fidelity: str) -> list[tuple[str, str]]:
    """Titles and values of all that has no baseline."""

    def of(prop: str, name: str, digits: int = 1) -> str:
        return summary(metric(cells, f"{prop}_{fidelity}", name), digits)

    def of_scf(pick: Callable[[dict[str, float]], float], combine: Callable[[Any], Any] = np.mean) -> list[float]:
        return [float(combine([pick(row) for row in cell["scf"]])) for cell in cells if cell["scf"]]

    shift = of_scf(lambda row: 1e3 * abs(row["energy_predicted_ev"] - row["energy_default_ev"]), max)
    electrons = ", ".join(f"{value:.0e}" for value in metric(cells, f"density_{fidelity}", "electrons_e"))
    rate = summary([cell["points_per_second"] / 1e6 for cell in cells])
    ratios = {name: summary([cell["step_ratio"][name] for cell in cells], 2) for name in ("all", "without density")}
    cycles = {
        guess: summary(of_scf(lambda row, key=f"cycles_{guess}": row[key]))
        for guess in ("default", "predicted", "label")
    }
    return [
        ("energy, meV per atom", of("energy", "mae_mev_per_atom")),
        ("forces, meV/Å", of("forces", "mae_mev_per_angstrom")),
        ("dipole, mean length of the error, mD", of("dipole", "mean_length_millidebye")),
        ("dipole of the density, likewise", of("density", "dipole_millidebye")),
        ("density labels against exact densities (what the basis leaves), %", of("density", "nmae_fit_percent", 2)),
        ("superposed free atoms against the density labels, %", of("density", "nmae_free_atoms_percent")),
        ("electron number, largest error, e", electrons),
        ("SCF cycles from PySCF's guess", cycles["default"]),
        ("from the predicted density", cycles["predicted"]),
        ("from the labelled density", cycles["label"]),
        ("converged energies, largest difference, meV", summary(shift, 4)),
        ("training step over energy and forces alone, all heads", ratios["all"]),
        ("likewise without the density", ratios["without density"]),
        ("density evaluation, million points × atoms per second", rate),
        ("optimiser steps", summary([cell["clock"]["step"] for cell in cells], 0)),
        ("minutes of training", summary([cell["clock"]["seconds"] / 60 for cell in cells])),
    ]


if __name__ == "__main__":
    sys.exit(main())
