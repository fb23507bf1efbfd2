"""Which tracked table does SQL that was written by hand write? A cheap test, which reads no more than the names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Table

from sqlaudit.capture import uncaptured
from sqlaudit.references import untracked_sources
from sqlaudit.tables import known_metadata, tracked_table, tracked_tables

NOTICED: Final = "sqlaudit_noticed"
"""The execution option of SQL that has been noticed."""

_NAME: Final = r"""(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|\w+)"""
_DOTTED: Final = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_ALIAS: Final = r"(?:\s+(?:AS\s+)?\w+)?"
_FURTHER: Final = r"(?:,|(?:\b(?:INNER|CROSS|LEFT|RIGHT|OUTER|NATURAL)\s+)*\b(?:STRAIGHT_)?JOIN\b)"
_NOISE: Final = r"""
    (?P<kept>"[^"]*" | `[^`]*`)
    | '(?:[^'\\]|''|\\{escaped})*'
    | /\*(?!!).*?\*/           # MySQL executes the comments that begin with !
    | --[^\n]*
    | \bON\s+DUPLICATE\s+KEY\s+UPDATE\b | \bON\s+CONFLICT\b.*?\bDO\s+UPDATE\b | \bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b
    | \bON\s+(?:UPDATE|DELETE)\b"""
# A backslash in a string may take the next quote for a letter, and may not: both are read.
_NOISES: Final = [
    re.compile(_NOISE.replace("{escaped}", escaped), re.IGNORECASE | re.VERBOSE | re.DOTALL) for escaped in ("", ".")
]
_WRITE: Final = re.compile(
    rf"""\b(?P<verb>
        (?:INSERT|REPLACE)\b(?:\s+(?:OR\s+\w+|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|IGNORE))*(?:\s+INTO)?
        | UPDATE(?:\s+(?:OR\s+\w+|LOW_PRIORITY|IGNORE))*
        | DELETE(?:\s+(?:LOW_PRIORITY|QUICK|IGNORE))*(?:\s+FROM)?
        | TRUNCATE(?:\s+TABLE)?
        | MERGE(?:\s+INTO)?
        | COPY
        | LOAD\s+(?:DATA|XML)\b.*?\bINTO\s+TABLE
    )(?:\s+ONLY\b(?:\s*\()?)?\s*(?<!\w(?=\w))(?P<names>{_DOTTED}(?:{_ALIAS}\s*{_FURTHER}\s*{_DOTTED})*)
    (?P<reads>\s*(?:\([^)]*\)\s*)?TO\b)?""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_TAKES_ROWS: Final = ("DELETE", "TRUNCATE", "REPLACE", "MERGE")


def table_written_by(sql: str) -> Table | None:
    """Return a table that the text of a statement writes, as far as its words tell, if that makes tracked rows change.

    It is a tracked one, or one whose rows tracked ones follow when they go.
    """
    for verb, name in _names_written(sql):
        for table in _tables_named(name):
            if tracked_table(table) is not None or verb in _TAKES_ROWS:
                return table
    return None


def _names_written(sql: str) -> Iterator[tuple[str, str]]:
    """Yield what is done, and to what."""
    for noise in _NOISES:
        for found in _WRITE.finditer(noise.sub(lambda each: each["kept"] or " ", sql)):
            verb = found["verb"].split()[0].upper()
            if verb != "COPY" or not found["reads"]:
                yield from ((verb, name) for name in re.findall(_DOTTED, found["names"]))


def _tables_named(name: str) -> Iterator[Table]:
    """Yield the tables that a name may mean, of those that are tracked or followed."""
    *schema, own = (part.strip('"`[]').lower() for part in re.findall(_NAME, name))
    tracked = (each.live for metadata in known_metadata() for each in tracked_tables(metadata))
    for table in (*tracked, *(each.live for each in untracked_sources())):
        is_elsewhere = schema and table.schema and table.schema.lower() != schema[-1]
        if table.name.lower() == own and not is_elsewhere:
            yield table


def notice_sql(sql: str) -> None:
    """Notice the text of a statement that writes a tracked table.

    :raises CaptureError: the configuration says so
    """
    table = table_written_by(sql)
    if table is not None:
        what = "tracked table" if tracked_table(table) is not None else "table that tracked rows refer to,"
        uncaptured(
            f"SQL that was written by hand writes the {what} {table.fullname!r}, and history will not show it: "
            f"{sql[:200]!r}; write it as insert(), update() or delete(), or call record_changes() then.",
            table,
        )
