"""Who records what statements write? A Recorder: it prepares them, and writes the versions after them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Any
from weakref import ref

from sqlalchemy import Connection, UpdateBase
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import FromStatement, Session

from sqlaudit.context import get_audit_context
from sqlaudit.recording.bulk.inserts import prepare_insert
from sqlaudit.recording.bulk.locking import prepare_change
from sqlaudit.recording.bulk.parsing import Parameters, ParsedWrite, with_called_parameters
from sqlaudit.recording.bulk.upserts import prepare_followed_upsert
from sqlaudit.recording.bulk.writes import Write, roll_back, transactions_of
from sqlaudit.recording.capture import WriteContext
from sqlaudit.recording.cascades import take_write_lock
from sqlaudit.recording.changeset import changeset_of, instant_before
from sqlaudit.recording.clauses import NO_USER_FIELDS
from sqlaudit.recording.policy import lacking, report_unrecorded, require_context, require_key
from sqlaudit.recording.scope import scope_of, write_numbers
from sqlaudit.recording.tracked_mappers import user_fields_of
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key
from sqlaudit.sql.options import WRITE
from sqlaudit.tracking.catalogue import has_triggers
from sqlaudit.tracking.foreign_keys import Chain, FollowedTable, Source, referred_columns
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import root_of
from sqlaudit.tracking.schema import changes_unset
from sqlaudit.tracking.tables import INFO_KEY, TrackedTable


class Recorder:
    """Records statements: those that a session executes in one call, or one that a connection executes directly.

    :param session: the session, if any, that is in the transaction of the connection
    :param is_direct: True to write the versions after each statement, False to write them when :meth:`settle` is called
    :ivar number: tells which of several sessions began to write last
    :ivar flush: the flush in which the statements are executed, if any
    :ivar writes: what the statements write to tracked tables, as far as it is not recorded yet
    """

    def __init__(self, session: Session | None, *, is_direct: bool) -> None:
        self.session = session
        self.is_direct = is_direct
        self.number = next(write_numbers)
        self.flush = None if session is None else session.info.get(INFO_KEY)
        self.writes: list[Write] = []

    def write_context(self, connection: Connection, began: datetime) -> WriteContext:
        changeset = changeset_of(self.session, connection, began)
        return WriteContext(connection, changeset, get_audit_context())

    def settle_failed(self) -> None:
        """Undo what a failed statement did before it failed, and write the versions of the statements before it."""
        kept = []
        for write in self.writes:
            if write.is_rolled_back():
                write.forget()
            else:
                kept.append(write)
        self.writes = sorted(kept, key=lambda write: write.is_done)  # undoing also removes later writes
        with suppress(SQLAlchemyError):  # the database may have ended or aborted the transaction
            self.settle()

    def settle(self) -> None:
        """Write the versions of the statements that have been executed."""
        writes, self.writes = self.writes, []
        seen: set[tuple[Connection, Source, Key]] = set()
        for write in writes:
            if len(writes) > 1:
                place = write.connection, write.root
                write.inserted = [key for key in write.inserted if (*place, key) not in seen]
                seen.update((*place, key) for key in write.inserted)
            write.settle()

    def prepare(self, connection: Connection, parsed: ParsedWrite) -> tuple[Any, Parameters]:
        """Find out what a statement is about to write.

        :return: the statement and its parameters in the form to be executed, which can be recorded
        """
        statement, source = with_called_parameters(parsed.statement), parsed.source
        if statement is not parsed.statement:
            parsed = ParsedWrite(statement, parsed.parameters)
        assert source is not None
        if isinstance(source, TrackedTable):
            _require_context(source, is_flushing=self.flush is not None)
            require_key(table for chain in source.chains for table in chain)
        if self.is_direct:
            _undo_dead(connection)
        writes = scope_of(connection).unfinished if self.is_direct else self.writes
        began = writes[0].began if writes else instant_before(self.session, connection)
        write = Write(
            is_direct=self.is_direct,
            began=began,
            context=partial(self.write_context, connection, began),
            connection=connection,
            parsed=parsed,
            source=source,
            root=_root_of(source),
            above=_above(source),
            dependents_of_flush=self.flush.dependents if self.flush is not None else None,
        )
        writes.append(write)
        try:
            statement = _prepared(write)
        except BaseException:
            if self.is_direct:
                undo(write)
            raise
        statement = statement.execution_options(**{WRITE: ref(write)})  # weak: the statement cache keeps the options
        write.statement = ref(statement)
        return statement, write.parameters


def _prepared(write: Write) -> Any:
    """Return the statement in the form to be executed."""
    parsed, source = write.parsed, write.source
    is_one = len(parsed.parameters) == 1 and not parsed.has_prefixes
    write.is_atomic = is_one or TRAITS[write.connection.dialect.name].undoes_failed_statements
    # To select its rows takes no more privileges than an UPDATE with a criterion.
    asks_no_more = bool(parsed.criteria) and not parsed.is_delete
    tables = [source] if isinstance(source, TrackedTable) else []
    try:
        with explaining_history_errors(tables, record=True, reads_as_user=asks_no_more):
            if not (parsed.is_insert and is_one):
                take_write_lock(write.connection, source)
            if not parsed.is_insert:
                return prepare_change(write)
            if isinstance(source, TrackedTable):
                return prepare_insert(write, source)
            return prepare_followed_upsert(write, source)
    finally:
        write.transactions = transactions_of(write.connection)  # sqlaudit's first statement may have begun them


def write_of(clause: Any) -> Write | None:
    """Return the write of a statement that a recorder has prepared."""
    reference = clause.get_execution_options().get(WRITE) if isinstance(clause, (UpdateBase, FromStatement)) else None
    return reference and reference()


def finish(write: Write, result: Any) -> None:
    """Note what a statement has written; write the versions if the connection executed it directly."""
    write.note_result(result)
    if write.is_direct:
        scope = scope_of(write.connection)
        scope.unfinished = [unfinished for unfinished in scope.unfinished if unfinished is not write]
        try:
            write.settle()
        except BaseException:
            roll_back(write.connection)
            raise


def undo(write: Write) -> None:
    """Undo what a statement did before it failed. Statements within which it was executed go on."""
    scope = scope_of(write.connection)
    scope.unfinished = [unfinished for unfinished in scope.unfinished if unfinished is not write]
    if not write.is_rolled_back():
        with suppress(SQLAlchemyError):  # the database may have ended or aborted the transaction
            write.settle()


def undo_unexecuted(connection: Connection) -> None:
    """Undo what was prepared for a statement whose parameters could not be made: a type or a column default raised."""
    unfinished = scope_of(connection).unfinished
    if unfinished and not unfinished[-1].is_executed:
        undo(unfinished[-1])


def _undo_dead(connection: Connection) -> None:
    """Undo what was prepared for statements that have been garbage collected.

    Such a statement failed to compile, which fires no event. A write whose statement is still referenced may be waiting
    for a column default to execute.
    """
    for write in scope_of(connection).unfinished:
        if write.statement is not None and write.statement() is None:
            write.savepoint = None  # other statements have been executed since
            undo(write)


def _root_of(source: Source) -> Source:
    return source if isinstance(source, FollowedTable) or source.is_association else root_of(source).table


def _above(source: Source) -> Chain:
    """Return the tables of the base classes of a subclass table."""
    if isinstance(source, FollowedTable) or not source.chains:
        return ()
    return tuple(takewhile(lambda table: table is not source, source.chains[0]))


def is_where_history_is(connection: Connection, source: Source, options: Mapping[str, Any]) -> bool:
    """Return whether a statement uses its connection's schemas, as sqlaudit's statements do; report it if not."""
    name = "schema_translate_map"
    if (options.get(name) or None) == (connection.get_execution_options().get(name) or None):
        return True
    report_unrecorded(
        f"A statement that writes the table {source.live.fullname!r} has a {name} of its own, so sqlaudit would look "
        "for the history table in another schema, and does not record it. Give the map to the engine or the "
        "connection: execution_options(schema_translate_map=…).",
        source.live,
    )
    return False


def can_change_versions(connection: Connection, parsed: ParsedWrite) -> bool:
    """Return whether a statement may make versions, or change rows that make some.

    An UPDATE makes none if it sets only quiet or excluded columns, to which no foreign key refers, and if nothing else
    changes with them: no column by itself or by a trigger, and no row in its way.
    """
    source = parsed.source
    if not (parsed.is_update and isinstance(source, TrackedTable) and (source.quiet or source.exclude)):
        return True
    ignored = source.quiet | source.exclude
    return (
        any(column is None or column.name not in ignored for column in parsed.values)
        or any(changes_unset(column) and column.name not in ignored for column in source.live.c)
        or bool(parsed.other_tables)
        or bool(parsed.conflict_clauses(connection.dialect))
        or not referred_columns((source,)).isdisjoint(parsed.values)
        or has_triggers(connection, source)
    )


def _require_context(tracked: TrackedTable, *, is_flushing: bool) -> None:
    """Raise if a required user or reason is missing.

    :param is_flushing: True if the session is flushing: the flush has required the user of its association rows
    :raises ContextError: the user or the reason is missing
    """
    if (lacks := lacking(get_audit_context())) is not None:
        names_user = (tracked.is_association and is_flushing) or user_fields_of((tracked,)) is not NO_USER_FIELDS
        write = f"The table {tracked.live.fullname!r} is to be written"
        require_context(lacks, write, tracked.live, row_names_user=names_user)
