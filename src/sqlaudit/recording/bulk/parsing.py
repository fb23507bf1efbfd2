"""What does a statement write? Its clauses name the table, the values and the keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, cast

from sqlalchemy import (
    Alias,
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    Column,
    ColumnElement,
    Delete,
    Dialect,
    Enum,
    Insert,
    Integer,
    Join,
    Null,
    Select,
    StatementLambdaElement,
    String,
    Table,
    TextualSelect,
    Tuple,
    Update,
    UpdateBase,
    bindparam,
)
from sqlalchemy.orm import FromStatement, Mapper
from sqlalchemy.orm.util import LoaderCriteriaOption
from sqlalchemy.sql import operators
from sqlalchemy.sql.cache_key import NO_CACHE
from sqlalchemy.sql.visitors import iterate, replacement_traverse
from sqlalchemy.types import ExternalType, TypeEngine

from sqlaudit.recording.bulk.append_only import is_history, rewriting_error
from sqlaudit.recording.handwritten import report_sql
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.foreign_keys import FollowedTable, Source, referred_columns, untracked_source
from sqlaudit.tracking.schema import conflict_clauses_of
from sqlaudit.tracking.tables import TrackedTable, tracked_table

Parameters = Sequence[Mapping[str, Any]]
DATABASE_ONLY: Final = object()
"""Stands for a value that only the database knows."""


def unwrapped(statement: Any) -> Any:
    """Return the statement in a lambda, in ``select().from_statement()`` or in ``text().columns()``.

    A statement that writes a class selected from a join of several tables (``with_polymorphic="*"``) is returned as one
    that writes the table of the class, as SQLAlchemy executes it.
    """
    while isinstance(statement, (StatementLambdaElement, FromStatement, TextualSelect)):
        statement = statement._resolved if isinstance(statement, StatementLambdaElement) else statement.element
    if isinstance(statement, UpdateBase) and not isinstance(statement.table, Table):
        mapper = statement.table._annotations.get("parententity")
        if isinstance(mapper, Mapper):
            names = dict.fromkeys(("entity_namespace", "parententity", "parentmapper"), mapper)
            statement = statement._generate()
            statement.table = mapper.local_table._annotate(names)
    return statement


def wrapped_as(wrapper: Any, statement: Any) -> Any:
    """Return ``statement`` wrapped as ``wrapper`` is, so that it loads the same objects."""
    if isinstance(wrapper, StatementLambdaElement):
        return wrapped_as(wrapper._resolved, statement)
    if isinstance(wrapper, FromStatement):
        wrapper = wrapper.execution_options(**statement.get_execution_options())  # which makes a copy
        wrapper.element = statement
        return wrapper
    return statement


def with_called_parameters(statement: Any) -> Any:
    """Return a statement whose parameters have the values that their functions, ``bindparam(callable_=…)``, give now.

    sqlaudit selects by the criterion before the statement is executed, and a function may give another value each time.
    """
    values = dict[str, Any]()
    for element in iterate(statement):
        if isinstance(element, BindParameter) and element.callable is not None and element.key not in values:
            values[element.key] = element.effective_value
    if not values:
        return statement

    def replace(element: Any, **kw: Any) -> Any:
        is_called = isinstance(element, BindParameter) and element.key in values
        return cast("Any", element)._with_value(values[element.key], maintain_key=True) if is_called else None

    return replacement_traverse(statement, {}, replace)


def report_nested_writes(statements: Iterable[Any]) -> None:
    """Report the statements within another statement that write tracked tables.

    :raises ReadOnlyError: one writes a history table
    """
    for nested in statements:
        if isinstance(nested, TextualSelect):
            report_sql(str(nested.element))
        elif isinstance(nested, UpdateBase):
            parsed = parse(nested)
            if parsed.writes_history:
                raise rewriting_error(parsed.table)
            if isinstance(tracked := parsed.source(), TrackedTable):
                _report_table(tracked)


def report_untracked_write(parsed: ParsedWrite) -> None:
    """Report what a statement writes besides a table without history, or if the tracked class has another table now.

    :raises ReadOnlyError: it sets a column of a history table
    """
    tracked = parsed.tracked
    if tracked is not None and not parsed.writes_history and tracked.is_obsolete:
        report_unrecorded(
            f"A statement writes the table {tracked.live.fullname!r}, the tracked class of which is no longer mapped "
            "to it, and its history does not show it; track the class that is mapped to it now: track_table()(Model).",
            tracked.live,
        )
    _report_second_table(parsed.statement)


def _report_second_table(statement: Any) -> None:
    """Report the tracked tables, apart from its own, whose columns an UPDATE sets.

    :raises ReadOnlyError: it sets a column of a history table
    """
    if isinstance(statement, Update):
        others = set()
        for column, _ in _assignments(statement):
            if isinstance(column, ColumnElement):
                others.add(_whole_column(column).table)
        others.discard(statement.table)
        if others:  # rare
            for tracked in filter(None, _further_written(statement, others)):
                _report_table(tracked)


def _report_table(tracked: TrackedTable) -> None:
    report_unrecorded(
        f"A statement writes the tracked table {tracked.live.fullname!r} besides, and its history will not show it; "
        "write each table by a statement of its own, or call record_changes() then.",
        tracked.live,
    )


def _further_written(statement: Update, tables: Iterable[Any]) -> set[TrackedTable | None]:
    """Return the tracked tables, apart from its own, whose columns an UPDATE sets."""
    own = _unaliased(statement.table)
    own_tracked = tracked_table(own)
    other_tables = [table for table in map(_unaliased, tables) if table is not own]
    for table in other_tables:
        if is_history(table):
            raise rewriting_error(table)
    others = set(map(tracked_table, other_tables))
    return {
        table
        for table in others
        if table is not own_tracked
        and not (_are_of_one_row(table, own_tracked) and _are_joined(statement, {table, own_tracked}))
    }


def _nested_writes(statement: Any) -> list[Any]:
    """Return the statements within an INSERT, UPDATE or DELETE that write, or may write."""
    within = [*statement._independent_ctes, *getattr(statement, "_where_criteria", ())]
    within += [getattr(statement, "select", None), *(getattr(statement, "_values", None) or {}).values()]
    found = []
    for start in within:
        if not _is_simple(start):
            found += [element for element in elements(start) if isinstance(element, (UpdateBase, TextualSelect))]
    return found


def elements(start: Any) -> Iterator[Any]:
    """Yield the elements in an element, including those of its columns' tables."""
    seen, waiting = {start}, [start]
    while waiting:
        for element in iterate(waiting.pop()):
            yield element
            table = getattr(element, "table", None)
            if table is not None and not isinstance(table, Table) and table not in seen:
                seen.add(table)
                waiting.append(table)


def _is_simple(element: Any) -> bool:
    """Return whether an element obviously contains no statement, as most elements do not."""
    if isinstance(element, BinaryExpression):
        return _is_simple(element.left) and _is_simple(element.right)
    if isinstance(element, Column):
        return isinstance(element.table, Table)
    return not isinstance(element, ClauseElement) or isinstance(element, (BindParameter, Table))


def affected_rows_can_be_selected(statement: Any, source: Source) -> bool:
    """Return whether the rows that a statement will write can be found before it runs; report it if not.

    Report what else it writes, too, unless that is reported when it is executed.
    """
    is_plain_insert = isinstance(statement, Insert) and statement._post_values_clause is None
    if isinstance(source, FollowedTable) and not source.live.primary_key:
        report_unrecorded(
            f"A statement writes {source.live.fullname!r}, which has no primary key, and the history of the rows that "
            "refer to its rows will not show what becomes of them; call record_changes() then.",
            source.live,
        )
        return False
    if (name := _compiled_as(statement)) is not None:
        report_unrecorded(
            f"A statement of the class {name!r}, which is compiled in a way of its own, writes the table "
            f"{source.live.fullname!r}, and history will not show its rows; use SQLAlchemy's insert(), update() or "
            "delete(), or call record_changes() then.",
            source.live,
        )
        return False
    within = _nested_writes(statement)
    if is_plain_insert or not within:
        report_nested_writes(within)
        _report_second_table(statement)
        return True
    report_unrecorded(
        f"Which rows of the table {source.live.fullname!r} a statement writes is said by another that writes within "
        "it, and history will not show them; execute that first, and name the rows by what it returns.",
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


def _are_joined(statement: Any, tables: Set[Any]) -> bool:
    """Return whether a statement equates columns of two tables, so that it writes both rows of the same objects."""
    equations = (
        conjunct
        for conjunct in conjuncts(statement._where_criteria)
        if getattr(conjunct, "operator", None) is operators.eq
    )
    sides = ((getattr(conjunct.left, "table", None), getattr(conjunct.right, "table", None)) for conjunct in equations)
    return any({tracked_table(left), tracked_table(right)} == tables for left, right in sides)


def _unaliased(table: Any) -> Any:
    return table.element if isinstance(table, Alias) else table


@dataclass(frozen=True, slots=True)
class ParsedWrite:
    """What an INSERT, UPDATE or DELETE writes.

    :ivar statement: the statement, without a lambda or FROM statement around it
    :ivar table: the table that it names
    :ivar tracked: the tracked table that has this table, live or as its history
    """

    statement: Any
    table: Any
    tracked: TrackedTable | None

    @property
    def writes_history(self) -> bool:
        return self.tracked is not None and self.tracked.live.fullname != self.table.fullname

    def source(self) -> Source | None:
        """Return the tracked table, or the untracked table that tracked rows follow by foreign key, if it is one.

        ``None`` also for a history table, for a join, and for a table whose class is no longer mapped to it.
        """
        statement, tracked = self.statement, self.tracked
        if isinstance(statement.table, Join):
            return None
        if tracked is not None:
            return None if self.writes_history or tracked.is_obsolete else tracked
        if not isinstance(self.table, Table):
            return None
        is_insert = isinstance(statement, Insert)
        is_plain = is_insert and statement._post_values_clause is None and not statement._prefixes
        return None if is_plain else untracked_source(self.table)


def parse(statement: Any) -> ParsedWrite:
    """Return what a statement writes, as :func:`unwrapped` returns the statement."""
    table = target_table(statement)
    return ParsedWrite(statement, table, tracked_table(table))


def is_followed(clause: Any, source: FollowedTable, parameters: Parameters) -> bool:
    """Return whether a statement on an untracked table changes what tracked rows refer to."""
    if isinstance(clause, Insert):
        return True
    changed = source.live.c if isinstance(clause, Delete) else values_set(clause, source, parameters)
    return not referred_columns((source,)).isdisjoint(changed)


def limit_of(clause: Any, dialect: Dialect) -> Any:
    """Return the LIMIT of an UPDATE or DELETE, by ``.ext(mysql.limit(…))`` or an option for the dialect."""
    limit = getattr(getattr(clause, "_post_criteria_clause", None), "_limit_clause", None)
    return clause.dialect_kwargs.get(f"{dialect.name}_limit") if limit is None else limit


def conflict_clauses(clause: Any, source: Source, dialect: Dialect) -> Set[str]:
    """Return how an INSERT or UPDATE handles conflicting rows, by a prefix or a constraint: IGNORE, REPLACE."""
    clauses = " ".join(str(prefix).upper() for prefix, name in clause._prefixes if name in ("*", dialect.name))
    if dialect.name == "sqlite" and "OR " not in clauses:
        clauses = conflict_clauses_of(source.live)
    return {word for word in ("IGNORE", "REPLACE") if word in clauses}


def target_table(clause: Any) -> Any:
    """Return the table that a statement names as the one it writes."""
    annotations = clause._annotations  # the ORM writes an object's tables one after the other
    return _unaliased(annotations.get("_emit_update_table", annotations.get("_emit_insert_table", clause.table)))


def criteria_options(clause: Any) -> list[LoaderCriteriaOption]:
    """Return the loader criteria of a statement, which SQLAlchemy also adds to the selects within it."""
    return [option for option in clause._with_options if isinstance(option, LoaderCriteriaOption)]


def as_core(statement: Select[Any]) -> Select[Any]:
    """Return a select to which the ORM adds no criteria.

    For each class in the criteria of a SELECT, though not in those of an UPDATE or DELETE, the ORM would add loader
    criteria and the criterion of single-table inheritance.
    """
    return statement._set_propagate_attrs({"compile_state_plugin": "default", "plugin_subject": None})


def column_named(clause: Any, source: Source, name: Any) -> Column[Any] | None:
    """Return the column that a name in a statement's values means; in an ORM statement it names an attribute."""
    if not isinstance(name, str):
        return source.live.c.get(_whole_column(name).key)
    entity = clause.table._annotations.get("parententity")
    attribute = None if entity is None else entity.mapper.column_attrs.get(name)
    return source.live.c.get(name) if attribute is None else attribute.columns[0]


def _whole_column(column: Any) -> Any:
    """Return the column of which a statement sets one item: of an array, ``column[2]``, or of a JSON document."""
    while isinstance(column, BinaryExpression):
        column = column.left
    return column


def column_of_parameter(clause: Any, source: Source, name: str) -> Column[Any] | None:
    """Return the column that a parameter is for; the ORM names parameters after columns on execution."""
    column = source.live.c.get(name)
    return column_named(clause, source, name) if column is None else column


def values_set(clause: Any, source: Source, parameters: Parameters) -> dict[Any, Any]:
    """Return the columns that an UPDATE sets, with their values."""
    values: dict[Any, Any] = {column_named(clause, source, name): value for name, value in _assignments(clause)}
    for name in parameters[0]:
        if (column := column_of_parameter(clause, source, name)) is not None:
            values[column] = bindparam(name, type_=column.type)
    return values


def _assignments(clause: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and values that an UPDATE sets; for ``(a, b) = (SELECT …)``, those of each column."""
    for name, value in (*(clause._values or {}).items(), *(getattr(clause, "_ordered_values", None) or ())):
        if not isinstance(name, Tuple):
            yield name, value
            continue
        query = getattr(value, "element", value)
        values: Iterable[Any] = getattr(value, "clauses", repeat(value))
        if isinstance(query, Select):
            chosen = query.selected_columns
            values = [query.with_only_columns(each, maintain_column_froms=True).scalar_subquery() for each in chosen]
        yield from zip(name.clauses, values, strict=False)


def keys_in_criterion(clause: Any, key: Sequence[Any], parameters: Parameters) -> list[Key] | None:
    """Return the keys that a statement's criterion gives, or ``None`` if it selects its rows in another way."""
    given = {}
    for term in conjuncts(clause._where_criteria):
        if getattr(term, "operator", None) is operators.eq and isinstance(term.right, BindParameter):
            given[term.left] = term.right
    for column in key:
        if column not in given or not is_bound_alike(given[column], column):
            return None
    keys = [tuple([bound_value(given[column], execution, column) for column in key]) for execution in parameters]
    return keys if are_known(keys) else None


def are_known(keys: Iterable[Key]) -> bool:
    """Return whether Python knows all values of the keys."""
    return all(value is not DATABASE_ONLY for key in keys for value in key)


def conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    for criterion in criteria:
        if isinstance(criterion, BooleanClauseList) and criterion.operator is operators.and_:
            yield from conjuncts(criterion.clauses)
        else:
            yield criterion


def is_bound_alike(parameter: BindParameter[Any], column: ColumnElement[Any]) -> bool:
    """Return whether a parameter is bound like the values of a column: ``type_coerce(value, String)`` may not be."""
    parameter_type, column_type = parameter.type, column.type
    if parameter_type is column_type:
        return True
    if not (_is_bound_as_it_is(parameter_type) and _is_bound_as_it_is(column_type)):
        key = parameter_type._static_cache_key
        return key is not NO_CACHE and bool(key == column_type._static_cache_key)
    return parameter_type._type_affinity is column_type._type_affinity


def _is_bound_as_it_is(type_: TypeEngine[Any]) -> bool:
    return isinstance(type_, (Integer, String)) and not isinstance(type_, (Enum, ExternalType))


def is_null(value: Any, parameters: Mapping[str, Any]) -> bool:
    """Return whether a value is NULL in an execution with the parameters."""
    if isinstance(value, BindParameter):
        value = parameters.get(value.key, value.effective_value)
    return value is None or isinstance(value, Null)


def bound_value(value: Any, parameters: Mapping[str, Any], column: ColumnElement[Any]) -> Any:
    """Return the value in an execution, or ``DATABASE_ONLY`` if it is NULL or only the database knows it.

    A value that is not bound like the values of the column, or that cannot be hashed, is taken for one that only the
    database knows.
    """
    if isinstance(value, BindParameter):
        if value.callable is not None or (not value.type._isnull and not is_bound_alike(value, column)):
            return DATABASE_ONLY
        value = parameters.get(value.key, value.effective_value)
    is_sql = isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")
    return DATABASE_ONLY if value is None or is_sql or type(value).__hash__ is None else value
