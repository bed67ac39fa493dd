"""Electron density of a molecule: Gaussian coefficients of what bonding changes in the superposed free atoms.

The monopole of every atom is its charge in the charge state and its dipole is the atomic dipole that the dipole of the
molecule is made of, so the density has the electrons that energy and dipole know of, to the last digit, where they know
them to be: c = c⁰ − q v − μ · w, where c⁰ has neither charge nor dipole, and v and w, learned for each element, have
one electron and, along each axis, one e Å.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.density.basis import MAX_DEGREE, SLOTS, DensityBasis
from mfm.graph import AtomicGraph
from mfm.heads.atomic_dipoles import AtomicDipoles
from mfm.heads.base import AtomicPart, Head, Moments, PartSetting
from mfm.nn.aggregate import neighbour_table
from mfm.nn.harmonics import SphericalHarmonics
from mfm.nn.linear import DegreewiseLinear
from mfm.nn.products import SphereGrid
from mfm.nn.radial import BesselBasis
from mfm.properties import DENSITY_WIDTH

__all__ = ["HEAD", "DensityCoefficients", "DensityShapes", "density"]

_N_COMPONENTS = (MAX_DEGREE + 1) ** 2
_N_ELEMENTS = 119
_TIED = 2
"""Degrees whose moments are those of the charge state and the atomic dipoles: monopoles and dipoles."""


class _Tables(NamedTuple):
    """Constants of a basis, float64: a count of electrons that is right to 1e-6 needs them so.

    An element without functions of a degree has moments and shapes of zero there.
    """

    rows: Tensor  # (119,), row of an element in the others; the last one, of zeros, for elements without a basis
    inverse_roots: tuple[Tensor, ...]  # per degree (n_elements + 1, n_l, n_l), inverse roots of an atom's own overlaps
    moments: tuple[Tensor, ...]  # for s and p (n_elements + 1, n_l), ∫ χ and, Å, ∫ x χ
    shapes: tuple[Tensor, ...]  # for s and p (n_elements + 1, n_l), functions of unit moment with the least ∫ χ²


class _Basis:
    """Tables of a basis on the device where they are needed; no buffers, which would be rounded with the weights."""

    def __init__(self, basis: DensityBasis) -> None:
        self.basis = basis
        self._tables: dict[torch.device, _Tables] = {}

    def tables(self, device: torch.device) -> _Tables:
        """Made at the first call."""
        if device not in self._tables:
            rows, *families = self._arrays()
            roots, moments, shapes = (tuple(torch.as_tensor(x, device=device) for x in family) for family in families)
            self._tables[device] = _Tables(torch.as_tensor(rows, device=device), roots, moments, shapes)
        return self._tables[device]

    def _arrays(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        numbers = list(self.basis.elements)
        rows = np.full(_N_ELEMENTS, len(numbers))
        rows[numbers] = np.arange(len(numbers))
        roots = [np.zeros((len(numbers) + 1, count, count)) for count in SLOTS]
        moments, shapes = ([np.zeros((len(numbers) + 1, count)) for count in SLOTS[:_TIED]] for _ in range(2))
        for row, number in enumerate(numbers):
            for degree in range(MAX_DEGREE + 1):
                overlaps = self.basis.overlaps(number, degree)
                if len(overlaps):
                    values, vectors = np.linalg.eigh(overlaps)
                    roots[degree][row, : len(values), : len(values)] = (vectors / np.sqrt(values)) @ vectors.T
            for degree in range(_TIED):
                mine = self.basis.moments(number, degree)
                moments[degree][row, : len(mine)] = mine
                shape = roots[degree][row] @ roots[degree][row] @ moments[degree][row]
                if len(mine):
                    shapes[degree][row] = shape / (moments[degree][row] @ shape)
        return rows, roots, moments, shapes


def _without_moment(values: Tensor, moments: Tensor, shapes: Tensor) -> Tensor:
    """Coefficients (…, n_l, n_components) less, per component, the shape that has the moment they have."""
    return values - shapes.unsqueeze(-1) * (moments.unsqueeze(-1) * values).sum(dim=-2, keepdim=True)


def _basis(setting: PartSetting) -> DensityBasis:
    assert setting.density_basis is not None  # the heads of all fidelities have checked it
    return setting.density_basis


class DensityShapes(AtomicPart):
    """(n_atoms, n_0 + n_1): what s functions have one electron and what p functions one e Å, learned for each element.

    A correction has neither.
    """

    degree = 0

    def __init__(self, setting: PartSetting) -> None:
        super().__init__()
        self.constants = _Basis(_basis(setting))
        self.is_correction = setting.is_correction
        n_rows = len(_basis(setting).elements) + 1
        self.changes = nn.ParameterList([nn.Parameter(torch.zeros(n_rows, count)) for count in SLOTS[:_TIED]])

    def forward(self, scalars: Tensor, equivariants: Tensor, graph: AtomicGraph) -> Tensor:
        """(n_atoms, n_0 + n_1), float64."""
        tables = self.constants.tables(scalars.device)
        found = []
        for degree, learned in enumerate(self.changes):
            moments, shapes = tables.moments[degree], tables.shapes[degree]
            change = torch.bmm(tables.inverse_roots[degree], learned.double().unsqueeze(2))
            change = _without_moment(change, moments, shapes).squeeze(2)
            found.append(change if self.is_correction else shapes + change)
        rows = tables.rows.index_select(0, graph.atomic_numbers)
        return torch.cat(found, dim=1).index_select(0, rows)


class DensityCoefficients(AtomicPart):
    """(n_atoms, DENSITY_WIDTH), e: coefficients that add neither charge nor dipole to any atom.

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
            if degree < _TIED:
                moments, shapes = (table[degree].index_select(0, rows) for table in (tables.moments, tables.shapes))
                values = _without_moment(values, moments, shapes)
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
    """(n_atoms, DENSITY_WIDTH), e, float64; an atom's monopole is its charge and its dipole its atomic dipole."""
    shapes_0, shapes_1 = moments["density_shapes"].split(SLOTS[:_TIED], dim=1)
    monopoles = moments["charges"].unsqueeze(1) * shapes_0
    dipoles = shapes_1.unsqueeze(2) * moments["atomic_dipoles"].unsqueeze(1)  # (n_atoms, n_1, 3), as rows have it
    tied = torch.cat([monopoles, dipoles.flatten(1)], dim=1)
    return moments["density_coefficients"] - functional.pad(tied, (0, DENSITY_WIDTH - tied.shape[1]))


HEAD = Head(
    density,
    {"density_coefficients": DensityCoefficients, "density_shapes": DensityShapes, "atomic_dipoles": AtomicDipoles},
)
