"""Densities at points: batched Gaussians on atoms, differentiable in points, positions and coefficients."""

import functools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfm.density.basis import MAX_DEGREE, DensityBasis, Shell
from mfm.nn.harmonics import SphericalHarmonics
from mfm.structure import Structure

__all__ = ["MolecularDensity", "Part", "density_at", "solid_harmonics", "split_points"]

Part = Literal["total", "deformation", "free"]
"""The whole density, what bonding has moved, or the superposed free atoms."""

_ROWS = 1 << 13
"""Pairs of points and atoms at a time: what they need then stays in a processor's cache."""


class MolecularDensity(NamedTuple):
    """Coefficients of a basis on the atoms of one molecule."""

    positions: Tensor
    """(n_atoms, 3), Å."""
    atomic_numbers: Tensor
    """(n_atoms,)."""
    coefficients: Tensor
    """(n_atoms, DENSITY_WIDTH), e; rows as :class:`mfm.density.DensityBasis` lays them out."""
    basis: DensityBasis

    @classmethod
    def of(cls, structure: Structure, coefficients: np.ndarray, basis: DensityBasis) -> "MolecularDensity":
        """In float64, on the CPU; coefficients (n_atoms, DENSITY_WIDTH)."""
        return cls(
            torch.as_tensor(structure.positions),
            torch.as_tensor(structure.atomic_numbers),
            torch.as_tensor(np.asarray(coefficients, dtype=np.float64)),
            basis,
        )

    def by_element(self) -> Iterator[tuple[int, Tensor]]:
        """Each element, and which atoms are of it."""
        for number in torch.unique(self.atomic_numbers).tolist():
            yield int(number), (self.atomic_numbers == number).nonzero().squeeze(1)


class _Radial(NamedTuple):
    """Primitive functions of some shells, and how they are contracted."""

    exponents: Tensor  # (n_primitives,)
    contraction: Tensor  # (n_shells, n_primitives)


def _radial(shells: tuple[Shell, ...], like: Tensor) -> _Radial:
    exponents = [exponent for shell in shells for exponent in shell.exponents]
    owners = [k for k, shell in enumerate(shells) for _ in shell.exponents]
    contraction = np.zeros((len(shells), len(exponents)))
    contraction[owners, np.arange(len(exponents))] = [weight for shell in shells for weight in shell.weights]
    return _Radial(like.new_tensor(exponents), like.new_tensor(contraction))


@functools.cache
def _harmonics(device: torch.device, dtype: torch.dtype) -> SphericalHarmonics:
    return SphericalHarmonics(MAX_DEGREE).to(device=device, dtype=dtype)


def solid_harmonics(vectors: Tensor) -> Tensor:
    """r^l Y_lm with ∫ Y² = 1 over directions: (3, n) → ((MAX_DEGREE + 1)², n)."""
    return _harmonics(vectors.device, vectors.dtype).solid(vectors) / math.sqrt(4.0 * math.pi)


class _Atoms(NamedTuple):
    """What the atoms of one element need to be evaluated."""

    positions: Tensor  # (A, 3)
    exponents: Tensor  # (n_primitives,)
    components: Tensor  # (A, (MAX_DEGREE + 1)², n_primitives)
    free: _Radial
    free_degrees: tuple[int, ...]


def _prepare(density: MolecularDensity, number: int, chosen: Tensor) -> _Atoms:
    basis, positions = density.basis, density.positions.index_select(0, chosen)
    element, places = basis.elements[number], basis.places[number]
    radial = _radial(element.shells, positions)
    rows = density.coefficients.index_select(0, chosen).to(positions.dtype)
    values = rows.index_select(1, torch.as_tensor(places, device=rows.device))
    # each coefficient goes to the row of its harmonic and the column of its shell
    n_shells = len(element.shells)
    targets = [
        (degree**2 + m) * n_shells + k for k, degree in enumerate(element.degrees) for m in range(2 * degree + 1)
    ]
    table = values.new_zeros(len(chosen), (MAX_DEGREE + 1) ** 2 * n_shells)
    table = table.index_copy(1, torch.tensor(targets, device=rows.device), values)
    components = table.view(len(chosen), -1, n_shells) @ radial.contraction
    degrees = tuple(shell.degree for shell in element.free_atom)
    return _Atoms(positions, radial.exponents, components, _radial(element.free_atom, positions), degrees)


def density_at(points: Tensor, density: MolecularDensity, part: Part = "total") -> Tensor:
    """Density of a molecule at points.

    Parameters
    ----------
    points : (n_points, 3), Å
    density : MolecularDensity
        In the precision of the result; float64 agrees with PySCF to 1e-8 e/Å³ at any point.
    part : {"total", "deformation", "free"}

    Returns
    -------
    (n_points,), e/Å³
        With derivatives with respect to points, positions and coefficients.

    Raises
    ------
    ValueError
        If the basis lacks an element.
    """
    density.basis.check(density.atomic_numbers.cpu().numpy())
    total = points.new_zeros(len(points))
    for number, chosen in density.by_element():
        atoms = _prepare(density, number, chosen)
        pieces = [_of_element(piece, atoms, part) for piece in split_points(points, len(chosen))]
        total = total + torch.cat(pieces)
    return total


def split_points(points: Tensor, n_atoms: int) -> tuple[Tensor, ...]:
    """Points in pieces that are evaluated at a time on so many atoms."""
    return points.split(max(_ROWS // max(n_atoms, 1), 1)) if len(points) else (points,)


def _of_element(points: Tensor, atoms: _Atoms, part: Part) -> Tensor:
    vectors = points.T.unsqueeze(1) - atoms.positions.T.unsqueeze(2)  # (3, A, P)
    squared = vectors.square().sum(dim=0).unsqueeze(1)  # (A, 1, P)
    total = points.new_zeros(len(points))
    if part != "free":
        gaussians = torch.exp(-atoms.exponents.unsqueeze(1) * squared)  # (A, n_primitives, P)
        values = torch.bmm(atoms.components, gaussians).transpose(0, 1)  # ((MAX_DEGREE + 1)², A, P)
        harmonics = solid_harmonics(vectors.flatten(1))
        total = total + (values * harmonics.view_as(values)).sum(dim=(0, 1))
    if part != "deformation":
        gaussians = torch.exp(-atoms.free.exponents.unsqueeze(1) * squared)
        orbitals = (atoms.free.contraction @ gaussians).transpose(0, 1)  # (n_orbitals, A, P)
        for orbital, degree in zip(orbitals, atoms.free_degrees, strict=True):
            value = orbital.square() if degree == 0 else orbital.square() * squared.squeeze(1) ** degree
            total = total + value.sum(dim=0) / (4.0 * math.pi)
    return total
