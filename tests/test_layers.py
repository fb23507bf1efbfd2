"""Imports go down the layers of the house, name modules in full, and stand where all see them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"exceptions", "keytypes"},
    {"period", "texts"},
    {"readable"},
    {"writable"},
    {"arguments", "config", "context", "changes"},
    {"tables"},
    {"autogenerate", "bisection", "models"},
    {"past"},
    {"history", "instant"},
    {"catalogue", "references"},
    {"rights"},
    {"absent", "overriding", "statements"},
    {"begun", "changesets"},
    {"capture", "timetravel", "retrieval", "triggers"},
    {"dependents", "handwritten"},
    {"flush"},
    {"bulk"},
    {"reconcile"},
    {"rows"},
    {"plan"},
    {"ordering"},
    {"apply"},
    {"hooks", "maintenance"},
    {"restore"},
    {"decorators"},
    {"sqlaudit"},  # its __init__, the public names
    {"sqlaudit_alembic"},
]
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
FILES = [
    path.relative_to(ROOT)
    for package in ("src/sqlaudit", "alembic_ext/sqlaudit_alembic")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def part_of(module: str) -> str:
    """Name the part of the house that a module belongs to."""
    package, *rest = module.removesuffix(".__init__").split(".")
    return rest[0] if package == "sqlaudit" and rest else package


def imported(tree: ast.AST) -> Iterator[str]:
    """Name every module of ours that is imported anywhere in `tree`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            names = [node.module or ""]
            if node.module == "sqlaudit":  # of a module, or of a public name
                names = [f"sqlaudit.{a.name}" if a.name in LEVEL else "sqlaudit" for a in node.names]
        yield from (name for name in names if name.partition(".")[0].startswith("sqlaudit"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file):
    part = part_of(".".join(file.with_suffix("").parts[1:]))
    assert part in LEVEL, f"{part} has no place in LAYERS"
    for module in imported(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        target = part_of(module)
        assert target == part or LEVEL[target] < LEVEL[part], f"{part} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_import_is_hidden_in_a_function(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    assert not [ast.unparse(n) for n in inside if isinstance(n, ast.Import | ast.ImportFrom)]
