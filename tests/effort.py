"""How many random cases do tests try? Ten times as many with ``SQLAUDIT_TEST_EFFORT=10``."""

import os
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings

from databases import DATABASES, Database

EFFORT = int(os.environ.get("SQLAUDIT_TEST_EFFORT", "1"))


def profile(database: Database, *, few: int, many: int, **options: Any) -> settings:
    """Try fewer examples on a database server, where each costs more; in CI, try the same examples each time."""
    return settings(
        max_examples=(few if "concurrent_writes" in database.capabilities else many) * EFFORT,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=list(HealthCheck),
        **options,
    )


def by_turns(cases: Mapping[str, Any], database: Database) -> dict[str, Any]:
    """Return a third of the cases, a different one for each database; with more effort, all cases."""
    turn = list(DATABASES).index(database.name)
    return {name: case for place, (name, case) in enumerate(cases.items(), turn) if EFFORT > 1 or place % 3 == 0}
