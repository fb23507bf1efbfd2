"""What do the tests of an application need? Assertions, a clock, and changesets in one outer transaction.

.. code-block:: text

    assert_recorded(session, Ticket, 7, operation="update", fields={"status"})
    with Clock(datetime(2026, 1, 1, tzinfo=UTC)) as clock:       write; clock.move(days=1); write again
    changeset_per_commit(connection)                             Session(connection, join_transaction_mode=…)
    pytest_plugins = ["sqlaudit.testing.pytest"]                 the fixture audit_clock

Nothing else of sqlaudit imports this package, and only :mod:`sqlaudit.testing.pytest` imports pytest.
"""

from sqlaudit.testing.assertions import assert_recorded
from sqlaudit.testing.clock import Clock
from sqlaudit.testing.transactions import changeset_per_commit

__all__ = ["Clock", "assert_recorded", "changeset_per_commit"]
