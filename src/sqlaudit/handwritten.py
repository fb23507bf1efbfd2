"""Which tracked table does SQL that was written by hand write? A cheap test, which reads no more than the names."""

from __future__ import annotations

import re
from typing import Final

from sqlaudit.capture import uncaptured
from sqlaudit.tables import TrackedTable, known_metadata, tracked_tables

NOTICED: Final = "sqlaudit_noticed"
"""The execution option of SQL that has been noticed."""

_COMMENT: Final = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_NAME: Final = r"""(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|\w+)"""
_WRITE: Final = re.compile(
    rf"""\b(?:
        (?:INSERT|REPLACE)\b(?:\s+(?:OR\s+\w+|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|IGNORE))*\s+INTO
        | (?:INSERT|REPLACE)\s+IGNORE
        | UPDATE(?:\s+(?:OR\s+\w+|LOW_PRIORITY|IGNORE|ONLY))*
        | DELETE(?:\s+(?:LOW_PRIORITY|QUICK|IGNORE))*\s+FROM(?:\s+ONLY)?
        | TRUNCATE(?:\s+TABLE)?(?:\s+ONLY)?
        | MERGE(?:\s+INTO)?
        | COPY(?!\s*\()
        | LOAD\s+DATA\b.*?\bINTO\s+TABLE
    )\s+({_NAME}(?:\s*\.\s*{_NAME})*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_READS: Final = re.compile(r"\s*(?:\([^)]*\)\s*)?TO\b", re.IGNORECASE)


def table_written_by(sql: str) -> TrackedTable | None:
    """Return a tracked table that the text of a statement writes, as far as its words tell."""
    sql = _COMMENT.sub(" ", sql)
    for found in _WRITE.finditer(sql):
        if found[0][:4].upper() == "COPY" and _READS.match(sql, found.end()):
            continue
        *schema, name = (part.strip(' "`[]').lower() for part in re.findall(_NAME, found[1]))
        for metadata in known_metadata():
            for tracked in tracked_tables(metadata):
                live = tracked.live
                if live.name.lower() == name and (not schema or not live.schema or live.schema.lower() == schema[-1]):
                    return tracked
    return None


def notice_sql(sql: str) -> None:
    """Notice the text of a statement that writes a tracked table.

    :raises CaptureError: the configuration says so
    """
    tracked = table_written_by(sql)
    if tracked is not None:
        uncaptured(
            f"SQL that was written by hand writes the tracked table {tracked.live.fullname!r}, and its history will "
            f"not show it: {sql[:200]!r}; write it as insert(), update() or delete(), or call record_changes() then.",
            tracked.live,
        )
