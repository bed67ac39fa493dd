"""How near charges without polarisation come to the far energies of the charged dimers, beside charges with it.

Two unit charges in the periodic cell, by an Ewald sum that shares nothing with mfm's; how much nearer they are than the
centres of the fragments, and a constant, are fitted to the near separations. Then the same with a term −p F², F the
force between them: what moments that one fragment induces in the other would add. No model is trained.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from dimers import FOLDER, slope
from ewald import Ewald
from scipy.optimize import least_squares

from mfm.data.opening import BENCHMARK_VARIABLE

HERE = Path(__file__).parent


class Pairs(NamedTuple):
    """Separations of one part of the data."""

    distances: np.ndarray
    """(n,), Å, between the fragments' centres."""
    energies: np.ndarray
    """(n,), eV, of interaction."""


def main() -> int:
    """Fit and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimer", default="id0", help="pair of the dataset (default id0)")
    parser.add_argument(
        "--beyond", type=float, nargs="+", default=[6.5, 7.5, 8.5], help="nearest separations fitted, Å"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if not (folder := os.environ.get(BENCHMARK_VARIABLE)):
        raise SystemExit(f"the dimers need {BENCHMARK_VARIABLE}, the folder of the benchmark data; see docs/data.md")
    near, axis, length = read(Path(folder) / FOLDER / f"train-{options.dimer}.xyz")
    far, _, _ = read(Path(folder) / FOLDER / f"test-{options.dimer}.xyz")
    fits = [
        fit(Pairs(*(values[near.distances > least] for values in near)), far, axis, length, polarised)
        for least in options.beyond
        for polarised in (False, True)
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    table = report(fits)
    (options.results / "dimers-limit.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return 0


def read(path: Path) -> tuple[Pairs, np.ndarray, float]:
    """Separations of a file, the direction in which the fragments part, and the length of the cubic cell, Å."""
    frames = ase.io.read(path, index=":")
    first = [atoms.positions[: int(atoms.info["indexB"])].mean(axis=0) for atoms in frames]
    second = [atoms.positions[int(atoms.info["indexB"]) :].mean(axis=0) for atoms in frames]
    vectors = np.array(second) - np.array(first)
    distances = np.linalg.norm(vectors, axis=1)
    energies = np.array([atoms.info["inter_energy"] for atoms in frames])
    return Pairs(distances, energies), vectors[-1] / distances[-1], float(frames[0].cell.lengths()[0])


def fit(near: Pairs, far: Pairs, axis: np.ndarray, length: float, polarised: bool) -> dict[str, Any]:
    """Parameters from near pairs, what they leave there, and the slope of the far energies over that of the labels."""
    ewald, charges = Ewald(length), np.array([1.0, -1.0])

    def energies(parameters: np.ndarray, distances: np.ndarray) -> np.ndarray:
        shift, constant, *rest = parameters
        found = []
        for distance in distances:
            energy, forces = ewald(np.stack([np.zeros(3), (distance - shift) * axis]), charges)
            found.append(energy + constant - sum(p * float(forces[0] @ forces[0]) for p in rest))
        return np.array(found)

    constant = float(near.energies[-1] - energies(np.zeros(2), near.distances[-1:])[0])
    start = [0.0, constant, 1.0] if polarised else [0.0, constant]
    solution = least_squares(lambda x: energies(x, near.distances) - near.energies, start).x
    left = {
        part: 1e3 * float(np.sqrt(np.mean(np.square(energies(solution, pairs.distances) - pairs.energies))))
        for part, pairs in (("near", near), ("far", far))
    }
    predicted = energies(solution, far.distances)
    return {
        "polarised": polarised,
        "nearest": float(near.distances.min()),
        "shift": float(solution[0]),
        "polarisation": float(solution[2]) if polarised else 0.0,
        "near_rmse_mev": left["near"],
        "far_rmse_mev": left["far"],
        "slope_ratio": slope(far.distances, predicted) / slope(far.distances, far.energies),
    }


def report(fits: list[dict[str, Any]]) -> str:
    """Markdown table."""
    columns = {
        "nearest separation, Å": lambda row: f"{row['nearest']:.2f}",
        "polarisation": lambda row: "yes" if row["polarised"] else "no",
        "near energies, RMSE, meV": lambda row: f"{row['near_rmse_mev']:.1f}",
        "far energies, RMSE, meV": lambda row: f"{row['far_rmse_mev']:.1f}",
        "far slope over that of the labels": lambda row: f"{row['slope_ratio']:.3f}",
    }
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(pick(row) for pick in columns.values()) + " |" for row in fits]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
