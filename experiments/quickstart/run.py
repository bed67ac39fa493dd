"""From shipped labels to molecular dynamics: what `make quickstart` runs after the installation.

Trains on GFN2-xTB, DFT and CCSD(T) labels, evaluates molecules that were held out, runs a short molecular dynamics of
one of them at the CCSD(T) level, and says what was made and what to try next.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import ase
import ase.optimize
import torch

from mfm import MFMCalculator
from mfm.allocator import tune_allocator
from mfm.config import load_config
from mfm.data.opening import open_dataset
from mfm.data.store import Store
from mfm.evaluation.dynamics import energy_drift, run_dynamics, thermalise
from mfm.properties import parse_task
from mfm.training.data import prepare_data
from mfm.training.recipe import RunConfig
from mfm.training.run import TrainResult, train

RECIPE = Path(__file__).parent / "run.yaml"
TEMPERATURE = 300.0  # K
TIMESTEP = 0.5  # fs
LINE = "─" * 96


def main() -> int:
    """Run the four steps and print the last screen."""
    options = parse_arguments()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("mfm").setLevel(logging.INFO)
    tune_allocator()
    # molecules this small train no faster on two cores
    torch.set_num_threads(1)
    started = time.monotonic()
    config = configure(options)

    title(1, "labels")
    store = open_dataset(config.data.train)
    describe(store)

    title(2, f"training in {config.folder} (Ctrl-C stops, the same command continues)")
    folder = Path(config.folder)
    result = train(config, resume=folder.exists())
    if not result.finished:
        print(f"\nstopped; the same command continues in {folder}")
        return 130

    title(3, "molecules that were held out")
    print(result.evaluations["test"].groups_to_markdown("molecule"))

    title(4, f"molecular dynamics at {levels_of(config)[0]}")
    report = dynamics(result, config, options.steps)

    print_last_screen(result, config, store, report, time.monotonic() - started)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of run.yaml")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the run's folder")
    parser.add_argument("--steps", type=int, default=2000, help="steps of molecular dynamics")
    parser.add_argument("--fast", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args()
    if options.fast:
        options.steps = 20
        options.overrides = ["stages=[{name: joint, max_steps: 5}]", "validations=1", *options.overrides]
    return options


def configure(options: argparse.Namespace) -> RunConfig:
    """The recipe, in the folder of a run to continue or in a new one."""
    name = load_config(RunConfig, RECIPE, options.overrides).name
    number = 1
    folder = options.output / name
    while (folder / "model.mfm").exists():
        number += 1
        folder = options.output / f"{name}-{number}"
    return load_config(RunConfig, RECIPE, [*options.overrides, f"output='{folder}'"])


def levels_of(config: RunConfig) -> tuple[str, str]:
    """The last fidelity that is anchored, and the one it is anchored to."""
    name, task = [(name, task) for name, task in config.model.tasks.items() if task.anchor][-1]
    return parse_task(name).fidelity, parse_task(task.anchor).fidelity


def describe(store: Store) -> None:
    print(f"{store.card.name}: {len(store)} geometries of {len(set(store.molecules))} molecules, in mfm's own labels")
    for task in store.labels:
        print(f"  {task:<18} {int(store.coverage(task).sum()):5d} labelled")
    for fidelity, level in store.card.levels.items():
        print(f"  {fidelity:<18} {level.label}")


def dynamics(result: TrainResult, config: RunConfig, n_steps: int) -> list[str]:
    """Relax a held-out molecule, warm it up, let it move freely; lines that say what happened."""
    high, low = levels_of(config)
    atoms, molecule = held_out_molecule(config)
    atoms.calc = MFMCalculator(result.checkpoint, fidelity=high)
    ase.optimize.BFGS(atoms, logfile=None).run(fmax=0.02, steps=100)
    gap = atoms.calc.gap(high, low)
    thermalise(atoms, TEMPERATURE, seed=0)
    run_dynamics(atoms, max(n_steps // 4, 1), TIMESTEP, TEMPERATURE, progress=f"{molecule} at {TEMPERATURE:.0f} K")
    trajectory = result.folder / "dynamics.traj"
    started = time.perf_counter()
    every = max(n_steps // 200, 1)
    bar = f"{molecule}, constant energy"
    run = run_dynamics(atoms, n_steps, TIMESTEP, every=every, trajectory=trajectory, progress=bar)
    speed = 1000 * (time.perf_counter() - started) / n_steps
    lines = [
        f"{atoms.get_chemical_formula()} ({molecule}), {n_steps * TIMESTEP / 1000:g} ps at constant energy:"
        f" {run.temperatures.mean():.0f} K, {speed:.1f} ms per step",
        f"energy drift {energy_drift(run, len(atoms)).drift:+.1e} eV/atom/ps",
        f"{high} minus {low} moved by {1000 * (atoms.calc.gap(high, low) - gap):+.0f} meV from the minimum to the end",
    ]
    print("\n".join(lines))
    return lines


def held_out_molecule(config: RunConfig) -> tuple[ase.Atoms, str]:
    """The largest molecule of the test set that the highest level labels, and its name."""
    test = prepare_data(config.data, list(config.model.tasks)).test
    assert test is not None
    test = test.subset(test.coverage(f"energy_{levels_of(config)[0]}"))
    record = test[int(test.n_atoms.argmax())]
    return record.structure.to_ase(), record.molecule


def print_last_screen(
    result: TrainResult, config: RunConfig, store: Store, dynamics_report: list[str], seconds: float
) -> None:
    high, low = levels_of(config)
    model, folder = result.checkpoint, result.folder
    recorded = "nothing" if config.tracking == "none" else config.tracking.directory
    levels = " and ".join(store.card.levels[parse_task(name).fidelity].label for name in config.model.tasks)
    print(f"\n{LINE}\nDone in {seconds / 60:.1f} minutes. A potential for {levels}.\n")
    print(result.evaluations["test"].to_markdown())
    print("\n".join(["", *dynamics_report]))
    print(f"""
Made
  {model}    the model, all a calculator needs
  {folder / "evaluation"}    tables, parity plots, learning curves
  {folder / "dynamics.traj"}    the trajectory: ase gui {folder / "dynamics.traj"}
  {recorded}    the run, to compare with others

Try next
  source .venv/bin/activate
  mfm ui                                                        # the run in a browser
  mfm eval {model} builtin:chno-mini --held-out --by-molecule
  mfm train experiments/quickstart/run.yaml stages.1.max_minutes=60 --output runs/longer
  mfm train experiments/quickstart/run.yaml 'tasks.energy_{high}.anchor=' --output runs/independent
  open docs/index.md for concepts, conventions, your own data; or, in Python:

    from ase.build import molecule
    from mfm import MFMCalculator
    atoms = molecule("CH3CH2OH", calculator=MFMCalculator("{model}", fidelity="{high}"))
    atoms.get_forces(), atoms.calc.gap("{high}", "{low}")
{LINE}""")


def title(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}\n{LINE}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
