"""What is done to whole histories? Today: ``backfill``, which gives rows that are older than their tracking a baseline.

.. code-block:: python

    backfill(engine, Customer)  # in transactions of 10,000 rows, beside other writers

A baseline is an open version of the row as it is now. It reports no field changes.
"""

from sqlaudit.maintenance.backfill import BackfillReport, backfill
from sqlaudit.tracking.maintenance_tables import MaintenanceTables, maintenance_tables

__all__ = ["BackfillReport", "MaintenanceTables", "backfill", "maintenance_tables"]
