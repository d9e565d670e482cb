"""Who imports whom under scripts/: one way, and without edits of sys.path. `pytest -s` prints the graph."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TESTS = SCRIPTS.parent / "tests"
# What each part may import, besides itself; the longest name that fits a module counts.
MAY_IMPORT = {
    "mlops": {"local", "mlops.records", "package", "terraform", "training.reader"},
    "mlops.records": set(),
    "local": {"local.sagemaker", "package", "terraform"},
    "local.sagemaker": set(),
    "dev": {"local", "mlops.records", "terraform"},
    "package": set(),
    "terraform": set(),
    "training": {"training.reader"},
    "training.reader": set(),
}
# Each plays a platform that loads other people's code from a folder: Lambda, and the container of a model.
LOADS_CODE_OF_OTHERS = {"local/lambda_runtime.py", "local/sagemaker/serve.py"}


def name_of(path: Path, scripts: Path) -> str:
    """The dotted name of a module under scripts/."""
    parts = path.relative_to(scripts).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path: Path, name: str) -> Iterator[str]:
    """The dotted names in a file's import statements, wherever they are; `from a import b` gives a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def import_graph(scripts: Path = SCRIPTS) -> list[str]:
    """The imports between our own modules, one a line: "mlops.deploy -> terraform".

    Modules of scripts/training are known by their bare names, as they import each other in their container.
    """
    files = {name_of(path, scripts): path for path in sorted(scripts.rglob("*.py"))}
    siblings = {name.removeprefix("training."): name for name in files if name.startswith("training.")}
    lines = set()
    for name, path in files.items():
        known = {module: module for module in files} | (siblings if name.startswith("training.") else {})
        for target in imported(path, name):
            found = known.get(target) or known.get(target.rpartition(".")[0])
            if found and found != name:
                lines.add(f"{name} -> {found}")
    return sorted(lines)


def part_of(module: str) -> str:
    """The part of MAY_IMPORT that a module belongs to. Raises LookupError for one that belongs to none."""
    fitting = [part for part in MAY_IMPORT if f"{module}.".startswith(f"{part}.")]
    if not fitting:
        raise LookupError(f"{module} belongs to no part of scripts/: add it to MAY_IMPORT")
    return max(fitting, key=len)


def wrong_ways(graph: list[str]) -> list[str]:
    """The lines of a graph that are against the rules."""
    wrong = []
    for line in graph:
        part, target = (part_of(module) for module in line.split(" -> "))
        if target not in {part, *MAY_IMPORT[part]}:
            wrong.append(line)
    return wrong


def test_imports_go_one_way() -> None:
    graph = import_graph()
    print("\n" + "\n".join(graph))
    assert wrong_ways(graph) == []


def test_the_graph_holds_the_imports_that_are_known(tmp_path: Path) -> None:
    """Otherwise a graph without lines would pass."""
    graph = import_graph()
    assert {"mlops.deploy -> terraform", "mlops.cli -> mlops.pause", "training.train -> training.dataset"} <= {*graph}
    assert "local.sagemaker.api -> local.sagemaker.errors" in graph


@pytest.mark.parametrize(
    ("file", "statement", "line"),
    [
        ("local/stack.py", "from mlops import records", "local.stack -> mlops.records"),
        ("local/stack.py", "def up():\n    import mlops.deploy", "local.stack -> mlops.deploy"),
        ("local/sagemaker/api.py", "from .. import stack", "local.sagemaker.api -> local.stack"),
        ("training/train.py", "from mlops.records import SCHEMA", "training.train -> mlops.records"),
        ("dev/bench.py", "from mlops.status import show_status", "dev.bench -> mlops.status"),
        ("mlops/records.py", "from mlops import target", "mlops.records -> mlops.target"),
        ("mlops/upload.py", "from dev import docs", "mlops.upload -> dev.docs"),
        ("mlops/upload.py", "from training import dataset", "mlops.upload -> training.dataset"),
        ("training/reader.py", "import dataset", "training.reader -> training.dataset"),
        ("terraform.py", "import package", "terraform -> package"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, file: str, statement: str, line: str) -> None:
    names = [name_of(path, SCRIPTS) for path in SCRIPTS.rglob("*.py")]
    for name in names:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / file).write_text(statement)
    assert wrong_ways(import_graph(tmp_path)) == [line]


def edits_the_path(path: Path) -> bool:
    """Whether a file changes sys.path: assigns to it, or calls one of its methods."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        changed: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            changed = node.targets
        elif isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = [node.func.value]
        if any(ast.unparse(part).startswith("sys.path") for part in changed):
            return True
    return False


def test_nothing_edits_the_import_path() -> None:
    files = [*SCRIPTS.rglob("*.py"), *TESTS.rglob("*.py")]
    found = {str(path.relative_to(SCRIPTS.parent)) for path in files if edits_the_path(path)}
    assert found == {f"scripts/{name}" for name in LOADS_CODE_OF_OTHERS}
