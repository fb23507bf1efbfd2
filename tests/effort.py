"""How hard tests try that try at random: with ``SQLAUDIT_TEST_EFFORT=10`` ten times as often."""

import os
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings

from databases import DATABASES, Database

EFFORT = int(os.environ.get("SQLAUDIT_TEST_EFFORT", "1"))


def profile(database: Database, *, few: int, many: int, **options: Any) -> settings:
    """Try fewer lives where each costs more; the same ones each time where nobody looks on."""
    return settings(
        max_examples=(few if "concurrent_writes" in database.capabilities else many) * EFFORT,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=list(HealthCheck),
        **options,
    )


def by_turns(cases: Mapping[str, Any], database: Database) -> dict[str, Any]:
    """Return the cases whose turn it is on a database, for which they hardly differ; with more effort, all of them."""
    turn = list(DATABASES).index(database.name)
    return {name: case for place, (name, case) in enumerate(cases.items(), turn) if EFFORT > 1 or place % 3 == 0}
