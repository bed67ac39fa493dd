"""Message passing with thin edges, thick nodes, and Gaunt products on a sphere grid.

The density trick of the atomic cluster expansion (Drautz, Phys. Rev. B 99, 014104 (2019)) and the many-body
messages of MACE (Batatia et al., NeurIPS 2022, arXiv:2206.07697), arranged so that nothing costly lives on
edges: an edge holds the outer product of a few radial functions and a few channels of the neighbour, and the
sum over neighbours of that with the harmonics is one batched matrix product over a padded list. Learned mixing,
products up to four-body, and gating happen on nodes.
"""

from typing import Literal, NamedTuple

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfm.backbones.base import Features
from mfm.config import Config
from mfm.graph import AtomicGraph
from mfm.nn.aggregate import NeighbourTable, neighbour_table
from mfm.nn.embedding import StateEmbedding
from mfm.nn.harmonics import SphericalHarmonics
from mfm.nn.linear import DegreewiseLinear
from mfm.nn.products import SphereGrid
from mfm.nn.radial import BesselBasis

__all__ = ["GauntBackbone", "GauntConfig"]


class GauntConfig(Config):
    """Settings of :class:`GauntBackbone`."""

    name: Literal["gaunt"] = "gaunt"
    cutoff: float = pydantic.Field(5.0, gt=0)
    """Radius within which atoms exchange messages, Å."""
    n_layers: int = pydantic.Field(2, gt=0)
    """Message-passing layers."""
    n_channels: int = pydantic.Field(64, gt=0)
    """Channels per atom and component."""
    n_product_channels: int = pydantic.Field(64, gt=0)
    """Channels that enter the many-body products."""
    max_degree: int = pydantic.Field(3, ge=1, le=6)
    """Highest degree l of the neighbour density."""
    equivariant_degree: int = pydantic.Field(2, ge=1)
    """Highest degree l of the features that atoms keep and send."""
    n_radial: int = pydantic.Field(8, gt=0)
    """Radial functions on an edge."""
    n_message_channels: int = pydantic.Field(16, gt=0)
    """Scalar channels of a neighbour that travel along an edge."""
    n_transport_channels: int = pydantic.Field(8, gt=0)
    """Equivariant channels of a neighbour that travel along an edge."""

    @pydantic.model_validator(mode="after")
    def _check_degrees(self) -> "GauntConfig":
        if self.equivariant_degree > self.max_degree:
            raise ValueError(
                f"`equivariant_degree` must be at most `max_degree`, got {self.equivariant_degree} above"
                f" {self.max_degree}; atoms cannot keep degrees that their density does not hold"
            )
        return self

    def build(self, with_equivariants: bool = False) -> "GauntBackbone":
        """Make the backbone with fresh weights.

        Parameters
        ----------
        with_equivariants : bool
            Whether a head needs the last layer's equivariant features; without, that layer does not have them.
        """
        return GauntBackbone(self, with_equivariants)


class _Edges(NamedTuple):
    """Geometry of the padded neighbour table."""

    table: NeighbourTable
    radial: Tensor  # (n_atoms, n_slots, n_radial)
    harmonics: Tensor  # (n_atoms, (L+1)^2, n_slots)


class _Messages(nn.Module):
    """Sum over neighbours: A_ilm = Σ_j Y_lm(r̂_ij) W_l [R(r_ij) ⊗ s_j] + W'_l [R(r_ij) ⊗ V_jlm]."""

    def __init__(self, config: GauntConfig, first: bool) -> None:
        super().__init__()
        n_out, n_radial, degree = config.n_channels, config.n_radial, config.equivariant_degree
        self.first = first
        self.pad = (config.max_degree + 1) ** 2 - (degree + 1) ** 2
        self.norm = nn.LayerNorm(config.n_channels)
        self.squeeze = nn.Linear(config.n_channels, config.n_message_channels, bias=False)
        self.mix = DegreewiseLinear(n_radial * config.n_message_channels, n_out, config.max_degree)
        if not first:
            n_transport = config.n_transport_channels
            self.squeeze_equivariants = DegreewiseLinear(n_out, n_transport, degree, 1)
            self.mix_transported = DegreewiseLinear(n_radial * n_transport, n_out, degree, 1)
            self.keep = DegreewiseLinear(n_out, n_out, degree, 1)

    def forward(self, scalars: Tensor, equivariants: Tensor | None, edges: _Edges, condition: Tensor | None) -> Tensor:
        n_atoms, n_slots, _ = edges.radial.shape
        sent = self.squeeze(self.norm(scalars))
        sent = sent if condition is None else sent + condition
        sent = edges.table.gather(sent).view(n_atoms, n_slots, -1)
        thin = (edges.radial.unsqueeze(3) * sent.unsqueeze(2)).flatten(2)  # (n_atoms, n_slots, R * D)
        density = self.mix(torch.bmm(edges.harmonics, thin).transpose(0, 1))  # ((L+1)^2, n_atoms, C)
        if equivariants is None:
            return density
        padding = (0, 0, 0, 0, 1, self.pad)
        if self.first:  # what the atoms are told from outside; nothing has been sent yet
            return density + functional.pad(equivariants, padding)
        moved = self.squeeze_equivariants(equivariants)  # ((L+1)^2 - 1, n_atoms, T)
        n_components, _, n_transport = moved.shape
        moved = edges.table.gather(moved.transpose(0, 1).reshape(n_atoms, -1))
        moved = torch.bmm(edges.radial.transpose(1, 2), moved.view(n_atoms, n_slots, -1))
        moved = moved.view(n_atoms, -1, n_components, n_transport).permute(2, 0, 1, 3).flatten(2)
        equivariant_part = self.mix_transported(moved) + self.keep(equivariants)
        return density + functional.pad(equivariant_part, padding)


class _ManyBody(nn.Module):
    """Three- and four-body features: a ⊗ b and a ⊗ b ⊗ c of three mixes of the density, multiplied on the sphere."""

    def __init__(self, config: GauntConfig) -> None:
        super().__init__()
        n_in, n_out, degree = config.n_channels, config.n_product_channels, config.max_degree
        self.factors = nn.ModuleList([DegreewiseLinear(n_in, n_out, degree) for _ in range(3)])
        self.grid = SphereGrid(degree, config.equivariant_degree, order=3)

    def forward(self, density: Tensor, want_equivariants: bool) -> tuple[Tensor, Tensor | None]:
        a, b, c = (self.grid.to_grid(factor(density)) for factor in self.factors)
        pair = a * b  # (n_points, n_atoms, P)
        triple = pair * c
        # projected one by one: concatenating on the grid would copy the largest tensors of the model
        invariants = torch.cat([self.grid.invariant(pair), self.grid.invariant(triple)], dim=1)
        if not want_equivariants:
            return invariants, None
        return invariants, torch.cat([self.grid.equivariant(pair), self.grid.equivariant(triple)], dim=2)


class _Layer(nn.Module):
    def __init__(self, config: GauntConfig, first: bool, with_equivariants: bool) -> None:
        super().__init__()
        n, n_many = config.n_channels, 2 * config.n_product_channels
        self.degree = config.equivariant_degree
        self.messages = _Messages(config, first)
        self.many_body = _ManyBody(config)
        n_invariants = n + n_many
        self.gate = nn.Linear(n + n_invariants, 2 * n)
        self.value = nn.Linear(n_invariants, 2 * n, bias=False)
        self.update = nn.Linear(2 * n, n, bias=False)
        for linear in (self.gate, self.value, self.update):
            # torch's default shrinks each map by √3: through three of them an atom would start with hardly any update
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.with_equivariants = with_equivariants
        if with_equivariants:
            self._add_equivariants()

    def _add_equivariants(self) -> None:
        n, n_many = self.update.out_features, self.value.in_features - self.update.out_features
        self.mix_equivariants = DegreewiseLinear(n_many, n, self.degree, 1)
        self.equivariant_gates = nn.Linear(2 * n, self.degree * n)

    def set_equivariants(self, wanted: bool) -> None:
        """Grow, with fresh weights, or drop what makes equivariant features."""
        if wanted and not self.with_equivariants:
            self._add_equivariants()
            self.to(self.update.weight.device, self.update.weight.dtype)
        elif self.with_equivariants and not wanted:
            del self.mix_equivariants, self.equivariant_gates
        self.with_equivariants = wanted

    def forward(
        self, scalars: Tensor, equivariants: Tensor | None, edges: _Edges, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        n_message = self.messages.squeeze.out_features
        density = self.messages(scalars, equivariants, edges, None if condition is None else condition[:n_message])
        n_low = (self.degree + 1) ** 2 - 1
        zeroth, low, _ = torch.split(density, [1, n_low, len(density) - 1 - n_low])
        many_invariants, many_equivariants = self.many_body(density, self.with_equivariants)
        invariants = torch.cat([zeroth.squeeze(0), many_invariants], dim=1)
        gate = self.gate(torch.cat([scalars, invariants], dim=1))
        gate = gate if condition is None else gate + condition[n_message:]
        hidden = functional.silu(gate) * self.value(invariants)
        update = self.update(hidden)
        if many_equivariants is None:
            return update, None
        gates = self.equivariant_gates(hidden).view(len(scalars), self.degree, -1).transpose(0, 1)
        gates = (self.mix_equivariants.selection @ gates.flatten(1)).view_as(low)
        mixed = low + self.mix_equivariants(many_equivariants)
        return update, mixed * (1.0 + gates)


class GauntBackbone(nn.Module):
    """The backbone described in the module's docstring."""

    average_neighbours: Tensor

    def __init__(self, config: GauntConfig, with_equivariants: bool = False) -> None:
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.n_scalars = config.n_layers * config.n_channels
        self.n_equivariants = config.n_channels
        self.embedding = nn.Embedding(119, config.n_channels)
        self.basis = BesselBasis(config.cutoff, config.n_radial)
        self.harmonics = SphericalHarmonics(config.max_degree)
        last = config.n_layers - 1
        self.layers = nn.ModuleList(
            _Layer(config, first=depth == 0, with_equivariants=with_equivariants or depth < last)
            for depth in range(config.n_layers)
        )
        self.state = StateEmbedding(config.n_channels)
        self.condition_shape = (config.n_layers, config.n_message_channels + 2 * config.n_channels)
        self.register_buffer("average_neighbours", torch.tensor(16.0, dtype=torch.float64), persistent=False)

    def forward(self, graph: AtomicGraph, condition: Tensor | None = None) -> Features:
        """Features of every atom.

        Parameters
        ----------
        graph : AtomicGraph
            A field ``node_equivariants``, shaped as the equivariant features that are returned, is added to what each
            atom knows of its surroundings in the first layer.
        condition : (n_layers, n_message_channels + 2 n_channels), optional
            Added to what atoms send and to the gates, zero meaning no condition.
        """
        edges = self._edges(graph)
        scalars = self.embedding(graph.atomic_numbers) + self.state(graph)
        equivariants, updates = graph.get("node_equivariants"), []
        for depth, layer in enumerate(self.layers):
            layer_condition = None if condition is None else condition[depth]
            update, equivariants = layer(scalars, equivariants, edges, layer_condition)
            scalars = scalars + update
            updates.append(update)
        return Features(torch.cat(updates, dim=1), equivariants)

    def add_equivariants(self) -> None:
        """Let the last layer give equivariant features too; what it has not yet gets fresh weights."""
        self.last_layer.set_equivariants(True)

    def remove_equivariants(self) -> None:
        """Undo :meth:`add_equivariants`."""
        self.last_layer.set_equivariants(False)

    @property
    def last_layer(self) -> _Layer:
        """The last block that all tasks share."""
        layer = self.layers[-1]
        assert isinstance(layer, _Layer)
        return layer

    def _edges(self, graph: AtomicGraph) -> _Edges:
        table = neighbour_table(graph, self.cutoff)
        distances = torch.linalg.vector_norm(table.vectors, dim=1)
        radial = self.basis(distances) * self.average_neighbours.rsqrt()
        harmonics = self.harmonics(table.vectors / distances.unsqueeze(1))
        shape = (graph.n_atoms, table.n_slots, -1)
        return _Edges(table, radial.view(shape), harmonics.view(shape).transpose(1, 2))
