"""Electron densities of molecules that a model has not seen.

Trains a density, with the charges and dipoles of the same electrons and with energies and forces, on the structures of
a dataset that have density labels; molecules are held out. Then tells, for the held-out ones, how far the density is
off beside the representation's own error and superposed free atoms, its electrons and its dipole, and how many cycles
an SCF saves that starts from it. One JSON file per seed.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyscf import dft

from mfm.data import DatasetCard, Record, Store, open_dataset
from mfm.data.dataset import GraphDataset
from mfm.data.joining import join_labels
from mfm.data.splits import by_molecule
from mfm.density.evaluator import MolecularDensity, density_at
from mfm.density.fields import field_at
from mfm.evaluation.density_plots import plot_slice
from mfm.graph import AtomicGraph, collate
from mfm.labelling.density_basis import density_basis
from mfm.labelling.density_guess import initial_guess
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import LEVELS, DensityFunctionalLevel
from mfm.labelling.molecule import build_molecule
from mfm.losses import combine, loss_terms
from mfm.model import MFMModel, ModelConfig, build_model
from mfm.potential import Potential
from mfm.structure import Structure
from mfm.training.data import fit_domain
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary
from mfm.training.recipe import DataConfig
from mfm.training.scales import label_scales
from mfm.units import BOHR, HARTREE

HERE = Path(__file__).parent
HEADS = ("density", "charges", "dipole", "atomic_dipoles")
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
    data = options.work / "data.h5"
    if not data.exists():
        store = fast_store(options.fidelity) if options.fast else chosen_store(options)
        store.write(data)
    level = FAST_LEVEL if options.fast else LEVELS[options.fidelity]
    assert isinstance(level, DensityFunctionalLevel)
    for seed in options.seeds:
        if not run(seed, data, level, options):
            return 130
    table = report(options.results)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:chno-mini", help="dataset with energies, forces, charges, dipoles")
    parser.add_argument("--densities", help="dataset with the densities (mfm label export --density)")
    parser.add_argument("--fidelity", default="dft")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU-minutes per model")
    parser.add_argument("--scf", type=int, default=10, metavar="N", help="held-out molecules to start an SCF for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/density"), help="folder of the models")
    parser.add_argument("--fast", action="store_true", help="a few steps on three molecules, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.seeds, options.scf = [0], 1
    elif options.densities is None:
        parser.error("--densities FILE is needed: write it with `mfm label export STORE --out A.h5 --density FILE`")
    return options


def chosen_store(options: argparse.Namespace) -> Store:
    """Structures with a density, and what else is known of them at its level."""
    joined = join_labels(open_dataset(options.data), open_dataset(options.densities))
    wanted = joined.subset(joined.coverage(f"density_{options.fidelity}"))
    names = [f"{prop}_{options.fidelity}" for prop in ("energy", "forces", *HEADS)]
    records = [
        Record(r.structure, {task: r.labels[task] for task in names if task in r.labels}, r.molecule, r.origin, r.flags)
        for r in wanted
    ]
    return Store.from_records(records, wanted.card)


def fast_store(fidelity: str) -> Store:
    """A few distorted geometries of three molecules, labelled here."""
    generator, records = np.random.default_rng(0), []
    basis = density_basis(FAST_LEVEL.basis, FAST_LEVEL.fitting_basis, [1, 8])
    for name, (numbers, positions) in FAST_MOLECULES.items():
        for _ in range(2):
            moved = np.array(positions) + 0.03 * generator.normal(size=(len(numbers), 3))
            structure = Structure(np.array(numbers), moved)
            found = label_dft(structure, FAST_LEVEL, extras=("density",))
            rows = basis.to_rows(found.values["density_coefficients"] * BOHR**-1.5, structure.atomic_numbers)
            values = {**found.values, "density": rows}
            labels = {f"{prop}_{fidelity}": values[prop] for prop in ("energy", "forces", *HEADS)}
            flags = {f"density_error_{fidelity}": found.flags["density_error"]}
            records.append(Record(structure, labels, molecule=name, flags=flags))
    levels = {fidelity: FAST_LEVEL.level_of_theory("")}
    return Store.from_records(records, DatasetCard(name="fast", levels=levels, density_bases={fidelity: basis}))


def run(seed: int, data: Path, level: DensityFunctionalLevel, options: argparse.Namespace) -> bool:
    """Train and test one model; returns whether it was finished."""
    fidelity = options.fidelity
    tasks = {f"energy_{fidelity}": {}, **{f"{prop}_{fidelity}": {} for prop in HEADS}}
    length = {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes}
    shares = {"valid_fraction": 0.0, "test_fraction": 0.34} if options.fast else {"valid_fraction": 0.0}
    content: dict[str, Any] = {
        "name": f"density-{seed}",
        "data": {"train": str(data), **shares},
        "tasks": tasks,
        "stages": [{"name": "joint", **length}],
        "seed": seed,
        "output": str(options.work / f"seed-{seed}"),
        "tracking": "none" if options.fast else {"experiment": "density"},
    }
    if options.fast:
        content["model"] = {"backbone": TINY_BACKBONE}

    def describe(model: MFMModel) -> dict[str, Any]:
        store = open_dataset(data)
        held_out = shares.get("test_fraction", DataConfig.model_fields["test_fraction"].default)
        parts = by_molecule(store, {"test": held_out, "train": 1.0 - held_out}, 0)
        test = store.subset(parts["test"])
        draw(model, test, fidelity, options.results / f"seed-{seed}")
        return {
            "scf": scf_cycles(model, test, level, options.scf, fidelity),
            "step_ratio": step_ratio(model, store, fidelity),
            "points_per_second": throughput(model, test, fidelity),
        }

    return run_model(content, options.results / f"seed-{seed}.json", {"seed": seed}, describe)


def draw(model: MFMModel, store: Store, fidelity: str, start: Path) -> None:
    """Pictures of the largest molecule: what bonding has changed, and what the prediction is off, ten times as dark."""
    record = max(store, key=lambda record: len(record.structure))
    density = Potential(model, torch.device("cpu")).density(record.structure, fidelity)
    label = torch.as_tensor(record.labels[f"density_{fidelity}"])
    off = density._replace(coefficients=density.coefficients - label)
    start.parent.mkdir(parents=True, exist_ok=True)
    for name, what, limit in (("deformation", density, 0.5), ("error", off, 0.05)):
        path = start.with_name(f"{start.name}-{name}.png")
        plot_slice(
            path, record.structure, lambda p, what=what: field_at(p, what, "deformation"), "deformation", limit=limit
        )


def scf_cycles(
    model: MFMModel, store: Store, level: DensityFunctionalLevel, count: int, fidelity: str
) -> list[dict[str, Any]]:
    """Cycles of the level's SCF from PySCF's guess, from the predicted density and from the labelled one."""
    potential = Potential(model, torch.device("cpu"))
    _, first = np.unique(store.molecules, return_index=True)
    found = []
    for record in (store[int(i)] for i in sorted(first)[:count]):
        molecule = build_molecule(record.structure, level.basis)
        basis = model.domain.density_bases[fidelity]
        label = MolecularDensity.of(record.structure, record.labels[f"density_{fidelity}"], basis)
        guesses = {
            "default": None,
            "predicted": initial_guess(molecule, potential.density(record.structure, fidelity)),
            "label": initial_guess(molecule, label),
        }
        row: dict[str, Any] = {"molecule": record.molecule}
        for name, guess in guesses.items():
            cycles: list[int] = []
            solver = (dft.UKS if molecule.spin else dft.RKS)(molecule, xc=level.functional)
            solver = solver.density_fit(auxbasis=level.fitting_basis)
            solver.grids.level, solver.conv_tol = level.grid, level.tolerance
            solver.callback = lambda state, cycles=cycles: cycles.append(state["cycle"])
            solver.kernel(dm0=guess)
            row |= {f"cycles_{name}": len(cycles), f"energy_{name}_ev": float(solver.e_tot * HARTREE)}
        found.append(row)
    return found


def step_ratio(model: MFMModel, store: Store, fidelity: str, repeats: int = 7) -> dict[str, float]:
    """Time of a training step with all heads over that with energy and forces alone, and over that without density."""
    energy = [f"energy_{fidelity}"]
    sets = {"energy": energy, "without density": [t for t in model.tasks if not t.startswith("density")]}
    sets["all"] = model.tasks
    steps = {name: step_of(model, store, tasks, fidelity) for name, tasks in sets.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    best = {name: float(np.median(found)) for name, found in times.items()}
    return {name: best[name] / best["energy"] for name in ("all", "without density")} | {"seconds": best["energy"]}


def step_of(model: MFMModel, store: Store, tasks: list[str], fidelity: str) -> Any:
    """A training step of a model with some of the tasks, on a batch of eight structures, without the optimiser."""
    configs = {name: task for name, task in model.config.tasks.items() if name in tasks}
    config = ModelConfig.model_validate(
        {**model.config.model_dump(), "tasks": {k: v.model_dump() for k, v in configs.items()}}
    )
    trained = build_model(config, fit_domain(store, configs, model.cutoff), 0, model.dtype)  # fmt: skip
    derivatives = [f"forces_{fidelity}"]
    dataset = GraphDataset(store, model.cutoff, [*tasks, *derivatives], trained.domain.references, model.dtype)
    rows = np.random.default_rng(0).permutation(len(store))[:8]
    batch: AtomicGraph = collate([dataset[int(row)] for row in rows])
    sizes = label_scales(store, configs)

    def step() -> None:
        trained.zero_grad()
        outputs = trained(batch, tasks, derivatives)
        combine(loss_terms(outputs, batch, configs, trained.domain.scale, None, sizes)).backward()

    step()
    return step


def throughput(model: MFMModel, store: Store, fidelity: str) -> float:
    """Points times atoms per second at which a density is evaluated, float64."""
    record = max(store, key=lambda record: len(record.structure))
    density = Potential(model, torch.device("cpu")).density(record.structure, fidelity)
    points = torch.as_tensor(np.random.default_rng(0).normal(scale=2.0, size=(20000, 3)))
    times = []
    with torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            density_at(points, density)
            times.append(time.process_time() - start)
    return len(points) * len(record.structure) / min(times)


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("seed-*.json"))]
    density = [found for cell in cells for task, found in cell["metrics"].items() if task.startswith("density_")]

    def of_scf(pick: Any) -> list[float]:
        return [float(np.mean([pick(row) for row in cell["scf"]])) for cell in cells if cell["scf"]]

    def metric(name: str) -> list[float]:
        return [found[name] for found in density if name in found]

    def shift(found: list[dict[str, float]]) -> float:
        return max(1e3 * abs(row["energy_predicted_ev"] - row["energy_default_ev"]) for row in found)

    rows: Mapping[str, str] = {
        "density NMAE of held-out molecules against the labels, %": summary(metric("nmae_percent"), 2),
        "of the labels against the exact densities (representation), %": summary(metric("nmae_fit_percent"), 2),
        "of superposed free atoms against the labels, %": summary(metric("nmae_free_atoms_percent"), 2),
        "electron number, largest error, e": ", ".join(f"{value:.0e}" for value in metric("electrons_e")),
        "dipole of the density, mean length of the error, mD": summary(metric("dipole_millidebye")),
        "SCF cycles from PySCF's guess": summary(of_scf(lambda row: row["cycles_default"])),
        "from the predicted density": summary(of_scf(lambda row: row["cycles_predicted"])),
        "from the labelled density": summary(of_scf(lambda row: row["cycles_label"])),
        "converged energies, largest difference, meV": summary([shift(c["scf"]) for c in cells if c["scf"]], 4),
        "training step over energy and forces alone, all heads": summary([c["step_ratio"]["all"] for c in cells], 2),
        "likewise without the density": summary([c["step_ratio"]["without density"] for c in cells], 2),
        "density evaluation, million points × atoms per second": summary([c["points_per_second"] / 1e6 for c in cells]),
        "optimiser steps": summary([c["clock"]["step"] for c in cells], 0),
        "CPU-minutes": summary([c["clock"]["seconds"] / 60 for c in cells]),
    }  # fmt: skip
    return "| | |\n| --- | --- |\n" + "".join(f"| {title} | {value} |\n" for title, value in rows.items())


if __name__ == "__main__":
    sys.exit(main())
