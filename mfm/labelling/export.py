"""From a labelling store to records for training: quality rules, isolated atoms, and what was left out."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import ase.data
import numpy as np

from mfm.data.records import Record
from mfm.labelling.sampling import Sample
from mfm.labelling.store import LabelRow, LabelStore
from mfm.properties import task_name

__all__ = ["Export", "QualityRules", "export_records"]


class QualityRules(NamedTuple):
    """When a label is left out. A flag that a row does not carry is not judged."""

    net_force: float = 5e-3
    """Largest component of the summed forces, eV/Å."""
    spin_contamination: float = 0.1
    """⟨S²⟩ − S(S + 1) of the Kohn-Sham determinant."""
    t1: float = 0.02
    """T1 of a closed-shell CCSD (Lee and Taylor, Int. J. Quantum Chem. Symp. 23, 199 (1989))."""
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
            "t1": row.flags.get("t1", 0.0) > self.t1,
            "d1": row.flags.get("d1", 0.0) > self.d1,
        }
        return ", ".join(name for name, fails in checks.items() if fails)


class Export(NamedTuple):
    """Records for training, and what did not become one."""

    records: list[Record]
    references: dict[str, dict[str, float]]
    """Fidelity → symbol → energy of the isolated atom, eV."""
    left_out: dict[str, int]
    """``fidelity: reason`` → number of labels."""


def export_records(
    store: LabelStore, base: str, flag_names: Mapping[str, tuple[str, ...]], rules: QualityRules | None = None
) -> Export:
    """Records of all structures that have an accepted label at the `base` fidelity.

    Parameters
    ----------
    base : str
        Fidelity that every record must carry; labels at others are added where accepted.
    flag_names : mapping
        Fidelity → flags to copy into the record, as ``{flag}_{fidelity}``.

    Raises
    ------
    ValueError
        If nothing is accepted at `base`.
    """
    left_out: collections.Counter[str] = collections.Counter()
    accepted: dict[str, dict[str, LabelRow]] = {}
    samples = store.samples()
    rules = rules or QualityRules()
    for identifier, fidelity in store.fidelities().items():
        accepted[fidelity] = {}
        for row in store.labels(identifier):
            if row.hash not in samples:
                continue
            reason = rules.reason(row, samples[row.hash].structure.multiplicity or 1)
            if reason:
                left_out[f"{fidelity}: {reason}"] += 1
            else:
                accepted[fidelity][row.hash] = row
    records: list[Record] = []
    references: dict[str, dict[str, float]] = {fidelity: {} for fidelity in accepted}
    for key, sample in samples.items():
        rows = {fidelity: of_level[key] for fidelity, of_level in accepted.items() if key in of_level}
        if len(sample.structure) == 1:
            symbol = ase.data.chemical_symbols[int(sample.structure.atomic_numbers[0])]
            for fidelity, row in rows.items():
                references[fidelity][symbol] = float(row.values["energy"])
        elif base in rows:
            records.append(_record(sample, rows, flag_names, rules))
    if not records:
        raise ValueError(
            f"a labelling store must hold accepted `{base}` labels of molecules, got none in {store.path}"
            f" (left out: {dict(left_out) or 'nothing'}); run the labelling first"
        )
    return Export(records, {name: atoms for name, atoms in references.items() if atoms}, dict(left_out))


def _record(
    sample: Sample, rows: Mapping[str, LabelRow], flag_names: Mapping[str, tuple[str, ...]], rules: QualityRules
) -> Record:
    labels: dict[str, np.ndarray] = {}
    flags: dict[str, float] = {}
    for fidelity, row in rows.items():
        is_partition_good = row.flags.get("dipole_error", 0.0) <= rules.dipole_error
        for name, value in row.values.items():
            if is_partition_good or name not in ("charges", "atomic_dipoles"):
                labels[task_name(name, fidelity)] = value
        for name in flag_names.get(fidelity, ()):
            if name in row.flags:
                flags[f"{name}_{fidelity}"] = row.flags[name]
        flags[f"seconds_{fidelity}"] = row.seconds
    return Record(sample.structure, labels, sample.molecule, sample.origin, flags)
