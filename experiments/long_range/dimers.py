"""Two charged fragments, trained where they are near: whether the energy of far ones follows 1/r.

Trains the same model with and without long range on the ten near separations of a dimer and on each fragment by itself,
then compares the three far ones with their labels, and follows the fragments to 40 Å without periodic images. One JSON
file per model; a model that is there is not trained again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm.data import DatasetCard, Record, write_store
from mfm.data.opening import BENCHMARK_VARIABLE
from mfm.evaluation.predict import predict_structures
from mfm.fidelity import LevelOfTheory
from mfm.graph import Structure
from mfm.model import MFMModel
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary
from mfm.units import COULOMB_CONSTANT

HERE = Path(__file__).parent
# a cell of 30 Å holds many waves; charges of 1.5 Å need a third of those of 1 Å, and beyond the cutoff they are points
_LATENT = {"own_charges": True, "smallest_width": 1.5}
LONG_RANGE: dict[str, dict[str, Any] | None] = {"long-range": _LATENT, "short-range": None, "dimers-alone": _LATENT}
"""Of the last, the fragments by themselves are not in the training set."""
BACKBONE = {"n_layers": 1, "n_channels": 32, "n_product_channels": 32}
NEAR = ["backbone.*", "heads.*"]
"""Parameters of all but the long range."""
FOLDER = "spice_dipeptides_les/lode-datasets"
BEYOND = np.linspace(14.0, 40.0, 14)
"""Distances between the fragments' centres, Å, at which isolated pairs are evaluated."""


def main() -> int:
    """Train what is missing, then write the table and the figure."""
    options = parse_arguments()
    begin()
    frames = write_data(options)
    for seed in options.seeds:
        for name in options.models:
            path = options.results / f"dimers-{name}-{seed}.json"
            labels = {"model": name, "dimer": options.dimer, "seed": seed}
            if not run_model(recipe(name, seed, options), path, labels, lambda model: describe(model, frames)):
                return 130
    table = report(options.results)
    (options.results / "dimers.md").write_text(table, encoding="utf-8")
    draw(options.results)
    sys.stdout.write(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimer", default="id0", help="which pair of the data set; id0 is a cation and an anion")
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU-minutes per model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=LONG_RANGE, default=["long-range", "short-range"])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/long_range"), help="folder of data and models")
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.seeds = options.seeds[:1]
    return options


def write_data(options: argparse.Namespace) -> dict[str, list[Record]]:
    """Near and far separations with their interaction energies; as stores in the work folder."""
    if BENCHMARK_VARIABLE not in os.environ:
        raise SystemExit(f"the dimers need {BENCHMARK_VARIABLE}: the folder that holds {FOLDER}")
    folder = Path(os.environ[BENCHMARK_VARIABLE]) / FOLDER
    card = DatasetCard(
        name=f"lode_dimers_{options.dimer}",
        levels={"dft": LevelOfTheory(method="PBE0", program="FHI-aims")},
        energy_zero="separate fragments",
    )
    frames = {
        name: ase.io.read(folder / f"{part}-{options.dimer}.xyz", index=":")
        for name, part in (("near", "train"), ("far", "test"))
    }
    found = {name: [to_record(atoms) for atoms in some] for name, some in frames.items()}
    options.work.mkdir(parents=True, exist_ok=True)
    parts = {**found, "near-and-fragments": [*found["near"], *fragments(frames["near"][0])]}
    for name, records in parts.items():
        write_store(options.work / f"dimer-{options.dimer}-{name}.h5", records, card)
    return found


def fragments(atoms: ase.Atoms) -> list[Record]:
    """Each fragment by itself in the cell of the pair: no interaction, but a total charge.

    The cell matters: interaction energies are those above two charged fragments that each have their images and a
    neutralising background, 1.4 eV below isolated ones.
    """
    n_first = int(atoms.info["indexB"])
    records = []
    for name, part in (("A", slice(None, n_first)), ("B", slice(n_first, None))):
        charge = int(atoms.info[f"charge{name}"])
        structure = Structure(atoms.numbers[part], atoms.positions[part], atoms.cell.array, atoms.pbc, charge=charge)
        labels = {"energy_dft": np.array(0.0), "forces_dft": np.zeros((len(structure), 3))}
        records.append(Record(structure, labels, origin=f"fragment {name}"))
    return records


def to_record(atoms: ase.Atoms) -> Record:
    info = atoms.info
    structure = Structure(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, charge=int(info["chargeA"]) + int(info["chargeB"])
    )
    labels = {"energy_dft": np.array(info["inter_energy"]), "forces_dft": atoms.get_forces()}
    flags = {"distance": float(info["distance"]), "n_first": float(info["indexB"])}
    return Record(structure, labels, origin=f"{info['distance']:.2f} Å", flags=flags)


def recipe(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run, as ``mfm train`` would read it."""
    shares = {"near": 1 / 3, "all": 2 / 3}
    length = {
        stage: {"max_steps": FAST_STEPS} if options.fast else {"max_minutes": options.minutes * share}
        for stage, share in shares.items()
    }
    kinds = {"train": "near" if name == "dimers-alone" else "near-and-fragments", "test": "far"}
    data = {part: str(options.work / f"dimer-{options.dimer}-{kind}.h5") for part, kind in kinds.items()}
    return {
        "name": f"dimers-{name}-{seed}",
        "data": {**data, "valid_fraction": 0},
        # errors per atom are small numbers beside those of forces
        "tasks": {"energy_dft": {"weight": 100.0}},
        "model": {"long_range": LONG_RANGE[name], "backbone": TINY_BACKBONE if options.fast else BACKBONE},
        "stages": [
            # own charges start with the right sums; they would only follow what the near part lacks
            {"name": "near", "trainable": NEAR, **length["near"]},
            {"name": "all", "lr": 1e-3, **length["all"]},
        ],
        "batch": {"structures": 4},
        # a fragment's own charges add up to its total charge, wherever it is
        "optimizer": {"charge_penalty": 30.0},
        "validations": 1,
        "seed": seed,
        "device": "cpu",
        "output": str(options.work / f"dimers-{options.dimer}-{name}-{seed}"),
        "tracking": "none" if options.fast else {"experiment": "long_range"},
    }


def describe(model: MFMModel, frames: dict[str, list[Record]]) -> dict[str, Any]:
    """Energies near, far and beyond, and their slopes against 1/r."""
    found: dict[str, Any] = {}
    for name, records in frames.items():
        distances = np.array([record.flags["distance"] for record in records])
        energies = np.array([float(record.labels["energy_dft"]) for record in records])
        predicted = energies_of(model, [record.structure for record in records])
        found[name] = {"distance": distances.tolist(), "label": energies.tolist(), "predicted": predicted.tolist()}
        if name == "far":
            # E = a − s/r in the same cell, images and all: what the labels do, the model must do
            found["slope_labels"] = slope(distances, energies)
            found["slope_model"] = slope(distances, predicted)
    first = frames["near"][-1]
    found["beyond"] = beyond(model, first)
    if model.long_range is not None:
        n_first = int(first.flags["n_first"])
        (charges,) = predict_structures(model, [first.structure], forces=False, quantities=["charges_dft"])
        found["fragment_charge"] = float(charges["charges_dft"][:n_first].sum())
    return found


def energies_of(model: MFMModel, structures: list[Structure]) -> np.ndarray:
    return np.array([float(found["energy_dft"]) for found in predict_structures(model, structures, forces=False)])


def slope(distances: np.ndarray, energies: np.ndarray) -> float:
    """−s of the line E = a − s/r, eV Å."""
    return float(np.polyfit(1.0 / distances, energies, 1)[0])


def beyond(model: MFMModel, record: Record) -> dict[str, Any]:
    """The pair without periodic images, its second fragment moved away along the line of centres."""
    positions, n_first = record.structure.positions, int(record.flags["n_first"])
    centres = positions[:n_first].mean(axis=0), positions[n_first:].mean(axis=0)
    axis = centres[1] - centres[0]
    separation = float(np.linalg.norm(axis))
    moved = []
    for distance in BEYOND:
        shifted = positions.copy()
        shifted[n_first:] += axis / separation * (distance - separation)
        moved.append(Structure(record.structure.atomic_numbers, shifted, charge=record.structure.charge))
    energies = energies_of(model, moved)
    # dipoles of the fragments enter as 1/r², so both terms are fitted
    inverse = 1.0 / BEYOND
    coefficients = np.linalg.lstsq(np.stack([np.ones_like(inverse), inverse, inverse**2], axis=1), energies, rcond=None)
    return {
        "distance": BEYOND.tolist(),
        "predicted": energies.tolist(),
        "slope": float(coefficients[0][1]),
        "slope_in_units_of_coulomb": float(coefficients[0][1]) / COULOMB_CONSTANT,
    }


def read_results(results: Path, seed: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Models that are there, by name."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LONG_RANGE}
    for path in sorted(results.glob("dimers-*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if seed is None or cell["seed"] == seed:
            found[cell["model"]].append(cell)
    return found


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    cells = {name: found for name, found in read_results(results).items() if found}
    rows = [
        ("far energies, RMSE, meV", 1, lambda c: c["metrics"]["energy_dft"]["rmse_mev"]),
        ("far forces, RMSE, meV/Å", 1, lambda c: c["metrics"]["forces_dft"]["rmse_mev_per_angstrom"]),
        ("slope of far energies against 1/r, over that of the labels", 3,
         lambda c: c["slope_model"] / c["slope_labels"]),
        ("slope from 14 to 40 Å without images, over −k_e", 3, lambda c: -c["beyond"]["slope_in_units_of_coulomb"]),
        ("charge of the first fragment, e", 3, lambda c: c.get("fragment_charge")),
        ("CPU-minutes", 1, lambda c: c["clock"]["seconds"] / 60),
        ("optimiser steps", 0, lambda c: c["clock"]["step"]),
    ]  # fmt: skip
    lines = ["| | " + " | ".join(cells) + " |", "|" + " --- |" * (1 + len(cells))]
    for title, digits, pick in rows:
        columns = [summary([x for x in map(pick, found) if x is not None], digits) for found in cells.values()]
        lines.append(f"| {title} | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def draw(results: Path) -> None:
    """Interaction energies over the distance, of the first seed."""
    seeds = sorted(json.loads(path.read_text(encoding="utf-8"))["seed"] for path in results.glob("dimers-*.json"))
    cells = {name: found[0] for name, found in read_results(results, seeds[0]).items() if found}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    boxed, free = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for number, (name, cell) in enumerate(cells.items()):
        distances, predicted = ([*cell["near"][key], *cell["far"][key]] for key in ("distance", "predicted"))
        if number == 0:
            labels = [*cell["near"]["label"], *cell["far"]["label"]]
            boxed.plot(distances, labels, "ko", markersize=4, label="DFT")
            boxed.axvspan(cell["far"]["distance"][0] - 0.4, distances[-1] + 0.4, color="0.9")
        boxed.plot(distances, predicted, marker=".", label=name, color=f"C{number}")
        energies = np.array(cell["beyond"]["predicted"])
        inverse = 1.0 / np.array(cell["beyond"]["distance"])
        free.plot(inverse, energies - energies[0], marker=".", label=name, color=f"C{number}")
    free.plot(inverse, -COULOMB_CONSTANT * (inverse - inverse[0]), "k--", linewidth=1, label="−k_e/r")
    boxed.set_xlabel("distance of the fragments, Å (30 Å cell; grey: not trained on)")
    boxed.set_ylabel("interaction energy, eV")
    free.set_xlabel("1/r, 1/Å (isolated pair)")
    free.set_ylabel(f"energy above that at {BEYOND[0]:.0f} Å, eV")
    for axis in (boxed, free):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(results / "dimers.png", dpi=150)


if __name__ == "__main__":
    sys.exit(main())
