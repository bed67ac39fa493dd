"""What cheaper labels are worth to a CCSD(T) model, on molecules that it has not seen.

Trains the recipe beside this file (CCSD(T) anchored to DFT, DFT anchored to GFN2-xTB), the same without xTB, and the
same model on the CCSD(T) energies alone, equally long, for several seeds. Then compares forces with finite differences
of CCSD(T) energies, tells molecules larger than any that was trained on apart, and lets the largest move at 500 K until
a bond breaks. One JSON file per model; a model that is there is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfm.calculator import MFMCalculator
from mfm.config import apply_overrides, read_yaml, validate
from mfm.data import Record, Store, open_dataset
from mfm.evaluation.dynamics import survival_time
from mfm.evaluation.evaluate import evaluate
from mfm.model import MFMModel
from mfm.training.data import prepare_data
from mfm.training.experiment import FAST_STEPS, TINY_BACKBONE, begin, run_model, summary
from mfm.training.recipe import RunConfig

HERE = Path(__file__).parent
RECIPE = HERE / "run.yaml"
MODELS = ("cascade", "denoised", "anchor", "ccsdt-only")
FORCES = "builtin:ccsdt-forces"
DRAWN = 20
"""Molecules that `--select` holds out."""


def main() -> int:
    """Train what is missing, then write the table."""
    options = parse_arguments()
    begin()
    options.results.mkdir(parents=True, exist_ok=True)
    options.data = None
    if options.select is not None:
        options.data = options.work / f"select-{options.select}.h5"
        options.work.mkdir(parents=True, exist_ok=True)
        selection(read_yaml(RECIPE)["data"]["train"], options.select).write(options.data)
    for seed in options.seeds:
        for name in options.models:
            if not run(name, seed, options):
                return 130
    table = report(options.results)
    (options.results / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of run.yaml")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU-minutes per model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/chno_mini"), help="folder of the models")
    parser.add_argument(
        "--select",
        type=int,
        metavar="SEED",
        help="hold out training molecules drawn with this seed and leave the test molecules alone: to choose settings",
    )
    parser.add_argument("--molecules", type=int, default=3, help="largest test molecules to move at 500 K (default 3)")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="longest run of each (default 20)")
    parser.add_argument("--fast", action="store_true", help="a few steps of a tiny model, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.seeds, options.molecules, options.picoseconds = [0], 1, 0.01
        options.overrides = [f"model.backbone={TINY_BACKBONE}", "validations=1", "tracking=none", *options.overrides]
    return options


def selection(source: str, seed: int) -> Store:
    """The dataset without its test molecules, other ones held out in their place.

    They are drawn from those that have CCSD(T) labels and at least two heavy atoms.
    """
    store = open_dataset(source)
    usable = store.subset(~np.isin(store.molecules, store.card.test_molecules))
    labelled = usable.subset(usable.coverage("energy_ccsdt"))
    names = np.unique(labelled.molecules[heavy_atoms(labelled) > 1])
    drawn = np.random.default_rng(seed).choice(names, size=min(DRAWN, len(names)), replace=False)
    return usable.with_card(store.card.model_copy(update={"test_molecules": tuple(sorted(map(str, drawn)))}))


def heavy_atoms(store: Store) -> np.ndarray:
    """(n_structures,), atoms other than hydrogen."""
    elements = store.elements
    return np.asarray(store.n_atoms - store.composition(elements)[:, elements.index(1)])


def arms(recipe: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Tasks and stages of every model.

    Those of the recipe, the same after a sixth of the time for denoising, the same without xTB, and CCSD(T) energies
    alone. The last two have one stage, at the rate of the recipe's first: nothing was learned before.
    """
    tasks, stages = recipe["tasks"], recipe["stages"]
    anchor = {name: task for name, task in tasks.items() if name != "energy_xtb"}
    anchor["energy_dft"] = {key: value for key, value in anchor["energy_dft"].items() if key != "anchor"}
    whole = sum(stage["max_minutes"] for stage in stages)
    near = ["equilibrium", "relaxed", "md300", "modes"]
    denoise = {"name": "denoise", "objective": "denoising", "max_minutes": whole / 5, "origins": near}
    alone = {"name": "joint", "max_minutes": whole}
    return {
        "cascade": (tasks, stages),
        "denoised": (tasks, [denoise, *stages]),
        "anchor": (anchor, [alone]),
        "ccsdt-only": ({"energy_ccsdt": {}}, [alone]),
    }


def timed(stages: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Stages with the same shares of another time, so that all models train equally long."""
    whole = sum(stage["max_minutes"] for stage in stages)
    found = []
    for stage in stages:
        length = {"max_minutes": options.minutes * stage["max_minutes"] / whole}
        rest = {key: value for key, value in stage.items() if key != "max_minutes"}
        found.append({**rest, **({"max_steps": FAST_STEPS} if options.fast else length)})
    return found


def run(name: str, seed: int, options: argparse.Namespace) -> bool:
    """Train and test one model; returns whether it was finished."""
    content = read_yaml(RECIPE)
    tasks, stages = arms(content)[name]
    content |= {"name": f"chno-mini-{name}-{seed}", "tasks": tasks, "stages": timed(stages, options)}
    content |= {"seed": seed, "output": str(options.work / f"{name}-{seed}")}
    if options.data is not None:
        content["data"]["train"] = str(options.data)
    content = apply_overrides(content, options.overrides)

    def describe(model: MFMModel) -> dict[str, Any]:
        config = validate(RunConfig, content)
        data = prepare_data(config.data, list(config.model.tasks))
        assert data.test is not None
        far = larger(data.test, data.train)
        return {
            "forces_against_ccsdt": {f"forces_{f}": compare_forces(model, f) for f in model.fidelities},
            "larger": evaluate(model, far).metrics if len(far) else {},
            "survival_ps": survival(model, data.test, options),
        }

    return run_model(content, options.results / f"{name}-{seed}.json", {"model": name, "seed": seed}, describe)


def larger(test: Store, train: Store) -> Store:
    """Test structures with more heavy atoms than any molecule that was trained on; pairs of molecules do not count."""
    single = np.array(["." not in str(molecule) for molecule in train.molecules])
    return test.subset(np.flatnonzero(heavy_atoms(test) > heavy_atoms(train)[single].max()))


def survival(model: MFMModel, test: Store, options: argparse.Namespace) -> dict[str, float]:
    """Picoseconds that the largest test molecules with CCSD(T) labels last at 500 K on that level, by molecule.

    Those have them whatever a model trains, so that all models move the same ones.
    """
    test = test.subset(test.coverage("energy_ccsdt"))
    _, first = np.unique(test.molecules, return_index=True)
    found = {}
    for row in sorted(first, key=lambda row: -test.n_atoms[row])[: options.molecules]:
        record = test[int(row)]
        atoms = record.structure.to_ase()
        atoms.calc = MFMCalculator(model, fidelity="ccsdt", device="cpu")
        found[record.molecule] = survival_time(atoms, options.picoseconds)
    return found


def compare_forces(model: MFMModel, fidelity: str) -> dict[str, float]:
    """Errors of the forces at a fidelity against finite differences of CCSD(T) energies."""
    store = open_dataset(FORCES)
    task = f"forces_{fidelity}"
    card = store.card.model_copy(update={"levels": model.domain.levels})
    records = [
        Record(record.structure, {task: record.labels["forces_ccsdt"]}, record.molecule, record.origin)
        for record in store
    ]
    return evaluate(model, Store.from_records(records, card), [task]).metrics[task]


FORCE_ERROR = "mae_mev_per_angstrom"
ROWS: list[tuple[str, tuple[str, ...]]] = [
    ("CCSD(T) energy MAE, held-out molecules, meV", ("metrics", "energy_ccsdt", "mae_mev")),
    ("CCSD(T) energy MAE, meV/atom", ("metrics", "energy_ccsdt", "mae_mev_per_atom")),
    ("DFT energy MAE, meV", ("metrics", "energy_dft", "mae_mev")),
    ("DFT force MAE, meV/Å", ("metrics", "forces_dft", FORCE_ERROR)),
    ("GFN2-xTB energy MAE, meV", ("metrics", "energy_xtb", "mae_mev")),
    ("larger than any trained on: CCSD(T) energy MAE, meV/atom", ("larger", "energy_ccsdt", "mae_mev_per_atom")),
    ("larger: DFT energy MAE, meV/atom", ("larger", "energy_dft", "mae_mev_per_atom")),
    ("larger: DFT force MAE, meV/Å", ("larger", "forces_dft", FORCE_ERROR)),
    ("CCSD(T) head against CCSD(T) forces, MAE, meV/Å", ("forces_against_ccsdt", "forces_ccsdt", FORCE_ERROR)),
    ("DFT head against CCSD(T) forces, MAE, meV/Å", ("forces_against_ccsdt", "forces_dft", FORCE_ERROR)),
    ("optimiser steps", ("clock", "step")),
]  # fmt: skip
"""Title and place of a figure."""


def report(results: Path) -> str:
    """Markdown table, means and ranges over seeds."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*-*.json"))]

    def column(pick: Callable[[dict[str, Any]], list[float]]) -> str:
        mine = {name: [value for cell in cells if cell["model"] == name for value in pick(cell)] for name in MODELS}
        return " | ".join(summary(values) for values in mine.values())

    lines = ["| | " + " | ".join(MODELS) + " |", "|" + " --- |" * (1 + len(MODELS))]
    lines += [f"| {title} | {column(lambda cell, place=place: at(cell, place))} |" for title, place in ROWS]
    lines.append(
        f"| ps at 500 K until a bond breaks | {column(lambda cell: list(cell.get('survival_ps', {}).values()))} |"
    )
    lines.append(f"| CPU-minutes | {column(lambda cell: [cell['clock']['seconds'] / 60])} |")
    return "\n".join(lines) + "\n"


def at(cell: Mapping[str, Any], place: Sequence[str]) -> list[float]:
    """The figure at a place of nested results, if it is there."""
    found: Any = cell
    for key in place:
        if key not in found:
            return []
        found = found[key]
    return [found]


if __name__ == "__main__":
    sys.exit(main())
