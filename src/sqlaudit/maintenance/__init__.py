"""What is done to whole histories? They are begun, checked, mended and protected.

.. code-block:: python

    backfill(engine, Customer)  # in transactions of 10,000 rows, beside other writers
    check(engine)

``backfill`` gives rows that are older than their tracking a baseline, an open version of the row as it is now. It
reports no field changes. ``check`` finds faults, and mends those that it can. ``history_grants`` gives the rights on
history, which matter most if it is append-only.
"""

from sqlaudit.maintenance.backfill import BackfillReport, backfill
from sqlaudit.maintenance.checking import check
from sqlaudit.maintenance.findings import CheckReport, Finding, FindingCode
from sqlaudit.maintenance.grants import history_grants
from sqlaudit.tracking.maintenance_tables import MaintenanceTables, maintenance_tables

__all__ = [
    "BackfillReport",
    "CheckReport",
    "Finding",
    "FindingCode",
    "MaintenanceTables",
    "backfill",
    "check",
    "history_grants",
    "maintenance_tables",
]
