"""The site can be built, and every public name is in it; what its pages show is run by tests of their own."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from alembic.operations import Operations

import sqlaudit
import sqlaudit_alembic
from blocks import ROOT, broken_links

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_is_there(page: Path) -> None:
    assert broken_links(page) == []


# --- the site ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    project = tmp_path_factory.mktemp("project")  # it is built within the project, and workers may build at once
    shutil.copy(ROOT / "zensical.toml", project)
    shutil.copytree(DOCS, project / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("src", "alembic_ext"):
        (project / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "griffe:" not in built.stdout + built.stderr
    return project / "site"


@pytest.fixture(scope="module")
def reference(site: Path) -> str:
    return "".join(page.read_text() for page in sorted((site / "reference").rglob("index.html")))


def test_every_page_is_in_the_navigation() -> None:
    config = tomllib.loads((ROOT / "zensical.toml").read_text())

    def pages_of(items: list[Any]) -> Iterator[str]:
        for item in items:
            for page in item.values():
                yield from [page] if isinstance(page, str) else pages_of(page)

    assert sorted(pages_of(config["project"]["nav"])) == sorted(map(name_of, PAGES))


def test_every_public_name_is_in_the_reference(reference: str) -> None:
    missing = {name for name in sqlaudit.__all__ if f'id="sqlaudit.{name}"' not in reference}
    missing |= {name for name in sqlaudit_alembic.__all__ if f'id="sqlaudit_alembic.{name}"' not in reference}
    assert missing == set()
    assert "doc-module" not in reference


def test_every_operation_of_alembic_is_in_the_reference(reference: str) -> None:
    registered = {name for name in vars(Operations) if "history" in name or "tracked" in name}
    assert {name for name in registered if f'.{name}"' not in reference} == set()
    assert "op.rename_tracked_column" in (DOCS / "migrations.md").read_text()


def test_the_reference_shows_no_markup_of_docstrings(reference: str) -> None:
    assert re.findall(r":(?:class|func|meth|attr|mod|data):|:param|:raises|\.\. [\w-]+::", reference) == []


def test_signatures_name_nothing_that_is_not_public(reference: str) -> None:
    signatures = re.findall(r'<div class="doc-signature.*?</pre>', reference, re.DOTALL)
    assert len(signatures) > 50
    assert [name for each in signatures for name in re.findall(r">(_[A-Za-z]\w*)<", each)] == []


def test_code_fits_into_its_column(reference: str) -> None:
    blocks = re.findall(r"<pre.*?</pre>", reference, re.DOTALL)
    lines = [unescape(re.sub(r"<[^>]+>", "", block)).splitlines() for block in blocks]
    assert [line for block in lines for line in block if len(line) > 80] == []


def test_no_page_of_the_site_loads_from_another_server(site: Path) -> None:
    loading = re.compile(
        r"""<(?:script|img|iframe)[^>]* src=["']?(?:https?:)?//|<link[^>]* rel=["']?"""
        r"""(?:stylesheet|preconnect|icon)["']?[^>]* href=["']?(?:https?:)?//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page for page in pages if loading.search(page.read_text())] == []
