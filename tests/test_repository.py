"""Rules of the repository that a machine can check: sizes, paths of one machine, tests that assert."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES_OF_FILE = 400
MAX_LINES_OF_FUNCTION = 60
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/[\w.]")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked(*patterns: str) -> list[Path]:
    """Files in the repository that match one of the patterns; all files where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    return sorted(ROOT / name for name in listed if name and (ROOT / name).is_file())


PYTHON = tracked("*.py")
TEXT = tracked("*.py", "*.md", "*.toml", "*.yaml", "*.yml", "*.txt", "Makefile", ".ci/run", "NOTICE")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def long_functions(source: str) -> list[str]:
    """Functions of too many lines, docstrings not counted."""
    lengths = {node.name: n_lines(node) for node in functions(ast.parse(source))}
    return [f"{name}: {lines}" for name, lines in lengths.items() if lines > MAX_LINES_OF_FUNCTION]


def n_lines(node: Function) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def is_assertion(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    # a subprocess run with `check=True` fails the test when it fails
    checked = any(keyword.arg == "check" and getattr(keyword.value, "value", False) for keyword in node.keywords)
    return checked or called in {"raises", "warns"} or called.startswith(("assert", "check"))


def without_assertion(source: str) -> list[str]:
    return [
        node.name
        for node in functions(ast.parse(source))
        if node.name.startswith("test") and not any(is_assertion(inner) for inner in ast.walk(node))
    ]


def machine_paths(text: str) -> list[str]:
    return MACHINE_PATH.findall(text)


def test_files_and_functions_are_short() -> None:
    problems = {}
    for path in PYTHON:
        source = path.read_text(encoding="utf-8")
        lines = source.count("\n")
        problems[name_of(path)] = long_functions(source) + [f"{lines} lines"] * (lines > MAX_LINES_OF_FILE)
    assert {name: found for name, found in problems.items() if found} == {}


def test_every_test_asserts() -> None:
    tests = [path for path in PYTHON if path.name.startswith("test_")]
    problems = {name_of(path): without_assertion(path.read_text(encoding="utf-8")) for path in tests}
    assert {name: found for name, found in problems.items() if found} == {}


def test_no_path_of_one_machine() -> None:
    problems = {name_of(path): machine_paths(path.read_text(encoding="utf-8")) for path in TEXT}
    assert {name: found for name, found in problems.items() if found} == {}


def test_no_file_is_large() -> None:
    datasets = [path for path in tracked() if path.suffix == ".h5"]
    large = [name_of(path) for path in tracked() if path not in datasets and path.stat().st_size > 1_000_000]
    assert large == []
    # what everybody downloads who installs mfm
    assert sum(path.stat().st_size for path in datasets) <= 25_000_000


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.split("==")[0]) for line in pins if "==" in line}
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    assert {canonical(re.split(r"[<>=!~\[ ]", name)[0]) for name in wanted} <= pinned


def test_torch_is_pinned_without_a_build() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in pins if line.startswith("torch==")] == ["torch==2.13.0"]
    assert not [line for line in pins if "+" in line and not line.startswith("#")]
    assert not [line for line in pins if "://" in line or " @ " in line]


def test_the_checks_find_planted_errors() -> None:
    body = "\n".join("    x = 1" for _ in range(MAX_LINES_OF_FUNCTION))
    assert long_functions(f"def f():\n{body}") == ["f: 61"]
    assert without_assertion("def test_nothing():\n    f()") == ["test_nothing"]
    assert without_assertion("def test_it():\n    with pytest.raises(ValueError):\n        f()") == []
    assert machine_paths("see /" + "home/me/data")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
