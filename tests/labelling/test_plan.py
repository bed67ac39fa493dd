"""Plans: what they refuse, and that every prefix of the queue is balanced."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mfm.graph import Structure
from mfm.labelling.plan import Plan, PlannedMolecule, interleave, isolated_atoms, molecule_seed, read_plan
from mfm.labelling.sampling import Sample

SHIPPED = Path(__file__).parents[2] / "data_scripts/chno_mini.yaml"


def _write(path: Path, **changes: object) -> Path:
    content = {
        "seed": 1,
        "levels": ["low", "high"],
        "groups": [{"name": "all", "low": 4, "high": 2, "molecules": ["C", "O"]}],
        "test": {"molecules": ["O"], "counts": {"all": [3, 3]}},
    } | changes
    path.write_text(yaml.safe_dump(content))
    return path


def test_reads_counts_and_test_molecules(tmp_path: Path) -> None:
    plan = read_plan(_write(tmp_path / "plan.yaml"))
    assert plan.molecules == [PlannedMolecule("C", 4, 2, False, True), PlannedMolecule("O", 3, 3, True, True)]
    assert plan.test_molecules == ["O"]


def test_the_shipped_plan_is_what_the_dataset_promises() -> None:
    plan = read_plan(SHIPPED)
    assert len(plan.molecules) >= 60
    assert sum(molecule.n_base for molecule in plan.molecules) >= 500
    assert sum(molecule.n_top for molecule in plan.molecules) >= 200
    assert len(plan.test_molecules) == 10
    assert [len(sample.structure) for sample in isolated_atoms(plan)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": [{"name": "all", "low": 1, "high": 1, "molecules": ["CO", "OC", "O"]}]},
            r"appear once .* got `CO` twice",
        ),
        ({"groups": [{"name": "all", "low": 1, "high": 2, "molecules": ["C", "O"]}]}, r"got 2 of 1 for `C`"),
        ({"test": {"molecules": ["N"], "counts": {}}}, r"test molecules must be in a group of .*, got N in none"),
    ],
)
def test_mistakes_in_a_plan(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plan(_write(tmp_path / "plan.yaml", **changes))


def test_every_prefix_of_the_queue_is_balanced() -> None:
    molecules = [PlannedMolecule("C", 12, 6, False, True), PlannedMolecule("O", 4, 4, False, True)]
    plan = Plan(0, "low", "high", molecules, {"H": 2})
    samples = [
        [
            Sample(Structure(np.array([2]), np.full((1, 3), float(k))), molecule.smiles, "x")
            for k in range(molecule.n_base)
        ]
        for molecule in molecules
    ]
    jobs = interleave(plan, samples)
    assert [fidelity for _, fidelity in jobs[:2]] == ["low", "high"]
    assert {sample.molecule for sample, _ in jobs[:2]} == {"[H]"}
    counts = {(m, f): 0 for m in ("C", "O") for f in ("low", "high")}
    totals = {("C", "low"): 12, ("C", "high"): 6, ("O", "low"): 4, ("O", "high"): 4}
    for n, (sample, fidelity) in enumerate(jobs[2:], start=1):
        counts[sample.molecule, fidelity] += 1
        for key, total in totals.items():
            assert abs(counts[key] - total * n / 26) <= 2
    assert counts == totals


def test_a_molecule_keeps_its_seed_whatever_else_is_planned() -> None:
    assert molecule_seed(1, "CCO") == molecule_seed(1, "CCO") != molecule_seed(2, "CCO")
    assert 0 <= molecule_seed(1, "CCO") < 2**32
