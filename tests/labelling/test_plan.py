"""Plans: what they refuse, and that every prefix of the queue is balanced."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mfm.graph import Structure
from mfm.labelling.levels import LEVELS
from mfm.labelling.plan import Plan, PlannedMolecule, interleave, isolated_atoms, molecule_seed, read_plan
from mfm.labelling.sampling import Sample

SHIPPED = Path(__file__).parents[2] / "data_scripts/chno_mini.yaml"


def _write(path: Path, **changes: object) -> Path:
    content = {
        "seed": 1,
        "levels": {"low": {"kind": "xtb"}, "high": {"kind": "dft", "basis": "def2-svp"}},
        "groups": [{"name": "all", "low": 4, "high": 2, "molecules": ["C", "O"]}],
        "test": {"molecules": ["O"], "counts": {"all": [3, 3]}},
    } | changes
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_reads_counts_and_test_molecules(tmp_path: Path) -> None:
    plan = read_plan(_write(tmp_path / "plan.yaml"))
    assert plan.molecules == [
        PlannedMolecule("C", {"low": 4, "high": 2}),
        PlannedMolecule("O", {"low": 3, "high": 3}, is_test=True),
    ]
    assert plan.test_molecules == ["O"]


def test_the_shipped_plan_is_what_the_dataset_promises() -> None:
    plan = read_plan(SHIPPED)
    assert len({molecule.smiles for molecule in plan.molecules}) >= 150
    wanted = {"xtb": 20_000, "dft": 1500, "ccsdt": 600, "dft.density": 400}
    planned = {key: sum(molecule.counts.get(key, 0) for molecule in plan.molecules) for key in wanted}
    assert all(planned[key] >= least for key, least in wanted.items()), planned
    # ten molecules of two to four heavy atoms, and ten of six, larger than all others
    assert len(plan.test_molecules) == 20
    larger = [molecule for molecule in plan.molecules if molecule.stage == 5]
    assert all(molecule.is_test and molecule.counts["ccsdt"] for molecule in larger)
    assert len(larger) == 10
    # what derives from a test molecule would be one too, and there is none
    assert not any(molecule.is_test and molecule.parent for molecule in plan.molecules)
    assert [len(sample.structure) for sample in isolated_atoms(plan)] == [1, 1, 1, 1]


def test_the_larger_plan_holds_out_the_same_molecules() -> None:
    plan = read_plan(SHIPPED.with_name("chno_small.yaml"))
    assert set(plan.test_molecules) == set(read_plan(SHIPPED).test_molecules)
    assert len({molecule.smiles for molecule in plan.molecules}) > 800


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups": [{"name": "all", "low": 1, "high": 1, "molecules": ["CO", "OC", "O"]}]},
            r"appear once .* got `CO` twice",
        ),
        ({"groups": [{"name": "all", "low": 1, "high": 2, "molecules": ["C", "O"]}]}, r"got 2 of 1 for `C`"),
        (
            {"groups": [{"name": "all", "low": 1, "hihg": 1, "molecules": ["O"]}]},
            r"group `all` in .* has keys name, .* low, high, low.density, high.density; got `hihg`",
        ),
        (
            {"groups": [{"name": "all", "low": 2, "high": 1, "high.density": 2, "molecules": ["C"]}], "test": None},
            r"`high.density` must label at most the geometries that `high` labels, got 2 of 1 for `C`",
        ),
        (
            {"groups": [{"name": "all", "low": 1, "low.density": 1, "molecules": ["O"]}]},
            r"extras of xtb:.* must be among none, got density",
        ),
        (
            {"groups": [{"name": "all", "low": 1, "ions_of": ["acids"]}]},
            r"`ions_of` of group `all` in .* must name groups above it \(none\), got acids",
        ),
        (
            {"groups": [{"name": "all", "low": 1, "molecules": ["O"], "origins": ["boiled"]}]},
            r"origins must be among equilibrium, .* got boiled",
        ),
        (
            {"test": {"molecules": ["O"], "counts": {"all": [3]}}},
            r"`test.counts` must give a number for each of low, high, got \[3\] for group `all`",
        ),
        ({"first": ["mid"]}, r"`first` of .* must name levels \(low, high\), got mid"),
        ({"levels": ["b3lyp"]}, r"level must be one of mmff, xtb, .* got `b3lyp`"),
        ({"test": {"molecules": ["N"], "counts": {}}}, r"test molecules must be in a group of .*, got N in none"),
    ],
)
def test_mistakes_in_a_plan(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plan(_write(tmp_path / "plan.yaml", **changes))


def test_every_prefix_of_the_queue_is_balanced() -> None:
    molecules = [PlannedMolecule("C", {"low": 12, "high": 6}), PlannedMolecule("O", {"low": 4, "high": 4})]
    levels = {"low": LEVELS["xtb"], "high": LEVELS["dft"]}
    names = {level.identifier: name for name, level in levels.items()}
    jobs = interleave(Plan(0, levels, molecules, {"H": 2}), _numbered(molecules))
    assert [names[key] for _, key in jobs[:2]] == ["low", "high"]
    assert {sample.molecule for sample, _ in jobs[:2]} == {"[H]"}
    counts = {(m, f): 0 for m in ("C", "O") for f in ("low", "high")}
    totals = {("C", "low"): 12, ("C", "high"): 6, ("O", "low"): 4, ("O", "high"): 4}
    for n, (sample, key) in enumerate(jobs[2:], start=1):
        counts[sample.molecule, names[key]] += 1
        for pair, total in totals.items():
            assert abs(counts[pair] - total * n / 26) <= 2
    assert counts == totals


def _numbered(molecules: list[PlannedMolecule]) -> list[list[Sample]]:
    return [
        [
            Sample(Structure(np.array([2]), np.full((1, 3), float(k))), molecule.smiles, "x")
            for k in range(molecule.n_geometries)
        ]
        for molecule in molecules
    ]


def test_extras_go_with_some_labels_of_a_level() -> None:
    molecules = [PlannedMolecule("C", {"mmff": 6, "dft": 4, "dft.density": 2})]
    plan = Plan(0, {"mmff": LEVELS["mmff"], "dft": LEVELS["dft"]}, molecules, {"H": 2})
    keys = [key for _, key in interleave(plan, _numbered(molecules))]
    dft = LEVELS["dft"].identifier
    # force fields have no isolated atoms
    assert keys.count(LEVELS["mmff"].identifier) == 6
    assert (keys.count(dft), keys.count(f"{dft}|density")) == (1 + 2, 2)


def test_the_plan_in_the_documentation(tmp_path: Path) -> None:
    text = (SHIPPED.parents[1] / "docs/labelling.md").read_text(encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    plan = read_plan(tmp_path / "plan.yaml")
    assert list(plan.levels) == ["xtb", "dft", "ccsdt", "pbe"]
    assert {"CCO", "C=O", "C[O-]", "C[O]"} <= {molecule.smiles for molecule in plan.molecules}
    assert next(m for m in plan.molecules if m.smiles == "CO").counts["dft.density"] == 2
    # a molecule may be in two groups whose geometries are made in different ways, once with its equilibrium
    assert [(m.origins[:1], m.has_equilibrium) for m in plan.molecules if m.smiles == "C=O"] == [
        ((), True),
        (("stretched",), False),
    ]
    assert all(molecule.is_test for molecule in plan.molecules if molecule.parent == "CO")


def test_groups_that_are_made_from_others(tmp_path: Path) -> None:
    groups = [
        {"name": "seeds", "low": 4, "high": 2, "molecules": ["O", "CO"]},
        {"name": "all", "low": 3, "enumerate": {"elements": ["C", "O"], "heavy_atoms": [1, 2]}, "origins": ["md500"]},
        {"name": "radicals", "low": 2, "radicals_of": ["seeds"]},
        {"name": "ions", "low": 2, "high": 1, "high.density": 1, "ions_of": ["seeds"], "pick": 3},
        {"name": "pairs", "low": 2, "pairs_of": ["seeds"], "pick": 2},
    ]
    plan = read_plan(_write(tmp_path / "plan.yaml", groups=groups))
    found = {molecule.smiles: molecule for molecule in plan.molecules}
    assert set(found) >= {"O", "CO", "C", "CC", "C=O", "[OH]", "C[O]", "[CH2]O"}
    assert found["CC"].origins == ("md500",)
    assert found["[OH]"].parent == "O"
    # what comes of a test molecule is a test molecule
    assert found["[OH]"].is_test
    assert not found["C[O]"].is_test
    charged = [molecule for smiles, molecule in found.items() if "+" in smiles or "-" in smiles]
    assert [molecule.counts["high.density"] for molecule in charged] == [1, 1, 1]
    assert sum("." in smiles for smiles in found) == 2
    assert read_plan(_write(tmp_path / "plan.yaml", groups=groups)) == plan


def test_stages_and_levels_that_come_first(tmp_path: Path) -> None:
    groups = [
        {"name": "late", "low": 2, "high": 1, "stage": 2, "molecules": ["O", "C"]},
        {"name": "early", "low": 2, "high": 2, "stage": 1, "molecules": ["CO", "CC"]},
        {"name": "more", "low": 3, "stage": 1, "molecules_of": ["late"], "origins": ["modes"]},
        {"name": "others", "low": 1, "high": 1, "enumerate": {"elements": ["C"], "heavy_atoms": [1, 2], "others": True},
         "origins": ["modes"]},
    ]  # fmt: skip
    test = {"molecules": ["O"], "counts": {"late": [2, 1], "more": [0, 0]}}
    plan = read_plan(_write(tmp_path / "plan.yaml", groups=groups, first=["low"], test=test))
    names = {level.identifier: name for name, level in plan.levels.items()}
    jobs = [(names[key], sample.molecule) for sample, key in interleave(plan, _numbered(plan.molecules))]
    assert [level for level, _ in jobs] == ["low"] * 13 + ["high"] * 8
    assert {molecule for _, molecule in jobs[13:15]} == {"C=C", "C#C"}
    assert {molecule for _, molecule in jobs[15:19]} == {"CO", "CC"}
    assert {molecule for _, molecule in jobs[19:]} == {"O", "C"}
    # a group of further geometries leaves test molecules alone where the plan says so
    assert [(m.smiles, m.n_geometries, m.is_test) for m in plan.molecules if m.origins and m.stage] == [
        ("O", 0, True),
        ("C", 3, False),
    ]


def test_a_molecule_keeps_its_seed_whatever_else_is_planned() -> None:
    assert molecule_seed(1, "CCO") == molecule_seed(1, "CCO") != molecule_seed(2, "CCO")
    assert molecule_seed(1, "CCO", ["modes"]) != molecule_seed(1, "CCO")
    assert 0 <= molecule_seed(1, "CCO") < 2**32
