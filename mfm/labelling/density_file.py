"""Density coefficients of a labelling store as a dataset of their own: they take a kilobyte an atom."""

from pathlib import Path

from mfm.data.card import DatasetCard
from mfm.data.records import Record
from mfm.data.store import write_store
from mfm.labelling.density_basis import density_basis
from mfm.labelling.export import QualityRules, accepted_rows, whole_provenance
from mfm.labelling.levels import DensityFunctionalLevel, Level
from mfm.labelling.store import LabelStore
from mfm.properties import task_name
from mfm.units import BOHR

__all__ = ["write_densities"]

_FLAGS = ("density_error", "density_baseline")


def write_densities(
    store: LabelStore, fidelity: str, level: Level, path: str | Path, rules: QualityRules | None = None
) -> int:
    """Write the densities of one fidelity as a dataset; returns the number of structures.

    Its card holds the basis, free atoms included. Flags ``density_error_{fidelity}`` and
    ``density_baseline_{fidelity}`` are the NMAE of the fit and of the free atoms alone, percent: no model can be shown
    to be better than the former.

    Raises
    ------
    ValueError
        If there are none.
    """
    samples = store.samples()
    accepted = accepted_rows(store, rules or QualityRules(), samples)[0].get(fidelity, {})
    rows = [accepted[key] for key in samples if key in accepted and "density_coefficients" in accepted[key].values]
    if not rows or not isinstance(level, DensityFunctionalLevel):
        raise ValueError(
            f"densities must have been asked for, got none at `{fidelity}` in {store.path}; label with --extras density"
        )
    numbers = {int(z) for row in rows for z in samples[row.hash].structure.atomic_numbers}
    basis = density_basis(level.basis, level.fitting_basis, numbers)
    records = []
    for row in rows:
        sample = samples[row.hash]
        # functions normalised in Å instead of bohr
        coefficients = row.values["density_coefficients"] * BOHR**-1.5
        labels = {task_name("density", fidelity): basis.to_rows(coefficients, sample.structure.atomic_numbers)}
        flags = {f"{name}_{fidelity}": row.flags[name] for name in _FLAGS}
        records.append(Record(sample.structure, labels, sample.molecule, sample.origin, flags))
    provenance = whole_provenance(store)
    card = DatasetCard(
        name=Path(path).stem,
        description="Electron densities, as the deformation of superposed free atoms in a Gaussian basis.",
        source="computed by mfm",
        levels={fidelity: level.level_of_theory(provenance.get("pyscf", ""))},
        density_bases={fidelity: basis},
        provenance=provenance,
    )
    write_store(path, records, card)
    return len(records)
