"""Labels per hour and core, by level and molecule, against the figures that the recipes were chosen by.

python data_scripts/measure_throughput.py --molecules O CO CCO "NCC(=O)O" c1ccccc1 --levels xtb dft_lite dft ccsdt

One thread, distorted geometries, every label timed by its CPU seconds; run it on an idle machine. For `mmff` and `xtb`
the programs themselves, asked for the same quantities without any check, run in turn with the labels: their share does
not depend on the machine. PySCF's own CCSD(T)/cc-pVDZ comes first, without code of ours: its share of the reference
says how fast this machine is.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

# before anything loads a BLAS library
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from pyscf import cc, gto, scf  # noqa: TID251  the programs alone are what is measured here
from rdkit.Chem import rdForceFieldHelpers  # noqa: TID251
from tblite.interface import Calculator  # noqa: TID251

from mfm.graph import Structure
from mfm.labelling.geometries import bond_graph
from mfm.labelling.levels import LEVELS, Request
from mfm.labelling.sampling import sample_molecule
from mfm.labelling.store import Job
from mfm.labelling.worker import compute
from mfm.units import BOHR

_MOLECULES = ("O", "CO", "CCO", "NCC(=O)O", "c1ccccc1")
_RATES = {
    "mmff": (115e3 * 3600, None, 28e3 * 3600, 29e3 * 3600, 20e3 * 3600),
    "xtb": (2600 * 3600, None, 800 * 3600, 370 * 3600, 385 * 3600),
    "dft_lite": (3200, 1070, 474, 217, 208),
    # measured in a smaller basis: this one costs 1.3 times as much
    "dft": (1000 / 1.3, 326 / 1.3, 132 / 1.3, 50 / 1.3, 45 / 1.3),
    "ccsdt": (6300, 1180, 242, 70, 38),
}
_PYSCF_RATES = dict(zip(_MOLECULES, (20e3, 3300, 580, 107, 51), strict=True))
"""Of PySCF's own CCSD(T)/cc-pVDZ on that machine."""
REFERENCE = {
    (level, smiles): rate for level, rates in _RATES.items() for smiles, rate in zip(_MOLECULES, rates, strict=True)
}
"""Labels per hour on one core of an AMD EPYC (2.6 GHz), found when the recipes were chosen."""


def labels_per_hour(smiles: str, level: str, n_labels: int) -> tuple[float, float | None]:
    """Rate of labels, and of the bare program where it is known how to ask it.

    Medians over distorted geometries, the first left out: it loads libraries and tables.
    """
    seconds, bare_seconds = [], []
    samples = sample_molecule(smiles, n_labels + 1, seed=1, origins=("modes",))
    bare = _BARE[level](samples[0].structure, smiles) if level in _BARE else None
    for sample in samples:
        job = Job("", "", sample.structure, sample.origin, sample.molecule)
        started = time.process_time()
        compute(job, Request(LEVELS[level]))
        seconds.append(time.process_time() - started)
        if bare is not None:
            started = time.process_time()
            bare(sample.structure.positions)
            bare_seconds.append(time.process_time() - started)
    bare_rate = 3600 / statistics.median(bare_seconds[1:]) if bare is not None else None
    return 3600 / statistics.median(seconds[1:]), bare_rate


def pyscf_per_hour(smiles: str, n_energies: int) -> float:
    """CCSD(T)/cc-pVDZ energies per hour of PySCF alone, frozen core, of the same geometries."""
    seconds = []
    for sample in sample_molecule(smiles, n_energies + 1, seed=1, origins=("modes",)):
        numbers = sample.structure.atomic_numbers
        atoms = list(zip(numbers.tolist(), sample.structure.positions, strict=True))
        molecule = gto.M(atom=atoms, basis="cc-pvdz", verbose=0)
        started = time.process_time()
        solver = cc.CCSD(scf.RHF(molecule).run(), frozen=int((numbers > 1).sum())).run()
        solver.ccsd_t()
        seconds.append(time.process_time() - started)
    return 3600 / statistics.median(seconds[1:])


def _bare_xtb(structure: Structure, smiles: str) -> Callable[[np.ndarray], None]:
    del smiles
    calculator = Calculator("GFN2-xTB", structure.atomic_numbers, structure.positions / BOHR)
    calculator.set("verbosity", 0)

    def run(positions: np.ndarray) -> None:
        calculator.update(positions / BOHR)
        result = calculator.singlepoint()
        for name in ("energy", "gradient", "charges", "dipole", "orbital-energies", "orbital-occupations"):
            result.get(name)

    return run


def _bare_mmff(structure: Structure, smiles: str) -> Callable[[np.ndarray], None]:
    graph = bond_graph(structure, smiles)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(graph)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(graph, properties, nonBondedThresh=1e4)

    def run(positions: np.ndarray) -> None:
        flat = positions.ravel().tolist()
        field.CalcEnergy(flat)
        np.array(field.CalcGrad(flat))

    return run


_BARE = {"xtb": _bare_xtb, "mmff": _bare_mmff}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", default=["O", "CO", "CCO"], metavar="SMILES")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=list(LEVELS), metavar="LEVEL")
    parser.add_argument("--labels", type=int, default=3, metavar="N", help="geometries of each")
    arguments = parser.parse_args()
    sys.stdout.write(
        "| level | molecule | labels/hour/core | share of reference | share of the program |\n|---|---|---|---|---|\n"
    )
    for smiles in arguments.molecules:
        rate = pyscf_per_hour(smiles, arguments.labels)
        share = f"{100 * rate / _PYSCF_RATES[smiles]:.0f} %" if smiles in _PYSCF_RATES else "–"
        sys.stdout.write(f"| PySCF alone | {smiles} | {rate:.3g} | {share} | 100 % |\n")
        sys.stdout.flush()
    for level in arguments.levels:
        for smiles in arguments.molecules:
            rate, bare = labels_per_hour(smiles, level, arguments.labels)
            reference = REFERENCE.get((level, smiles))
            share = f"{100 * rate / reference:.0f} %" if reference else "–"
            of_program = f"{100 * rate / bare:.0f} %" if bare else "–"
            sys.stdout.write(f"| `{level}` | {smiles} | {rate:.3g} | {share} | {of_program} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
