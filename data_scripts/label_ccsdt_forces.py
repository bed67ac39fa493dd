"""Forces at the composite CCSD(T) level, by finite differences, for a few small molecules.

python data_scripts/label_ccsdt_forces.py --out mfm/data/builtin/ccsdt-forces.h5

One distorted geometry each, from another random stream than chno-mini's; the same geometries are labelled at `dft`.
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.data.store import write_store
from mfm.graph import Structure
from mfm.labelling.coupled_cluster import label_composite
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import CompositeLevel, DensityFunctionalLevel
from mfm.labelling.molecule import numerical_forces
from mfm.labelling.sampling import sample_molecule
from mfm.labelling.worker import provenance

MOLECULES = ("O", "N", "C", "C=O", "C#N")


def composite_record(smiles: str, seed: int, step: float) -> Record:
    """One geometry with forces at both levels."""
    base, top = DensityFunctionalLevel(), CompositeLevel()
    # the last of eight: hot dynamics or modes, never the equilibrium
    sample = next(s for s in reversed(sample_molecule(smiles, 8, seed)) if s.origin in ("md600", "md1000", "modes"))

    def energy(structure: Structure) -> float:
        return float(label_composite(structure, top).values["energy"])

    forces, correction = numerical_forces(sample.structure, energy, step)
    at_base, at_top = label_dft(sample.structure, base), label_composite(sample.structure, top)
    labels = {f"{name}_dft": value for name, value in at_base.values.items()}
    labels |= {"energy_ccsdt": at_top.values["energy"], "forces_ccsdt": forces}
    net = float(np.abs(forces.sum(axis=0)).max())
    logging.info("%s %s: extrapolation %.2e, net force %.2e eV/Å", smiles, sample.origin, correction, net)
    flags = {"t1_ccsdt": at_top.flags["t1"], "net_force_ccsdt": net, "extrapolation_ccsdt": correction}
    return Record(sample.structure, labels, sample.molecule, sample.origin, flags)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--step", type=float, default=0.005, help="Å")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    made = provenance()
    card = DatasetCard(
        name="ccsdt-forces",
        description="Composite CCSD(T)/CBS forces of five small molecules, one distorted geometry each, by central"
        f" differences of energies (steps {arguments.step} and {2 * arguments.step} Å, extrapolated); the same"
        " geometries at dft. A check of forces that a model learns from energies.",
        source="computed by mfm with PySCF: data_scripts/label_ccsdt_forces.py",
        licence="CC0-1.0",
        citation="mfm",
        levels={
            "dft": DensityFunctionalLevel().level_of_theory(made["pyscf"]),
            "ccsdt": CompositeLevel().level_of_theory(made["pyscf"]),
        },
        energy_zero="total",
        provenance=made,
    )
    records = [composite_record(smiles, arguments.seed, arguments.step) for smiles in MOLECULES]
    write_store(arguments.out, records, card)


if __name__ == "__main__":
    main()
