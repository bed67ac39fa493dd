"""Pictures of densities: a plane through a molecule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from mfm.density.fields import Field
from mfm.evaluation.plots import new_figure
from mfm.structure import Structure

__all__ = ["molecular_plane", "plot_slice"]

_HEIGHT = 0.3
"""Å; atoms within it of the plane are named."""
_LIMITS: dict[Field, float] = {"density": 2.0, "deformation": 0.5, "potential": 3.0}
"""e/Å³ or V; beyond, near the nuclei, colours do not tell values apart."""


def molecular_plane(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Centre (3,) and two directions (2, 3) of the plane that lies nearest to all atoms."""
    centre = structure.positions.mean(axis=0)
    # with the unit matrix, two atoms and one have directions too
    spread = (structure.positions - centre).T @ (structure.positions - centre) + 1e-9 * np.diag([1.0, 2.0, 3.0])
    return centre, np.linalg.eigh(spread)[1].T[:0:-1]


def plot_slice(
    path: str | Path,
    structure: Structure,
    values_at: Callable[[np.ndarray], np.ndarray],
    field: Field,
    margin: float = 2.0,
    n_points: int = 161,
    limit: float | None = None,
    name: str = "",
) -> None:
    """Draw a field in the plane of a molecule, as colours with contours, and the atoms in it.

    Parameters
    ----------
    path : path
        File to write; the ending decides the format.
    values_at : callable
        Field (n,), in e/Å³ or V, at points (n, 3), Å.
    margin : float, Å
        What is shown beyond the atoms.
    n_points : int
        Points along each side.
    limit : float, optional
        Largest value that colours tell from larger ones; by default one that suits the field.
    name : str
        Of what is drawn, where that is not the field itself, such as a difference of two.
    """
    centre, directions = molecular_plane(structure)
    inside = (structure.positions - centre) @ directions.T  # (n_atoms, 2)
    reach = np.abs(inside).max() + margin
    sides = np.linspace(-reach, reach, n_points)
    across, up = np.meshgrid(sides, sides)
    points = centre + across[..., None] * directions[0] + up[..., None] * directions[1]
    values = values_at(points.reshape(-1, 3)).reshape(across.shape)
    limit = limit or _LIMITS[field]
    low = 0.0 if field == "density" else -limit
    figure, (axis,) = new_figure(1, columns=1)
    levels = np.linspace(low, limit, 41)
    colours = axis.contourf(
        across, up, values.clip(low, limit), levels, cmap="viridis" if field == "density" else "RdBu_r"
    )
    axis.contour(across, up, values, levels[::4], colors="0.3", linewidths=0.4)
    heights = (structure.positions - centre) - inside @ directions
    for number, place, height in zip(structure.atomic_numbers, inside, heights, strict=True):
        if np.linalg.norm(height) < _HEIGHT:
            axis.annotate(chemical_symbols[number], place, ha="center", va="center", fontsize=8, weight="bold")
    unit = "V" if field == "potential" else "e/Å³"
    figure.colorbar(colours, ax=axis, label=f"{name or field} ({unit})", shrink=0.8)
    axis.set_aspect("equal")
    axis.set_xlabel("Å")
    axis.set_ylabel("Å")
    axis.set_title(structure.formula, fontsize=9)
    figure.savefig(path, dpi=150)
