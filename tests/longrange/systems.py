"""Point charges to sum, and a front end that takes numpy arrays."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from mfm.graph import AtomicGraph, Structure, build_graph
from mfm.longrange.base import Particles
from mfm.longrange.energy import long_range_energy
from mfm.longrange.kernels import Kernel

EXACT_ONLY = 10**9
MESH_ONLY = 0


def particles(graph: AtomicGraph, amplitudes: ArrayLike, widths: ArrayLike = 1.0, kinds: ArrayLike = 0) -> Particles:
    n_atoms = graph.n_atoms
    return Particles(
        torch.as_tensor(np.asarray(amplitudes, dtype=float).reshape(n_atoms, -1)),
        torch.as_tensor(np.broadcast_to(np.asarray(widths, dtype=float), (n_atoms,)).copy()),
        graph.positions,
        graph.batch,
        torch.as_tensor(np.broadcast_to(np.asarray(kinds), (n_atoms,)).copy()),
    )


def graph_of(positions: ArrayLike, cell: ArrayLike | None = None, pbc: bool | tuple[bool, ...] = True) -> AtomicGraph:
    positions = np.asarray(positions, dtype=float)
    structure = Structure(
        np.ones(len(positions), dtype=np.int64),
        positions,
        np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=float),
        np.broadcast_to(np.asarray(pbc if cell is not None else False), (3,)).copy(),
    )
    return build_graph(structure, 1e-3, dtype=torch.float64)


def energy(
    positions: ArrayLike,
    charges: ArrayLike,
    cell: ArrayLike | None = None,
    pbc: bool | tuple[bool, ...] = True,
    widths: ArrayLike = 1.0,
    kinds: ArrayLike = 0,
    kernel: Kernel = "coulomb",
    k_cutoff: float = 8.0,
    mesh_above: int = EXACT_ONLY,
) -> float:
    graph = graph_of(positions, cell, pbc)
    found = long_range_energy(kernel, particles(graph, charges, widths, kinds), graph, k_cutoff, mesh_above)
    return float(found)


def gas(n_atoms: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, charges that add up to zero, and a triclinic cell."""
    generator = np.random.default_rng(seed)
    cell = np.array([[6.0, 0.0, 0.0], [1.5, 5.5, 0.0], [-1.0, 0.8, 6.5]])
    charges = generator.standard_normal(n_atoms)
    return generator.random((n_atoms, 3)) @ cell, charges - charges.mean(), cell


def water_box(n_side: int = 4, length: float = 12.42) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Water molecules, turned at random, on a grid: positions, charges +0.3 and −0.6 e, cell."""
    molecule = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])
    grid = np.stack(np.meshgrid(*[np.arange(n_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    turns = Rotation.random(n_side**3, random_state=3)
    molecules = np.einsum("nij,kj->nki", turns.as_matrix(), molecule)
    positions = (molecules + (grid + 0.5) * (length / n_side)).reshape(-1, 3)
    return positions, np.tile([-0.6, 0.3, 0.3], n_side**3), np.eye(3) * length
