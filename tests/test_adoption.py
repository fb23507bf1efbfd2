"""The guide to adoption, followed word by word by a sample application."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from databases import Database

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "adoption.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def patched(text: str, diff: str) -> str:
    """Apply a diff whose hunks say no line numbers."""
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        before, found, after = text.partition(old)
        assert found, f"this is not there: {old}"
        text = before + new + after
    return text


@pytest.mark.spread
def test_the_guide_to_adoption_does_what_it_says(tmp_path: Path, database: Database, engine: sa.Engine) -> None:
    project = tmp_path / "shop"
    shutil.copytree(ROOT / "examples" / "migrations", project, ignore=shutil.ignore_patterns("__pycache__", "*.db"))
    environment = os.environ | {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONWARNINGS": "error",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that is written twice within a second looks unchanged
        "PYTHONIOENCODING": "utf-8",
    }
    output = ""
    for language, text in BLOCKS:
        if language == "diff":
            file = project / re.findall(r"^--- (.+)$", text, re.MULTILINE)[0]
            file.write_text(patched(file.read_text(encoding="utf-8"), text), encoding="utf-8")
        elif language == "python":
            (project / re.findall(r"^# (\S+\.py)$", text, re.MULTILINE)[0]).write_text(text, encoding="utf-8")
        elif language == "bash":
            ran = subprocess.run(
                ["bash", "-e", "-c", text],
                cwd=project,
                env=environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
            output = ran.stdout
        elif language == "text":
            assert output == text
        else:
            assert "pip install" in text or _is_in_the_revision(project, text)
    assert {"customers_history", "orders_history"} <= set(sa.inspect(engine).get_table_names())
    subprocess.run(["bash", "-e", "-c", "alembic downgrade -1"], cwd=project, env=environment, check=True)
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version", "customers", "orders"}


def _is_in_the_revision(project: Path, text: str) -> bool:
    revisions = (file.read_text(encoding="utf-8") for file in (project / "migrations" / "versions").glob("*.py"))
    return any(text.strip() in revision for revision in revisions)
