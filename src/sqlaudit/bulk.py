"""Which rows does a statement write? From INSERT, UPDATE and DELETE, whoever executes them, to keys and versions.

Before an UPDATE or DELETE runs, the rows that it is about to write are locked, in the order of their keys, and those
without history get baselines. Then it is confined to these rows, so that it writes what is known whatever other
transactions commit meanwhile; what it returns is what it returned without us. An INSERT is asked for the keys of its
rows, where they are not given, by RETURNING. Only keys pass through Python, never values.

A :class:`Recorder` listens to a connection, where all statements pass: those of ``session.execute``, of
``Query.update``, of ``bulk_insert_mappings`` and its kin, and those that never saw a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    Alias,
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Insert,
    Select,
    StatementLambdaElement,
    Table,
    UniqueConstraint,
    Update,
    any_,
    bindparam,
    column,
    event,
    exists,
    false,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql import operators

from sqlaudit.capture import Capture, Changeset, uncaptured
from sqlaudit.changes import Operation
from sqlaudit.config import current_config
from sqlaudit.context import get_audit_context
from sqlaudit.dependents import Dependents, by_chain, record_moved_children, referred_columns
from sqlaudit.exceptions import ContextError
from sqlaudit.flush import unit_of
from sqlaudit.models import root_of
from sqlaudit.period import is_open
from sqlaudit.statements import NO_USER_FIELDS, Key, UserFields, chunks, one_of
from sqlaudit.tables import TrackedTable, tracked_table

Parameters = Sequence[Mapping[str, Any]]
Chain = tuple[TrackedTable, ...]
_WRITE: Final = "sqlaudit_write"
_SQL: Final = object()
"""Stands for a value that only the database knows."""


@dataclass(slots=True, kw_only=True)
class Write:
    """What a statement writes to a tracked table.

    :ivar root: the table, or for the table of a subclass that of its base
    :ivar captures: what writes the versions of the rows that an UPDATE or DELETE may write, with their keys
    :ivar moved_to: the keys that an UPDATE gives to rows, by those that they had
    :ivar keys_of: reads the keys of what an INSERT has made from its result
    :ivar inserted: these keys
    :ivar may_update: whether the INSERT may have come upon rows that were there, and changed them
    :ivar is_further: whether the rows have been inserted into the table of their base class before
    :ivar is_whole: whether a DELETE took all the rows that it was expected to
    """

    recorder: Recorder
    connection: Connection
    root: TrackedTable
    operation: Operation
    captures: list[tuple[Capture, list[Key]]] = field(default_factory=list)
    dependents: Dependents = field(default_factory=Dependents)
    moved_to: dict[Key, Key] = field(default_factory=dict)
    keys_of: Callable[[CursorResult[Any]], list[Key]] = lambda result: []
    inserted: list[Key] = field(default_factory=list)
    may_update: bool = False
    is_further: bool = False
    is_whole: bool = False

    def settle(self) -> None:
        """Write the versions."""
        if self.operation is Operation.INSERT:
            for chain, keys in by_chain(self.connection, self.root, self.inserted):
                capture = self.recorder.capture(self.connection, chain)
                if self.may_update or self.is_further:
                    capture.settle(keys, inserted=frozenset(keys), anew=self.is_further)
                else:
                    capture.inserted(keys)
        for capture, keys in self.captures:
            if self.moved_to:
                new = [self.moved_to[key] for key in keys]
                capture.settle(list(dict.fromkeys([*keys, *new])), inserted=frozenset(new))
                record_moved_children(capture, new)
            elif self.operation is Operation.UPDATE:
                capture.updated(keys)
            elif self.is_whole:
                capture.deleted(keys)
            else:
                capture.settle(keys)
        self.dependents.settle()


class Recorder:
    """Records what the statements of a connection, or of an engine's connections, write to tracked tables.

    :param changeset: tells the changeset of a connection's transaction
    :param is_paused: tells whether what a connection executes is nothing to it
    :param waits: whether it writes the versions when :meth:`settle` is called, and not after each statement
    :param can_cut: whether whoever executes the statements cuts what they return more than was asked for
    :ivar surplus: how many columns that is
    """

    def __init__(
        self,
        changeset: Callable[[Connection], Changeset],
        is_paused: Callable[[Connection], bool],
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

    def listen(self, target: Any) -> None:
        event.listen(target, "before_execute", self.before, retval=True)
        event.listen(target, "after_execute", self.after)

    def remove(self, target: Any) -> None:
        event.remove(target, "before_execute", self.before)
        event.remove(target, "after_execute", self.after)

    def capture(self, connection: Connection, chain: Chain) -> Capture:
        return Capture(connection, self.changeset(connection), chain, user_fields_of(chain))

    def settle(self) -> None:
        """Write the versions of what has been executed."""
        writes, self.writes = self.writes, []
        seen: set[tuple[TrackedTable, Key]] = set()
        for write in writes:
            write.inserted = [key for key in write.inserted if (write.root, key) not in seen]
            seen.update((write.root, key) for key in write.inserted)
            write.settle()

    # -- the events

    def before(
        self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """Find out what a statement is about to write."""
        statement = resolved(clause)
        if (
            isinstance(statement, (Insert, Update, Delete))
            and _WRITE not in statement.get_execution_options()
            and not self.is_paused(connection)
            and (tracked := written_table(statement)) is not None
            and _is_where_history_is(connection, tracked, options)
        ):
            clause = self._prepare(connection, statement, tracked, multiple or [single])
        return clause, multiple, single

    def after(self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Any, result: Any) -> None:
        """Note what a statement has written."""
        write: Write | None = clause.get_execution_options().get(_WRITE) if hasattr(clause, "table") else None
        if write is not None and write.recorder is self:
            if isinstance(clause, Insert):
                write.inserted = write.keys_of(result)
            elif isinstance(clause, Delete):
                write.is_whole = result.rowcount == sum(len(keys) for _, keys in write.captures)
            if not self.waits:
                write.settle()

    def _prepare(self, connection: Connection, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
        _require_context(tracked)
        root = tracked if tracked.is_association else root_of(tracked).table
        write = Write(
            recorder=self,
            connection=connection,
            root=root,
            operation=_OPERATIONS[clause.__visit_name__],
            is_further=root is not tracked,
        )
        if isinstance(clause, Insert):
            clause = _prepare_insert(write, clause, tracked, parameters)
        else:
            clause = _prepare_change(write, clause, tracked, parameters)
        if self.waits:
            self.writes.append(write)
        return clause.execution_options(**{_WRITE: write})


_OPERATIONS: Final = {"insert": Operation.INSERT, "update": Operation.UPDATE, "delete": Operation.DELETE}


def resolved(statement: Any) -> Any:
    """Return the statement that a lambda stands for, or the statement itself."""
    return statement._resolved if isinstance(statement, StatementLambdaElement) else statement


def written_table(clause: Any) -> TrackedTable | None:
    """Return the tracked table that a statement writes."""
    annotations = clause._annotations  # of the ORM's statements for objects of several tables, one after the other
    table: Any = annotations.get("_emit_update_table", annotations.get("_emit_insert_table", clause.table))
    table = table.element if isinstance(table, Alias) else table
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
    new_key = [values.get(column, column) for column in tracked.key]
    moves = not values.keys().isdisjoint(tracked.key)
    keep_others_out(connection, tracked)
    given, width = None if moves else _keys_given(clause, key, parameters), len(key)
    told = [*key, _has_open_version(write.root, key), *(new_key if moves else ())]
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
    for chain, some in by_chain(connection, write.root, keys):
        capture = write.recorder.capture(connection, chain)
        capture.baseline([each for each in some if not is_recorded[each]])
        write.captures.append((capture, some))
        if isinstance(clause, Delete) or moves or not referred_columns(chain).isdisjoint(values):
            write.dependents.find(capture, some)
    if given is not None or connection.dialect.name == "sqlite":
        return clause
    return clause.where(_among(connection, key, keys, len(parameters) > 1))


def keep_others_out(connection: Connection, tracked: TrackedTable) -> None:
    """Keep others from writing between two statements of ours, where rows cannot be locked, but the database is."""
    if connection.dialect.name == "sqlite":  # by its first write, whether that finds a row or not
        connection.execute(update(tracked.history).where(false()).values({tracked.version: tracked.version}))


def _has_open_version(root: TrackedTable, key: Sequence[Any]) -> ColumnElement[bool]:
    past = root.history.alias()
    same = (past.c[column.key] == value for column, value in zip(root.history_key, key, strict=True))
    return exists().where(*same, is_open(past.c[root.valid_to.key]))


def _rows_of(clause: Any, columns: Sequence[Any], key: Sequence[Any]) -> Select[Any]:
    """Return the select of columns of the rows that a statement is about to write, which locks them."""
    statement = select(*columns).where(*clause._where_criteria).order_by(*key).with_for_update(of=key[0].table)
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
    terms = {
        term.left: term.right
        for term in _terms(clause._where_criteria)
        if term.operator is operators.eq and isinstance(term.right, BindParameter)
    }
    found = [terms.get(column) for column in key]
    if any(term is None for term in found):
        return None
    keys = [tuple([_given(term, each) for term in found]) for each in parameters]
    return None if any(value is _SQL for each in keys for value in each) else keys


def _terms(criteria: Iterable[Any]) -> Iterator[BinaryExpression[Any]]:
    for each in criteria:
        if isinstance(each, BooleanClauseList) and each.operator is operators.and_:
            yield from _terms(each.clauses)
        elif isinstance(each, BinaryExpression):
            yield each


def _given(value: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the value that a statement is executed with, if it is one of Python's."""
    if isinstance(value, BindParameter):
        value = parameters.get(value.key, value.effective_value)
    return _SQL if value is None or isinstance(value, ClauseElement) or hasattr(value, "__clause_element__") else value


def _among(connection: Connection, key: Sequence[Any], keys: Sequence[Key], many: bool) -> ColumnElement[bool]:
    """Return the condition that a row has one of the keys, however many these are."""
    if connection.dialect.name != "postgresql":
        if many:  # which takes no list of keys for a parameter, but one parameter for each
            keys = [tuple(map(literal, each, (column.type for column in key))) for each in keys]
        return one_of(key, keys) if keys else false()
    lists = [literal([each[place] for each in keys], ARRAY(column.type)) for place, column in enumerate(key)]
    if len(key) == 1:
        return cast("ColumnElement[bool]", key[0] == any_(lists[0]))
    names = [column(f"k{place}", each.type) for place, each in enumerate(key)]
    return tuple_(*key).in_(select(func.unnest(*lists).table_valued(*names).render_derived()))


# --- INSERT -----------------------------------------------------------------------------------------------------


def _prepare_insert(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """See to it that the keys of the rows that an INSERT makes will be known, and return it so."""
    rows = _rows_given(clause, tracked, parameters)
    keys = None if rows is None else _columns_of(rows, tracked.key)
    write.may_update = clause._post_values_clause is not None or bool(clause._prefixes)
    if write.may_update:
        _find_present(write, clause, tracked, rows)
    elif keys is not None and not any(value is _SQL for key in keys for value in key):
        write.keys_of = lambda result: keys
        return clause
    elif _tells_keys(clause, tracked, rows):
        write.keys_of = lambda result: _keys_told(result, tracked)
        return clause
    return _returning_keys(write, clause, tracked, len(parameters) > 1)


def _rows_given(clause: Any, tracked: TrackedTable, parameters: Parameters) -> list[dict[str, Any]] | None:
    """Return the values that an INSERT is given, by the keys of their columns; ``None`` if a query gives them."""
    if clause.select is not None:
        return None
    names = {column.key: column.key for column in tracked.live.c}
    entity = clause.table._annotations.get("parententity")
    if entity is not None:
        names |= {attribute.key: attribute.columns[0].key for attribute in entity.mapper.column_attrs}
    given = [each for several in clause._multi_values for each in several] or [clause._values or {}]
    return [
        {
            names.get(name if isinstance(name, str) else name.key, ""): _given(value, each)
            for name, value in [*values.items(), *each.items()]
        }
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


def _keys_told(result: CursorResult[Any], tracked: TrackedTable) -> list[Key]:
    places = [list(tracked.live.primary_key).index(column) for column in tracked.key]
    told: Sequence[Any] = result.inserted_primary_key_rows
    return [tuple([row[place] for place in places]) for row in told]


def _returning_keys(write: Write, clause: Any, tracked: TrackedTable, many: bool) -> Any:
    """Return an INSERT that returns the keys of its rows, after whatever else it returns."""
    dialect, width = write.connection.dialect, len(tracked.key)
    if not (dialect.insert_executemany_returning if many else dialect.insert_returning):
        uncaptured(
            f"The keys of what is inserted into {tracked.live.fullname!r} are not given, and the database cannot "
            "return them; its history will not show the rows. Give their keys, or add objects to a session.",
            tracked.live,
        )
        return clause
    returned = list(clause._returning)
    if returned and all(any(column is key for column in returned) for key in tracked.key):
        places = [next(place for place, each in enumerate(returned) if each is key) for key in tracked.key]
    elif returned and not write.recorder.can_cut:
        uncaptured(
            f"What is inserted into {tracked.live.fullname!r} returns no key; its history will not show the rows. Add "
            "the primary key to returning().",
            tracked.live,
        )
        return clause
    else:
        places = list(range(-width, 0))
        clause = clause.returning(*(column.label(f"sqlaudit_{column.key}") for column in tracked.key))
        write.recorder.surplus = width if returned else 0

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        rows = list(result.all())
        if returned:
            result._rewind(rows)
        return [tuple([row[place] for place in places]) for row in rows]

    write.keys_of = keys_of
    return clause


def _find_present(write: Write, clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None) -> None:
    """Lock the rows that an INSERT may come upon, and give baselines to those without history."""
    connection, key = write.connection, tracked.key
    keep_others_out(connection, tracked)
    chosen = select(*key).order_by(*key).with_for_update()
    found: dict[Key, None] = {}
    for columns in _unique(tracked.live):
        if rows is None:
            names = [name if isinstance(name, str) else name.key for name in clause._select_names]
            if {column.key for column in columns} <= set(names):
                source = clause.select.subquery()
                values = select(*(list(source.c)[names.index(column.key)] for column in columns))
                among = (tuple_(*columns) if len(columns) > 1 else columns[0]).in_(values)
                found |= dict.fromkeys(tuple(row) for row in connection.execute(chosen.where(among)))
        else:
            given = [values for values in _columns_of(rows, columns) if not any(value is _SQL for value in values)]
            for chunk in chunks(given):
                rows_there = connection.execute(chosen.where(one_of(columns, chunk)))
                found |= dict.fromkeys(tuple(row) for row in rows_there)
    for chain, some in by_chain(connection, write.root, list(found)):
        capture = write.recorder.capture(connection, chain)
        capture.baseline(some)
        write.captures.append((capture, some))


def _unique(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """Yield the columns of a table that are unique together."""
    yield tuple(table.primary_key)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield tuple(constraint.columns)
    for index in table.indexes:
        if index.unique and all(isinstance(each, Column) for each in index.expressions):
            yield tuple(cast("Iterable[Column[Any]]", index.expressions))
