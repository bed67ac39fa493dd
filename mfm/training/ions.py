"""Charges of the elements by linear least squares: where latent charges of ions start.

If charges depend on the element alone, the long-range forces are linear in the products Q_ab = q_a q_b, and those of
any pair interaction within the cutoff are linear in its radial functions. So one linear fit of both to forces finds Q,
and its leading eigenvector the charges, up to the common sign that energies do not tell. In a molten salt a few frames
are enough, where gradient descent takes thousands of steps to let charges of half the size grow. Where bonds, not ions,
make the forces, pairs and charges describe little of them, and the fit is not used.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfm.data.store import Store
from mfm.graph import AtomicGraph, build_graph
from mfm.longrange.base import Particles
from mfm.longrange.energy import WIDEST_WAVE, long_range_energy
from mfm.longrange.latent import LatentEwald
from mfm.model import MFMModel
from mfm.nn.electronegativity import ELECTRONEGATIVITY
from mfm.nn.radial import BesselBasis
from mfm.properties import parse_task, task_name

__all__ = ["IonFit", "fit_ions", "start_from_ions"]

logger = logging.getLogger(__name__)

_N_RADIAL = 12
_MOST_STRUCTURES, _MOST_ATOMS = 16, 40_000
"""Structures to fit to, half of them to judge by, and atoms to sum over for them: seconds, a minute at most."""
_ENOUGH = 0.7
"""The charges are used if they make forces of other structures smaller by this factor than pairs alone do…"""
_ONE_RANK = 0.8
"""… and if one charge per element accounts for this share of the squares of Q."""
_RIDGE = 1e-10


class IonFit(NamedTuple):
    """Charges of elements and how well they do, with pair interactions, on structures they were not fitted to."""

    charges: dict[int, float]
    """Atomic number → charge, e; the element of highest electronegativity is negative."""
    error: float
    """Root mean square error of forces, eV/Å."""
    error_of_pairs: float
    """Likewise of pair interactions alone."""
    share: float
    """Share of Q that is a product of charges; 1 if all of it, 0 if none or if equal charges attract."""

    @property
    def is_good(self) -> bool:
        """Whether the structures consist of ions."""
        return self.share >= _ONE_RANK and self.error <= _ENOUGH * self.error_of_pairs


def start_from_ions(model: MFMModel, store: Store) -> None:
    """Let the atoms' own charges of a fresh model start from :func:`fit_ions`, if it is good.

    No charge flows between neighbours then until training lets it: electronegativities, along which it would otherwise,
    have told less.

    Does nothing for a model whose atoms have no own charges, or without forces to fit.
    """
    config = model.config.long_range
    forces = _forces_of(model, store)
    if config is None or not config.own_charges or not forces:
        return
    assert model.long_range is not None
    owners = [owner for owner in model.long_range.owners.values() if isinstance(owner, LatentEwald)]
    fit = fit_ions(store, forces, owners[0], model.cutoff)
    names = ", ".join(f"{chemical_symbols[number]} {charge:+.3f}" for number, charge in fit.charges.items())
    off = f"forces off by {1e3 * fit.error:.3g} meV/Å with pair interactions, {1e3 * fit.error_of_pairs:.3g} without"
    if not fit.is_good:
        logger.info("own charges start from electronegativities: a linear fit of %s e leaves %s", names, off)
        return
    logger.info("own charges start from a linear fit: %s e, %s", names, off)
    with torch.no_grad():
        for owner in owners:
            owner.state.pulls.zero_()
            owner.state.donors.weight.zero_()
            for number, charge in fit.charges.items():
                owner.state.own_elements[number, 0] = charge


def _forces_of(model: MFMModel, store: Store) -> str:
    """Label of forces with most structures among the model's levels; empty if there is none."""
    names = [task_name("forces", parse_task(task).fidelity) for task in model.energies]
    counts = {name: int(store.coverage(name).sum()) for name in names}
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best) else ""


def fit_ions(store: Store, forces: str, long_range: LatentEwald, cutoff: float) -> IonFit:
    """Fit pair interactions and charges of the elements to forces.

    Parameters
    ----------
    store : Store
        Structures are taken from it evenly.
    forces : str
        Label, such as ``forces_dft``.
    long_range : LatentEwald
        Gives the widths of the charges and how they are summed.
    cutoff : float, Å
        Radius of the pair interactions.
    """
    labelled = np.flatnonzero(store.coverage(forces))
    elements = store.subset(labelled).elements
    pairs = list(itertools.combinations_with_replacement(range(len(elements)), 2))
    each = len(pairs) * float(np.median(store.n_atoms[labelled]))
    count = int(np.clip(_MOST_ATOMS // each, 2, _MOST_STRUCTURES))
    chosen = labelled[np.unique(np.linspace(0, len(labelled) - 1, count).astype(int))]
    blocks = []
    for record in (store[int(row)] for row in chosen):
        graph = build_graph(record.structure, cutoff, dtype=torch.float64)
        columns = _columns(graph, elements, pairs, long_range, cutoff)
        blocks.append((columns.numpy(), np.asarray(record.labels[forces]).reshape(-1)))
    # every other structure is fitted, the rest tell how good it is; a single one has to do for both
    fitted, others = blocks[::2], blocks[1::2] or blocks
    weights, error = _least_squares(fitted, others, slice(None))
    _, error_of_pairs = _least_squares(fitted, others, slice(len(pairs), None))
    products = np.zeros((len(elements), len(elements)))
    for (a, b), value in zip(pairs, weights[: len(pairs)], strict=True):
        products[a, b] = products[b, a] = value
    values, vectors = np.linalg.eigh(products)
    charges = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
    charges = charges * (-np.sign(charges[np.argmax([ELECTRONEGATIVITY[z] for z in elements])]) or 1.0)
    size = float(np.square(values).sum())
    share = float(values[-1] ** 2 / size) if size > 0 and values[-1] > 0 else 0.0
    return IonFit(dict(zip(elements, map(float, charges), strict=True)), error, error_of_pairs, share)


def _least_squares(
    fitted: Sequence[tuple[np.ndarray, np.ndarray]], others: Sequence[tuple[np.ndarray, np.ndarray]], used: slice
) -> tuple[np.ndarray, float]:
    """Coefficients of some columns, and the root mean square of what they leave of other structures' forces."""
    columns, target = np.concatenate([x[:, used] for x, _ in fitted]), np.concatenate([y for _, y in fitted])
    sizes = np.linalg.norm(columns, axis=0).clip(min=np.finfo(float).tiny)
    scaled = columns / sizes
    gram = scaled.T @ scaled + _RIDGE * np.eye(len(sizes))
    weights = np.linalg.solve(gram, scaled.T @ target) / sizes
    left = np.concatenate([y - x[:, used] @ weights for x, y in others])
    return weights, float(np.sqrt(np.square(left).mean()))


def _columns(
    graph: AtomicGraph, elements: list[int], pairs: list[tuple[int, int]], long_range: LatentEwald, cutoff: float
) -> Tensor:
    """Forces (3 n_atoms, n_pairs (1 + _N_RADIAL)) of a unit of every Q_ab and of every radial function of a pair."""
    kinds = torch.as_tensor(np.searchsorted(elements, graph.atomic_numbers.numpy()))
    return torch.cat(
        [_charge_forces(graph, kinds, pairs, long_range), _pair_forces(graph, kinds, pairs, cutoff)], dim=1
    )


def _charge_forces(graph: AtomicGraph, kinds: Tensor, pairs: list[tuple[int, int]], long_range: LatentEwald) -> Tensor:
    config, widths = long_range.config, long_range.widths().detach().cpu().index_select(0, graph.atomic_numbers)

    def forces(charges: Tensor) -> Tensor:
        positions = graph.positions.detach().clone().requires_grad_(True)
        particles = Particles(charges.unsqueeze(1), widths, positions, graph.batch, graph.atomic_numbers)
        k_cutoff = WIDEST_WAVE / config.smallest_width
        energy = long_range_energy("coulomb", particles, graph, k_cutoff, config.mesh_above).sum()
        return -torch.autograd.grad(energy, positions)[0].reshape(-1)

    def of(kind: int) -> Tensor:
        return (kinds == kind).double()

    alone = {a: forces(of(a)) for a, b in pairs if a == b}
    both = [alone[a] if a == b else forces(of(a) + of(b)) - alone[a] - alone[b] for a, b in pairs]
    return torch.stack(both, dim=1)


def _pair_forces(graph: AtomicGraph, kinds: Tensor, pairs: list[tuple[int, int]], cutoff: float) -> Tensor:
    senders, receivers = graph.edge_index
    cells = graph.cell.index_select(0, graph.batch.index_select(0, receivers))
    vectors = graph.positions[senders] - graph.positions[receivers]
    vectors = vectors + torch.bmm(graph.unit_shifts.unsqueeze(1), cells).squeeze(1)
    distances = torch.linalg.vector_norm(vectors, dim=1).requires_grad_(True)
    values = BesselBasis(cutoff, _N_RADIAL)(distances)
    slopes = [torch.autograd.grad(value.sum(), distances, retain_graph=True)[0] for value in values.unbind(1)]
    directions = vectors / distances.detach().unsqueeze(1)
    # every pair is there in both directions, and pushes its receiver away from its sender where the energy falls
    parts = torch.stack(slopes, dim=1).unsqueeze(1) * directions.unsqueeze(2)  # (n_edges, 3, n_radial)
    first = torch.minimum(kinds[senders], kinds[receivers])
    second = torch.maximum(kinds[senders], kinds[receivers])
    columns = []
    for a, b in pairs:
        mine = ((first == a) & (second == b)).nonzero().squeeze(1)
        found = parts.new_zeros(graph.n_atoms, 3, _N_RADIAL)
        columns.append(found.index_add(0, receivers[mine], parts[mine]).reshape(-1, _N_RADIAL))
    return torch.cat(columns, dim=1)
