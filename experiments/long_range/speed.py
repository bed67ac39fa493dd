"""Time the long-range sums: batches against a loop, the mesh against the sum it replaces, up to 100,000 atoms.

Figures are medians of processor time of runs that take turns; ratios are of one run. One thread.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mfm import tracking
from mfm.allocator import tune_allocator
from mfm.fidelity import LevelOfTheory
from mfm.graph import AtomicGraph, Structure, build_graph, collate
from mfm.longrange import LatentEwaldConfig
from mfm.longrange.base import Particles
from mfm.longrange.energy import WIDEST_WAVE, long_range_energy
from mfm.model import Domain, MFMModel, ModelConfig, build_model
from mfm.training.experiment import processor, write_json
from mfm.units import COULOMB_CONSTANT

DENSITY = 0.1
"""Atoms per Å³, that of water."""
WIDTH = 1.0
K_CUTOFF = WIDEST_WAVE / WIDTH
STRAIGHTFORWARD_CUTOFF = 5.2
"""Where a sum with a sharp cut has the same error as ours with its window."""
EXACT, MESH = 10**9, 0


def main() -> int:
    """Run what is asked for and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="picture of the times over the number of atoms to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=100_000, help="atoms of the largest system")
    parser.add_argument(
        "--direct", type=int, default=6000, help="atoms at which the mesh meets the straightforward sum"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to time")
    options = parser.parse_args()
    if options.figure is not None and "scaling" not in options.parts:
        parser.error("`--figure` draws the part `scaling`; add it to `--parts`")
    tune_allocator()
    torch.set_num_threads(1)
    found = {"commit": tracking.code_version(), "torch": torch.__version__, "processor": processor()}
    found |= {part: PARTS[part](options) for part in PARTS if part in options.parts}
    write_json(options.json, found)
    if options.figure is not None:
        draw(found["scaling"], options.figure)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


def draw(scaling: dict[str, list[float]], path: Path) -> None:
    """Times over the number of atoms, beside a straight line through the last one."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    atoms = np.array(scaling["n_atoms"])
    for name, marker in (("exact", "s-"), ("mesh", "o-")):
        times = 1e3 * np.array(scaling[name])
        axis.loglog(atoms[: len(times)], times, marker, markersize=4, label=name)
    large = atoms[atoms >= 0.01 * atoms[-1]]
    axis.loglog(large, 1e3 * scaling["mesh"][-1] * large / large[-1], "k:", linewidth=1, label="proportional to atoms")
    axis.set_xlabel("atoms")
    axis.set_ylabel("energy and gradient, ms, one thread")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def ions(n_atoms: int, seed: int = 0) -> tuple[AtomicGraph, Tensor]:
    """A random gas in a cubic cell and its charges."""
    generator = np.random.default_rng(seed)
    length = (n_atoms / DENSITY) ** (1 / 3)
    charges = 0.4 * generator.standard_normal(n_atoms)
    structure = Structure(
        np.ones(n_atoms, dtype=np.int64),
        generator.random((n_atoms, 3)) * length,
        np.eye(3) * length,
        np.ones(3, dtype=bool),
    )
    no_neighbours = np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    graph = build_graph(structure, 1.0, dtype=torch.float32, neighbours=no_neighbours)
    return graph, torch.as_tensor(charges - charges.mean(), dtype=torch.float32)


def ours(
    graph: AtomicGraph,
    charges: Tensor,
    mesh_above: int,
    k_cutoff: float = K_CUTOFF,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Energies by mfm's sums."""
    widths = torch.full((graph.n_atoms,), WIDTH, dtype=torch.float64)
    kinds = torch.zeros(graph.n_atoms, dtype=torch.int64)
    particles = Particles(
        charges.double().unsqueeze(1), widths, graph.positions.double(), graph.batch, kinds, precision
    )
    return long_range_energy("coulomb", particles, graph, k_cutoff, mesh_above)


def straightforward(positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
    """Textbook sum for one structure: phases of every atom with every wave of half the sphere, in float32."""
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).T
    reach = torch.floor(STRAIGHTFORWARD_CUTOFF * torch.linalg.vector_norm(cell, dim=1) / (2.0 * math.pi)).int().tolist()
    axes = [torch.arange(-n, n + 1, dtype=cell.dtype) for n in reach]
    axes[0] = torch.arange(0, reach[0] + 1, dtype=cell.dtype)
    indices = torch.cartesian_prod(*axes)
    waves = indices @ reciprocal
    squares = waves.square().sum(dim=1)
    chosen = (squares > 0) & (squares <= STRAIGHTFORWARD_CUTOFF**2)
    waves, squares, indices = waves[chosen], squares[chosen], indices[chosen]
    phases = positions @ waves.T
    power = (charges @ torch.cos(phases)).square() + (charges @ torch.sin(phases)).square()
    weights = torch.exp(-0.5 * (WIDTH**2) * squares) / squares * (1.0 + (indices[:, 0] > 0))
    energy = 2.0 * math.pi * COULOMB_CONSTANT / torch.linalg.det(cell).abs() * (weights * power).sum()
    return energy - charges.square().sum() * COULOMB_CONSTANT / (math.sqrt(2.0 * math.pi) * WIDTH)


def loop(graph: AtomicGraph, charges: Tensor) -> Tensor:
    """The straightforward sum, structure by structure."""
    parts = zip(graph.positions.split(counts_of(graph)), charges.split(counts_of(graph)), graph.cell, strict=True)
    return torch.stack([straightforward(positions, some, cell) for positions, some, cell in parts])


def counts_of(graph: AtomicGraph) -> list[int]:
    """Atoms of each structure."""
    return [int(n) for n in graph.atoms_per_structure().tolist()]


def evaluate(
    function: Callable[..., Tensor], graph: AtomicGraph, charges: Tensor, *rest: Any
) -> tuple[float, Tensor, Tensor]:
    """Seconds of processor time, energies, and forces of one forward and backward pass."""
    moved = graph.clone()
    moved.positions, charges = graph.positions.clone().requires_grad_(True), charges.clone().requires_grad_(True)
    started = time.process_time()
    energies = function(moved, charges, *rest)
    forces = torch.autograd.grad(energies.sum(), (moved.positions, charges))[0]
    return time.process_time() - started, energies.detach(), forces


def time_batches(repeats: int) -> dict[str, float]:
    """32 cells of 96 atoms at once, against one after the other."""
    parts = [ions(96, seed) for seed in range(32)]
    graph, charges = collate([graph for graph, _ in parts]), torch.cat([charges for _, charges in parts])
    mine, theirs = [], []
    for _ in range(4 * repeats):
        mine.append(evaluate(ours, graph, charges, EXACT))
        theirs.append(evaluate(loop, graph, charges))
    seconds = [float(np.median([run[0] for run in runs[2:]])) for runs in (mine, theirs)]
    _, energies, forces = evaluate(ours, graph, charges, EXACT, 2.0 * K_CUTOFF, torch.float64)
    found = {"milliseconds": 1e3 * seconds[0], "milliseconds_loop": 1e3 * seconds[1], "ratio": seconds[1] / seconds[0]}
    for name, run in (("", mine[0]), ("_loop", theirs[0])):
        found[f"energy_error_mev_per_atom{name}"] = 1e3 * float((run[1] - energies).abs().max()) / 96
        found[f"relative_force_error{name}"] = float((run[2] - forces).norm() / forces.norm())
    return found


def time_mesh(n_atoms: int, repeats: int) -> dict[str, float]:
    """Mesh against the straightforward sum, and the relative error of its forces."""
    graph, charges = ions(n_atoms)
    direct = evaluate(loop, graph, charges)
    exact = evaluate(ours, graph, charges, EXACT)
    runs = [evaluate(ours, graph, charges, MESH) for _ in range(repeats + 1)][1:]
    seconds = float(np.median([run[0] for run in runs]))
    return {
        "n_atoms": n_atoms,
        "milliseconds": 1e3 * seconds,
        "milliseconds_exact": 1e3 * exact[0],
        "milliseconds_direct": 1e3 * direct[0],
        "ratio_to_direct": direct[0] / seconds,
        "relative_force_error": float((runs[0][2] - exact[2]).norm() / exact[2].norm()),
        "relative_force_error_direct": float((direct[2] - exact[2]).norm() / exact[2].norm()),
    }


def time_scaling(largest: int) -> dict[str, list[float]]:
    """Seconds of processor time and peak memory of exact sum and mesh by number of atoms."""
    sizes = [n for n in (100, 200, 400, 800, 1600, 3000, 10_000, 30_000, 100_000) if n <= largest]
    table: dict[str, list[float]] = {"n_atoms": [float(n) for n in sizes], "exact": [], "mesh": [], "peak_gib": []}
    for n_atoms in sizes:
        graph, charges = ions(n_atoms)
        for name, above in (("exact", EXACT), ("mesh", MESH)):
            if name == "exact" and n_atoms > 3000:
                continue
            table[name].append(min(evaluate(ours, graph, charges, above)[0] for _ in range(3)))
        table["peak_gib"].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return table


def water(n_side: int) -> AtomicGraph:
    """Molecules on a grid at the density of water."""
    length = n_side * 3.105
    molecule = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])
    grid = np.stack(np.meshgrid(*[np.arange(n_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3) * 3.105
    structure = Structure(
        np.tile([8, 1, 1], n_side**3), (grid + molecule).reshape(-1, 3), np.eye(3) * length, np.ones(3, dtype=bool)
    )
    return build_graph(structure, 5.0)


def time_model(repeats: int) -> dict[str, dict[str, float]]:
    """Energy and forces of water, with and without the long-range part."""

    def make(long_range: LatentEwaldConfig | None) -> MFMModel:
        domain = Domain(references={"dft": {1: 0.0, 8: 0.0}}, levels={"dft": LevelOfTheory("none")})
        config = ModelConfig(tasks={"energy_dft": {}}, long_range=long_range)
        return build_model(config, domain, seed=0).eval().requires_grad_(False)

    models = {"local": make(None), "long_range": make(LatentEwaldConfig())}
    found = {}
    for n_side in (4, 6):
        graph, seconds = water(n_side), {name: [] for name in models}
        for _ in range(4 * repeats):
            for name, model in models.items():
                started = time.process_time()
                model.predict(graph, derivatives=["forces_dft"])
                seconds[name].append(time.process_time() - started)
        middle = {name: float(np.median(times[2:])) for name, times in seconds.items()}
        found[str(graph.n_atoms)] = {
            **{f"milliseconds_{name}": 1e3 * value for name, value in middle.items()},
            "overhead": middle["long_range"] / middle["local"] - 1.0,
        }
    return found


# scaling first, because the others would raise the peak of the memory
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "scaling": lambda options: time_scaling(options.largest),
    "batch": lambda options: time_batches(options.repeats),
    "mesh": lambda options: time_mesh(options.direct, options.repeats),
    "model": lambda options: time_model(options.repeats),
}


if __name__ == "__main__":
    sys.exit(main())
