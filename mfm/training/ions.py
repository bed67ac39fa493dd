"""Charges of the elements by linear least squares: where latent charges of ions start.

If charges depend on the element alone, the long-range forces are linear in the products Q_ab = q_a q_b, and those of
any pair interaction within the cutoff are linear in its radial functions. So one linear fit of both to forces finds Q,
and its leading eigenvector the charges, up to the common sign that energies do not tell. In a molten salt a few frames
are enough, where gradient descent takes thousands of steps to let charges of half the size grow. Where bonds, not ions,
make the forces, pairs and charges describe little of them, and the fit is not used.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mfm.data.records import Record
from mfm.data.store import Store
from mfm.graph import AtomicGraph, build_graph, neighbour_list
from mfm.longrange.base import Particles
from mfm.longrange.energy import WIDEST_WAVE, long_range_energy
from mfm.longrange.latent import LatentEwald
from mfm.model import MFMModel
from mfm.nn.charge_state import ChargeState
from mfm.nn.electronegativity import ELECTRONEGATIVITY
from mfm.nn.radial import BesselBasis
from mfm.properties import parse_task, task_name

__all__ = ["IonFit", "fit_ions", "start_from_ions"]

logger = logging.getLogger(__name__)

_N_RADIAL = 12
_MOST_STRUCTURES, _MOST_ATOMS = 16, 40_000
"""Structures, half of which are fitted and half judge the fit, and atoms to sum over for them: seconds to minutes."""
_MOST_PAIRS = 210
"""Pairs of elements, those of twenty, beyond which the fit is not tried."""
_ENOUGH = 0.7
"""The charges are used if they make forces of other structures smaller by this factor than pairs alone do…"""
_ONE_RANK = 0.8
"""… and if one charge per element accounts for this share of the squares of Q."""
_RIDGE = 1e-10
_RANK = 1e-6
"""Relative size below which total charges do not determine a combination of own charges."""
_MISSING = 0.05
"""e: most that own charges of the elements may lack to a total charge."""
_REPETITIONS = 100
_MOST_CHARGED = 200
"""Charged structures that are searched for separate parts."""
_MIDDLE = 2.2
"""Electronegativity of hydrogen, between metals and their partners."""


class IonFit(NamedTuple):
    """Charges of elements and how well they do, with pair interactions, on structures they were not fitted to."""

    charges: dict[int, float]
    """Atomic number → charge, e, of the elements in the fitted structures; electronegative ones are negative."""
    error: float
    """Root mean square error of forces with these charges, eV/Å."""
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
    have told less. Elements that the fit has not seen start as they would without it, and so do further channels.

    If the fit is not good, own charges start along electronegativities, changed as little as makes them add up to the
    total charges of the training set, if that can be: a few molecular ions that are in it by themselves then have
    theirs from the first step.

    Does nothing for a model whose atoms have no own charges, but warns if structures tell that they need some: the
    total charge of fragments that are beyond each other's reach is shared by all their atoms then.
    """
    config = model.config.long_range
    if config is None:
        return
    if not config.own_charges:
        fragments = _charged_fragments(store, model.cutoff)
        if fragments is not None:
            logger.warning(
                "%s with charge %+d has parts more than the cutoff of %.3g Å apart. Without `long_range.own_charges`"
                " all of its atoms share that charge, however far they are from the ion; switch it on",
                *fragments,
            )
        return
    assert model.long_range is not None
    owners = [owner for owner in model.long_range.owners.values() if isinstance(owner, LatentEwald)]
    if not _start_from_forces(model, store, owners):
        _start_from_totals(store, [owner.state for owner in owners])


def _charged_fragments(store: Store, cutoff: float) -> tuple[str, int, float] | None:
    """Formula and charge of a charged structure in two or more parts, and the cutoff; None if there is none.

    At most 200 charged structures are looked at, spread evenly.
    """
    charged = np.flatnonzero(store.charges)
    chosen = charged[np.unique(np.linspace(0, len(charged) - 1, min(len(charged), _MOST_CHARGED)).astype(int))]
    for row in chosen:
        structure = store[int(row)].structure
        senders, receivers = neighbour_list(structure, cutoff)[0]
        edges = coo_array((np.ones(len(senders)), (senders, receivers)), shape=(len(structure), len(structure)))
        if connected_components(edges, directed=False, return_labels=False) > 1:
            return structure.formula, structure.charge, cutoff
    return None


def _start_from_forces(model: MFMModel, store: Store, owners: list[LatentEwald]) -> bool:
    """Let own charges start from the fit; returns whether they do."""
    forces = _forces_of(model, store)
    if not forces:
        return False
    try:
        fit = fit_ions(store, forces, owners[0], model.cutoff)
    except ValueError as error:
        logger.info("own charges start from electronegativities: %s", error)
        return False
    names = ", ".join(f"{chemical_symbols[number]} {charge:+.3f}" for number, charge in fit.charges.items())
    off = f"forces off by {1e3 * fit.error:.3g} meV/Å with pairs and charges, {1e3 * fit.error_of_pairs:.3g} with pairs"
    if not fit.is_good:
        logger.info("own charges start from electronegativities: a linear fit of %s e leaves %s", names, off)
        return False
    logger.info("own charges start from a linear fit: %s e, %s", names, off)
    with torch.no_grad():
        for state in (owner.state for owner in owners):
            state.pulls[:, 0].zero_()
            state.donors.weight[: state.n_terms].zero_()  # rows of the first channel
            for number, charge in fit.charges.items():
                state.own_elements[number, 0] = charge
    return True


def _start_from_totals(store: Store, states: list[ChargeState]) -> None:
    """Change own charges of the elements as little as makes them add up to total charges, if there are ions.

    Compositions that occur with several total charges say nothing. If one charge per element cannot give the totals of
    the others, as where many neutral molecules leave only zero, the start stays as it was.
    """
    elements = store.elements
    rows = np.unique(np.column_stack([store.composition(elements), store.charges]), axis=0).astype(np.float64)
    _, first, occurrences = np.unique(rows[:, :-1], axis=0, return_index=True, return_counts=True)
    rows = rows[first[occurrences == 1]]
    counts, totals = rows[:, :-1], rows[:, -1]
    if not totals.any():
        return
    for state in states:
        start = state.own_elements.detach()[elements, 0].double().cpu().numpy()
        charges = start + np.linalg.lstsq(counts, totals - counts @ start, rcond=_RANK)[0]
        missing = float(np.abs(counts @ charges - totals).max())
        if missing > _MISSING:
            logger.info(
                "own charges keep that start: one charge per element leaves total charges off by %.2g e", missing
            )
            return
        with torch.no_grad():
            state.own_elements[elements, 0] = torch.as_tensor(charges).to(state.own_elements)
    names = ", ".join(f"{chemical_symbols[z]} {charge:+.3f}" for z, charge in zip(elements, charges, strict=True))
    logger.info("… and from total charges: %s e", names)


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
        Structures are taken from it evenly; every other one is fitted, the rest tell how good the fit is.
    forces : str
        Label, such as ``forces_dft``.
    long_range : LatentEwald
        Gives the widths of the charges and how they are summed.
    cutoff : float, Å
        Radius of the pair interactions.

    Returns
    -------
    IonFit

    Raises
    ------
    ValueError
        If no structure has the label, the fitted ones have more than twenty elements, or their periodicity is one that
        :func:`mfm.longrange.energy.long_range_energy` refuses.
    """
    chosen = _chosen(store, forces)
    fitted, others = chosen[::2], chosen[1::2] or chosen
    elements = sorted({int(z) for record in fitted for z in record.structure.atomic_numbers})
    # who meets whom: nothing else can be fitted
    met = {pair for record in fitted for pair in _pairs_of(record, elements)}
    pairs = sorted(met)
    if len(pairs) > _MOST_PAIRS:
        raise ValueError(f"a linear fit takes at most {_MOST_PAIRS} pairs of elements, got {len(pairs)}")
    known = [record for record in others if set(record.structure.atomic_numbers.tolist()) <= set(elements)] or fitted
    systems = [
        [_system(record, forces, elements, pairs, long_range, cutoff) for record in part] for part in (fitted, known)
    ]
    products = _least_squares(systems[0])[: len(pairs)]
    charges, share = _factorised(products, pairs, len(elements))
    charges = charges * (-np.sign(charges @ [ELECTRONEGATIVITY[z] - _MIDDLE for z in elements]) or 1.0)
    errors = []
    for q in (charges, np.zeros(len(elements))):
        fixed = np.array([q[a] * q[b] for a, b in pairs])
        rest = [[(x[:, len(pairs) :], y - x[:, : len(pairs)] @ fixed) for x, y in part] for part in systems]
        weights = _least_squares(rest[0])
        left = np.concatenate([y - x @ weights for x, y in rest[1]])
        errors.append(float(np.sqrt(np.square(left).mean())))
    return IonFit(dict(zip(elements, map(float, charges), strict=True)), errors[0], errors[1], share)


def _chosen(store: Store, forces: str) -> list[Record]:
    labelled = np.flatnonzero(store.coverage(forces))
    if not len(labelled):
        raise ValueError(f"`{forces}` must be a label of the store, which has {', '.join(store.labels) or 'none'}")
    n_elements = len(store.elements)
    each = 0.5 * n_elements * (n_elements + 1) * float(np.median(store.n_atoms[labelled]))
    count = int(np.clip(_MOST_ATOMS // each, 2, _MOST_STRUCTURES))
    return [store[int(row)] for row in labelled[np.unique(np.linspace(0, len(labelled) - 1, count).astype(int))]]


def _pairs_of(record: Record, elements: list[int]) -> Iterator[tuple[int, int]]:
    present = sorted({elements.index(int(z)) for z in record.structure.atomic_numbers})
    return itertools.combinations_with_replacement(present, 2)


def _factorised(products: np.ndarray, pairs: list[tuple[int, int]], n_elements: int) -> tuple[np.ndarray, float]:
    """Charges whose products are nearest to those given, up to their sign, and the share of the squares they explain.

    Products of elements that never meet are what the charges say, found by repetition.
    """
    a, b = np.array(pairs).T
    matrix = np.zeros((n_elements, n_elements))
    charges = np.zeros(n_elements)
    values = np.zeros(n_elements)
    for _ in range(_REPETITIONS):
        matrix = np.outer(charges, charges)
        matrix[a, b] = matrix[b, a] = products
        values, vectors = np.linalg.eigh(matrix)
        charges = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
    size = float(np.square(values).sum())
    return charges, float(values[-1] ** 2 / size) if size > 0 and values[-1] > 0 else 0.0


def _system(
    record: Record,
    forces: str,
    elements: list[int],
    pairs: list[tuple[int, int]],
    long_range: LatentEwald,
    cutoff: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Forces of a unit of every Q_ab and of every radial function of a pair, and the labels.

    Returns
    -------
    (3 n_atoms, n_pairs (1 + _N_RADIAL)) and (3 n_atoms,), eV/Å
    """
    graph = build_graph(record.structure, cutoff, dtype=torch.float64)
    kinds = torch.as_tensor(np.searchsorted(elements, record.structure.atomic_numbers))
    columns = [_charge_forces(graph, kinds, pairs, long_range), _pair_forces(graph, kinds, pairs, cutoff)]
    return torch.cat(columns, dim=1).numpy(), np.asarray(record.labels[forces]).reshape(-1)


def _least_squares(systems: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Coefficients of the columns that come nearest to the labels."""
    columns, target = np.concatenate([x for x, _ in systems]), np.concatenate([y for _, y in systems])
    sizes = np.linalg.norm(columns, axis=0).clip(min=np.finfo(float).tiny)
    scaled = columns / sizes
    gram = scaled.T @ scaled + _RIDGE * np.eye(len(sizes))
    return np.asarray(np.linalg.solve(gram, scaled.T @ target) / sizes)


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
