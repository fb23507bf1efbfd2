"""The tests of the help desk, `examples/helpdesk`, pass."""

import os
import subprocess
import sys

import pytest

from blocks import ROOT, broken_links
from databases import Database

HELPDESK = ROOT / "examples" / "helpdesk"


@pytest.mark.slow
@pytest.mark.spread
@pytest.mark.no_tables
def test_the_tests_of_the_help_desk_pass(database: Database) -> None:
    url = database.async_url().render_as_string(hide_password=False)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:slipcover"]
    ran = subprocess.run(command, cwd=HELPDESK, env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_file_that_the_page_of_the_help_desk_links_is_there() -> None:
    assert broken_links(HELPDESK / "README.md") == []
