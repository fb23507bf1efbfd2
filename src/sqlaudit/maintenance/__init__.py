"""What is done to whole histories? They are begun, checked, mended, cut short, erased, protected and checked out.

.. code-block:: python

    backfill(engine, Customer)  # in transactions of 10,000 rows, beside other writers
    check(engine)
    prune(engine, Customer, older_than="90d")
    hold(session, Customer, 42, reason="lawsuit 7 O 12/26")
    erase(session, Customer, 43, fields=["name"], reason="request of 3 May")
    checkout(engine, then, "sqlite:///march.db")

``backfill`` gives rows that are older than their tracking a baseline, an open version of the row as it is now. It
reports no field changes. ``check`` finds faults, and mends those that it can. ``prune`` removes the oldest versions of
rows, ``erase`` removes values from all versions of a row, and ``erase_actor`` a user from all versions, except from
those that a ``hold`` protects.
``history_grants`` gives the rights on history, which matter most if it is append-only. ``checkout`` copies the rows of
an instant into a database of its own, and ``patch`` tells what a transaction did as an SQL script.
"""

from sqlaudit.maintenance.actors import ActorErasure, erase_actor
from sqlaudit.maintenance.backfill import BackfillReport, backfill
from sqlaudit.maintenance.checking import check
from sqlaudit.maintenance.checkouts import CheckoutReport, checkout
from sqlaudit.maintenance.erasing import ErasedTable, Erasure, erase, erasures, replay_erasures
from sqlaudit.maintenance.findings import CheckReport, Finding, FindingCode
from sqlaudit.maintenance.grants import history_grants
from sqlaudit.maintenance.holding import Hold, hold, holds, release
from sqlaudit.maintenance.patches import patch
from sqlaudit.maintenance.pruning import PrunedTable, PruneReport, prune
from sqlaudit.maintenance.views import create_past_views, drop_past_views
from sqlaudit.tracking.maintenance_tables import MaintenanceTables, maintenance_tables
from sqlaudit.tracking.retention import Retention

__all__ = [
    "ActorErasure",
    "BackfillReport",
    "CheckReport",
    "CheckoutReport",
    "ErasedTable",
    "Erasure",
    "Finding",
    "FindingCode",
    "Hold",
    "MaintenanceTables",
    "PruneReport",
    "PrunedTable",
    "Retention",
    "backfill",
    "check",
    "checkout",
    "create_past_views",
    "drop_past_views",
    "erase",
    "erase_actor",
    "erasures",
    "history_grants",
    "hold",
    "holds",
    "maintenance_tables",
    "patch",
    "prune",
    "release",
    "replay_erasures",
]
