"""Do the code blocks of a Markdown file run in their order, and print the output that the file shows?"""

import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from sqlmodel import SQLModel

from sqlaudit import unregister_hooks
from sqlaudit.recording.events import committed_listeners, recorded_listeners

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PART = re.compile(r"^```(\w+)\n(.*?)^```$|^## ([^\n]+)$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

Block = tuple[str, str, int]
"""The language and the text of a block, and the line at which it begins."""


def blocks(file: Path) -> list[Block]:
    """Return every block of a file."""
    text = file.read_text()
    return [(block[1], block[2], text.count("\n", 0, block.start(2))) for block in _BLOCK.finditer(text)]


def sections(file: Path) -> dict[str, list[Block]]:
    """Return the blocks of each second-level section that has Python, after the blocks above the first heading.

    A reader copies the set-up at the top of a page and one section.
    """
    text = file.read_text()
    title = ""
    found: dict[str, list[Block]] = {title: []}
    for part in _PART.finditer(text):
        if part[3]:
            title = part[3]
            found[title] = []
        else:
            found[title].append((part[1], part[2], text.count("\n", 0, part.start(2))))
    setup = found.pop("")
    with_python = {title: own for title, own in found.items() if any(language == "python" for language, *_ in own)}
    if not with_python and any(language == "python" for language, *_ in setup):
        return {"": setup}
    return {title: setup + own for title, own in with_python.items()}


def run_blocks(
    code: list[Block], file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> int:
    """Execute the Python blocks as one module; compare their output with the blocks that show it, and count these."""
    module = ModuleType(f"blocks_of_{file.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])  # a page that sets up logging adds its own
    try:
        return _run(code, file, vars(module), capsys)
    finally:
        unregister_hooks()
        recorded_listeners.clear()
        committed_listeners.clear()
        for value in vars(module).values():
            if isinstance(value, (sessionmaker, async_sessionmaker)):
                unregister_hooks(value)
            elif isinstance(value, sa.Engine):
                unregister_hooks(engine=value)
                value.dispose()
            elif value is SQLModel:  # whose classes, unlike those of a Base, are in one registry for all pages
                value._sa_registry.dispose()
                value.metadata.clear()


def _run(code: list[Block], file: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> int:
    shown = 0
    for language, text, line in code:
        if language == "python":
            assert not capsys.readouterr().out, "this output of the block before is not shown"
            exec(compile("\n" * line + text, file.name, "exec"), namespace)
        elif language == "text":
            assert "".join(f"{row.rstrip()}\n" for row in capsys.readouterr().out.splitlines()) == text
            shown += 1
        elif language == "sql" and (printed := capsys.readouterr().out):  # the reader executes other SQL
            assert printed.split() == text.split()
            shown += 1
    assert not capsys.readouterr().out, "this output of the last block is not shown"
    return shown


def broken_links(file: Path) -> list[str]:
    """Return the links to files or headings that do not exist."""
    return [
        f"{path}{anchor}"
        for path, anchor in _LINK.findall(file.read_text())
        if "://" not in path and not _is_there((file.parent / path) if path else file, anchor.removeprefix("#"))
    ]


def _is_there(file: Path, anchor: str) -> bool:
    return file.exists() and (not anchor or file.suffix != ".md" or anchor in _anchors(file))


def _anchors(page: Path) -> set[str]:
    titles = _HEADING.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
