"""Temporal versioning for SQLAlchemy: who changed what, when and why, and what did it look like then?"""

from sqlaudit.changes import Blame, FieldChange, Operation
from sqlaudit.config import SQLAuditConfig, clear_config, get_config, has_config, set_config
from sqlaudit.context import (
    AuditContext,
    AuditContextManager,
    clear_audit_context,
    get_audit_context,
    set_audit_context,
)
from sqlaudit.decorators import track_table
from sqlaudit.exceptions import (
    CaptureError,
    ContextError,
    HistoryTableError,
    QueryError,
    ReadOnlyError,
    SQLAuditError,
    SQLAuditWarning,
    TrackingError,
)
from sqlaudit.history import Version, history_of
from sqlaudit.hooks import register_hooks, tracking_disabled, unregister_hooks
from sqlaudit.period import OPEN_END
from sqlaudit.retrieval import blame, get_resource_changes, stream_resource_changes, versions_of
from sqlaudit.tables import AuditColumns
from sqlaudit.timetravel import as_of

__all__ = [
    "OPEN_END",
    "AuditColumns",
    "AuditContext",
    "AuditContextManager",
    "Blame",
    "CaptureError",
    "ContextError",
    "FieldChange",
    "HistoryTableError",
    "Operation",
    "QueryError",
    "ReadOnlyError",
    "SQLAuditConfig",
    "SQLAuditError",
    "SQLAuditWarning",
    "TrackingError",
    "Version",
    "as_of",
    "blame",
    "clear_audit_context",
    "clear_config",
    "get_audit_context",
    "get_config",
    "get_resource_changes",
    "has_config",
    "history_of",
    "register_hooks",
    "set_audit_context",
    "set_config",
    "stream_resource_changes",
    "track_table",
    "tracking_disabled",
    "unregister_hooks",
    "versions_of",
]
