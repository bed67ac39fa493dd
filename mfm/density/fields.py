"""What can be drawn of a density: values at points, on regular grids and in cube files."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from mfm.density.cube import CubeGrid, cube_grid, write_cube
from mfm.density.evaluator import MolecularDensity, density_at
from mfm.density.potential import potential_at
from mfm.structure import Structure
from mfm.units import BOHR, HARTREE

__all__ = ["FIELDS", "Field", "field_at", "field_on_grid", "write_field"]

Field = Literal["density", "deformation", "potential"]
"""Electrons, electrons less those of superposed free atoms (e/Å³), or the electrostatic potential (V)."""
FIELDS: tuple[Field, ...] = get_args(Field)


def field_at(points: np.ndarray, density: MolecularDensity, field: str = "density") -> np.ndarray:
    """Values of a field at points (n_points, 3), Å.

    Returns
    -------
    (n_points,), e/Å³ or V

    Raises
    ------
    ValueError
        If there is no such field, the points have another shape, or the basis lacks an element.
    """
    if field not in FIELDS:
        raise ValueError(f"`field` must be one of {', '.join(FIELDS)}, got `{field}`")
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 3:
        raise ValueError(f"`points` must have shape (n_points, 3), in Å, got {given.shape}")
    places = torch.as_tensor(given, dtype=density.positions.dtype, device=density.positions.device)
    with torch.no_grad():
        if field == "potential":
            values = potential_at(places, density)
        else:
            values = density_at(places, density, "total" if field == "density" else "deformation")
    return np.asarray(values.cpu().numpy())


def field_on_grid(grid: CubeGrid, values_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Values on a regular grid, (n_x, n_y, n_z), a plane at a time."""
    return np.stack([values_at(points).reshape(grid.shape[1:]) for points in grid.planes()])


def write_field(
    path: str | Path,
    structure: Structure,
    density: MolecularDensity,
    field: str = "density",
    step: float = 0.15,
    margin: float = 3.0,
) -> CubeGrid:
    """Write a field as a cube file, in its atomic unit; returns the grid.

    Parameters
    ----------
    density : MolecularDensity
        Of the structure.
    step, margin : float, Å
        See :func:`mfm.density.cube.cube_grid`.

    Raises
    ------
    ValueError
        If step or margin are not positive, or see :func:`field_at`.
    """
    grid = cube_grid(structure, step, margin)
    values = field_on_grid(grid, lambda points: field_at(points, density, field))
    unit, name = (1.0 / HARTREE, "hartree/e") if field == "potential" else (BOHR**3, "e/bohr^3")
    write_cube(path, structure, grid, unit * values, f"{field} of {structure.formula}, {name}")
    return grid
