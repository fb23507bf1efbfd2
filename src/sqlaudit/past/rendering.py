"""How does a statement read the past? The compiler renders its tables as they were at an instant.

:func:`past_statement` copies a statement as one of a subclass. The copy renders every tracked table, for instance
``FROM customers``, as ``(SELECT … FROM customers_history WHERE valid_to > :when AND valid_from <= :when) AS
customers``, and nothing else differently. It composes like the original: in a subquery, a union or a CTE, beside the
present or another instant. The instant is a parameter, so that SQLAlchemy's statement cache works.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Enum,
    Executable,
    FromClause,
    Select,
    Table,
    TypeCoerce,
    and_,
    bindparam,
    null,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import FromStatement
from sqlalchemy.orm.interfaces import CompileStateOption
from sqlalchemy.orm.path_registry import PathRegistry
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.past.bisection import GivenKey, given_key, given_keys, ranges_at, version_at
from sqlaudit.past.erased import ERASED_ROWS, ErasedRows
from sqlaudit.past.pruned import look_before_stream, refuse_pruned_result
from sqlaudit.period import UTCDateTime, range_contains, was_valid
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.handwritten import may_read_tables
from sqlaudit.sql.keys import implementation_of
from sqlaudit.sql.old_values import readable_type
from sqlaudit.sql.subclassing import copied_with_class, subclass_with
from sqlaudit.tracking.maintenance_tables import with_maintenance_tables
from sqlaudit.tracking.missing import explain_history_error
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.tables import TrackedTable, alias_name, known_metadata, shortened, tracked_table

UntrackedPolicy = Literal["raise", "live"]
BeforeBaseline = Literal["absent", "warn", "raise"]
S = TypeVar("S", bound=Executable)
TOKEN: Final = "identity_token"
"""SQLAlchemy's execution option for the identity token of the objects that a statement loads."""
_COMMENT: Final = re.compile(r"/\*.*?\*/|--[^\n]*|#[^\n]*", re.DOTALL)
_WORD: Final = re.compile(r"\w+")
_WRITES: Final = frozenset(
    {"insert", "update", "delete", "merge", "replace", "truncate", "create", "alter", "drop", "copy", "call", "do"}
)


class Rules(NamedTuple):
    """What a statement of the past does about rows that are not in history.

    :param untracked: what to do with tables without history: ``"raise"``, or read them ``"live"``
    :param text: whether hand-written SQL, which cannot be turned to the past, may read tables
    :param before_baseline: what to do with rows that existed at the instant, but whose history begins later: leave
        them ``"absent"``, or ``"warn"``, or ``"raise"``
    """

    untracked: UntrackedPolicy = "raise"
    text: bool = False
    before_baseline: BeforeBaseline = "absent"


class Instant(NamedTuple):
    """An instant to read, and how. The identity token of the objects read: a tuple, which Python hashes quickly.

    :ivar when: a datetime in UTC; or the id of a changeset, whose instant a session has still to look up
    """

    when: datetime | UUID
    rules: Rules = Rules()

    def __str__(self) -> str:
        return f"as of {self.when.isoformat() if isinstance(self.when, datetime) else f'changeset {self.when}'}"


class Past:
    """Mixin for the class of a statement that reads the past."""

    _past_instant: Instant
    """All below but the slot, which make up the cache key, follow from it."""
    _past_when: BindParameter[datetime]
    _past_literal: BindParameter[datetime]
    """The same instant as a literal, for a condition that the database must plan for this instant."""
    _past_changeset: UUID | None
    """The id of a changeset whose instant a session has still to look up, or ``None``."""
    _past_rules: Rules
    _past_slot: int | None = None
    """The number in the names of the copies that the statement reads (:mod:`sqlaudit.past.materialized`)."""

    def _compiler_dispatch(self, visitor: SQLCompiler, **kw: Any) -> str:
        if self._past_changeset is not None:
            raise QueryError(
                "A read as of a changeset inside another statement cannot look up the instant of the changeset. Give "
                "the instant: as_of(…, instant_of_changeset(session, changeset_id)).",
                self,
            )
        if self._past_rules.before_baseline != "absent":
            _refuse_unchecked(visitor, self)
        with _rendering_past(visitor, self):
            return super()._compiler_dispatch(visitor, **kw)  # type: ignore[misc, no-any-return]  # the statement's own

    def _execute_on_connection(self, connection: Connection, parameters: Any, execution_options: Any) -> Any:
        if not isinstance(execution_options.get(TOKEN), Instant):
            raise QueryError(
                "A read as of an instant was executed outside a session with hooks, where SQLAlchemy would take its "
                "objects for live ones. Call register_hooks(), and execute the statement in a session that has hooks.",
                self,
            )
        look = look_before_stream(connection, self, execution_options) if with_maintenance_tables else None
        erased: ErasedRows | None = execution_options.get(ERASED_ROWS)
        if erased is not None and look is not None:
            erased.look(connection, None, cast(datetime, self._past_when.value))
        try:
            result = super()._execute_on_connection(connection, parameters, execution_options)  # type: ignore[misc]  # the statement's own
        except DBAPIError as error:
            parts: Iterable[Any] = visitors.iterate(cast(ClauseElement, self))
            metadata = {part.metadata for part in parts if isinstance(part, Table)}
            explain_history_error(error, chain.from_iterable(map(tracked_tables, metadata)))
            raise
        if with_maintenance_tables:
            tables = refuse_pruned_result(connection, result, look, self._past_when.value)
            if tables and erased is not None and look is None:
                erased.look(connection, tables, cast(datetime, self._past_when.value))
        return result

    def from_statement(self, statement: Any) -> Any:
        """Return another statement as one that selects the same objects as of the same instant."""
        made = super().from_statement(statement)  # type: ignore[misc]  # Select's
        return past_statement(made, self._past_instant).execution_options(**self._execution_options)  # type: ignore[attr-defined]  # Executable's


_EXTRA: Final = (
    ("_past_when", InternalTraversal.dp_clauseelement),
    ("_past_literal", InternalTraversal.dp_clauseelement),
    ("_past_changeset", InternalTraversal.dp_plain_obj),
    ("_past_rules", InternalTraversal.dp_plain_obj),
    ("_past_slot", InternalTraversal.dp_plain_obj),
)


@lru_cache
def instant_parameters(instant: datetime | None) -> tuple[BindParameter[Any], BindParameter[Any]]:
    """Return the two parameters of an instant. All statements of a past session share them, so they are cached."""
    type_ = UTCDateTime()
    return (
        bindparam("sqlaudit_when", instant, type_=type_, unique=True),
        bindparam("sqlaudit_instant", instant, type_=type_, unique=True, literal_execute=True),
    )


def past_statement(statement: S, instant: Instant, slot: int | None = None) -> S:
    """Return a statement that reads as of an instant. Its objects never load live rows, in whichever session they are.

    :param slot: the number in the names of the copies to read, if the session has copies
    """
    statement_class: Any = type(statement)
    past = copied_with_class(subclass_with(Past, statement_class, _EXTRA), statement._clone())  # type: ignore[attr-defined]  # ClauseElement's
    changeset, when = (instant.when, None) if isinstance(instant.when, UUID) else (None, instant.when)
    past._past_instant, past._past_changeset, past._past_rules = instant, changeset, instant.rules
    past._past_when, past._past_literal = instant_parameters(when)
    past._past_slot = slot
    if past._propagate_attrs and not has_past_guard(past):  # it is a statement of the ORM
        past._with_options += (_PAST_GUARD,)
    made: S = past
    return made


class _PastGuard(CompileStateOption):
    """A loader option for past objects. Whatever they load later has it, too, and it refuses to load live rows."""

    propagate_to_loaders = True
    _cache_key_traversal: Any = ()

    def process_compile_state(self, compile_state: Any) -> None:
        if not isinstance(compile_state.select_statement, Past) and not getattr(compile_state, "for_statement", False):
            raise QueryError(
                "An object of the past is in a session without hooks, which would load its missing attributes from "
                "live rows. Call register_hooks(), or add the object to a session that has hooks.",
                compile_state.select_statement,
            )


_PAST_GUARD: Final = _PastGuard()


def has_past_guard(statement: Any) -> bool:
    """Return whether a statement loads past objects, or attributes of past objects."""
    return any(isinstance(option, _PastGuard) for option in getattr(statement, "_with_options", ()))


def shorten_path(statement: Any) -> None:
    """Shorten the path of a lazy load of the past to its last relationship.

    SQLAlchemy keeps the whole path for loader options, and compiles a statement anew if the path has more than five
    relationships. ``_PastGuard`` needs no path. An immediate load keeps its path, because the path ends a recursion.
    """
    path = statement._compile_options._current_path.path
    is_lazy = len(path) > 2 and getattr(path[-1], "lazy", "immediate") != "immediate"
    if is_lazy and all(isinstance(option, _PastGuard) for option in statement._with_options):
        statement._compile_options += {"_current_path": PathRegistry.coerce(path[-2:])}


def without_past_guard(statement: S) -> S:
    """Return a copy of a statement without the option that keeps its objects in the past."""
    made: Any = statement._clone()  # type: ignore[attr-defined]  # ClauseElement's
    made._with_options = tuple(option for option in made._with_options if not isinstance(option, _PastGuard))
    return cast(S, made)


@contextmanager
def _rendering_past(compiler: SQLCompiler, statement: Past) -> Iterator[None]:
    """Let a compiler render the past within the ``with`` block."""
    if not isinstance(compiler, PastCompiler):
        compiler_class: Any = type(compiler)
        compiler.__class__ = subclass_with(PastCompiler, compiler_class)
        compiler = cast(PastCompiler, compiler)
        compiler.past, compiler.past_reads, compiler.past_copies = [], [], {}
        compiler.past_of_ctes = dict.fromkeys(compiler.ctes or ())
    _refuse_live_objects(compiler, statement)
    compiler.past.append((statement, len(compiler.stack)))
    try:
        yield
    finally:
        compiler.past.pop()


def _refuse_unchecked(compiler: SQLCompiler, statement: Past) -> None:
    """Raise if a past statement should check for unknown rows inside one that does not: then there is no check."""
    around = compiler.past[0][0]._past_rules if isinstance(compiler, PastCompiler) and compiler.past else None
    alone: Any = compiler.statement
    if alone is not statement and (around is None or around.before_baseline == "absent"):
        raise QueryError(
            "A read as of an instant inside another statement cannot check for rows whose history begins later. Pass "
            "before_baseline='absent' there. If the outer statement is as of an instant, too, pass it the value that "
            "you want.",
            statement,
        )


def _refuse_live_objects(compiler: SQLCompiler, statement: Past) -> None:
    """Raise if a past statement inside another one selects objects: they would pass for objects of the outer one."""
    outer: Any = compiler.statement
    whole = outer is not statement and isinstance(outer, FromStatement)
    for entity in _entities(compiler.compile_state):
        if whole or any(isinstance(part, Past) for part in visitors.iterate(entity.selectable)):
            name = entity.mapper.class_.__name__
            raise QueryError(
                f"A read as of an instant inside another statement can return columns, but no {name} objects. Select "
                "its columns, or begin the outer statement with as_of().",
                statement,
            )


def _entities(compile_state: Any) -> Iterator[Any]:
    """Yield the entities of the objects that an ORM statement loads: those it selects, and those of loader options."""
    for entity in getattr(compile_state, "_entities", ()):
        if getattr(entity, "selectable", None) is not None:
            yield entity
    for key, value in getattr(compile_state, "attributes", {}).items():
        path = key[1] if isinstance(key, tuple) and len(key) > 1 and isinstance(key[1], tuple) else ()
        for part in (*path, value):
            if getattr(part, "is_aliased_class", False):
                yield part


class PastCompiler(SQLCompiler):
    """Renders the tracked tables of a :class:`Past` statement as of its instant, and everything else as usual.

    :ivar past: the past statements that are being rendered, outermost first, each with the depth of the stack there
    :ivar past_reads: the past statement, the table, and the key if the statement gives it, of each read
    :ivar past_copies: the tables whose copies the statement reads, each with the slot of the copy
    :ivar past_of_ctes: the past statement in which each CTE was first rendered, ``None`` for the present
    """

    past: list[tuple[Past, int]]
    past_reads: list[tuple[Past, TrackedTable, GivenKey | None]]
    past_copies: dict[TrackedTable, int]
    past_of_ctes: dict[Any, Past | None]

    @property
    def statement_in_past(self) -> Past | None:
        return self.past[-1][0] if self.past else None

    def visit_table(self, table: Table, asfrom: bool = False, **kw: Any) -> str:  # type: ignore[override]
        statement, tracked = self.statement_in_past, tracked_table(table)
        if not asfrom or statement is None or (tracked is not None and tracked.history == table):
            return cast(str, super().visit_table(table, asfrom=asfrom, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's
        if tracked is None:
            _refuse_untracked(table, statement._past_rules)
            return cast(str, super().visit_table(table, asfrom=asfrom, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's
        alias: Any = kw.get("enclosing_alias")
        is_aliased = getattr(alias, "element", None) is table
        rows = self._rows(tracked, alias if is_aliased else table, statement)
        rendered = rows if isinstance(rows, str) else f"({self._render(rows, **kw)})"
        if kw.get("from_linter"):
            kw["from_linter"].froms[table] = table.fullname
        if is_aliased:
            return rendered
        return f"{rendered}{self.get_render_as_alias_suffix(self.preparer.quote(alias_name(table)))}"  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def _render(self, rows: Select[Any], *, literal_binds: bool = False, **kw: Any) -> str:
        recursive = bool(self.ctes) and self.ctes_recursive
        try:
            return self.process(rows, **({"literal_binds": True} if literal_binds else {}))
        finally:  # RECURSIVE would harm a CTE of the statement that has the name of a table that it selects from
            self.ctes_recursive = recursive

    def _rows(self, tracked: TrackedTable, source: FromClause, statement: Past) -> Select[Any] | str:
        """Return the select of a table's rows as of the instant of a statement, or the name of their copy.

        :param source: the table, or its alias in the statement
        """
        when, around = statement._past_when, cast(Any, self.stack[-1] if self.stack else {})
        where, froms = getattr(around.get("selectable"), "_where_criteria", ()), around.get("asfrom_froms", ())
        key = given_key(tracked, source, where, froms, self.dialect)
        self.past_reads.append((statement, tracked, key))
        if key is not None:
            rows = all_rows_at(tracked, self.dialect, when)
            return rows.where(tracked.version == version_at(tracked, key, when))
        keys = given_keys(tracked, source, where, froms, self.dialect)
        if keys is not None:
            [column], ranges = tracked.history_key, ranges_at(tracked, keys, when, self.dialect)
            number, low = tracked.version, ranges.c.low
            is_in_range = and_(column == ranges.c.key, number >= low, number < low + ranges.c.size)
            rows = all_rows_at(tracked, self.dialect, when)
            return rows.select_from(tracked.history.join(ranges, is_in_range))
        slot = statement._past_slot
        if slot is not None and can_be_copied(tracked) and not self._is_read_again(tracked):
            self.past_copies[tracked] = slot
            return self.preparer.quote(copy_name(tracked, slot))
        return all_rows_at(tracked, self.dialect, when, statement._past_literal)

    def _is_read_again(self, tracked: TrackedTable) -> bool:
        """Return whether the statement reads a copy already, and the database does not let it read the copy again."""
        return tracked in self.past_copies and TRAITS[self.dialect.name].reads_temporary_tables_once

    def visit_column(self, column: Any, *args: Any, **kw: Any) -> str:
        rendered = super().visit_column(column, *args, **kw)
        if column.is_literal:
            self._refuse_text(rendered)
        if not kw.get("include_table", True) or not self._is_in_past(column.table):
            return rendered
        name = super().visit_column(column, include_table=False)
        return f"{self.preparer.quote(alias_name(column.table))}.{name}"

    def _add_to_result_map(self, keyname: str, name: str, objects: Any, type_: TypeEngine[Any]) -> None:
        super()._add_to_result_map(keyname, name, objects, readable_type(type_) if self.past else type_)

    def render_bind_cast(self, type_: TypeEngine[Any], dbapi_type: TypeEngine[Any], sqltext: str) -> str:
        """Render an enum's value without a cast, because the history column may be a text."""
        if self.past and isinstance(dbapi_type, Enum):
            return sqltext
        return cast(str, super().render_bind_cast(type_, dbapi_type, sqltext))  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def _is_in_past(self, table: Any) -> bool:
        tracked = tracked_table(table)
        return (
            tracked is not None
            and tracked.history != table
            and bool(self.past)
            and any(table in cast("set[Any]", entry["asfrom_froms"]) for entry in self.stack[self.past[0][1] :])
        )

    def visit_cte(self, cte: Any, *args: Any, **kw: Any) -> str | None:
        seen = self.past_of_ctes.setdefault(cte._get_reference_cte(), self.statement_in_past)
        if seen is not self.statement_in_past and not isinstance(cte.element, Past):
            raise QueryError(
                f"The CTE {cte.name!r} is used both in a read as of an instant and outside of it, and cannot return "
                "the rows of both instants. Make one CTE for each.",
                cte,
            )
        return super().visit_cte(cte, *args, **kw)

    def visit_tablesample(self, tablesample: Any, *args: Any, **kw: Any) -> str:
        if self.past:
            raise QueryError(
                "TABLESAMPLE needs a table, and a read as of an instant replaces tables by selects. Order by a random "
                "number, with a limit.",
                tablesample,
            )
        return cast(str, super().visit_tablesample(tablesample, *args, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def group_by_clause(self, select: Any, **kw: Any) -> str:
        """Add the other columns of a row, where a statement groups by the row's key.

        PostgreSQL and MySQL know that columns depend on the primary key of a table, but not on that of a subquery.
        """
        rendered = cast(str, super().group_by_clause(select, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's
        if not self.past or not rendered or not TRAITS[self.dialect.name].infers_dependence:
            return rendered
        further = _dependent_on_groups(select, self.dialect)
        return ", ".join((rendered, *(self.process(column, **kw) for column in further)))

    def for_update_clause(self, select: Any, **kw: Any) -> str:
        if self.past:  # history does not change, and needs no lock
            return ""
        return cast(str, super().for_update_clause(select, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def visit_textclause(self, textclause: Any, *args: Any, **kw: Any) -> str:
        self._refuse_text(textclause.text, certainly=bool(kw.get("asfrom")) or not self.stack)
        return cast(str, super().visit_textclause(textclause, *args, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def _refuse_text(self, text: str, certainly: bool = False) -> None:
        statement = self.statement_in_past
        if statement is None:
            return
        if not self.stack and _is_write(text):
            self._refuse_write()
        if statement._past_rules.text:
            return
        if certainly or may_read_tables(text):
            raise QueryError(
                f"Hand-written SQL in a read as of an instant reads live rows: {text!r}. Write it as a select(), or "
                "allow it: time_travel(…, text=True).",
                text,
            )

    def visit_insert(self, *args: Any, **kw: Any) -> str:
        self._refuse_write()
        return super().visit_insert(*args, **kw)  # type: ignore[no-untyped-call, no-any-return]  # SQLAlchemy's

    def visit_update(self, *args: Any, **kw: Any) -> str:
        self._refuse_write()
        return super().visit_update(*args, **kw)

    def visit_delete(self, *args: Any, **kw: Any) -> str:
        self._refuse_write()
        return super().visit_delete(*args, **kw)  # type: ignore[no-untyped-call, no-any-return]  # SQLAlchemy's

    def _refuse_write(self) -> None:
        if self.past:
            raise ReadOnlyError(
                "A statement as of an instant cannot write. Change the live rows, or restore an old state of them.",
            )


def all_rows_at(
    tracked: TrackedTable,
    dialect: Dialect,
    when: ColumnElement[datetime],
    literal: ColumnElement[datetime] | None = None,
) -> Select[Any]:
    """Return the select of all rows of a table as of an instant.

    :param literal: the instant as a literal, if the index of the periods may be used
    """
    period = tracked.valid_from, tracked.valid_to
    if literal is not None and tracked.as_of_index and TRAITS[dialect.name].has_range_indexes:
        return all_columns(tracked, dialect).where(range_contains(*period, literal))
    return all_columns(tracked, dialect).where(was_valid(*period, when))


def all_columns(tracked: TrackedTable, dialect: Dialect) -> Select[Any]:
    """Return the select of the columns of a live table from its history."""
    stored = dict(tracked.columns)
    columns = (stored[column] if column in stored else _no_value(column, dialect) for column in tracked.live.c)
    return select(*columns).select_from(tracked.history)


def _no_value(column: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
    """Return NULL for a column that is not stored. Only PostgreSQL needs its type in the SQL."""
    typed: ColumnElement[Any] | TypeCoerce[Any] = (
        sql_cast(null(), column.type)
        if TRAITS[dialect.name].compares_same_types_only
        else type_coerce(null(), column.type)
    )
    return typed.label(column.name)


def can_be_copied(tracked: TrackedTable) -> bool:
    """Return whether a temporary table can have the columns of a live table: not the system columns of PostgreSQL."""
    return not any(column.system for column in tracked.live.c)


def copy_name(tracked: TrackedTable, slot: int) -> str:
    """Return the name of the temporary table with a table's rows as of the instant of a session."""
    return shortened(f"sqlaudit_past_{slot}_{alias_name(tracked.live)}")


def _dependent_on_groups(statement: Select[Any], dialect: Dialect) -> dict[Any, None]:
    """Return the columns that a statement uses, of tracked tables by whose whole key it groups.

    Columns of the type ``json`` are left out: PostgreSQL cannot group by them.
    """
    grouped = {(column.table, column.key) for column in _columns_in(statement._group_by_clauses)}
    sources = {source for source, _ in grouped if _has_whole_key(source, grouped)}
    if not sources:
        return {}
    parts = (*statement.inner_columns, *statement._having_criteria, *statement._order_by_clauses)
    return dict.fromkeys(
        column
        for column in _columns_in(chain.from_iterable(map(visitors.iterate, parts)))
        if column.table in sources
        and (column.table, column.key) not in grouped
        and _can_be_grouped(column.type, dialect)
    )


def _has_whole_key(source: Any, columns: Collection[tuple[Any, str]]) -> bool:
    """Return whether the columns include the whole key of a tracked table or of its alias."""
    table = getattr(source, "element", source)
    tracked = tracked_table(table)
    return (
        tracked is not None
        and tracked.history != table
        and all((source, column.key) in columns for column in tracked.key)
    )


def _columns_in(elements: Iterable[Any]) -> Iterator[Column[Any]]:
    return (element for element in elements if isinstance(element, Column))


def _can_be_grouped(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    stored = implementation_of(type_, dialect)
    return not isinstance(stored, postgresql.JSON) or isinstance(stored, postgresql.JSONB)


def _is_write(text: str) -> bool:
    """Return whether a hand-written statement seems to write, by its words."""
    words = _WORD.findall(_COMMENT.sub(" ", text).lower())
    return bool(words) and (words[0] in _WRITES or (words[0] == "with" and not _WRITES.isdisjoint(words)))


def _refuse_untracked(table: Table, rules: Rules) -> None:
    name = repr(getattr(table, "fullname", table.name))
    if rules.untracked == "raise":
        raise QueryError(
            f"{name} has no history, so it cannot be read as of an instant. Track it, or read its live rows: "
            "untracked='live'.",
            table,
        )
    metadata = known_metadata()
    if isinstance(table, Table) and table.metadata in metadata:
        return
    known = (tracked.live for tracked in chain(*map(tracked_tables, metadata)))
    if any((live.name, live.schema) == (table.name, table.schema) for live in known):
        raise QueryError(
            f"{name} is tracked, but the statement uses another Table object than the model, and would read live "
            "rows. Write the statement with the model, or with its __table__.",
            table,
        )
