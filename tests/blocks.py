"""The code blocks of a Markdown file: executed from top to bottom, with the output that the file shows."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa

from sqlaudit import unregister_hooks

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(file: Path) -> list[tuple[str, str, int]]:
    """Return the language, the text and the line of every block."""
    text = file.read_text()
    return [(found[1], found[2], text.count("\n", 0, found.start(2))) for found in _BLOCK.finditer(text)]


def run_blocks(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Execute the Python blocks as one module, compare what they print with the text blocks, and count these."""
    module = ModuleType(f"blocks_of_{file.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        shown = _run(file, vars(module), capsys)
    finally:
        unregister_hooks()
        for engine in [each for each in vars(module).values() if isinstance(each, sa.Engine)]:
            unregister_hooks(engine=engine)
            engine.dispose()
    return shown


def _run(file: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> int:
    shown = 0
    for language, text, line in blocks(file):
        if language == "python":
            assert not capsys.readouterr().out, "this output of the block before is not shown"
            exec(compile("\n" * line + text, file.name, "exec"), namespace)
        elif language == "text":
            assert capsys.readouterr().out == text
            shown += 1
    assert not capsys.readouterr().out, "this output of the last block is not shown"
    return shown


def broken_links(file: Path) -> list[str]:
    """Return the links to files that are not there."""
    links = [link for link in _LINK.findall(file.read_text()) if "://" not in link]
    return [link for link in links if not (file.parent / link).exists()]
