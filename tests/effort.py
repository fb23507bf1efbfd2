"""How hard the tests of random lives try: ``SQLAUDIT_TEST_EFFORT=10`` tries ten times as many."""

import os
from typing import Any

from hypothesis import HealthCheck, settings

from databases import Database


def profile(database: Database, *, few: int, many: int, **options: Any) -> settings:
    """Try fewer lives where each costs more; the same ones each time where nobody looks on."""
    effort = int(os.environ.get("SQLAUDIT_TEST_EFFORT", "1"))
    return settings(
        max_examples=(few if "concurrent_writes" in database.capabilities else many) * effort,
        derandomize=bool(os.environ.get("CI")),
        suppress_health_check=list(HealthCheck),
        **options,
    )
