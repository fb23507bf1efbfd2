"""Imports go down the floors of the house, name modules in full, and stand at the top of their module."""

import ast
from collections.abc import Iterator

import pytest

from blocks import ROOT

FLOORS = """
    exceptions
    arguments asynchronous changes config context display erased period sql wire
    tracking
    retrieval
    past
    recording
    hooks
    maintenance restoring
    importing
    decorators
    sqlaudit
    integrations sqlaudit_alembic testing
    web
    cli
"""  # a room imports rooms of floors above it here; the ground floor's rooms also import each other
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS.split("\n")) for room in rooms.split()}
GROUND = FLOOR["period"]
FILES = [
    path.relative_to(ROOT)
    for package in ("src/sqlaudit", "alembic_ext/sqlaudit_alembic")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def room_of(module: str) -> str:
    package, *rest = module.removesuffix(".__init__").split(".")
    return rest[0] if package == "sqlaudit" and rest else package


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the name of each module of the project that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sqlaudit"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            yield from [node.module] if (node.module or "").startswith("sqlaudit") else []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file):
    room = room_of(".".join(file.with_suffix("").parts[1:]))
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for other in map(room_of, imported(tree)):
        is_allowed = other == room or FLOOR[other] < FLOOR[room] or FLOOR[other] == FLOOR[room] == GROUND
        assert is_allowed, f"{room} imports {other}"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    assert not [ast.unparse(node) for node in inside if isinstance(node, ast.Import | ast.ImportFrom)]
