"""What labels of charges, dipoles and quadrupoles do to forces at equal optimiser steps, and how well they are learned.

Trains models of the 495 published training frames of polar dipeptides: on energies and forces alone, and with one kind
of electronic label after another beside them. Tests on the 55 published validation frames, which are used for nothing
else. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mfm.data import Record, Store, open_dataset
from mfm.data.targets import label_target
from mfm.evaluation.predict import predict_structures
from mfm.model import MFMModel
from mfm.structure import Structure
from mfm.study.report import table
from mfm.training.experiment import (
    FAST_STEPS,
    TINY_BACKBONE,
    add_run_options,
    begin,
    run_model,
    run_settings,
    summary,
    write_json,
)
from mfm.units import BOHR

HERE = Path(__file__).parent
ENERGY, FORCES = "energy_dft", "forces_dft"
CHARGES, DIPOLE, QUADRUPOLE = "charges_dft", "dipole_dft", "quadrupole_dft"
BASELINE = "off"
ARMS: dict[str, tuple[str, ...]] = {
    BASELINE: (),
    "charges": (CHARGES,),
    "charges+dipole": (CHARGES, DIPOLE),
    "charges+dipole+quadrupole": (CHARGES, DIPOLE, QUADRUPOLE),
}
"""Arm to the tasks beside energies and forces."""
BACKBONE = {"cutoff": 4.0}
"""Å, as in experiments/long_range/dipeptides.py."""


def nuclear_charge_centre(structure: Structure) -> np.ndarray:
    """(3,), Å; what mfm's moments are about."""
    numbers = structure.atomic_numbers
    return np.asarray(numbers @ structure.positions / numbers.sum())


def spice_origin(structure: Structure) -> np.ndarray:
    """(3,), Å: the origin of SPICE's own coordinates of these molecules, whose centroid is at (1, 1, 1) bohr."""
    return np.asarray(structure.positions.mean(axis=0) - BOHR)


ORIGINS: dict[str, Callable[[Structure], np.ndarray]] = {
    "the nuclear charge centre": nuclear_charge_centre,
    "a point one bohr below the centroid on every axis": spice_origin,
}
"""Points that a file's quadrupoles may be about."""


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    write_data(options)
    test = open_dataset(options.work / "test.h5")
    for seed in options.seeds:
        for arm in options.arms:
            content = recipe(arm, seed, options)
            labels = {"arm": arm, "long_range": options.long_range, "seed": seed}
            path = options.results / f"{content['name']}.json"
            if not run_model(content, path, labels, lambda model: dipoles_of_charges(model, test)):
                return 130
    text = report(options.results)
    (options.results / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps of every model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--long-range", action="store_true", help="let the charges interact beyond the cutoff, too")
    parser.add_argument("--train", default="benchmark:spice_dipeptides/train", help="dataset to learn from")
    parser.add_argument("--test", default="benchmark:spice_dipeptides/val", help="dataset to test on")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/electronic_labels"), help="folder of data and models")
    add_run_options(parser)
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.steps, options.seeds = FAST_STEPS, options.seeds[:1]
    return options


def write_data(options: argparse.Namespace) -> None:
    """Both parts with quadrupoles about the nuclear charge centre, and what can be said of the labels themselves.

    What a file's quadrupoles are about is decided by the MBIS charges of the training frames: about the right point,
    the second moments of the charges agree best with the labels.
    """
    if (options.work / "test.h5").exists() and (options.results / "labels.json").exists():
        return
    options.work.mkdir(parents=True, exist_ok=True)
    train, test = open_dataset(options.train), open_dataset(options.test)
    misfits = {name: misfit(train, origin) for name, origin in ORIGINS.items()}
    origin = min(misfits, key=lambda name: misfits[name])
    for name, store in (("train", train), ("test", test)):
        moved = Store.from_records((about_nuclei(record, ORIGINS[origin]) for record in store), store.card)
        moved.write(options.work / f"{name}.h5")
    found = {"quadrupoles_about": origin, "misfits_to_charges": misfits, **describe_labels(moved)}
    write_json(options.results / "labels.json", found)


def misfit(store: Store, origin: Callable[[Structure], np.ndarray]) -> float:
    """Root mean square difference of traceless quadrupoles of charges about a point and labels, per component, e Å²."""
    differences = [
        charges_quadrupole(record.labels[CHARGES], record.structure.positions - origin(record.structure))
        - label_target(QUADRUPOLE, record.labels[QUADRUPOLE])
        for record in store
    ]
    return rms(differences)


def about_nuclei(record: Record, origin: Callable[[Structure], np.ndarray]) -> Record:
    """The record of a neutral molecule with its quadrupole about the nuclear charge centre.

    Σ q (x − d)(x − d)ᵀ = Σ q x xᵀ − μ dᵀ − d μᵀ if Σ q = 0, the dipole μ being the same about every point.
    """
    structure = record.structure
    if structure.charge != 0:
        raise SystemExit(f"quadrupoles of ions cannot be moved without an origin of their dipoles: {record.molecule}")
    mixed = np.outer(record.labels[DIPOLE], nuclear_charge_centre(structure) - origin(structure))
    labels = {**record.labels, QUADRUPOLE: record.labels[QUADRUPOLE] - mixed - mixed.T}
    return Record(structure, labels, record.molecule, record.origin, record.flags)


def charges_quadrupole(charges: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Traceless second moment of point charges, (3, 3), e Å²."""
    return label_target(QUADRUPOLE, np.einsum("i,ia,ib->ab", charges, positions, positions))


def charges_dipole(charges: np.ndarray, structure: Structure) -> np.ndarray:
    """Dipole of point charges about the nuclear charge centre, (3,), e Å."""
    return np.asarray(charges @ (structure.positions - nuclear_charge_centre(structure)))


def rms(values: list[np.ndarray]) -> float:
    """Root mean square over components."""
    return float(np.sqrt(np.mean(np.square(np.concatenate([np.ravel(value) for value in values])))))


def describe_labels(test: Store) -> dict[str, float]:
    """Errors of the moments of the labelled charges, e Å and e Å², and the spread of the charges, e; test frames."""
    dipoles = [charges_dipole(record.labels[CHARGES], record.structure) - record.labels[DIPOLE] for record in test]
    return {
        "dipole_of_charges_rmse": rms(dipoles),
        "quadrupole_of_charges_rmse": misfit(test, nuclear_charge_centre),
        "charges_spread": float(np.std(test.values(CHARGES))),
    }


def dipoles_of_charges(model: MFMModel, test: Store) -> dict[str, float]:
    """Error of the dipoles of the model's charges alone, e Å per component, if it was taught charges."""
    if CHARGES not in model.tasks:
        return {}
    records = list(test)
    predictions = predict_structures(model, [record.structure for record in records], forces=False)
    differences = [
        charges_dipole(prediction[CHARGES], record.structure) - record.labels[DIPOLE]
        for prediction, record in zip(predictions, records, strict=True)
    ]
    return {"dipole_of_charges_rmse": rms(differences)}


def recipe(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The run of one model, as ``mfm train`` would read it."""
    name = f"{arm.replace('+', '-')}{'-long-range' if options.long_range else ''}-{seed}"
    return {
        "name": name,
        "data": {
            "train": str(options.work / "train.h5"),
            "test": str(options.work / "test.h5"),
            "valid_fraction": 0,
        },
        # errors per atom are small numbers beside those of forces
        "tasks": {ENERGY: {"weight": 10.0}, **{task: {} for task in ARMS[arm]}},
        "model": {
            "long_range": {} if options.long_range else None,
            "backbone": TINY_BACKBONE if options.fast else BACKBONE,
        },
        "stages": [{"name": "fit", "max_steps": options.steps}],
        "batch": {"structures": 4},
        "validations": 1,
        "seed": seed,
        "output": str(options.work / name),
        **run_settings(options, "electronic_labels"),
    }


def report(results: Path) -> str:
    """Markdown: a table without and one with long range, of those that there are models of."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*-*.json"))]
    labels = json.loads((results / "labels.json").read_text(encoding="utf-8"))
    sections = []
    for title, long_range in (("Short range", False), ("Long range", True)):
        cells = [cell for cell in found if cell["long_range"] == long_range]
        if cells:
            sections.append(f"{title}\n\n{arms_table(cells, labels)}")
    misfits = ", ".join(f"{value:.3f} about {name}" for name, value in labels["misfits_to_charges"].items())
    remark = (
        f"Quadrupoles of the files are about {labels['quadrupoles_about']}. RMS difference between the labels and the"
        f" second moments of the MBIS charges, training frames, e Å²: {misfits}.\n\nEqual steps are not equal time: see"
        " the minutes."
    )
    return "\n\n".join([*sections, remark]) + "\n"


def arms_table(cells: list[dict[str, Any]], labels: dict[str, Any]) -> str:
    """Errors of the arms and of the labelled charges themselves, means and ranges over seeds."""
    alone = {cell["seed"]: force_error(cell) for cell in cells if cell["arm"] == BASELINE}

    def of(task: str, metric: str, factor: float = 1.0) -> Callable[[dict[str, Any]], float | None]:
        return lambda cell: cell["metrics"][task][metric] * factor if task in cell["metrics"] else None

    def ratio(cell: dict[str, Any]) -> float | None:
        return force_error(cell) / alone[cell["seed"]] if cell["seed"] in alone else None

    def explained(cell: dict[str, Any]) -> float | None:
        error = of(CHARGES, "rmse_me", 1e-3)(cell)
        return None if error is None else 1.0 - (error / labels["charges_spread"]) ** 2

    rows: list[tuple[str, int, Callable[[dict[str, Any]], float | None], str]] = [
        ("forces, RMSE, meV/Å", 1, force_error, ""),
        (f"over that of `{BASELINE}` with the same seed", 3, ratio, ""),
        ("energy, RMSE, meV/atom", 2, of(ENERGY, "rmse_mev_per_atom"), ""),
        ("charges, RMSE, me", 1, of(CHARGES, "rmse_me"), ""),
        ("charges, R²", 4, explained, ""),
        ("dipole, RMSE, e Å", 4, of(DIPOLE, "rmse_me_angstrom", 1e-3), f"{labels['dipole_of_charges_rmse']:.4f}"),
        ("dipole of the charges alone, RMSE, e Å", 4, lambda cell: cell.get("dipole_of_charges_rmse"),
         f"{labels['dipole_of_charges_rmse']:.4f}"),
        ("quadrupole, RMSE, e Å²", 3, of(QUADRUPOLE, "rmse_me_angstrom2", 1e-3),
         f"{labels['quadrupole_of_charges_rmse']:.3f}"),
        ("minutes of training", 1, lambda cell: cell["clock"]["seconds"] / 60, ""),
        ("optimiser steps", 0, lambda cell: cell["clock"]["step"], ""),
    ]  # fmt: skip
    lines = []
    for title, digits, pick, of_labels in rows:
        values = {arm: [pick(cell) for cell in cells if cell["arm"] == arm] for arm in ARMS}
        columns = [summary([v for v in some if v is not None], digits) for some in values.values()]
        lines.append([title, *columns, of_labels])
    return table(["", *ARMS, "MBIS charges of the labels"], lines)


def force_error(cell: dict[str, Any]) -> float:
    """Root mean square error of the forces, meV/Å."""
    return float(cell["metrics"][FORCES]["rmse_mev_per_angstrom"])


if __name__ == "__main__":
    sys.exit(main())
