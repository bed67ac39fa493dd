"""Labels of three small molecules, made in seconds, for smoke runs."""

from collections.abc import Sequence

import numpy as np

from mfm.data import DatasetCard, Record, Store
from mfm.labelling.density_basis import density_basis
from mfm.labelling.dft import label_dft
from mfm.labelling.levels import DensityFunctionalLevel, TightBindingLevel
from mfm.labelling.xtb import label_xtb
from mfm.structure import Structure
from mfm.units import BOHR

FAST_LEVEL = DensityFunctionalLevel(functional="pbe", basis="def2-svp", fitting_basis="def2-universal-jfit", grid=1)
FAST_MOLECULES = {
    "O": ([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]]),
    "[H][H]": ([1, 1], [[0, 0, 0], [0, 0, 0.76]]),
    "OO": ([8, 8, 1, 1], [[0, 0.73, -0.06], [0, -0.73, -0.06], [0.8, 0.9, 0.45], [-0.8, -0.9, 0.45]]),
}


def fast_store(fidelity: str, low: str, properties: Sequence[str]) -> Store:
    """A few distorted geometries of three molecules, labelled here."""
    generator, records = np.random.default_rng(0), []
    basis, xtb = density_basis(FAST_LEVEL.basis, FAST_LEVEL.fitting_basis, [1, 8]), TightBindingLevel()
    for name, (numbers, positions) in FAST_MOLECULES.items():
        for _ in range(2):
            moved = np.array(positions) + 0.03 * generator.normal(size=(len(numbers), 3))
            structure = Structure(np.array(numbers), moved)
            found = label_dft(structure, FAST_LEVEL, extras=("density",))
            rows = basis.to_rows(found.values["density_coefficients"] * BOHR**-1.5, structure.atomic_numbers)
            values = {**found.values, "density": rows}
            labels = {f"{prop}_{fidelity}": values[prop] for prop in ("energy", "forces", *properties)}
            labels |= {f"{prop}_{low}": value for prop, value in label_xtb(structure, xtb).values.items()}
            flags = {f"density_error_{fidelity}": found.flags["density_error"]}
            records.append(Record(structure, labels, molecule=name, flags=flags))
    levels = {fidelity: FAST_LEVEL.level_of_theory(""), low: xtb.level_of_theory("")}
    return Store.from_records(records, DatasetCard(name="fast", levels=levels, density_bases={fidelity: basis}))
