"""Errors of predicted densities in space: NMAE, electrons, dipole."""

import numpy as np
import torch

from mfm.data.records import Record
from mfm.data.store import Store
from mfm.density.basis import DensityBasis
from mfm.density.evaluator import MolecularDensity, density_at
from mfm.density.grid import integration_grid
from mfm.graph import build_graph
from mfm.model import MFMModel
from mfm.properties import parse_task
from mfm.units import conversion_factor

__all__ = ["density_errors", "nmae", "record_errors"]

_MOST = 100
"""Structures whose densities are integrated, evenly over the dataset: each takes about a second per ten atoms."""


def nmae(predicted: MolecularDensity, target: MolecularDensity, points: np.ndarray, weights: np.ndarray) -> float:
    """100 ∫|ρ − ρ'| / ∫ρ', percent: normalised mean absolute error of one density against another.

    Parameters
    ----------
    predicted, target : MolecularDensity
        Of the same atoms in the same basis.
    points, weights : (n_points, 3), Å, and (n_points,), Å³
        See :func:`mfm.density.grid.integration_grid`.
    """
    places, shares = torch.as_tensor(points), torch.as_tensor(weights)
    # free atoms are in both: only the deformations differ
    left = predicted._replace(coefficients=predicted.coefficients - target.coefficients)
    with torch.no_grad():
        error = (shares * density_at(places, left, "deformation").abs()).sum()
        electrons = (shares * density_at(places, target)).sum()
    return float(100.0 * error / electrons)


def record_errors(record: Record, rows: np.ndarray, task: str, basis: DensityBasis) -> dict[str, float]:
    """Errors of one predicted density, and of free atoms in its place.

    Parameters
    ----------
    rows : (n_atoms, DENSITY_WIDTH), e
        Predicted coefficients.

    Returns
    -------
    dict
        ``nmae_percent`` against the labelled density, which is itself ``nmae_fit_percent`` off that of the level of
        theory (if the record's flags know it); ``nmae_free_atoms_percent``; ``electrons_e``, what the electron number
        is off; ``dipole_millidebye``, length of the error of the density's dipole, against the dipole label if there
        is one.
    """
    structure, label = record.structure, record.labels[task]
    target = MolecularDensity.of(structure, label, basis)
    points, weights = integration_grid(structure)
    found = {
        "nmae_percent": nmae(target._replace(coefficients=torch.as_tensor(rows)), target, points, weights),
        "nmae_free_atoms_percent": nmae(
            target._replace(coefficients=torch.zeros_like(target.coefficients)), target, points, weights
        ),
    }
    fidelity = parse_task(task).fidelity
    if f"density_error_{fidelity}" in record.flags:
        found["nmae_fit_percent"] = record.flags[f"density_error_{fidelity}"]
    electrons = basis.electrons(rows, structure.atomic_numbers).sum()
    found["electrons_e"] = abs(float(electrons) + structure.charge)
    dipole = record.labels.get(f"dipole_{fidelity}", basis.dipole(label, structure))
    difference = float(np.linalg.norm(basis.dipole(rows, structure) - dipole))
    found["dipole_millidebye"] = 1e3 * conversion_factor("e*Å", "D") * difference
    return found


def density_errors(model: MFMModel, store: Store, task: str, most: int = _MOST) -> dict[str, float]:
    """Means of :func:`record_errors` over labelled structures, and the largest error of an electron number.

    Parameters
    ----------
    store : Store
    task : str
        Such as ``density_dft``.
    most : int
        Structures to look at, evenly over those that have a label.
    """
    labelled = np.flatnonzero(store.coverage(task))
    chosen = labelled[np.unique(np.linspace(0, len(labelled) - 1, min(len(labelled), most)).astype(int))]
    device, basis = next(model.parameters()).device, model.domain.density_bases[parse_task(task).fidelity]
    rows: list[dict[str, float]] = []
    for record in (store[int(row)] for row in chosen):
        graph = build_graph(record.structure, model.cutoff, dtype=model.dtype).to(device)
        predicted = model.predict(graph, [task])[task].cpu().numpy()
        rows.append(record_errors(record, predicted, task, basis))
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    return found | {"electrons_e": max(row["electrons_e"] for row in rows)}
