"""How is a history begun, and kept in order? What is done to whole tables, by operators and by migrations."""

from sqlaudit.maintenance.backfill import BackfillReport, backfill

__all__ = ["BackfillReport", "backfill"]
