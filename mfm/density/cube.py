"""Regular grids around a molecule, and Gaussian cube files, which are in bohr."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfm.structure import Structure
from mfm.units import BOHR

__all__ = ["CubeGrid", "cube_grid", "write_cube"]


class CubeGrid(NamedTuple):
    """Points origin + i step e_x + j step e_y + k step e_z."""

    origin: np.ndarray
    """(3,), Å."""
    step: float
    """Å."""
    shape: tuple[int, int, int]
    """Number of points along x, y and z."""

    def planes(self) -> Iterator[np.ndarray]:
        """Points (n_y n_z, 3), Å, of each plane along x; z runs fastest."""
        y, z = (self.origin[axis] + self.step * np.arange(self.shape[axis]) for axis in (1, 2))
        for i in range(self.shape[0]):
            x = np.array([self.origin[0] + self.step * i])
            yield np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)


def cube_grid(structure: Structure, step: float = 0.15, margin: float = 3.0) -> CubeGrid:
    """Grid that reaches beyond the nuclei of a molecule on every side.

    Parameters
    ----------
    step : float, Å
        Distance of neighbouring points.
    margin : float, Å
        Least distance of a nucleus from the faces of the box.

    Raises
    ------
    ValueError
        If one of them is not positive.
    """
    if not (step > 0 and margin > 0):
        raise ValueError(f"`step` and `margin` must be lengths above 0 Å, got {step} and {margin}")
    low, high = structure.positions.min(axis=0) - margin, structure.positions.max(axis=0) + margin
    counts = np.ceil((high - low) / step).astype(int) + 1
    origin = 0.5 * (low + high) - 0.5 * step * (counts - 1)
    return CubeGrid(origin, step, (int(counts[0]), int(counts[1]), int(counts[2])))


def write_cube(path: str | Path, structure: Structure, grid: CubeGrid, values: np.ndarray, title: str) -> None:
    """Write values on a grid as a cube file.

    Parameters
    ----------
    values : (n_x, n_y, n_z)
        In the unit the file shall have: e/bohr³ for densities, hartree/e for potentials.
    title : str
        First line of the file.

    Raises
    ------
    ValueError
        If the values are not on the grid.
    """
    if np.shape(values) != grid.shape:
        raise ValueError(f"`values` must have the shape of the grid {grid.shape}, got {np.shape(values)}")
    head = [title.replace("\n", " "), "lengths in bohr, x outermost, written by mfm"]
    head.append(f"{len(structure):5d}" + "".join(f"{x:12.6f}" for x in grid.origin / BOHR))
    for axis in range(3):
        vector = np.eye(3)[axis] * grid.step / BOHR
        head.append(f"{grid.shape[axis]:5d}" + "".join(f"{x:12.6f}" for x in vector))
    for number, position in zip(structure.atomic_numbers, structure.positions / BOHR, strict=True):
        head.append(f"{number:5d}{float(number):12.6f}" + "".join(f"{x:12.6f}" for x in position))
    with Path(path).open("w", encoding="utf-8") as file:
        file.write("\n".join(head) + "\n")
        for column in np.asarray(values).reshape(-1, grid.shape[2]):
            for start in range(0, len(column), 6):
                file.write("".join(f"{value:13.5E}" for value in column[start : start + 6]) + "\n")
