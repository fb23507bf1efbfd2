"""The site can be built, and every public name is in it; what its pages show is run by tests of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    pytest.importorskip("mkdocs")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return site


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "index.html").read_text()
    missing = {name for name in sqlaudit.__all__ if f'id="sqlaudit.{name}"' not in page}
    missing |= {name for name in sqlaudit_alembic.__all__ if f'id="sqlaudit_alembic.{name}"' not in page}
    assert missing == set()


def test_the_reference_shows_no_markup_of_docstrings(site: Path) -> None:
    page = (site / "reference" / "index.html").read_text()
    assert re.findall(r":(?:class|func|meth|attr|mod):|:param|:raises|\.\. [\w-]+::", page) == []


def test_no_page_of_the_site_loads_from_another_server(site: Path) -> None:
    loading = re.compile(
        r"""<(?:script|img|iframe)[^>]* src=["']?(?:https?:)?//|<link[^>]* rel=["']?"""
        r"""(?:stylesheet|preconnect|icon)["']?[^>]* href=["']?(?:https?:)?//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page for page in pages if loading.search(page.read_text())] == []
