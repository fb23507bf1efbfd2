"""Which rows does a statement write? From INSERT, UPDATE and DELETE, whoever executes them, to keys and versions.

Before an UPDATE or DELETE runs, the rows that it is about to write are locked, in the order of their keys, and those
without history get baselines. Then it is confined to these rows, so that it writes what is known whatever other
transactions commit meanwhile; what it returns is what it returned without us. An INSERT is asked for the keys of its
rows, where they are not given, by RETURNING. Only keys pass through Python, never values.

A :class:`Recorder` listens to a connection, where all statements pass: those of ``session.execute``, of
``Query.update``, of ``bulk_insert_mappings`` and its kin, and those that never saw a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    CTE,
    Alias,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Engine,
    ExceptionContext,
    GenerativeSelect,
    Insert,
    Integer,
    Select,
    SelectBase,
    StatementLambdaElement,
    Table,
    TextClause,
    TextualSelect,
    Update,
    UpdateBase,
    and_,
    any_,
    bindparam,
    column,
    event,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import FromStatement, Session
from sqlalchemy.sql import operators
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.capture import Capture, Changeset, uncaptured
from sqlaudit.changes import Operation
from sqlaudit.config import current_config
from sqlaudit.context import get_audit_context
from sqlaudit.dependents import Dependents, by_chain, record_moved_children, referred_columns
from sqlaudit.exceptions import ContextError
from sqlaudit.flush import unit_of
from sqlaudit.handwritten import NOTICED, notice_sql
from sqlaudit.models import root_of
from sqlaudit.statements import (
    NO_USER_FIELDS,
    JSONList,
    Key,
    UserFields,
    chunks,
    goes_into_json,
    has_open_version,
    one_of,
    one_of_json,
)
from sqlaudit.tables import TrackedTable, tracked_table, unique_together

Parameters = Sequence[Mapping[str, Any]]
Chain = tuple[TrackedTable, ...]
_WRITE: Final = "sqlaudit_write"
_SAVEPOINT: Final = "sqlaudit"
_SQL: Final = object()
"""Stands for a value that only the database knows."""


@dataclass(slots=True, kw_only=True)
class Write:
    """What a statement writes to a tracked table.

    :ivar root: the table, or for the table of a subclass that of its base
    :ivar is_further: whether it is the table of a subclass
    :ivar captures: what writes the versions of the rows that were there before, with their keys
    :ivar moved_to: the keys that an UPDATE gives to rows, by those that they had
    :ivar keys_of: reads the keys of what an INSERT has made from its result
    :ivar inserted: these keys
    :ivar may_update: whether the INSERT may have come upon rows that were there
    :ivar may_move: whether it may have changed their keys
    :ivar is_whole: whether a DELETE took all the rows that it was expected to
    :ivar has_savepoint: whether what it has done in part can be undone
    :ivar is_done: whether it has been executed
    :ivar transactions: what it is executed in: the transaction and the savepoint
    """

    recorder: Recorder
    connection: Connection
    root: TrackedTable
    operation: Operation
    is_further: bool
    captures: list[tuple[Capture, list[Key]]] = field(default_factory=list)
    dependents: Dependents = field(default_factory=Dependents)
    moved_to: dict[Key, Key] = field(default_factory=dict)
    keys_of: Callable[[CursorResult[Any]], list[Key]] = lambda result: []
    inserted: list[Key] = field(default_factory=list)
    may_update: bool = False
    may_move: bool = False
    is_whole: bool = False
    has_savepoint: bool = False
    is_done: bool = False
    transactions: tuple[Any, Any] = (None, None)

    def begin(self) -> None:
        """Make it possible to undo what the statement does before it fails, where the database keeps that."""
        connection = self.connection
        if connection.dialect.name != "postgresql" and not connection._is_autocommit_isolation():
            connection.dialect.do_savepoint(connection, _SAVEPOINT)
            self.has_savepoint = True

    def expect(self, keys: list[Key], *, unrecorded: Set[Key], changed: Set[Any] | None) -> None:
        """Give baselines to the rows, locked by now, that the statement is about to write.

        :param unrecorded: the rows that may have no history
        :param changed: the columns that it changes of them; ``None`` if others may refer to any of these
        """
        for chain, some in by_chain(self.connection, self.root, keys):
            capture = self.recorder.capture(self.connection, chain)
            capture.baseline([key for key in some if key in unrecorded])
            self.captures.append((capture, some))
            if changed is None or not referred_columns(chain).isdisjoint(changed):
                self.dependents.find(capture, some)

    def done(self, result: CursorResult[Any]) -> None:
        """Note what the statement has done."""
        self.is_done = True
        if self.operation is Operation.INSERT:
            self.inserted = self.keys_of(result)
        elif self.operation is Operation.DELETE:
            self.is_whole = result.rowcount == sum(len(keys) for _, keys in self.captures)
        if self.has_savepoint:
            self.connection.dialect.do_release_savepoint(self.connection, _SAVEPOINT)

    def settle(self) -> None:
        """Write the versions; undo what the statement did in part, if it failed."""
        if not self.is_done:
            self._undo()
            return
        for chain, keys in by_chain(self.connection, self.root, self.inserted):
            capture = self.recorder.capture(self.connection, chain)
            if self.may_update or self.is_further:
                capture.settle(keys, inserted=frozenset(keys), must_be_found=not self.may_update)
            else:
                capture.inserted(keys)
            if self.may_move:
                record_moved_children(capture, keys)
        for capture, keys in self.captures:
            if self.moved_to:
                new = [self.moved_to[key] for key in keys]
                capture.settle(list(dict.fromkeys([*keys, *new])), inserted=frozenset(new))
                record_moved_children(capture, new)
            elif self.operation is Operation.UPDATE:
                capture.updated(keys)
            elif self.is_whole and not self.is_further:
                capture.deleted(keys)
            else:
                capture.settle(keys)
        self.dependents.settle()

    def is_rolled_back(self) -> bool:
        """Tell whether the transaction, or savepoint, that the statement was executed in has been rolled back."""
        return _transactions_of(self.connection) != self.transactions

    def _undo(self) -> None:
        connection = self.connection
        if self.has_savepoint:
            connection.dialect.do_rollback_to_savepoint(connection, _SAVEPOINT)
            connection.dialect.do_release_savepoint(connection, _SAVEPOINT)
            return
        for capture, keys in self.captures:
            capture.settle(keys)
        self.dependents.settle()


def roll_back(within: Connection | Session) -> None:
    """Undo what could not be recorded, whatever whoever executed it does next."""
    transaction = within.get_nested_transaction() or within.get_transaction()
    if transaction is not None and transaction.is_active:
        transaction.rollback()


def _transactions_of(connection: Connection) -> tuple[Any, Any]:
    both = connection.get_transaction(), connection.get_nested_transaction()
    return tuple(each if each is not None and each.is_active else None for each in both)  # type: ignore[return-value]


class Recorder:
    """Records what the statements of a connection, or of an engine's connections, write to tracked tables.

    :param changeset: tells the changeset of a connection's transaction
    :param is_paused: tells whether what a connection executes is nothing to it, by the table that it writes, which is
        not known of SQL that was written by hand, and by its execution options
    :param waits: whether it writes the versions when :meth:`settle` is called, and not after each statement
    :param can_cut: whether whoever executes the statements cuts what they return more than was asked for
    :ivar surplus: how many columns that is
    """

    def __init__(
        self,
        changeset: Callable[[Connection], Changeset],
        is_paused: Callable[[Connection, TrackedTable | None, Mapping[str, Any]], bool],
        *,
        waits: bool = False,
        can_cut: bool = False,
    ) -> None:
        self.changeset = changeset
        self.is_paused = is_paused
        self.waits = waits
        self.can_cut = can_cut
        self.surplus = 0
        self.writes: list[Write] = []

    def listen(self, target: Engine | Connection) -> None:
        event.listen(target, "before_execute", self.before, retval=True)
        event.listen(target, "after_execute", self.after)
        if not self.waits:
            event.listen(target, "before_cursor_execute", self.before_cursor)
            event.listen(target.engine, "handle_error", self.failed)

    def remove(self, target: Engine | Connection) -> None:
        event.remove(target, "before_execute", self.before)
        event.remove(target, "after_execute", self.after)
        if not self.waits:
            event.remove(target, "before_cursor_execute", self.before_cursor)
            event.remove(target.engine, "handle_error", self.failed)

    def capture(self, connection: Connection, chain: Chain) -> Capture:
        return Capture(connection, self.changeset(connection), chain, user_fields_of(chain))

    def settle_failed(self) -> None:
        """Write the versions of what was executed before a statement failed, and undo what that did in part."""
        self.writes = [write for write in self.writes if not write.is_rolled_back()]
        self.writes.sort(key=lambda write: write.is_done)  # to undo takes with it what has been written since
        with suppress(SQLAlchemyError):  # the database may have undone all of it, and take nothing more
            self.settle()

    def settle(self) -> None:
        """Write the versions of what has been executed."""
        writes, self.writes = self.writes, []
        seen: set[tuple[TrackedTable, Key]] = set()
        for write in writes:
            if len(writes) > 1:
                write.inserted = [key for key in write.inserted if (write.root, key) not in seen]
                seen.update((write.root, key) for key in write.inserted)
            write.settle()

    # -- the events

    def before(
        self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """Find out what a statement is about to write."""
        statement = unwrapped(clause)
        if isinstance(statement, SelectBase):
            notice_writes_within(statement)
        elif isinstance(statement, TextClause):
            if not self.waits and not options.get(NOTICED) and not self.is_paused(connection, None, options):
                notice_sql(statement.text)
        elif (
            isinstance(statement, (Insert, Update, Delete))
            and _WRITE not in statement.get_execution_options()
            and (tracked := written_table(statement)) is not None
            and not self.is_paused(connection, tracked, options)
            and _is_where_history_is(connection, tracked, options)
            and _can_be_foreseen(statement, tracked)
        ):
            clause = _wrapped_as(clause, self._prepare(connection, statement, tracked, multiple or [single]))
        return clause, multiple, single

    def before_cursor(
        self, connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Notice SQL that is given to the driver."""
        if context is not None and context.compiled is None and not self.is_paused(connection, None, {}):
            notice_sql(sql)

    def after(self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Any, result: Any) -> None:
        """Note what a statement has written."""
        statement = unwrapped(clause)
        write: Write | None = statement.get_execution_options().get(_WRITE) if hasattr(statement, "table") else None
        if write is not None and write.recorder is self:
            write.done(result)
            if not self.waits:
                del connection.info[_WRITE]
                try:
                    write.settle()
                except BaseException:
                    roll_back(connection)
                    raise

    def failed(self, context: ExceptionContext) -> None:
        """Undo what a statement did before it failed."""
        if context.connection is not None and not context.is_disconnect:
            self._undo_unfinished(context.connection)

    def _undo_unfinished(self, connection: Connection) -> None:
        write: Write | None = connection.info.pop(_WRITE, None)
        if write is not None and write.connection is connection and not write.is_rolled_back():
            with suppress(SQLAlchemyError):  # the database may have undone all of it, and take nothing more
                write.settle()

    def _prepare(self, connection: Connection, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
        _require_context(tracked)
        notice_writes_within(clause)
        root = tracked if tracked.is_association else root_of(tracked).table
        write = Write(
            recorder=self,
            connection=connection,
            root=root,
            operation=_OPERATIONS[clause.__visit_name__],
            is_further=root is not tracked,
        )
        is_insert, is_one = isinstance(clause, Insert), len(parameters) == 1 and not clause._prefixes
        if self.waits:
            self.writes.append(write)
        else:
            self._undo_unfinished(connection)  # it could not even be compiled: nobody told of that
            connection.info[_WRITE] = write
        if not (is_insert and is_one):
            keep_others_out(connection, tracked)
        if not is_one:
            write.begin()
        try:
            clause = (_prepare_insert if is_insert else _prepare_change)(write, clause, tracked, parameters)
        finally:
            write.transactions = _transactions_of(connection)  # which our first statement may have begun
        return clause.execution_options(**{_WRITE: write})


_OPERATIONS: Final = {"insert": Operation.INSERT, "update": Operation.UPDATE, "delete": Operation.DELETE}


def unwrapped(statement: Any) -> Any:
    """Return the statement in a lambda, in ``select().from_statement()`` or in ``text().columns()``."""
    while isinstance(statement, (StatementLambdaElement, FromStatement, TextualSelect)):
        statement = statement._resolved if isinstance(statement, StatementLambdaElement) else statement.element
    return statement


def _wrapped_as(given: Any, statement: Any) -> Any:
    """Return a statement that loads the objects that a given one loads, if it does, by another one."""
    if isinstance(given, StatementLambdaElement):
        return _wrapped_as(given._resolved, statement)
    if isinstance(given, FromStatement):
        given = given._generate()
        given.element = statement
        return given
    return statement


def notice_writes_within(statement: Any) -> None:
    """Notice what a statement writes besides, or though it reads: by a CTE, or to a second table of one UPDATE."""
    written = {written_table(each) for each in _writes_within(statement)}
    if isinstance(statement, Update):
        mine = written_table(statement)
        tables = {_unaliased(column.table) for column in statement._values or () if isinstance(column, ColumnElement)}
        written |= {each for each in map(tracked_table, tables) if each is not mine and not _are_of_one_row(each, mine)}
    for tracked in written:
        if tracked is not None:
            name = tracked.live.fullname
            uncaptured(
                f"A statement writes the tracked table {name!r} besides, and its history will not show it; write each "
                "table by a statement of its own, or call record_changes() then.",
                tracked.live,
            )


def _writes_within(statement: Any) -> list[Any]:
    """Return the statements that write in another one."""
    if isinstance(statement, SelectBase):
        return [each.element for each in _ctes_of(statement) if isinstance(each.element, UpdateBase)]
    within = [*statement._independent_ctes, *getattr(statement, "_where_criteria", ())]
    within += [getattr(statement, "select", None), *(getattr(statement, "_values", None) or {}).values()]
    found = (each for start in within if isinstance(start, ClauseElement) for each in iterate(start))
    return [each for each in found if isinstance(each, UpdateBase)]


def _can_be_foreseen(statement: Any, tracked: TrackedTable) -> bool:
    """Tell whether the rows that a statement is about to write can be found without writing any."""
    is_plain_insert = isinstance(statement, Insert) and statement._post_values_clause is None
    if is_plain_insert or not _writes_within(statement):
        return True
    notice_writes_within(statement)
    uncaptured(
        f"Which rows of the tracked table {tracked.live.fullname!r} a statement writes is said by another that writes "
        "within it, and history will not show them; execute that first, and name the rows by what it returns.",
        tracked.live,
    )
    return False


def _ctes_of(statement: Any) -> Iterator[CTE]:
    """Yield the CTEs that a select names first, for the rest is not worth its time."""
    for each in getattr(statement, "selects", (statement,)):
        named = [*each._from_obj, *(getattr(column, "table", column) for column in each._raw_columns)]
        yield from (each for each in (*each._independent_ctes, *named) if isinstance(each, CTE))


def _are_of_one_row(table: TrackedTable | None, other: TrackedTable | None) -> bool:
    return table is not None and any(table in chain and other in chain for chain in table.chains)


def _unaliased(table: Any) -> Any:
    return table.element if isinstance(table, Alias) else table


def written_table(clause: Any) -> TrackedTable | None:
    """Return the tracked table that a statement writes."""
    annotations = clause._annotations  # of the ORM's statements for objects of several tables, one after the other
    table = _unaliased(annotations.get("_emit_update_table", annotations.get("_emit_insert_table", clause.table)))
    tracked = tracked_table(table)
    if tracked is None or tracked.live.fullname != table.fullname:  # it is the history table
        return None
    return tracked


def _is_where_history_is(connection: Connection, tracked: TrackedTable, options: Mapping[str, Any]) -> bool:
    """Tell whether a statement is executed in the schemas of its connection, where ours are."""
    name = "schema_translate_map"
    if options.get(name) == connection.get_execution_options().get(name):
        return True
    uncaptured(
        f"A statement that writes the tracked table {tracked.live.fullname!r} has a {name} of its own, and its history "
        "will not show it; give the map to the engine or the connection: execution_options(schema_translate_map=…).",
        tracked.live,
    )
    return False


def _require_context(tracked: TrackedTable) -> None:
    """See that there are a user and a reason, if they are required.

    :raises ContextError: there are not
    """
    config, context = current_config(), get_audit_context()
    name = tracked.live.fullname
    if config.require_reason and not context.reason:
        raise ContextError(
            f"The table {name!r} is to be written without a reason, and require_reason is set; write it within "
            "AuditContextManager(reason=…).",
            tracked.live,
        )
    if not config.require_user or context.user_id is not None or tracked.is_association:
        return
    callback = config.get_user_id_callback
    if (callback is None or callback() is None) and user_fields_of((tracked,)) is NO_USER_FIELDS:
        raise ContextError(
            f"The table {name!r} is to be written without a user, and require_user is set; write it within "
            "AuditContextManager(user_id=…).",
            tracked.live,
        )


def user_fields_of(chain: Chain) -> UserFields:
    if chain[0].is_association:
        return NO_USER_FIELDS
    root = root_of(chain[0])
    model = next((model for model in root.family() if model.chain == chain), root)
    unit = unit_of(model.mapper)
    assert unit is not None
    return unit.user_fields(current_config())


# --- UPDATE and DELETE ------------------------------------------------------------------------------------------


def _prepare_change(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """Lock the rows that an UPDATE or DELETE is about to write, and return it confined to them."""
    connection, written = write.connection, clause.table
    key = [written.c[column.key] for column in tracked.key] if isinstance(written, Alias) else list(tracked.key)
    values = {} if isinstance(clause, Delete) else _values_set(clause, tracked, parameters)
    new_key = [values.get(column, here) for column, here in zip(tracked.key, key, strict=True)]
    moves = not values.keys().isdisjoint(tracked.key)
    given, width = None if moves else _keys_given(clause, key, parameters), len(key)
    told = [*key, has_open_version(write.root, key)]
    if moves:
        told += [type_coerce(value, column.type) for value, column in zip(new_key, tracked.key, strict=True)]
    if given is None:
        chosen = _rows_of(clause, told, key)
        found = [tuple(row) for each in parameters for row in connection.execute(chosen, each)]
    else:
        chosen = select(*told).order_by(*key).with_for_update()
        locked = (connection.execute(chosen.where(one_of(key, chunk))) for chunk in chunks(given))
        found = [tuple(row) for rows in locked for row in rows]
    is_recorded = {row[:width]: row[width] for row in found}
    keys = list(is_recorded)
    write.moved_to = {row[:width]: row[width + 1 :] for row in found} if moves else {}
    meanwhile: Sequence[Key] | None = ()
    if moves and len(parameters) > 1:
        meanwhile = _follow_moves(write, clause, key, new_key, parameters)
    write.expect(
        keys,
        unrecorded={each for each in keys if not is_recorded[each]},
        changed=None if isinstance(clause, Delete) or moves else values.keys(),
    )
    if meanwhile is None:
        return clause
    keys = list(dict.fromkeys([*keys, *meanwhile]))
    if given is not None and len(keys) == len(set(given)):
        return clause  # nobody can add rows that it would write
    alone = all(set(each._from_objects) <= {written} for each in clause._where_criteria)
    if connection.dialect.name == "sqlite" and alone and not any(map(_may_differ, clause._where_criteria)):
        return clause
    named = {source for each in values.values() for source in getattr(each, "_from_objects", ())}
    single = isinstance(clause, Update) and alone and named <= {written}  # else the hint is rendered behind another
    if single and connection.dialect.name in ("mysql", "mariadb") and tracked.live.primary_key:
        # It would rather walk through a small table, and wait for rows that are not its own.
        clause = clause.with_hint("FORCE INDEX (PRIMARY)", selectable=written)
    if alone and len(parameters) == 1:  # it need not ask again which rows, and what may be told otherwise then
        clause = clause._generate()
        clause._where_criteria = ()
    return clause.where(_among(connection, key, keys, len(parameters) > 1))


def _follow_moves(
    write: Write, clause: Any, key: Sequence[Any], new_key: Sequence[Any], parameters: Parameters
) -> Sequence[Key] | None:
    """Note where rows end that one execution may move on from where another one has moved them.

    :return: the keys that they have meanwhile; ``None`` if nobody knows, and they must be left to the statement
    """
    old = _keys_given(clause, key, parameters)
    if old is not None and len(list(_terms(clause._where_criteria))) == len(key):
        if len(set(old)) == len(old) and set(old).isdisjoint(write.moved_to.values()):
            return ()  # none is moved twice
        new = [
            tuple([was if to is here else _given(to, each) for to, here, was in zip(new_key, key, one, strict=True)])
            for one, each in zip(old, parameters, strict=True)
        ]
        if not any(value is _SQL for each in new for value in each):
            for row in write.moved_to:
                place = row
                for before, after in zip(old, new, strict=True):
                    place = after if place == before else place
                write.moved_to[row] = place
            return new
    name = write.root.live.fullname
    uncaptured(
        f"A list of parameters moves rows of the tracked table {name!r} by keys that it may move again, and its "
        "history may not show where they end; execute the statement once for each.",
        write.root.live,
    )
    return None


def _may_differ(criterion: ColumnElement[bool]) -> bool:
    """Tell whether a criterion may choose other rows when it is asked again: by ``random()``, or a LIMIT."""
    return any(isinstance(each, (FunctionElement, TextClause, GenerativeSelect)) for each in iterate(criterion))


def keep_others_out(connection: Connection, tracked: TrackedTable) -> None:
    """Keep others from writing between two statements of ours, where rows cannot be locked, but the database is."""
    if connection.dialect.name == "sqlite":  # by its first write, whether that finds a row or not
        connection.execute(update(tracked.history).where(false()).values({tracked.version: tracked.version}))


def _rows_of(clause: Any, columns: Sequence[Any], key: Sequence[Any]) -> Select[Any]:
    """Return the select of columns of the rows that a statement is about to write, which locks them."""
    statement = select(*columns).where(*clause._where_criteria).order_by(*key).with_for_update(of=key[0].table)
    statement = statement.add_cte(*clause._independent_ctes)
    entity = clause.table._annotations.get("parententity")
    if entity is not None:
        statement = statement.select_from(entity).options(*clause._with_options)
    for dialect in ("mysql", "mariadb"):
        limit = clause.dialect_kwargs.get(f"{dialect}_limit")
        statement = statement if limit is None else statement.limit(limit)
    return statement


def _values_set(clause: Any, tracked: TrackedTable, parameters: Parameters) -> dict[Any, Any]:
    """Return the columns that an UPDATE sets, with their values."""
    columns: dict[Any, Any] = {column.key: column for column in tracked.live.c}
    entity = clause.table._annotations.get("parententity")
    if entity is not None:
        columns |= {attribute.key: attribute.columns[0] for attribute in entity.mapper.column_attrs}
    named = [(name, bindparam(name, type_=columns[name].type)) for name in parameters[0] if name in columns]
    pairs = [*(clause._values or {}).items(), *(getattr(clause, "_ordered_values", None) or ()), *named]
    return {columns.get(each if isinstance(each, str) else each.key): value for each, value in pairs}


def _keys_given(clause: Any, key: Sequence[Any], parameters: Parameters) -> list[Key] | None:
    """Return the keys that a statement names; ``None`` if it names its rows otherwise."""
    equations = [term for term in _terms(clause._where_criteria) if getattr(term, "operator", None) is operators.eq]
    terms = {term.left: term.right for term in equations if isinstance(term.right, BindParameter)}
    found = [terms.get(column) for column in key]
    if any(term is None for term in found):
        return None
    keys = [tuple([_given(term, each) for term in found]) for each in parameters]
    return None if any(value is _SQL for each in keys for value in each) else keys


def _terms(criteria: Iterable[Any]) -> Iterator[Any]:
    for each in criteria:
        if isinstance(each, BooleanClauseList) and each.operator is operators.and_:
            yield from _terms(each.clauses)
        else:
            yield each


def _given(value: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the value that a statement is executed with, if it is one of Python's."""
    if isinstance(value, BindParameter):
        value = parameters.get(value.key, value.effective_value)
    return _SQL if value is None or isinstance(value, ClauseElement) or hasattr(value, "__clause_element__") else value


def _among(connection: Connection, key: Sequence[Any], keys: Sequence[Key], many: bool) -> ColumnElement[bool]:
    """Return the condition that a row has one of the keys, however many these are."""
    if connection.dialect.name != "postgresql":
        if not many and len(key) == 1 and goes_into_json(key[0], connection.dialect):
            return one_of_json(key[0], literal([each[0] for each in keys], JSONList(key[0].type)))
        if not keys or not many:
            return one_of(key, keys) if keys else false()
        # A statement of many executions takes no list for a parameter.
        each_given = [tuple(map(literal, each, (column.type for column in key))) for each in keys]
        return or_(*(and_(*map(operators.eq, key, each)) for each in each_given))
    lists = [literal([each[place] for each in keys], ARRAY(column.type)) for place, column in enumerate(key)]
    if len(key) == 1:
        return cast("ColumnElement[bool]", key[0] == any_(lists[0]))
    names = [column(f"k{place}", each.type) for place, each in enumerate(key)]
    return tuple_(*key).in_(select(func.unnest(*lists).table_valued(*names).render_derived()))


# --- INSERT -----------------------------------------------------------------------------------------------------


def _prepare_insert(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """See to it that the keys of the rows that an INSERT makes will be known, and return it so."""
    key = tracked.key
    write.may_update = clause._post_values_clause is not None or bool(clause._prefixes)
    rows = _rows_given(clause, tracked, parameters, tracked.live.c if write.may_update else key)
    if write.may_update:
        changed = _columns_changed(clause, tracked)
        write.may_move = not changed.isdisjoint(key)
        _find_present(write, clause, tracked, rows, changed)
    moves_given = write.may_move and clause._post_values_clause is not None  # what is replaced gets the given key
    unique = [key] if key and not moves_given else []
    if write.may_update and not write.may_move:
        unique += [columns for columns in _keys_of_table(tracked.live) if changed.isdisjoint(columns)]
    for columns in unique:
        values = [] if rows is None else _columns_of(rows, columns)
        if rows is not None and not any(value is _SQL for each in values for value in each):
            write.keys_of = _keys_of_values(write.connection, key, columns, values)
            return clause
    if not write.may_update and _tells_keys(clause, tracked, rows):
        write.keys_of = lambda result: _keys_told(result, tracked)
        return clause
    if write.connection.dialect.name == "sqlite" and _is_numbered(write, clause, tracked, rows, parameters):
        return clause
    return _returning_keys(write, clause, tracked, parameters)


def _rows_given(
    clause: Any, tracked: TrackedTable, parameters: Parameters, columns: Iterable[Column[Any]]
) -> list[dict[str, Any]] | None:
    """Return the values that an INSERT gives to columns, by the keys of these; ``None`` if a query gives them."""
    if clause.select is not None:
        return None
    names = {column.key: column.key for column in tracked.live.c}
    entity = clause.table._annotations.get("parententity")
    if entity is not None:
        names |= {attribute.key: attribute.columns[0].key for attribute in entity.mapper.column_attrs}
    asked = {column.key for column in columns}
    names = {name: key for name, key in names.items() if key in asked}
    given = [each for several in clause._multi_values for each in several] or [clause._values or {}]
    given = [{name if isinstance(name, str) else name.key: value for name, value in each.items()} for each in given]
    return [
        {key: _given(of[name], each) for of in (values, each) for name, key in names.items() if name in of}
        for each in parameters
        for values in given
    ]


def _columns_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column[Any]]) -> list[Key]:
    return [tuple([row.get(column.key, _SQL) for column in columns]) for row in rows]


def _tells_keys(clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None) -> bool:
    """Tell whether the result of an INSERT has the keys of its rows on its own."""
    if clause._return_defaults:
        return True
    if rows is None or clause._returning or clause._multi_values or clause._inline:
        return False
    if not set(tracked.key) <= set(tracked.live.primary_key):
        return False
    return len(rows) == 1 or all(
        (column.default is not None and (column.default.is_callable or column.default.is_scalar))
        or all(row.get(column.key, _SQL) is not _SQL for row in rows)
        for column in tracked.key
    )


def _is_numbered(
    write: Write, clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None, parameters: Parameters
) -> bool:
    """Tell whether SQLite numbers the rows that many executions insert: each is new whose number is above the last.

    RETURNING would tell as much, but take twice as long as the INSERT.
    """
    key, connection = tracked.live.autoincrement_column, write.connection
    if (
        len(parameters) == 1
        or key is None
        or tracked.key != (key,)
        or not isinstance(key.type, Integer)
        or key.default is not None
        or write.may_update
        or clause._returning
        or any(rows or [{}])
        or connection._is_autocommit_isolation()  # others may insert meanwhile
    ):
        return False
    last = connection.execute(select(func.coalesce(func.max(key), -1 << 63))).scalar_one()
    write.keys_of = lambda result: [tuple(row) for row in connection.execute(select(key).where(key > last))]
    return bool(last < (1 << 63) - 1)  # after which the numbers are chosen at random


def _keys_of_values(
    connection: Connection, key: Sequence[Any], columns: Sequence[Any], values: list[Key]
) -> Callable[[Any], list[Key]]:
    """Return what tells the keys of the rows that have unique values."""
    return lambda result: values if columns is key else _keys_where(connection, key, columns, values)


def _keys_told(result: CursorResult[Any], tracked: TrackedTable) -> list[Key]:
    places = [list(tracked.live.primary_key).index(column) for column in tracked.key]
    told: Sequence[Any] = result.inserted_primary_key_rows
    return [tuple([row[place] for place in places]) for row in told]


def _keys_where(connection: Connection, key: Sequence[Any], columns: Sequence[Any], values: Sequence[Key]) -> list[Key]:
    """Return the keys of the rows whose columns have one of the values, and lock them."""
    chosen = select(*key).order_by(*key).with_for_update()
    found = (connection.execute(chosen.where(one_of(columns, chunk))) for chunk in chunks(values))
    return [tuple(row) for rows in found for row in rows]


def _keys_returned(result: CursorResult[Any]) -> list[Key]:
    _return_nothing(result)
    return [tuple(row) for row in result.returned_defaults_rows or ()]


def _return_nothing(result: CursorResult[Any]) -> None:
    """Let a result be as without us."""
    result._metadata = result._no_result_metadata


def _returning_keys(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """Return an INSERT that returns the keys of its rows, after whatever else it returns."""
    dialect, key, many = write.connection.dialect, tracked.key, len(parameters) > 1
    returned = list(clause._returning)
    if not (dialect.insert_executemany_returning if many else dialect.insert_returning):
        uncaptured(
            f"The keys of what is inserted into {tracked.live.fullname!r} are not given, and the database cannot "
            "return them; its history will not show the rows. Give their keys, or add objects to a session.",
            tracked.live,
        )
        return clause
    if many and not (returned or clause._multi_values or write.may_update or set(key) - set(tracked.live.primary_key)):
        write.keys_of = _keys_returned
        return clause.return_defaults(*key).execution_options(preserve_rowcount=True)
    if returned and all(any(column is each for column in returned) for each in key):
        places = [next(place for place, column in enumerate(returned) if column is each) for each in key]
    elif returned and not write.recorder.can_cut:
        uncaptured(
            f"What is inserted into {tracked.live.fullname!r} returns no key; its history will not show the rows. Add "
            "the primary key to returning().",
            tracked.live,
        )
        return clause
    else:
        places = list(range(-len(key), 0))
        clause = clause.returning(*(column.label(f"sqlaudit_{column.key}") for column in key))
        write.recorder.surplus = len(key) if returned else 0

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        rowcount = result.rowcount if returned else None
        rows = list(result.all())
        result.context._rowcount = len(rows) if rowcount is None else rowcount
        if returned:
            result._rewind(rows)
        else:
            result.context._is_explicit_returning = False
            _return_nothing(result)
        return [tuple([row[place] for place in places]) for row in rows]

    write.keys_of = keys_of
    return clause


def _columns_changed(clause: Any, tracked: TrackedTable) -> set[Any]:
    """Return the columns that an INSERT changes of rows that it comes upon; all of them if it replaces these."""
    if any("REPLACE" in str(prefix).upper() for prefix, _ in clause._prefixes):
        return set(tracked.live.c)
    told = clause._post_values_clause
    values = dict(getattr(told, "update_values_to_set", None) or getattr(told, "update", None) or ())
    columns = {column.key: column for column in tracked.live.c}
    return {columns.get(each if isinstance(each, str) else each.key) for each in values}


def _find_present(
    write: Write,
    clause: Any,
    tracked: TrackedTable,
    rows: Sequence[Mapping[str, Any]] | None,
    changed: set[Any],
) -> None:
    """Lock the rows that an INSERT may come upon, and give baselines to those without history.

    :param changed: the columns that it changes of them
    """
    connection, key = write.connection, tracked.key
    found: dict[Key, None] = {}
    for columns in _keys_of_table(tracked.live):
        if rows is not None:
            given = [values for values in _columns_of(rows, columns) if not any(value is _SQL for value in values)]
            found |= dict.fromkeys(_keys_where(connection, key, columns, given))
            continue
        names = [name if isinstance(name, str) else name.key for name in clause._select_names]
        if {column.key for column in columns} <= set(names):
            source = clause.select.subquery()
            values = select(*(list(source.c)[names.index(column.key)] for column in columns))
            among = (tuple_(*columns) if len(columns) > 1 else columns[0]).in_(values)
            chosen = select(*key).where(among).order_by(*key).with_for_update()
            found |= dict.fromkeys(tuple(row) for row in connection.execute(chosen))
    write.expect(list(found), unrecorded=found.keys(), changed=None if write.may_move else changed)


def _keys_of_table(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """Yield the columns of a table that are unique together, its primary key first."""
    if table.primary_key:
        yield tuple(table.primary_key)
    yield from unique_together(table, partial=True)
