"""What a page of the documentation shows is what happens: each section runs by itself, after the set-up of its page."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from blocks import ROOT, Block, run_blocks, sections

DOCS = ROOT / "docs"
_SQLALCHEMY, _FOR_PANDAS = tuple(map(int, re.findall(r"\d+", sa.__version__)[:3])), (2, 0, 42)
WITH_A_TEST_OF_ITS_OWN = {DOCS / "adoption.md"}
SECTIONS = [
    pytest.param(page, code, id=f"{page.relative_to(DOCS).as_posix()}: {title}")
    for page in sorted(DOCS.rglob("*.md"))
    if page not in WITH_A_TEST_OF_ITS_OWN
    for title, code in sections(page).items()
]


@pytest.mark.parametrize(("page", "code"), SECTIONS)
def test_a_section_runs_after_the_set_up_of_its_page_and_prints_what_it_shows(
    page: Path,
    code: list[Block],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if page.name == "dataframes.md" and _SQLALCHEMY < _FOR_PANDAS:
        pytest.skip("pandas 3 needs a later SQLAlchemy")
    monkeypatch.chdir(tmp_path)  # some write files
    run_blocks(code, page, capsys, monkeypatch)


def test_every_page_of_the_guide_has_code_that_runs() -> None:
    assert [page.name for page in sorted((DOCS / "guide").glob("*.md")) if not sections(page)] == []
