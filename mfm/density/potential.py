"""Electrostatic potential of a molecule: nuclei, spherical free atoms and the Gaussians of the deformation.

With the Boys functions F_n(x) = ∫₀¹ t^{2n} e^{−x t²} dt, the potential of a solid harmonic Gaussian S_lm(r) e^{−αr²} is
(2π/α) F_l(αr²) S_lm(r), and that of r^{2l} e^{−γr²} is 4π [r^{2l+2} F_{l+1}(γr²) + Γ(l + 1, γr²)/(2 γ^{l+1})].
"""

import math
from collections import defaultdict

import torch
from torch import Tensor

from mfm.density.basis import ElementBasis
from mfm.density.evaluator import MolecularDensity, solid_harmonics, split_points
from mfm.units import COULOMB_CONSTANT

__all__ = ["boys", "potential_at"]

_SMALLEST = 1e-12
"""Argument of the Boys functions below which they no longer change."""


def boys(order: int, x: Tensor) -> Tensor:
    """Boys function F_n of every number, which must not be negative."""
    a = order + 0.5
    clamped = x.clamp(min=_SMALLEST)
    return 0.5 * math.gamma(a) * torch.special.gammainc(torch.full_like(x, a), clamped) * clamped**-a


def potential_at(points: Tensor, density: MolecularDensity) -> Tensor:
    """Electrostatic potential at points.

    Parameters
    ----------
    points : (n_points, 3), Å
        Not at a nucleus, where it is infinite.
    density : MolecularDensity

    Returns
    -------
    (n_points,), V
        Energy of a positive unit charge, eV.

    Raises
    ------
    ValueError
        If the basis lacks an element.
    """
    density.basis.check(density.atomic_numbers.cpu().numpy())
    total = points.new_zeros(len(points))
    for number, chosen in density.by_element():
        element, places = density.basis.elements[number], density.basis.places[number]
        positions = density.positions.index_select(0, chosen)
        columns = torch.as_tensor(places, device=points.device)
        rows = density.coefficients.index_select(0, chosen).to(points.dtype).index_select(1, columns)
        pieces = [
            _core(piece, positions, number, element) - _deformation(piece, positions, rows, element)
            for piece in split_points(points, len(chosen))
        ]
        total = total + torch.cat(pieces)
    return COULOMB_CONSTANT * total


def _core(points: Tensor, positions: Tensor, number: int, element: ElementBasis) -> Tensor:
    """Nuclei less the electrons of their free atoms, e/Å."""
    squared = (points.T.unsqueeze(1) - positions.T.unsqueeze(2)).square().sum(dim=0)  # (A, P)
    total = number * squared.rsqrt()
    for (degree, exponent), weight in _pairs(element).items():
        x = exponent * squared
        if degree == 0:
            value = boys(0, x) / (2.0 * exponent)
        else:
            tail = math.factorial(degree) * torch.special.gammaincc(torch.full_like(x, degree + 1.0), x)
            value = squared ** (degree + 1) * boys(degree + 1, x) + tail / (2.0 * exponent ** (degree + 1))
        total = total - weight * value
    return total.sum(dim=0)


def _pairs(element: ElementBasis) -> dict[tuple[int, float], float]:
    """Free atom times 4π as a sum of r^{2l} e^{−γr²}: (l, γ) → weight."""
    weights: dict[tuple[int, float], float] = defaultdict(float)
    for shell in element.free_atom:
        terms = list(zip(shell.exponents, shell.weights, strict=True))
        for k, (first, one) in enumerate(terms):
            for second, other in terms[k:]:
                weights[shell.degree, first + second] += one * other * (1.0 if first == second else 2.0)
    return weights


def _deformation(points: Tensor, positions: Tensor, rows: Tensor, element: ElementBasis) -> Tensor:
    """Potential of the deformation's electrons, e/Å."""
    vectors = points.T.unsqueeze(1) - positions.T.unsqueeze(2)  # (3, A, P)
    squared = vectors.square().sum(dim=0)
    harmonics = solid_harmonics(vectors.flatten(1)).view(-1, *squared.shape)
    total, start = torch.zeros_like(squared), 0
    for shell in element.shells:
        degree = shell.degree
        angular = harmonics[degree**2 : (degree + 1) ** 2]
        size = 2 * degree + 1
        value = torch.einsum("map,am->ap", angular, rows[:, start : start + size])
        radial = torch.zeros_like(squared)
        for exponent, weight in zip(shell.exponents, shell.weights, strict=True):
            radial = radial + (2.0 * math.pi * weight / exponent) * boys(degree, exponent * squared)
        total, start = total + radial * value, start + size
    return total.sum(dim=0)
