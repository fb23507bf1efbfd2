"""How is a history begun, and kept in order? What is done to whole tables, by operators and by migrations."""

from sqlaudit.maintenance.backfill import BackfillReport, backfill
from sqlaudit.maintenance.changelog import ChangeLogReport, import_change_log
from sqlaudit.maintenance.continuum import ImportReport, import_continuum

__all__ = [
    "BackfillReport",
    "ChangeLogReport",
    "ImportReport",
    "backfill",
    "import_change_log",
    "import_continuum",
]
