"""What does a statement write? Its clauses name the table, the values and the keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from copy import copy
from functools import cache, cached_property
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
    select,
)
from sqlalchemy.orm import FromStatement, Mapper
from sqlalchemy.orm.util import LoaderCriteriaOption
from sqlalchemy.sql import operators
from sqlalchemy.sql.cache_key import NO_CACHE
from sqlalchemy.sql.visitors import iterate, replacement_traverse
from sqlalchemy.types import ExternalType, TypeEngine

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.foreign_keys import FollowedTable, Source, referred_columns, untracked_source
from sqlaudit.tracking.schema import conflict_clauses_of
from sqlaudit.tracking.tables import tracked_table

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


class ParsedWrite:
    """What an INSERT, UPDATE or DELETE writes, read once and handed on.

    What SQLAlchemy's statements say only in attributes that are not public is read here, and in no other module.

    :ivar statement: the statement, without a lambda or FROM statement around it
    :ivar parameters: the parameters of each execution
    :ivar table: the table that it names
    :ivar tracked: the tracked table that has this table, live or as its history
    :ivar criteria: the criteria that the caller gave to an UPDATE or DELETE
    """

    def __init__(self, statement: Any, parameters: Parameters = ({},)) -> None:
        self.statement = statement
        self.parameters = parameters
        annotations = statement._annotations  # the ORM writes an object's tables one after the other
        table = annotations.get("_emit_update_table", annotations.get("_emit_insert_table", statement.table))
        self.table = unaliased(table)
        self.tracked = tracked_table(self.table)
        self.writes_history = self.tracked is not None and self.tracked.live.fullname != self.table.fullname
        self.is_insert = isinstance(statement, Insert)
        self.is_update = isinstance(statement, Update)
        self.is_delete = isinstance(statement, Delete)
        self.has_prefixes = bool(statement._prefixes)
        self.criteria: tuple[Any, ...] = getattr(statement, "_where_criteria", ())

    @cached_property
    def source(self) -> Source | None:
        """The tracked table, or the untracked table that tracked rows follow by foreign key.

        ``None`` also for a history table, for a join, and for a table whose class is no longer mapped to it.
        """
        tracked = self.tracked
        if isinstance(self.statement.table, Join):
            return None
        if tracked is not None:
            return None if self.writes_history or tracked.is_obsolete else tracked
        if not isinstance(self.table, Table):
            return None
        is_plain = self.is_insert and self.conflict_clause is None and not self.has_prefixes
        return None if is_plain else untracked_source(self.table)

    @property
    def live(self) -> Table:
        """The table of the source."""
        assert self.source is not None
        return self.source.live

    @cached_property
    def key(self) -> list[ColumnElement[Any]]:
        """The columns of the key of the source, as the statement names them: of an alias, if it writes an alias."""
        assert self.source is not None
        written = self.statement.table
        return (
            [written.c[column.key] for column in self.source.key] if isinstance(written, Alias) else [*self.source.key]
        )

    @property
    def returns_rows(self) -> bool:
        """Whether the caller has asked for columns, by ``returning()``."""
        return bool(self.statement._returning)

    @property
    def strategy(self) -> str | None:
        """How the ORM executes the statement: ``"orm"``, ``"bulk"``, ``"core_only"`` …; ``None`` for Core."""
        strategy: str | None = self.statement._annotations.get("dml_strategy")
        return strategy

    @property
    def nested_writes(self) -> list[Any]:
        """The statements within it that write, or may write."""
        statement = self.statement
        within = [*statement._independent_ctes, *self.criteria]
        within += [getattr(statement, "select", None), *(getattr(statement, "_values", None) or {}).values()]
        found = []
        for start in within:
            if not _is_simple(start):
                found += [element for element in elements(start) if isinstance(element, (UpdateBase, TextualSelect))]
        return found

    @property
    def other_tables(self) -> set[Any]:
        """The tables, apart from its own, whose columns an UPDATE sets."""
        tables = set()
        if isinstance(self.statement, Update):
            for column, _ in _assignments(self.statement):
                if isinstance(column, ColumnElement):
                    tables.add(_whole_column(column).table)
        tables.discard(self.statement.table)
        return tables

    def changes_referred_rows(self) -> bool:
        """Return whether it changes what tracked rows refer to in a table without history."""
        assert isinstance(self.source, FollowedTable)
        changed = self.source.live.c if self.is_delete else self.values
        return self.is_insert or not referred_columns((self.source,)).isdisjoint(changed)

    # -- which rows

    @cached_property
    def all_criteria(self) -> list[ColumnElement[bool]]:
        """The criteria, and those that SQLAlchemy will add, for loader options or single-table inheritance.

        In a statement for an alias, too, SQLAlchemy adds criteria of the table itself.
        """
        entity = self.statement.table._annotations.get("parententity")
        if entity is None or self.strategy == "core_only":
            return list(self.criteria)
        options_by_key: dict[Any, list[Any]] = {}
        for option in self.criteria_options:
            option.get_global_criteria(options_by_key)
        mapper = entity.mapper
        added = [
            option._resolve_where_criteria(mapper)
            for option in options_by_key.get(("additional_entity_criteria", mapper), ())
            if option.include_aliases or option.entity is mapper
        ]
        if mapper._single_table_criterion is not None:
            added.append(mapper._single_table_criterion)
        return [*self.criteria, *added]

    @property
    def criteria_options(self) -> list[LoaderCriteriaOption]:
        """The loader criteria, which SQLAlchemy also adds to the selects within the statement."""
        return [option for option in self.statement._with_options if isinstance(option, LoaderCriteriaOption)]

    @property
    def reads_only_its_table(self) -> bool:
        """Whether the criteria read only the table that the statement writes."""
        return all(set(criterion._from_objects) <= {self.statement.table} for criterion in self.all_criteria)

    def limit(self, dialect: Dialect) -> Any:
        """Return the LIMIT of an UPDATE or DELETE, by ``.ext(mysql.limit(…))`` or an option for the dialect."""
        limit = getattr(getattr(self.statement, "_post_criteria_clause", None), "_limit_clause", None)
        return self.statement.dialect_kwargs.get(f"{dialect.name}_limit") if limit is None else limit

    def select_rows(
        self, columns: Sequence[Any], dialect: Dialect | None, *, parameters: Mapping[str, Any] | None = None
    ) -> Select[Any]:
        """Return a select of columns of the rows that an UPDATE or DELETE will write.

        The ORM adds no criteria to it: to a SELECT, though not to an UPDATE or DELETE, it would add those of each
        class in the criteria.

        :param dialect: to select no more rows than the statement's LIMIT for the dialect; ``None`` to select all rows
        :param parameters: the parameters to bind in it
        """
        chosen = select(*columns)._set_propagate_attrs({"compile_state_plugin": "default", "plugin_subject": None})
        chosen = chosen.where(*self.all_criteria).add_cte(*self.statement._independent_ctes)
        if parameters:  # before the options, which SQLAlchemy 2.0 cannot copy
            chosen = chosen.params(parameters)
        return chosen.options(*self.criteria_options).limit(None if dialect is None else self.limit(dialect))

    def keys_in_criterion(self, key: Sequence[Any]) -> list[Key] | None:
        """Return the keys that the criterion gives, or ``None`` if it selects its rows in another way."""
        given = {}
        for term in conjuncts(self.criteria):
            if getattr(term, "operator", None) is operators.eq and isinstance(term.right, BindParameter):
                given[term.left] = term.right
        for column in key:
            if column not in given or not is_bound_alike(given[column], column):
                return None
        keys = [
            tuple([bound_value(given[column], execution, column) for column in key]) for execution in self.parameters
        ]
        return keys if are_known(keys) else None

    # -- which values

    @property
    def tables_of_values(self) -> set[Any]:
        """The tables that the values of an UPDATE read."""
        return {table for value in self.values.values() for table in getattr(value, "_from_objects", ())}

    @cached_property
    def values(self) -> dict[Any, Any]:
        """The columns that an UPDATE sets, with their values; empty for a DELETE."""
        if self.is_delete:
            return {}
        values: dict[Any, Any] = {self.column_named(name): value for name, value in _assignments(self.statement)}
        for name in self.parameters[0]:
            if (column := self.column_of_parameter(name)) is not None:
                values[column] = bindparam(name, type_=column.type)
        return values

    @property
    def changed(self) -> Set[Any] | None:
        """The columns that an UPDATE sets; ``None`` for a DELETE."""
        return None if self.is_delete else self.values.keys()

    @property
    def inserted_rows(self) -> list[Mapping[Any, Any]]:
        """The values of each row of an INSERT, by the names that the caller used; at least one row."""
        statement = self.statement
        rows = [values for several in statement._multi_values for values in several] or [statement._values or {}]
        columns = statement.table.c
        return [row if isinstance(row, Mapping) else dict(zip(columns, row, strict=False)) for row in rows]

    @property
    def has_several_rows(self) -> bool:
        """Whether ``values()`` gives an INSERT a list of rows."""
        return bool(self.statement._multi_values)

    @property
    def inserts_one_each(self) -> bool:
        """Whether an INSERT is executed once, or inserts one row with each of its parameters."""
        return len(self.parameters) == 1 or (self.statement.select is None and not self.has_several_rows)

    @property
    def select_names(self) -> list[str]:
        """The names of the columns of an INSERT … SELECT."""
        return [name if isinstance(name, str) else name.key for name in self.statement._select_names or ()]

    def column_named(self, name: Any) -> Column[Any] | None:
        """Return the column that a name in the values means; in an ORM statement it names an attribute."""
        columns = self.live.c
        if not isinstance(name, str):
            return columns.get(_whole_column(name).key)
        entity = self.statement.table._annotations.get("parententity")
        attribute = None if entity is None else entity.mapper.column_attrs.get(name)
        return columns.get(name) if attribute is None else attribute.columns[0]

    def column_of_parameter(self, name: str) -> Column[Any] | None:
        """Return the column that a parameter is for; the ORM names parameters after columns on execution."""
        column = self.live.c.get(name)
        return self.column_named(name) if column is None else column

    # -- conflicts, and what an INSERT returns

    @property
    def conflict_clause(self) -> Any:
        """The ``ON CONFLICT`` or ``ON DUPLICATE KEY UPDATE`` of an INSERT, or ``None``."""
        return self.statement._post_values_clause

    def conflict_clauses(self, dialect: Dialect) -> Set[str]:
        """Return how an INSERT or UPDATE handles conflicting rows, by a prefix or a constraint: IGNORE, REPLACE."""
        prefixes = self.statement._prefixes
        said = " ".join(str(prefix).upper() for prefix, name in prefixes if name in ("*", dialect.name))
        if TRAITS[dialect.name].has_conflict_clauses and "OR " not in said:
            said = conflict_clauses_of(self.live)
        return {word for word in ("IGNORE", "REPLACE") if word in said} if said else frozenset()

    @property
    def returns_defaults(self) -> bool:
        """Whether the caller, or the ORM, has asked for the values that the database makes."""
        return bool(self.statement._return_defaults)

    @property
    def returns_more(self) -> bool:
        """Whether the caller, or the ORM, has asked for columns besides the defaults."""
        return bool(self.statement._returning or self.statement._supplemental_returning)

    @property
    def is_inline(self) -> bool:
        return bool(self.statement._inline)

    @property
    def is_sorted(self) -> bool:
        """Whether the rows are returned in the order of the parameters."""
        return bool(self.statement._sort_by_parameter_order)


def without_criteria(statement: Any) -> Any:
    statement = statement._generate()
    statement._where_criteria = ()
    return statement


def with_returning(statement: Any, columns: Sequence[Any]) -> Any:
    """Return an INSERT that also returns columns, after those that it returns already."""
    returns_rows, strategy = bool(statement._returning), statement._annotations.get("dml_strategy")
    if returns_rows and strategy in ("orm", "bulk"):
        return _returning_after_loaded_columns(statement, columns)
    if strategy == "orm":
        statement = statement._annotate({"dml_strategy": "raw"})  # the ORM would load what is returned
    elif not returns_rows:
        statement = statement._generate()
        statement._with_options = ()  # they are for loading
    if statement._return_defaults:
        statement = statement._generate()
        statement._return_defaults = False
    return statement.returning(*columns)


def with_supplemental_returning(statement: Any, columns: Sequence[Any]) -> Any:
    """Return an INSERT that returns columns besides the defaults that SQLAlchemy asks for."""
    if statement._returning and statement._annotations.get("dml_strategy") == "bulk":
        return _returning_after_loaded_columns(statement, columns)
    return statement.return_defaults(*statement._return_defaults_columns or (), supplemental_cols=columns)


def _returning_after_loaded_columns(statement: Any, columns: Sequence[Any]) -> Any:
    """Return an INSERT that returns columns after those that the ORM adds when it compiles the INSERT."""
    statement = statement._generate()
    statement.__class__ = _returning_for_orm(statement.__class__)
    statement.sqlaudit_columns = columns
    return statement


@cache
def _returning_for_orm(kind: type[Insert]) -> type[Any]:
    """Return a subclass of an INSERT class that adds the key to the columns which the ORM returns when it compiles."""

    def returning(self: Any, *columns: Any, **kw: Any) -> Any:
        return kind.returning(self, *columns, *self.sqlaudit_columns, **kw)

    def return_defaults(self: Any, *columns: Any, supplemental_cols: Any = (), **kw: Any) -> Any:
        own = [*supplemental_cols, *self.sqlaudit_columns]
        return kind.return_defaults(self, *columns, supplemental_cols=own, **kw)

    names = {"returning": returning, "return_defaults": return_defaults, "inherit_cache": True}
    return type(kind.__name__, (kind,), names)


def executed_row_by_row(statement: Any) -> Any:
    """Return an INSERT that SQLAlchemy executes row by row, as by ``insertmanyvalues_page_size=1``."""
    statement = statement._generate()
    statement.__class__ = _row_by_row(statement.__class__)
    return statement


@cache
def _row_by_row(kind: type[Insert]) -> type[Any]:
    """Return a class of INSERTs that SQLAlchemy executes row by row, as by ``insertmanyvalues_page_size=1``.

    SQLAlchemy reads that option before sqlaudit can change the statement.
    """

    def compile_w_cache(self: Any, *args: Any, **kw: Any) -> Any:
        cached, *further = kind._compile_w_cache(self, *args, **kw)
        compiled: Any = copy(cached)
        deliver = compiled._deliver_insertmanyvalues_batches
        compiled._deliver_insertmanyvalues_batches = lambda *args: deliver(*args[:4], 1, *args[5:])
        return compiled, *further

    return type(kind.__name__, (kind,), {"_compile_w_cache": compile_w_cache, "inherit_cache": True})


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


def unaliased(table: Any) -> Any:
    return table.element if isinstance(table, Alias) else table


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


def _whole_column(column: Any) -> Any:
    """Return the column of which a statement sets one item: of an array, ``column[2]``, or of a JSON document."""
    while isinstance(column, BinaryExpression):
        column = column.left
    return column


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
