"""Turn a labelling store into `builtin:chno-mini`, the HDF5 file and its card, and `builtin:chno-mini-densities`.

python data_scripts/export_chno_mini.py --store chno-mini/labels.sqlite
"""

import argparse
import dataclasses
import logging
from pathlib import Path

import numpy as np

from mfm.data.card import CARD_FOLDER, DatasetCard, FileCard, file_sha256
from mfm.data.records import Record
from mfm.data.store import Store, write_store
from mfm.labelling.density_file import write_densities
from mfm.labelling.export import Export, export_records, whole_provenance
from mfm.labelling.geometries import keeps_bonds
from mfm.labelling.plan import Plan, read_plan
from mfm.labelling.store import LabelStore

FLAGS = {
    "xtb": ("gap",),
    "dft": ("net_force", "gap", "s_squared", "rung", "dipole_error"),
    "ccsdt": ("t1", "d1", "max_t2", "gap"),
}
# rotating a molecule changes energies and forces by this much at PySCF's grid level 4 (glycine, this functional)
NOISE_FLOOR = {"energy_dft": 2e-5, "forces_dft": 3e-4, "energy_ccsdt": 1e-6}

# bonds compressed so far that one structure would weigh more in a loss than a hundred others
LARGEST_FORCE = 50.0
BROKEN_ON_PURPOSE = ("stretched", "compressed")


def within_reach(exported: Export) -> Export:
    """Without structures that have a larger force component at any level, eV/Å."""
    kept = [
        record
        for record in exported.records
        if all(np.abs(v).max() <= LARGEST_FORCE for task, v in record.labels.items() if task.startswith("forces_"))
    ]
    left_out = exported.left_out | {f"forces above {LARGEST_FORCE:g} eV/Å": len(exported.records) - len(kept)}
    return exported._replace(records=kept, left_out=left_out)


def with_bases(exported: Export) -> Export:
    """Without `ccsdt` labels of geometries whose `dft` label was refused: what broke that determinant is in both."""

    def checked(record: Record) -> Record:
        if "energy_dft" in record.labels:
            return record
        labels = {task: value for task, value in record.labels.items() if not task.endswith("_ccsdt")}
        return dataclasses.replace(record, labels=labels)

    alone = sum("energy_ccsdt" in r.labels and "energy_dft" not in r.labels for r in exported.records)
    left_out = exported.left_out | {"ccsdt: no dft": alone}
    return exported._replace(records=[checked(record) for record in exported.records], left_out=left_out)


def without_others(exported: Export) -> Export:
    """Without molecules whose minimum was another molecule: most of what was made from it lacks the named bonds.

    One hot frame or one stretched bond is no reason to leave a molecule out, and geometries with bonds broken on
    purpose say nothing about it.
    """
    changed: dict[str, list[bool]] = {}
    for record in exported.records:
        if record.origin not in BROKEN_ON_PURPOSE:
            changed.setdefault(record.molecule, []).append(not keeps_bonds(record.structure, record.molecule))
    others = {molecule for molecule, several in changed.items() if 2 * sum(several) > len(several)}
    kept = [record for record in exported.records if record.molecule not in others]
    counts = {
        f"`{molecule}` was another molecule": sum(record.molecule == molecule for record in exported.records)
        for molecule in sorted(others)
    }
    return exported._replace(records=kept, left_out=exported.left_out | counts)


def make_card(plan: Plan, exported: Export, provenance: dict[str, str]) -> DatasetCard:
    """Card without the file's checksum."""
    counts = {name: sum(f"energy_{name}" in record.labels for record in exported.records) for name in plan.levels}
    hours = {
        name: sum(record.flags.get(f"seconds_{name}", 0.0) for record in exported.records) / 3600 for name in counts
    }
    return DatasetCard(
        name="chno-mini",
        description=f"{_what(exported)}. Labels (core-hours of each): "
        + ", ".join(f"{count} {name} ({hours[name]:.2g})" for name, count in counts.items())
        + ".",
        source="computed by mfm with tblite and PySCF: data_scripts/label_chno_mini.py, plan"
        " data_scripts/chno_mini.yaml",
        licence="CC0-1.0",
        citation="mfm; methods: GFN2-xTB Bannwarth, Ehlert and Grimme 2019 (doi:10.1021/acs.jctc.8b01176),"
        " wB97M-V functional Mardirossian and Head-Gordon 2016 (doi:10.1063/1.4952647),"
        " its D3(BJ) form Najibi and Goerigk 2018 (doi:10.1021/acs.jctc.8b00842), PySCF (doi:10.1063/5.0006074)",
        levels={
            name: level.level_of_theory(provenance[level.level_of_theory("").program.lower()])
            for name, level in plan.levels.items()
        },
        references=exported.references,
        energy_zero="total",
        noise_floor=NOISE_FLOOR,
        test_molecules=tuple(sorted(plan.test_molecules)),
        provenance=provenance,
    )


def _what(exported: Export) -> str:
    """Molecules and geometries in words."""
    records = exported.records
    largest = max(int((record.structure.atomic_numbers > 1).sum()) for record in records if "." not in record.molecule)
    kinds = {
        "ions": any(record.structure.charge for record in records),
        "radicals": any((record.structure.multiplicity or 1) > 1 for record in records),
        "pairs": any("." in record.molecule for record in records),
    }
    some = [kind for kind, is_there in kinds.items() if is_there]
    among = f" ({', '.join(some)} among them)" if some else ""
    origins = ", ".join(sorted({record.origin for record in records}))
    n_molecules = len({record.molecule for record in records})
    return (
        f"{len(records)} geometries of {n_molecules} molecules{among} of H, C, N, O with at most {largest} heavy atoms;"
        f" origins: {origins}"
    )


def main() -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--plan", type=Path, default=here / "chno_mini.yaml")
    parser.add_argument("--out", type=Path, default=here.parent / "mfm/data/builtin/chno-mini.h5")
    parser.add_argument("--card", type=Path, default=CARD_FOLDER / "chno-mini.yaml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan, store = read_plan(arguments.plan), LabelStore(arguments.store, read_only=True)
    exported = without_others(with_bases(within_reach(export_records(store, flag_names=FLAGS))))
    card = make_card(plan, exported, whole_provenance(store))
    write_store(arguments.out, exported.records, card)
    file = FileCard(path=arguments.out.name, sha256=file_sha256(arguments.out), format="mfm")
    card = DatasetCard.model_validate(card.model_dump() | {"files": [file.model_dump()]})
    arguments.card.write_text(card.to_yaml(), encoding="utf-8")
    logging.info("%s\nleft out: %s", Store.open(arguments.out), exported.left_out or "nothing")
    densities = arguments.out.with_name(f"{arguments.out.stem}-densities.h5")
    count = write_densities(store, "dft", plan.levels["dft"], densities)
    store.close()
    logging.info("%d densities in %s", count, densities)


if __name__ == "__main__":
    main()
