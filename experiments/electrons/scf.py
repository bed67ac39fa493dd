"""How many cycles an SCF takes from PySCF's own guess, from predicted densities and from the labelled ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyscf import dft, gto

from mfm.data import Record, Store
from mfm.density.evaluator import MolecularDensity
from mfm.labelling.density_guess import initial_guess
from mfm.labelling.levels import DensityFunctionalLevel
from mfm.labelling.molecule import build_molecule
from mfm.model import MFMModel
from mfm.potential import Potential
from mfm.training.experiment import write_json
from mfm.units import HARTREE


def measure_cycles(
    models: Mapping[int, MFMModel], store: Store, level: DensityFunctionalLevel, count: int, fidelity: str, path: Path
) -> None:
    """Write a row for each of so many molecules, the smallest, since each takes minutes; rows that are there stay.

    A row: ``molecule``, and ``default``, ``label`` and the seed of each model to ``cycles`` and ``energy_ev``.
    """
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {row["molecule"]: row for row in rows}
    _, first = np.unique(store.molecules, return_index=True)
    for record in (store[int(i)] for i in sorted(first, key=lambda i: store.n_atoms[i])[:count]):
        row = done.get(record.molecule, {"molecule": record.molecule})
        if record.molecule not in done:
            rows.append(row)
        missing = [name for name in ("default", "label", *map(str, models)) if name not in row]
        for name in missing:
            row[name] = converge(record, name, models, level, fidelity)
        if missing:
            write_json(path, rows)


def converge(
    record: Record, guess: str, models: Mapping[int, MFMModel], level: DensityFunctionalLevel, fidelity: str
) -> dict[str, float]:
    """Cycles and energy, eV, of the SCF from one guess.

    Raises
    ------
    RuntimeError
        If it does not converge.
    """
    molecule = build_molecule(record.structure, level.basis)
    cycles: list[int] = []
    solver = (dft.UKS if molecule.spin else dft.RKS)(molecule, xc=level.functional)
    solver = solver.density_fit(auxbasis=level.fitting_basis)
    solver.grids.level, solver.conv_tol = level.grid, level.tolerance
    solver.callback = lambda state: cycles.append(state["cycle"])
    solver.kernel(dm0=start(molecule, record, guess, models, fidelity))
    if not solver.converged:
        raise RuntimeError(f"the SCF of {record.molecule} from the guess {guess} took {len(cycles)} cycles and failed")
    return {"cycles": len(cycles), "energy_ev": float(solver.e_tot * HARTREE)}


def start(
    molecule: gto.Mole, record: Record, guess: str, models: Mapping[int, MFMModel], fidelity: str
) -> np.ndarray | None:
    """Density matrix of a guess; none where PySCF makes its own."""
    if guess == "default":
        return None
    if guess == "label":
        basis = next(iter(models.values())).domain.density_bases[fidelity]
        density = MolecularDensity.of(record.structure, record.labels[f"density_{fidelity}"], basis)
    else:
        density = Potential(models[int(guess)], torch.device("cpu")).density(record.structure, fidelity)
    return initial_guess(molecule, density)
