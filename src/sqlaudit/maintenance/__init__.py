"""What is done to whole histories? Backfill, by operators and migrations."""

from sqlaudit.maintenance.backfill import BackfillReport, backfill

__all__ = ["BackfillReport", "backfill"]
