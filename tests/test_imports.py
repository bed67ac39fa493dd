"""Imports point one way, third parties stay in one place, and importing mfm is quick."""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import mfm

PACKAGE = Path(__file__).parents[1] / "mfm"

LAYERS = [
    {"units", "config", "allocator", "device"},
    {"properties", "fidelity"},
    {"structure"},
    {"graph"},
    {"nn"},
    {"density"},
    {"data"},
    {"backbones", "longrange", "heads", "derivatives", "domain"},
    {"requests"},
    {"model"},
    {"losses", "checkpoint", "potential", "labelling"},
    {"tracking"},
    {"calculator"},
    {"evaluation"},
    {"training"},
    {"study"},
    {"tuning", "transfer", "scaling"},
    {"cli"},
]
"""A part imports from layers above it in this list and from itself, never from its own layer or one below."""

HOMES = {
    "mlflow": {"mfm/tracking/store.py"},
    "optuna": {"mfm/tuning/study.py"},
    "lightning": {"mfm/training/"},
    "pyscf": {"mfm/labelling/"},
    "tblite": {"mfm/labelling/"},
    "rdkit": {"mfm/labelling/", "mfm/data/readers/"},
}
"""The only places that may import each of these."""

HEAVY = ["mlflow", "optuna", "pyscf", "rdkit", "lightning", "pytorch_lightning", "matplotlib"]
IMPORT_SECONDS = 2.0
"""Bar for `from mfm import MFMCalculator`, in CPU time, which other work on the machine does not change."""


def imported_modules(path: Path) -> list[str]:
    """Modules a file imports, at its top or inside functions."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path.name} has a relative import; write the full name"
            # `from mfm import units` names a part of mfm just as `import mfm.units` does
            modules += [f"mfm.{a.name}" for a in node.names] if node.module == "mfm" else [node.module]
    return modules


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(module: str) -> str:
    return module.split(".")[1]


def rank(part: str) -> int:
    for position, layer in enumerate(LAYERS):
        if part in layer:
            return position
    raise AssertionError(f"`{part}` is in no layer: add it to LAYERS in tests/test_imports.py")


def layering_problems(own: str, modules: list[str]) -> list[str]:
    """Imports of part `own` that do not point upwards in LAYERS."""
    foreign = [module for module in modules if module.startswith("mfm.") and part_of(module) != own]
    return [module for module in foreign if rank(part_of(module)) >= rank(own)]


def confinement_problems(relative: str, modules: list[str]) -> list[str]:
    """Third parties that a file may not import."""
    return [
        module
        for module in modules
        for library, homes in HOMES.items()
        if module.split(".")[0] == library and not any(relative.startswith(home) for home in homes)
    ]


def test_imports_point_one_way() -> None:
    problems = {}
    for path in sources():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        problems[str(path.relative_to(PACKAGE))] = layering_problems(own, imported_modules(path))
    assert {name: found for name, found in problems.items() if found} == {}


def test_third_parties_stay_in_their_place() -> None:
    problems = {}
    for path in sources():
        relative = path.relative_to(PACKAGE.parent).as_posix()
        problems[relative] = confinement_problems(relative, imported_modules(path))
    assert {name: found for name, found in problems.items() if found} == {}


def test_the_checks_find_planted_errors() -> None:
    assert layering_problems("nn", ["mfm.graph", "mfm.training.module"]) == ["mfm.training.module"]
    assert layering_problems("checkpoint", ["mfm.potential"]) == ["mfm.potential"]
    assert confinement_problems("mfm/calculator.py", ["mlflow.entities", "numpy"]) == ["mlflow.entities"]
    assert confinement_problems("mfm/tracking/run.py", ["mlflow"]) == ["mlflow"]
    assert confinement_problems("mfm/tracking/store.py", ["mlflow.entities"]) == []


def run_python(code: str) -> dict:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "statement", ["import mfm", "from mfm import MFMCalculator", "import mfm.potential, mfm.checkpoint"]
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert run_python(code) == []


def test_importing_the_calculator_is_quick() -> None:
    code = "import time\nfrom mfm import MFMCalculator\nprint(time.process_time())"
    seconds = statistics.median(float(run_python(code)) for _ in range(3))
    assert seconds < IMPORT_SECONDS


def test_public_names_resolve_and_are_few() -> None:
    assert len(mfm.__all__) <= 12
    for name in mfm.__all__:
        assert getattr(mfm, name) is not None
        assert name in dir(mfm)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match=r"mfm has no attribute `Calculator`; it has LevelOfTheory, MFMCalculator"):
        mfm.Calculator  # noqa: B018
