"""Frames, batches and references, as the peers get them. Needs only numpy and torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Frame(NamedTuple):
    """One structure, its labels and its neighbours."""

    numbers: Tensor  # (n_atoms,)
    positions: Tensor  # (n_atoms, 3), Å
    cell: Tensor  # (3, 3), Å, rows are vectors
    pbc: Tensor  # (3,)
    edges: Tensor  # (2, n_edges): senders, receivers; sorted by receiver
    shifts: Tensor  # (n_edges, 3): r_ij = positions[sender] + shifts @ cell - positions[receiver]
    energy: float  # eV, total, float64
    forces: Tensor  # (n_atoms, 3), eV/Å


class Batch(NamedTuple):
    """Frames side by side; energies without references, float32."""

    numbers: Tensor
    positions: Tensor
    cell: Tensor  # (n_frames, 3, 3)
    pbc: Tensor  # (n_frames, 3)
    edges: Tensor
    shifts: Tensor
    frame: Tensor  # (n_atoms,), which frame an atom belongs to
    first: Tensor  # (n_frames + 1,), first atom of each frame
    energies: Tensor  # (n_frames,)
    forces: Tensor

    @property
    def sizes(self) -> Tensor:
        """(n_frames,), atoms of each frame."""
        return self.first[1:] - self.first[:-1]

    @property
    def edge_frame(self) -> Tensor:
        """(n_edges,), which frame an edge belongs to."""
        return self.frame[self.edges[1]]

    def offsets(self) -> Tensor:
        """(n_edges, 3), lattice translations in Å."""
        return torch.einsum("ei,eij->ej", self.shifts, self.cell[self.edge_frame])


class Facts(NamedTuple):
    """What a model is told about the training set."""

    elements: list[int]
    cutoff: float
    """Å."""
    scale: float
    """Root mean square force component, eV/Å."""
    average_neighbours: float
    seed: int
    """Of the weights, for a package that does not take torch's."""


def read_frames(path: Path) -> list[Frame]:
    """Frames of an archive that the benchmark wrote."""
    with np.load(path) as archive:
        data = {name: torch.as_tensor(archive[name]) for name in archive.files}
    n_atoms, n_edges = data["n_atoms"].tolist(), data["n_edges"].tolist()
    columns = [torch.split(data[name], n_atoms) for name in ("numbers", "positions", "forces")]
    columns += [torch.split(data[name], n_edges) for name in ("edges", "shifts")]
    return [
        Frame(
            numbers=numbers,
            positions=positions.float(),
            cell=data["cell"][i].float(),
            pbc=data["pbc"][i],
            edges=edges.T.contiguous(),
            shifts=shifts.float(),
            energy=float(data["energies"][i]),
            forces=forces.float(),
        )
        for i, (numbers, positions, forces, edges, shifts) in enumerate(zip(*columns, strict=True))
    ]


def collate(frames: Sequence[Frame], energies: Sequence[float]) -> Batch:
    """Frames as one batch; `energies` are those of the frames without references."""
    sizes = torch.tensor([len(frame.numbers) for frame in frames])
    first = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(sizes, 0)])
    return Batch(
        numbers=torch.cat([frame.numbers for frame in frames]),
        positions=torch.cat([frame.positions for frame in frames]),
        cell=torch.stack([frame.cell for frame in frames]),
        pbc=torch.stack([frame.pbc for frame in frames]),
        edges=torch.cat([frame.edges + int(start) for frame, start in zip(frames, first[:-1], strict=True)], dim=1),
        shifts=torch.cat([frame.shifts for frame in frames]),
        frame=torch.repeat_interleave(torch.arange(len(frames)), sizes),
        first=first,
        energies=torch.tensor(energies, dtype=torch.float32),
        forces=torch.cat([frame.forces for frame in frames]),
    )


class References:
    """Energies of atoms, by least squares of smallest norm on the training set, in float64."""

    def __init__(self, frames: Sequence[Frame], elements: Sequence[int]) -> None:
        self._elements = torch.tensor(elements)
        energies = np.array([frame.energy for frame in frames])
        self._atoms, *_ = np.linalg.lstsq(self._counts(frames), energies, rcond=1e-6)

    def __call__(self, frames: Sequence[Frame]) -> np.ndarray:
        """(n_frames,), eV."""
        return self._counts(frames) @ self._atoms

    def _counts(self, frames: Sequence[Frame]) -> np.ndarray:
        counts = [(frame.numbers[:, None] == self._elements).sum(dim=0) for frame in frames]
        return torch.stack(counts).double().numpy()


def facts_of(frames: Sequence[Frame], cutoff: float, seed: int) -> Facts:
    """What the training set says about itself."""
    forces = torch.cat([frame.forces for frame in frames])
    n_atoms = sum(len(frame.numbers) for frame in frames)
    return Facts(
        elements=sorted({int(z) for frame in frames for z in frame.numbers}),
        cutoff=cutoff,
        scale=float(forces.square().mean().sqrt()) or 1.0,
        average_neighbours=max(sum(frame.edges.shape[1] for frame in frames) / n_atoms, 1.0),
        seed=seed,
    )
