"""What does a statement write that its own table's history cannot show? sqlaudit reports it before it is executed."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from sqlalchemy import TextualSelect, UpdateBase
from sqlalchemy.sql import operators

from sqlaudit.recording.bulk.append_only import is_history, rewriting_error
from sqlaudit.recording.bulk.parsing import ParsedWrite, conjuncts, unaliased
from sqlaudit.recording.handwritten import report_sql
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.tracking.foreign_keys import FollowedTable
from sqlaudit.tracking.tables import TrackedTable, tracked_table


def report_nested_writes(statements: Iterable[Any]) -> None:
    """Report the statements within another statement that write tracked tables.

    :raises ReadOnlyError: one writes a history table
    """
    for nested in statements:
        if isinstance(nested, TextualSelect):
            report_sql(str(nested.element))
        elif isinstance(nested, UpdateBase):
            parsed = ParsedWrite(nested)
            if parsed.writes_history:
                raise rewriting_error(parsed.table)
            if isinstance(tracked := parsed.source, TrackedTable):
                _report_table(tracked)


def report_replacement(statement: UpdateBase) -> None:
    """Report a statement that writes a tracked table, and that a listener has executed in the place of another.

    :raises ReadOnlyError: it writes a history table
    """
    parsed = ParsedWrite(statement)
    if parsed.writes_history:
        raise rewriting_error(parsed.table)
    if isinstance(tracked := parsed.source, TrackedTable):
        report_unrecorded(
            f"A listener of before_execute has replaced a statement by one that writes the tracked table "
            f"{tracked.live.fullname!r}, after sqlaudit looked at it, so history will not show the change. Register "
            "the listener for the class Engine, or before sessions use the engine and before register_hooks(engine=…).",
            tracked.live,
        )


def report_untracked_write(parsed: ParsedWrite) -> None:
    """Report what a statement writes besides a table without history, or if the tracked class has another table now.

    :raises ReadOnlyError: it sets a column of a history table
    """
    tracked = parsed.tracked
    if tracked is not None and not parsed.writes_history and tracked.is_obsolete:
        report_unrecorded(
            f"A statement writes the table {tracked.live.fullname!r}, whose tracked class is no longer mapped to it, "
            "so sqlaudit does not record it. Track the class that is mapped to it now: track_table()(Model).",
            tracked.live,
        )
    _report_other_tables(parsed)


def _report_other_tables(parsed: ParsedWrite) -> None:
    """Report the tracked tables, apart from its own, whose columns an UPDATE sets.

    :raises ReadOnlyError: it sets a column of a history table
    """
    if others := parsed.other_tables:  # rare
        for tracked in filter(None, _other_tracked_tables(parsed, others)):
            _report_table(tracked)


def _report_table(tracked: TrackedTable) -> None:
    report_unrecorded(
        f"A statement also writes the tracked table {tracked.live.fullname!r}, which sqlaudit cannot record. Write "
        "each table by a statement of its own, or call record_changes() afterwards.",
        tracked.live,
    )


def _other_tracked_tables(parsed: ParsedWrite, tables: Iterable[Any]) -> set[TrackedTable | None]:
    own = unaliased(parsed.statement.table)
    own_tracked = tracked_table(own)
    other_tables = [table for table in map(unaliased, tables) if table is not own]
    for table in other_tables:
        if is_history(table):
            raise rewriting_error(table)
    return {
        table
        for table in map(tracked_table, other_tables)
        if table is not own_tracked
        and not (_are_of_one_row(table, own_tracked) and _are_joined(parsed, {table, own_tracked}))
    }


def affected_rows_can_be_selected(parsed: ParsedWrite) -> bool:
    """Return whether the rows that a statement will write can be found before it runs; report it if not.

    Report what else it writes, too, unless that is reported when it is executed.
    """
    source = parsed.source
    assert source is not None
    if isinstance(source, FollowedTable) and not source.live.primary_key:
        report_unrecorded(
            f"A statement writes {source.live.fullname!r}, which has no primary key, so sqlaudit cannot record what "
            "happens to the tracked rows that refer to its rows. Call record_changes() afterwards.",
            source.live,
        )
        return False
    if (name := _compiled_as(parsed.statement)) is not None:
        report_unrecorded(
            f"A statement of the class {name!r}, which has a compiler of its own, writes the table "
            f"{source.live.fullname!r}, and sqlaudit cannot record it. Use SQLAlchemy's insert(), update() or "
            "delete(), or call record_changes() afterwards.",
            source.live,
        )
        return False
    nested = parsed.nested_writes
    if not nested or (parsed.is_insert and parsed.conflict_clause is None):
        report_nested_writes(nested)
        _report_other_tables(parsed)
        return True
    report_unrecorded(
        f"A statement selects the rows of the table {source.live.fullname!r} by another statement within it that "
        "writes, so sqlaudit cannot record it. Execute the inner statement first, and use the keys that it returns.",
        source.live,
    )
    return False


def _compiled_as(statement: Any) -> str | None:
    """Return the name of a statement's class if the user compiles it with ``@compiles``: to REPLACE INTO, say."""
    for kind in type(statement).__mro__:
        if "_compiler_dispatcher" in vars(kind) and not kind.__module__.startswith(("sqlalchemy.", "sqlaudit.")):
            return kind.__name__
    return None


def _are_of_one_row(table: TrackedTable | None, other: TrackedTable | None) -> bool:
    return table is not None and any(table in chain and other in chain for chain in table.chains)


def _are_joined(parsed: ParsedWrite, tables: Set[Any]) -> bool:
    """Return whether a statement equates columns of two tables, so that it writes both rows of the same objects."""
    equations = (
        conjunct for conjunct in conjuncts(parsed.criteria) if getattr(conjunct, "operator", None) is operators.eq
    )
    sides = ((getattr(conjunct.left, "table", None), getattr(conjunct.right, "table", None)) for conjunct in equations)
    return any({tracked_table(left), tracked_table(right)} == tables for left, right in sides)
