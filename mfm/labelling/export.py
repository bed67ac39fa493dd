"""From a labelling store to records for training: quality rules, isolated atoms, and what was left out."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import ase.data
import numpy as np

from mfm.data.records import Record
from mfm.labelling.levels import DensityFunctionalLevel, Level, base_identifier
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelRow, LabelStore
from mfm.properties import PROPERTIES, task_name

__all__ = [
    "FLAGS",
    "Export",
    "QualityRules",
    "accepted_rows",
    "export_records",
    "noise_floors",
    "whole_provenance",
]

FLAGS = ("net_force", "net_torque", "gap", "s_squared", "rung", "unrestricted", "dipole_error", "t1", "d1", "max_t2")
"""Quality flags that records keep, for each level that has them."""


class QualityRules(NamedTuple):
    """When a label is left out. A flag that a row does not carry is not judged."""

    net_force: float = 5e-3
    """Largest component of the summed forces, eV/Å."""
    spin_contamination: float = 0.1
    """⟨S²⟩ − S(S + 1) of the Kohn-Sham determinant."""
    t1: float = 0.02
    """T1 of a closed-shell CCSD (Lee and Taylor, Int. J. Quantum Chem. Symp. 23, 199 (1989))."""
    t1_open_shell: float = 0.03
    """T1 of an open-shell CCSD, whose singles also relax the orbitals."""
    d1: float = 0.06
    """D1 of CCSD."""
    dipole_error: float = 1e-3
    """Largest |Σ (q R + μ) − dipole|, e bohr, for the charges to be kept."""

    def reason(self, row: LabelRow, multiplicity: int) -> str:
        """Why a row is left out; empty if it is kept."""
        if row.status != "ok":
            return "failed"
        spin = (multiplicity - 1) / 2
        contamination = row.flags.get("s_squared", spin * (spin + 1)) - spin * (spin + 1)
        checks = {
            "net force": row.flags.get("net_force", 0.0) > self.net_force,
            "spin contamination": contamination > self.spin_contamination,
            "t1": row.flags.get("t1", 0.0) > (self.t1 if multiplicity == 1 else self.t1_open_shell),
            "d1": row.flags.get("d1", 0.0) > self.d1,
        }
        return ", ".join(name for name, fails in checks.items() if fails)


class Export(NamedTuple):
    """Records for training, and what did not become one."""

    records: list[Record]
    references: dict[str, dict[str, float]]
    """Fidelity → symbol → energy of the isolated atom in its lowest state that was labelled, eV."""
    left_out: dict[str, int]
    """``fidelity: reason`` → number of labels."""


def accepted_rows(
    store: LabelStore, rules: QualityRules, samples: Mapping[str, Sample] | None = None
) -> tuple[dict[str, dict[str, LabelRow]], dict[str, int]]:
    """Labels that obey the rules, fidelity → structure hash → row; and ``fidelity: reason`` → number left out.

    Where a label was computed with and without extras, the one with extras is taken: it holds all of the other.

    Parameters
    ----------
    samples : mapping, optional
        What :meth:`LabelStore.samples` returned, when it is already known.
    """
    left_out: collections.Counter[str] = collections.Counter()
    fidelities = store.fidelities()
    samples = store.samples() if samples is None else samples
    accepted: dict[str, dict[str, LabelRow]] = {fidelity: {} for fidelity in fidelities.values()}
    for key in store.request_keys():
        fidelity = fidelities[base_identifier(key)]
        for row in store.labels(key):
            if row.hash not in samples:
                continue
            if reason := rules.reason(row, samples[row.hash].structure.multiplicity or 1):
                left_out[f"{fidelity}: {reason}"] += 1
            else:
                accepted[fidelity][row.hash] = row
    return accepted, dict(left_out)


def export_records(
    store: LabelStore,
    base: str | None = None,
    flag_names: Mapping[str, tuple[str, ...]] | None = None,
    rules: QualityRules | None = None,
) -> Export:
    """Records of all structures that have accepted labels.

    Parameters
    ----------
    base : str, optional
        Fidelity that every record must carry; labels at others are added where accepted.
    flag_names : mapping, optional
        Fidelity → flags to copy into the record, as ``{flag}_{fidelity}``; :data:`FLAGS` if not given.

    Raises
    ------
    ValueError
        If nothing is accepted.
    """
    rules = rules or QualityRules()
    samples = store.samples()
    accepted, left_out = accepted_rows(store, rules, samples)
    names = dict.fromkeys(accepted, FLAGS) if flag_names is None else flag_names
    records: list[Record] = []
    references: dict[str, dict[str, float]] = {fidelity: {} for fidelity in accepted}
    for key, sample in samples.items():
        rows = {fidelity: of_level[key] for fidelity, of_level in accepted.items() if key in of_level}
        if len(sample.structure) == 1 and sample.structure.charge == 0:
            symbol = ase.data.chemical_symbols[int(sample.structure.atomic_numbers[0])]
            for fidelity, row in rows.items():
                # of several spin states the lowest is the ground state
                energy = float(row.values["energy"])
                references[fidelity][symbol] = min(energy, references[fidelity].get(symbol, energy))
        elif rows and (base is None or base in rows):
            records.append(_record(sample, rows, names, rules))
    if not records:
        wanted = f"accepted `{base}` labels" if base else "accepted labels"
        raise ValueError(
            f"a labelling store must hold {wanted} of molecules, got none in {store.path}"
            f" (left out: {left_out or 'nothing'}); run the labelling first"
        )
    return Export(records, {name: atoms for name, atoms in references.items() if atoms}, left_out)


def _record(
    sample: Sample, rows: Mapping[str, LabelRow], flag_names: Mapping[str, tuple[str, ...]], rules: QualityRules
) -> Record:
    labels: dict[str, np.ndarray] = {}
    flags: dict[str, float] = {}
    for fidelity, row in rows.items():
        is_partition_good = row.flags.get("dipole_error", 0.0) <= rules.dipole_error
        for name, value in row.values.items():
            # what has no fixed shape, such as density coefficients, goes to a file of its own
            if name in PROPERTIES and (is_partition_good or name not in ("charges", "atomic_dipoles")):
                labels[task_name(name, fidelity)] = value
        for name in flag_names.get(fidelity, ()):
            if name in row.flags:
                flags[f"{name}_{fidelity}"] = row.flags[name]
        flags[f"seconds_{fidelity}"] = row.seconds
    return Record(sample.structure, labels, sample.molecule, sample.origin, flags)


def whole_provenance(store: LabelStore) -> dict[str, str]:
    """Versions, processors and environments of all labels; where they differ, all of them, the first ones first."""
    values: dict[str, dict[str, None]] = {}
    for record in store.provenances():
        for name, value in record.items():
            # what comes from an earlier export may itself be several
            values.setdefault(name, {}).update(dict.fromkeys(value.split("; ")))
    return {name: "; ".join(filter(None, several)) for name, several in values.items()}


def noise_floors(levels: Mapping[str, Level]) -> dict[str, float]:
    """Noise of energies (eV) and forces (eV/Å) that a Kohn-Sham grid leaves, by task.

    It is the largest change when glycine is turned, at wB97M-D3(BJ)/def2-SVP; grids coarser than level 3 are not
    listed, since nobody should label with them.
    """
    measured = {3: (9e-5, 3.2e-3), 4: (2e-5, 3.4e-4)}
    floors: dict[str, float] = {}
    for fidelity, level in levels.items():
        if isinstance(level, DensityFunctionalLevel) and level.grid >= min(measured):
            energy, force = measured[min(level.grid, max(measured))]
            floors |= {task_name("energy", fidelity): energy, task_name("forces", fidelity): force}
    return floors
