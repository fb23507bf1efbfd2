"""A process may be killed at any time: live rows and history agree whatever it was doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from effort import EFFORT
from invariants import check_history
from killing import (
    Base,  # noqa: F401  # whose tables the tests find
    Load,
)

pytestmark = pytest.mark.slow

KILLS = 20 * EFFORT
PROGRAM = Path(__file__).parents[1] / "killing.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_history_agrees_whenever_a_process_is_killed(engine: sa.Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), url, "1", str(KILLS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with Session(engine) as session:
        check_history(session, Load)
        assert session.scalar(sa.select(sa.func.count()).select_from(Load.History)) > KILLS
