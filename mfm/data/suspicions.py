"""What looks wrong in a dataset: units, signs, sums, outliers. Each check is a question, not a verdict."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mfm.data.references import fit_references, free_atom_energy, residual_energies
from mfm.data.store import Store
from mfm.properties import parse_task
from mfm.units import BOHR, DEBYE, HARTREE, conversion_factor

__all__ = ["find_suspicions"]

_TOTAL = 0.03
"""Relative distance from the sum of semiclassical atoms within which an energy is an all-electron total."""
_RMS_FORCES = (0.02, 15.0)
"""eV/Å; the root mean square of force components in molecular data sets lies between."""
_LARGEST_FORCE = 50.0
"""eV/Å; beyond it a single force is more likely an unconverged calculation than chemistry."""
_NET_FORCE = 0.05
"""eV/Å times the root of the number of atoms, root mean square over structures; converged calculations have less."""
_CHARGE_SUM = 0.02
"""e; partial charges that should sum to the total charge."""
_SLOPE = 1.3
"""A ratio of two quantities that should agree, or its inverse, beyond which a unit is doubted."""
_CORRELATION = 0.9
"""Correlation that a ratio needs before it means anything."""
_N_FRAMES, _N_MOLECULES = 120, 3
"""Frames per molecule, and molecules, that the comparison of energies and forces looks at."""

_FACTORS = {
    "hartree for eV": 1 / HARTREE,
    "kcal/mol for eV": conversion_factor("eV", "kcal/mol"),
    "kJ/mol for eV": conversion_factor("eV", "kJ/mol"),
    "bohr for Å": 1 / BOHR,
    "debye for e*Å": 1 / DEBYE,
    "e*Å for debye": DEBYE,
    "e*bohr for debye": DEBYE / BOHR,
    "debye for e*bohr": BOHR / DEBYE,
}
_WORK_FACTORS = {
    "energies in hartree": 1 / HARTREE,
    "energies in kcal/mol": conversion_factor("eV", "kcal/mol"),
    "energies in kJ/mol": conversion_factor("eV", "kJ/mol"),
    "forces in hartree/bohr": HARTREE / BOHR,
    "forces in hartree/Å": HARTREE,
    "forces in eV/bohr": 1 / BOHR,
    "forces in kcal/mol/Å": conversion_factor("kcal/mol", "eV"),
}


class _Fit(NamedTuple):
    slope: float
    correlation: float


def find_suspicions(store: Store) -> list[str]:
    """Questions that the labels of a store raise, one line each; empty if none.

    The energies are compared with free atoms (hartree or kcal/mol read as eV), with the forces along pairs of similar
    frames (units, gradients), the forces with their usual size and sum, charges with the total charge, dipoles with
    the charges and with each other's levels.
    """
    found: list[str] = []
    for task in store.labels:
        prop, fidelity = parse_task(task)
        if not store.coverage(task).any():
            continue
        if prop == "energy":
            found += _energy_unit(store, task)
            found += _energy_outliers(store, task)
            found += _energy_against_forces(store, fidelity)
        elif prop == "forces":
            found += _forces(store, task)
        elif prop == "charges":
            found += _charge_sum(store, task)
            found += _dipole_against_charges(store, fidelity)
    return found + list(_dipoles_against_each_other(store))


def _energy_unit(store: Store, task: str) -> list[str]:
    labelled = store.subset(store.coverage(task))
    expected = labelled.composition(labelled.elements) @ free_atom_energy(np.array(labelled.elements))
    ratio = float(np.median(labelled.energies(task) / expected))
    for name in ("hartree for eV", "kcal/mol for eV", "kJ/mol for eV"):
        if abs(ratio / _FACTORS[name] - 1.0) < _TOTAL:
            return [f"`{task}` is {ratio:.4g} times the energy of the free atoms: {name}?"]
    return []


def _energy_outliers(store: Store, task: str) -> list[str]:
    labelled = store.subset(store.coverage(task))
    if len(labelled) < 20:
        return []
    fidelity = parse_task(task).fidelity
    references = fit_references(labelled, [fidelity], "least_squares")[fidelity]
    per_atom = residual_energies(labelled, task, references) / labelled.n_atoms
    deviation = np.abs(per_atom - np.median(per_atom))
    spread = max(1.4826 * float(np.median(deviation)), 1e-3)
    outliers = np.flatnonzero(deviation > 30 * spread)
    if len(outliers) == 0 or len(outliers) > 0.01 * len(labelled) + 1:
        return []
    worst = int(deviation.argmax())
    return [
        f"`{task}`: {len(outliers)} structures lie more than 30 robust deviations ({spread * 1e3:.3g} meV/atom) from"
        f" the least-squares references, most of all {labelled.molecules[worst]} by {deviation[worst]:.3g} eV/atom"
    ]


def _forces(store: Store, task: str) -> list[str]:
    found = []
    labelled = store.subset(store.coverage(task))
    forces = labelled.values(task)
    rms = float(np.sqrt(np.mean(np.square(forces))))
    if not _RMS_FORCES[0] <= rms <= _RMS_FORCES[1]:
        hint = "kcal/mol/Å or hartree for eV?" if rms > 1 else "hartree/bohr for eV/Å, or all at minima?"
        found.append(f"`{task}` has a root mean square of {rms:.3g} eV/Å: {hint}")
    norms = np.linalg.norm(forces, axis=1)
    n_large = int((norms > _LARGEST_FORCE).sum())
    if n_large and rms <= _RMS_FORCES[1]:
        found.append(f"`{task}`: {n_large} forces exceed {_LARGEST_FORCE:.0f} eV/Å, the largest {norms.max():.3g} eV/Å")
    starts = np.concatenate([[0], np.cumsum(labelled.n_atoms)[:-1]])
    net = np.linalg.norm(np.add.reduceat(forces, starts, axis=0), axis=1)
    rms_net = float(np.sqrt(np.mean(np.square(net))))
    if np.sqrt(np.mean(np.square(net) / labelled.n_atoms)) > _NET_FORCE:
        found.append(f"`{task}` do not sum to zero: {rms_net:.3g} eV/Å root mean square per structure")
    return found


def _charge_sum(store: Store, task: str) -> list[str]:
    labelled = store.subset(store.coverage(task))
    starts = np.concatenate([[0], np.cumsum(labelled.n_atoms)[:-1]])
    error = np.abs(np.add.reduceat(labelled.values(task), starts) - labelled.charges)
    n_wrong = int((error > _CHARGE_SUM).sum())
    if n_wrong == 0:
        return []
    worst = int(error.argmax())
    return [
        f"`{task}`: in {n_wrong} structures the charges miss the total charge by more than {_CHARGE_SUM} e, most of all"
        f" {labelled.molecules[worst]} by {error[worst]:.3g} e"
    ]


def _fit(x: np.ndarray, y: np.ndarray) -> _Fit:
    """Slope of y against x through the origin, and their correlation."""
    norm = float(np.sqrt((x @ x) * (y @ y)))
    if norm == 0.0:
        return _Fit(1.0, 0.0)
    return _Fit(float(x @ y) / float(x @ x), float(x @ y) / norm)


def _is_doubtful(fit: _Fit) -> bool:
    return abs(fit.correlation) > _CORRELATION and not 1 / _SLOPE < fit.slope < _SLOPE


def _guess(slope: float, factors: Mapping[str, float]) -> str:
    name, factor = min(factors.items(), key=lambda item: abs(np.log(abs(slope) / item[1])))
    return f" ({name}?)" if abs(np.log(abs(slope) / factor)) < 0.1 else ""


def _dipole_against_charges(store: Store, fidelity: str) -> list[str]:
    both = store.coverage(f"charges_{fidelity}") & store.coverage(f"dipole_{fidelity}")
    chosen = store.subset(np.flatnonzero(both)[:2000])
    pairs = [
        (record.labels[f"charges_{fidelity}"] @ record.structure.positions, record.labels[f"dipole_{fidelity}"])
        for record in chosen
        if record.structure.charge == 0 and not record.structure.pbc.any()
    ]
    if len(pairs) < 3:
        return []
    fit = _fit(np.ravel([p[0] for p in pairs]), np.ravel([p[1] for p in pairs]))
    if not _is_doubtful(fit):
        return []
    return [
        f"`dipole_{fidelity}` is {fit.slope:.4g} times the dipole of `charges_{fidelity}`"
        f" (correlation {fit.correlation:.3f}){_guess(fit.slope, _FACTORS)}"
    ]


def _dipoles_against_each_other(store: Store) -> Iterator[str]:
    tasks = [task for task in store.labels if parse_task(task).property == "dipole"]
    for i, one in enumerate(tasks):
        for other in tasks[i + 1 :]:
            both = store.subset(store.coverage(one) & store.coverage(other))
            if len(both) < 3:
                continue
            fit = _fit(both.values(one).ravel(), both.values(other).ravel())
            if _is_doubtful(fit):
                yield (
                    f"`{other}` is {fit.slope:.4g} times `{one}` on the {len(both)} structures that have both"
                    f" (correlation {fit.correlation:.3f}){_guess(fit.slope, _FACTORS)}"
                )


def _energy_against_forces(store: Store, fidelity: str) -> list[str]:
    """Whether energy differences of similar frames are minus the work of the mean force between them."""
    energy, forces = f"energy_{fidelity}", f"forces_{fidelity}"
    both = np.flatnonzero(store.coverage(energy) & store.coverage(forces))
    molecules, counts = np.unique(store.molecules[both], return_counts=True)
    work, difference = [], []
    for molecule in molecules[np.argsort(-counts, kind="stable")][:_N_MOLECULES]:
        frames = both[store.molecules[both] == molecule][:_N_FRAMES]
        pair = _trapezoid(store, frames, energy, forces)
        work += pair[0]
        difference += pair[1]
    if len(work) < 10:
        return []
    fit = _fit(np.array(work), np.array(difference))
    if fit.correlation < -_CORRELATION:
        return [f"`{forces}` have the sign of gradients: energies fall where they push back (slope {fit.slope:.3g})"]
    if not _is_doubtful(fit):
        return []
    return [
        f"`{energy}` differences are {fit.slope:.4g} times the work of `{forces}` between similar frames"
        f" (correlation {fit.correlation:.3f}){_guess(fit.slope, _WORK_FACTORS)}"
    ]


def _trapezoid(store: Store, frames: np.ndarray, energy: str, forces: str) -> tuple[list[float], list[float]]:
    """Work of the mean force from each frame to the nearest one, and the differences of their energies."""
    records = [store[int(i)] for i in frames]
    first = records[0].structure
    records = [
        record
        for record in records
        if not record.structure.pbc.any() and np.array_equal(record.structure.atomic_numbers, first.atomic_numbers)
    ]
    if len(records) < 5 or len(first) < 2:
        return [], []
    x = np.stack([record.structure.positions - record.structure.positions.mean(axis=0) for record in records])
    f = np.stack([record.labels[forces] for record in records])
    e = np.array([float(record.labels[energy]) for record in records])
    # rotations (from y onto x, Kabsch) of every frame onto every other
    u, _, vt = np.linalg.svd(np.einsum("jak,ial->ijkl", x, x))
    u[..., -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    rotations = u @ vt
    turned = np.einsum("jak,ijkl->ijal", x, rotations)
    squared = np.square(turned - x[:, None]).sum(axis=(2, 3))
    np.fill_diagonal(squared, np.inf)
    nearest = squared.argmin(axis=1)
    here = np.arange(len(x))
    turned_forces = np.einsum("iak,ikl->ial", f[nearest], rotations[here, nearest])
    work = -0.5 * np.sum((f + turned_forces) * (turned[here, nearest] - x), axis=(1, 2))
    return work.tolist(), (e[nearest] - e).tolist()
