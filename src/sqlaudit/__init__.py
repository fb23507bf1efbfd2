"""Temporal versioning for SQLAlchemy: who changed what, when and why, and what did it look like then?"""

from sqlaudit.changes import (
    Blame,
    Changeset,
    Conflict,
    FieldChange,
    Operation,
    Page,
    Recorded,
    Restored,
    RestoreReport,
    RowDiff,
)
from sqlaudit.config import SQLAuditConfig, clear_config, get_config, has_config, set_config
from sqlaudit.context import (
    ActorType,
    AuditContext,
    AuditContextManager,
    clear_audit_context,
    get_audit_context,
    set_audit_context,
)
from sqlaudit.decorators import Temporal, track_table
from sqlaudit.erased import ERASED, ERASED_USER
from sqlaudit.exceptions import (
    CaptureError,
    ContextError,
    HistoryTableError,
    MissingPackageError,
    PrunedError,
    QueryError,
    ReadOnlyError,
    SQLAuditError,
    SQLAuditWarning,
    TrackingError,
    UndoConflictError,
)
from sqlaudit.hooks.pausing import tracking_disabled
from sqlaudit.hooks.sessions import register_hooks, unregister_hooks
from sqlaudit.importing import ChangeLogReport, ImportReport, import_change_log, import_continuum
from sqlaudit.maintenance import BackfillReport, backfill
from sqlaudit.past.as_of import all_versions, as_of, between
from sqlaudit.past.comparing import compare, compare_page, diff
from sqlaudit.past.marks import mark, mark_named, marks, marks_table, remove_mark
from sqlaudit.past.session import time_travel
from sqlaudit.past.temporal_join import as_of_column
from sqlaudit.period import OPEN_END, Mark
from sqlaudit.recording.events import Recording
from sqlaudit.recording.reconcile import record_changes
from sqlaudit.restoring.restore import restore
from sqlaudit.restoring.undo import undo
from sqlaudit.retrieval.changeset_reader import changesets, changesets_page
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.retrieval.feed import changes_since
from sqlaudit.retrieval.field_changes import (
    blame,
    changes_in,
    get_resource_changes,
    stream_resource_changes,
    versions_of,
)
from sqlaudit.retrieval.pages import changes_page
from sqlaudit.retrieval.restricting import restricted
from sqlaudit.tracking.history import Version, history_of
from sqlaudit.tracking.tables import AuditColumns

__version__ = "0.8.0.dev0"

__all__ = [
    "ERASED",
    "ERASED_USER",
    "OPEN_END",
    "ActorType",
    "AuditColumns",
    "AuditContext",
    "AuditContextManager",
    "BackfillReport",
    "Blame",
    "CaptureError",
    "ChangeLogReport",
    "Changeset",
    "Conflict",
    "ContextError",
    "FieldChange",
    "HistoryTableError",
    "ImportReport",
    "Mark",
    "MissingPackageError",
    "Operation",
    "Page",
    "PrunedError",
    "QueryError",
    "ReadOnlyError",
    "Recorded",
    "Recording",
    "RestoreReport",
    "Restored",
    "RowDiff",
    "SQLAuditConfig",
    "SQLAuditError",
    "SQLAuditWarning",
    "Temporal",
    "TrackingError",
    "UndoConflictError",
    "Version",
    "all_versions",
    "as_of",
    "as_of_column",
    "backfill",
    "between",
    "blame",
    "changes_in",
    "changes_page",
    "changes_since",
    "changesets",
    "changesets_page",
    "clear_audit_context",
    "clear_config",
    "compare",
    "compare_page",
    "diff",
    "get_audit_context",
    "get_config",
    "get_resource_changes",
    "has_config",
    "history_of",
    "import_change_log",
    "import_continuum",
    "instant_of_changeset",
    "mark",
    "mark_named",
    "marks",
    "marks_table",
    "record_changes",
    "register_hooks",
    "remove_mark",
    "restore",
    "restricted",
    "set_audit_context",
    "set_config",
    "stream_resource_changes",
    "time_travel",
    "track_table",
    "tracking_disabled",
    "undo",
    "unregister_hooks",
    "versions_of",
]
