"""Electron density of a molecule: Gaussian coefficients of what bonding changes in the superposed free atoms.

The monopole of every atom is its charge in the charge state, so the density has the electrons that energy and dipole
know of, to the last digit: c = c⁰ − q v, where c⁰ has no charge and v, one shape per element, has one electron.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.density.basis import MAX_DEGREE, SLOTS, DensityBasis
from mfm.graph import AtomicGraph
from mfm.heads.base import AtomicPart, Head, Moments, PartSetting
from mfm.nn.aggregate import neighbour_table
from mfm.nn.harmonics import SphericalHarmonics
from mfm.nn.linear import DegreewiseLinear
from mfm.nn.products import SphereGrid
from mfm.nn.radial import BesselBasis
from mfm.properties import DENSITY_WIDTH

__all__ = ["HEAD", "DensityCoefficients", "DensityMonopoles", "density"]

_N_COMPONENTS = (MAX_DEGREE + 1) ** 2
_N_ELEMENTS = 119


class _Tables(NamedTuple):
    """Constants of a basis, float64: a count of electrons that is right to 1e-6 needs them so."""

    rows: Tensor  # (119,), row of an element in the others; the last one, of zeros, for elements without a basis
    inverse_roots: tuple[Tensor, ...]  # per degree (n_elements + 1, n_l, n_l), inverse roots of an atom's own overlaps
    electrons: Tensor  # (n_elements + 1, n_0), ∫ χ of the s functions
    shapes: Tensor  # (n_elements + 1, n_0), the s functions of one electron with the least ∫ χ²


class _Basis:
    """Tables of a basis on the device where they are needed; no buffers, which would be rounded with the weights."""

    def __init__(self, basis: DensityBasis) -> None:
        self.basis = basis
        self._tables: dict[torch.device, _Tables] = {}

    def tables(self, device: torch.device) -> _Tables:
        """Made at the first call."""
        if device not in self._tables:
            rows, roots, electrons, shapes = self._arrays()
            self._tables[device] = _Tables(
                torch.as_tensor(rows, device=device),
                tuple(torch.as_tensor(root, device=device) for root in roots),
                torch.as_tensor(electrons, device=device),
                torch.as_tensor(shapes, device=device),
            )
        return self._tables[device]

    def _arrays(self) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
        numbers = list(self.basis.elements)
        rows = np.full(_N_ELEMENTS, len(numbers))
        rows[numbers] = np.arange(len(numbers))
        roots = [np.zeros((len(numbers) + 1, count, count)) for count in SLOTS]
        electrons, shapes = np.zeros((2, len(numbers) + 1, SLOTS[0]))
        for row, number in enumerate(numbers):
            for degree in range(MAX_DEGREE + 1):
                overlaps = self.basis.overlaps(number, degree)
                if len(overlaps):
                    values, vectors = np.linalg.eigh(overlaps)
                    roots[degree][row, : len(values), : len(values)] = (vectors / np.sqrt(values)) @ vectors.T
            electrons[row] = self.basis.charge_row(number)[: SLOTS[0]]
            shape = roots[0][row] @ roots[0][row] @ electrons[row]
            shapes[row] = shape / (electrons[row] @ shape)
        return rows, roots, electrons, shapes


def _basis(setting: PartSetting) -> DensityBasis:
    assert setting.density_basis is not None  # the heads of all fidelities have checked it
    return setting.density_basis


class DensityMonopoles(AtomicPart):
    """(n_atoms, DENSITY_WIDTH): coefficients of one electron on an atom, a shape per element; a correction has none."""

    degree = 0

    def __init__(self, setting: PartSetting) -> None:
        super().__init__()
        self.constants = _Basis(_basis(setting))
        self.is_correction = setting.is_correction
        self.change = nn.Parameter(torch.zeros(len(_basis(setting).elements) + 1, SLOTS[0]))

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, DENSITY_WIDTH), float64."""
        tables = self.constants.tables(scalars.device)
        change = torch.bmm(tables.inverse_roots[0], self.change.double().unsqueeze(2)).squeeze(2)
        change = change - (change * tables.electrons).sum(dim=1, keepdim=True) * tables.shapes
        shapes = change if self.is_correction else tables.shapes + change
        rows = tables.rows.index_select(0, graph.atomic_numbers)
        return functional.pad(shapes.index_select(0, rows), (0, DENSITY_WIDTH - shapes.shape[1]))


class DensityCoefficients(AtomicPart):
    """(n_atoms, DENSITY_WIDTH), e: coefficients that add no charge to any atom.

    Harmonics up to l = 4 of the neighbours, with learned radial weights and what neighbours send, and the backbone's
    equivariants are mixed, multiplied on the sphere once, gated by the atom's scalars, and read out by matrices of the
    element, in the basis in which the functions of a single atom are orthonormal.

    Parameters
    ----------
    setting : PartSetting
    n_hidden : int
        Channels per component.
    n_sent : int
        Channels that a neighbour sends.
    n_radial : int
        Radial functions on an edge.
    """

    degree = 1

    def __init__(self, setting: PartSetting, n_hidden: int = 32, n_sent: int = 8, n_radial: int = 6) -> None:
        super().__init__()
        basis = _basis(setting)
        self.constants = _Basis(basis)
        self.cutoff, self.n_equivariants = setting.cutoff, (min(setting.degree, MAX_DEGREE) + 1) ** 2 - 1
        self.radial = BesselBasis(setting.cutoff, n_radial)
        self.harmonics = SphericalHarmonics(MAX_DEGREE)
        self.send = nn.Linear(setting.n_scalars, n_sent, bias=False)
        self.elements = nn.Embedding(_N_ELEMENTS, n_sent)
        self.mix_neighbours = DegreewiseLinear(n_radial * n_sent, n_hidden, MAX_DEGREE)
        self.mix_scalars = nn.Linear(setting.n_scalars, n_hidden, bias=False)
        self.mix_equivariants = DegreewiseLinear(setting.n_channels, n_hidden, min(setting.degree, MAX_DEGREE), 1)
        self.factors = nn.ModuleList([DegreewiseLinear(n_hidden, n_hidden, MAX_DEGREE) for _ in range(2)])
        self.grid = SphereGrid(MAX_DEGREE, MAX_DEGREE, order=2)
        self.gate = nn.Linear(setting.n_scalars, 2 * n_hidden * (MAX_DEGREE + 1))
        shape = (len(basis.elements) + 1, 2 * n_hidden)
        self.outputs = nn.ParameterList([nn.Parameter(torch.zeros(*shape, count)) for count in SLOTS])

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, DENSITY_WIDTH), float64."""
        features = self._features(scalars, equivariants, graph)  # ((MAX_DEGREE + 1)², n_atoms, 2 n_hidden)
        gates = 1.0 + functional.silu(self.gate(scalars)).view(len(scalars), MAX_DEGREE + 1, -1)
        tables = self.constants.tables(scalars.device)
        rows = tables.rows.index_select(0, graph.atomic_numbers)
        columns = []
        for degree, weights in enumerate(self.outputs):
            gated = features[degree**2 : (degree + 1) ** 2].transpose(0, 1) * gates[:, degree].unsqueeze(1)
            values = torch.bmm(gated, weights.index_select(0, rows)).double()  # (n_atoms, 2 l + 1, n_l)
            values = torch.bmm(tables.inverse_roots[degree].index_select(0, rows), values.transpose(1, 2))
            if degree == 0:
                values = values.squeeze(2)
                electrons = (values * tables.electrons.index_select(0, rows)).sum(dim=1, keepdim=True)
                values = values - electrons * tables.shapes.index_select(0, rows)
            columns.append(values.flatten(1))
        return torch.cat(columns, dim=1)

    def _features(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """Neighbours and the backbone's features, and their products, for every component."""
        table = neighbour_table(graph, self.cutoff)
        shape = (graph.n_atoms, table.n_slots, -1)
        distances = torch.linalg.vector_norm(table.vectors, dim=1)
        radial = self.radial(distances).view(shape)
        harmonics = self.harmonics(table.vectors / distances.unsqueeze(1)).view(shape)
        sent = table.gather(self.send(scalars) + self.elements(graph.atomic_numbers)).view(shape)
        thin = (radial.unsqueeze(3) * sent.unsqueeze(2)).flatten(2)  # (n_atoms, n_slots, n_radial n_sent)
        density = self.mix_neighbours(torch.bmm(harmonics.transpose(1, 2), thin).transpose(0, 1))
        low = self.mix_equivariants(equivariants[: self.n_equivariants])
        low = torch.cat([self.mix_scalars(scalars).unsqueeze(0), low])
        density = density + functional.pad(low, (0, 0, 0, 0, 0, _N_COMPONENTS - len(low)))
        first, second = (self.grid.to_grid(factor(density)) for factor in self.factors)
        product = first * second
        invariant = self.grid.invariant(product).unsqueeze(0)
        return torch.cat([density, torch.cat([invariant, self.grid.equivariant(product)])], dim=2)


def density(moments: Moments, graph: AtomicGraph) -> Tensor:
    """(n_atoms, DENSITY_WIDTH), e, float64; an atom's monopole is its charge."""
    return moments["density_coefficients"] - moments["charges"].unsqueeze(1) * moments["density_monopoles"]


HEAD = Head(density, {"density_coefficients": DensityCoefficients, "density_monopoles": DensityMonopoles})
