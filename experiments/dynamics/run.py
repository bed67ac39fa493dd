"""Energy drift and memory growth of a model in 10 ps at constant energy; see README.md."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import ase
import ase.optimize
import torch

from mfm import MFMCalculator
from mfm.allocator import tune_allocator
from mfm.checkpoint import load_model
from mfm.data.opening import open_dataset
from mfm.evaluation.dynamics import measure_drift
from mfm.model import MFMModel

DRIFT_BAR = 1e-4  # eV/atom/ps
MEMORY_BAR = 5.0  # MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="builtin:chno-mini")
    parser.add_argument("--molecule", help="name in the dataset (default: the largest that its card holds out)")
    parser.add_argument("--duration", type=float, default=10.0, help="ps at constant energy")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    start, molecule = structure(options.data, options.molecule)
    model = load_model(options.model, dtype=None if options.dtype is None else getattr(torch, options.dtype))
    rows = [measure(model, fidelity, start.copy(), molecule, options) for fidelity in model.fidelities]
    print("| fidelity | drift eV/atom/ps | fluctuation eV/atom | T K | memory MB | ms/step | passed |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['fidelity']} | {row['drift']:+.1e} | {row['fluctuation']:.1e} | {row['temperature']:.0f}"
            f" | {row['memory_growth']:+.1f} | {row['milliseconds']:.1f} | {row['passed']} |"
        )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["passed"] for row in rows) else 1


def structure(data: str, name: str | None) -> tuple[ase.Atoms, str]:
    """First geometry of a molecule, by default of the largest one that the dataset holds out."""
    store = open_dataset(data)
    molecules = store.molecules.tolist()
    if name is None:
        held_out = [i for i, molecule in enumerate(molecules) if molecule in store.card.test_molecules]
        chosen = max(held_out or range(len(store)), key=lambda i: int(store.n_atoms[i]))
    elif name in molecules:
        chosen = molecules.index(name)
    else:
        raise SystemExit(f"`--molecule` must be one of {', '.join(sorted(set(molecules)))}, got `{name}`")
    return store[chosen].structure.to_ase(), molecules[chosen]


def measure(
    model: MFMModel, fidelity: str, atoms: ase.Atoms, molecule: str, options: argparse.Namespace
) -> dict[str, object]:
    atoms.calc = MFMCalculator(model, fidelity=fidelity, device="cpu")
    ase.optimize.BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    started = time.process_time()
    drift = measure_drift(atoms, options.duration, seed=options.seed, progress=f"{molecule} {fidelity}")
    n_steps = (options.duration + 1.0) * 1000 / 0.5
    return {
        "molecule": molecule,
        "fidelity": fidelity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "seed": options.seed,
        **dataclasses.asdict(drift),
        "milliseconds": 1000 * (time.process_time() - started) / n_steps,
        "passed": abs(drift.drift) < DRIFT_BAR and drift.memory_growth < MEMORY_BAR,
    }


if __name__ == "__main__":
    sys.exit(main())
