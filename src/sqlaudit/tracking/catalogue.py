"""What does the catalogue of a database say about a table? Its triggers, rules, sequences and types."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, TypeVar
from typing import cast as cast_type

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Integer,
    Select,
    Table,
    Text,
    and_,
    cast,
    column,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    table,
    union_all,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.tracking.foreign_keys import Source
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.tables import TrackedTable, guard_index_name, guard_name

T = TypeVar("T")
_ATTRIBUTES: Final = table(
    "pg_attribute", *map(column, ("attrelid", "attname", "attnum", "attidentity", "atttypid")), schema="pg_catalog"
)
_DEFAULTS: Final = table("pg_attrdef", *map(column, ("adrelid", "adnum", "adbin")), schema="pg_catalog")
_FUNCTIONS: Final = table("pg_proc", *map(column, ("proname", "provolatile")), schema="pg_catalog")
_RULES: Final = table(
    "pg_rewrite", *map(column, ("oid", "ev_class", "ev_type", "is_instead", "ev_qual")), schema="pg_catalog"
)
_TRIGGERS: Final = table(
    "pg_trigger", *map(column, ("tgrelid", "tgisinternal")), column("tgtype", Integer()), schema="pg_catalog"
)
_DISTRIBUTED: Final = table("pg_dist_partition", column("logicalrelid", OID()))
_HAS_CITUS: Final = "sqlaudit_has_citus"
_TYPES: Final = table("pg_type", *map(column, ("oid", "typcategory")), schema="pg_catalog")
_TEXT, _ARRAY = "S", "A"
"""Categories of types, from ``pg_type.typcategory``."""
_TRIGGERS_OF_MYSQL: Final = table(
    "TRIGGERS", *map(column, ("EVENT_OBJECT_SCHEMA", "EVENT_OBJECT_TABLE")), schema="INFORMATION_SCHEMA"
)
_COLUMNS_OF_MYSQL: Final = table(
    "COLUMNS",
    *map(column, ("TABLE_SCHEMA", "TABLE_NAME", "COLUMN_NAME", "DATA_TYPE")),
    column("EXTRA", Text()),
    schema="INFORMATION_SCHEMA",
)
_INDEXES_OF_MYSQL: Final = table(
    "STATISTICS", *map(column, ("TABLE_SCHEMA", "TABLE_NAME", "INDEX_NAME", "COLUMN_NAME")), schema="INFORMATION_SCHEMA"
)
_TEXTS_OF_MYSQL: Final = (
    *("char", "varchar", "binary", "varbinary", "enum", "set"),
    *(size + kind for kind in ("text", "blob") for size in ("tiny", "", "medium", "long")),
)
"""The types of texts and of bytes, which MariaDB and MySQL compare with each other without a conversion."""

_VOLATILE: Final = frozenset(
    {
        "rand",
        "random",
        "randomblob",
        "random_bytes",
        "uuid",
        "uuid_short",
        "sys_guid",
        "sysdate",
        "next_value",
        "nextval",
    }
)
"""Names of volatile functions of SQLite, MariaDB and MySQL."""


def oid_of(connection: Connection, table: Table) -> ColumnElement[Any]:
    """Return an expression for the OID of a table on PostgreSQL, which is NULL if the table does not exist."""
    return func.to_regclass(_name_of(connection, table), type_=OID())


def sequence_of(key: Column[Any], connection: Connection) -> Select[Any]:
    """Return a select that finds the sequence of a key, if a program may draw its numbers and insert them."""
    name = _name_of(connection, key.table)
    live = cast(name, REGCLASS)
    sequence = cast(func.pg_get_serial_sequence(name, key.name), REGCLASS)
    default = func.pg_get_expr(_DEFAULTS.c.adbin, _DEFAULTS.c.adrelid)
    of_column = (_DEFAULTS.c.adrelid == _ATTRIBUTES.c.attrelid, _DEFAULTS.c.adnum == _ATTRIBUTES.c.attnum)
    return (
        select(cast(sequence, Text))
        .select_from(_ATTRIBUTES.outerjoin(_DEFAULTS, and_(*of_column)))
        .where(_ATTRIBUTES.c.attrelid == live, _ATTRIBUTES.c.attname == key.name)
        .where(
            or_(
                _ATTRIBUTES.c.attidentity == "d",  # BY DEFAULT: an INSERT may give a value
                default == func.format("nextval(%L::regclass)", cast(sequence, Text)),
            )
        )
        .where(func.has_sequence_privilege(sequence, "USAGE"), func.has_column_privilege(live, key.name, "INSERT"))
        .where(~_has_trigger(live))  # a trigger may assign other numbers
    )


def _has_trigger(live: ColumnElement[Any]) -> ColumnElement[bool]:
    return exists().where(_TRIGGERS.c.tgrelid == live, not_(_TRIGGERS.c.tgisinternal))


def has_triggers(connection: Connection, tracked: TrackedTable) -> bool:
    """Return whether a live table has triggers that the connection's role can see. One statement, the first time.

    On MariaDB and MySQL, a column with ON UPDATE CURRENT_TIMESTAMP counts as one: it changes with any other.
    """
    return _cached_answer(connection, tracked, _any_trigger)


def _cached_answer(
    connection: Connection, tracked: TrackedTable, question: Callable[[Connection, Table], ColumnElement[bool]]
) -> bool:
    """Return the answer of a database to a question about a live table. The answer is kept for the dialect."""
    kept = tracked.statements.setdefault(connection.dialect, {})
    if question not in kept:
        kept[question] = bool(connection.scalar(select(question(connection, tracked.live))))
    return bool(kept[question])


def _any_trigger(connection: Connection, live: Table) -> ColumnElement[bool]:
    schema = schema_of(connection, live)
    if connection.dialect.name == "postgresql":
        return _has_trigger(oid_of(connection, live))
    if connection.dialect.name == "sqlite":
        kind, owner = column("type", Text()), column("tbl_name", Text())
        master = table("sqlite_master", kind, owner, schema=schema)
        return exists().select_from(master).where(kind == "trigger", func.lower(owner) == live.name.lower())
    place: tuple[Any, Any] = (schema or func.database(), live.name)
    trigger = exists().where(*map(operator.eq, _TRIGGERS_OF_MYSQL.c, place))
    return or_(trigger, exists().where(*_are_stamped(connection, live)))


def _are_stamped(connection: Connection, live: Table) -> Iterator[Any]:
    columns = _COLUMNS_OF_MYSQL.c
    yield (schema_of(connection, live) or func.database()) == columns.TABLE_SCHEMA
    yield live.name == columns.TABLE_NAME
    yield columns.EXTRA.like("%on update%")


def stamped_columns(connection: Connection, chain: Sequence[TrackedTable]) -> frozenset[Column[Any]]:
    """Return the live columns with ON UPDATE CURRENT_TIMESTAMP. One statement, on MariaDB and MySQL."""
    if connection.dialect.name not in MYSQL:
        return frozenset()
    name = _COLUMNS_OF_MYSQL.c.COLUMN_NAME
    names = (
        select(literal_column(str(place), Integer()), name).where(*_are_stamped(connection, tracked.live))
        for place, tracked in enumerate(chain)
    )
    found = set(map(tuple, connection.execute(union_all(*names))))
    return frozenset(
        column for place, tracked in enumerate(chain) for column in tracked.live.c if (place, column.name) in found
    )


def diverts_deletes(connection: Connection, table: Table) -> bool:
    """Return whether a trigger or a rule may replace a DELETE by something else. One statement, on PostgreSQL."""
    if connection.dialect.name != "postgresql":
        return False
    live = oid_of(connection, table)
    on_delete, before_or_instead = 8, 2 | 64  # TRIGGER_TYPE_DELETE, TRIGGER_TYPE_BEFORE, TRIGGER_TYPE_INSTEAD
    has_trigger = exists().where(
        _TRIGGERS.c.tgrelid == live,
        _TRIGGERS.c.tgtype.bitwise_and(on_delete) != 0,
        _TRIGGERS.c.tgtype.bitwise_and(before_or_instead) != 0,
    )
    has_rule = exists().where(_RULES.c.ev_class == live, _RULES.c.ev_type == literal_column("'4'"))
    return bool(connection.scalar(select(or_(has_trigger, has_rule))))


def refuses_returning(connection: Connection, tracked: TrackedTable) -> bool:
    """Return whether a rule prevents INSERT … RETURNING on PostgreSQL. One statement, the first time."""
    return connection.dialect.name == "postgresql" and _cached_answer(connection, tracked, _any_rule_without_returning)


def _any_rule_without_returning(connection: Connection, live: Table) -> ColumnElement[bool]:
    returns = and_(_RULES.c.ev_qual == "<>", func.pg_get_ruledef(_RULES.c.oid).icontains("RETURNING"))
    on_insert = (_RULES.c.ev_class == oid_of(connection, live), _RULES.c.ev_type == "3")
    return exists().where(*on_insert, _RULES.c.is_instead, not_(returns))


def are_volatile(connection: Connection, names: Collection[str]) -> bool:
    """Return whether one of the functions may return another value on its next call, or has a side effect.

    One statement, on PostgreSQL.
    """
    if connection.dialect.name != "postgresql":
        return not _VOLATILE.isdisjoint(names)
    volatile = exists().where(_FUNCTIONS.c.proname.in_(names), _FUNCTIONS.c.provolatile == "v")
    return "next_value" in names or bool(connection.scalar(select(volatile)))


def _name_of(connection: Connection, table: Table) -> ColumnElement[str]:
    schema, name = schema_of(connection, table), func.quote_ident(table.name)
    return name if schema is None else func.concat(func.quote_ident(schema), ".", name)


def are_distributed(connection: Connection, chain: Sequence[TrackedTable]) -> bool:
    """Return whether Citus distributes one of the tables among servers. One statement per engine; two with Citus."""
    tables = [table for tracked in chain for table in (tracked.live, tracked.history)]
    return bool(distributed_tables(connection, tables))


def is_known_to_be_distributed(tracked: TrackedTable) -> bool:
    """Return whether :func:`are_distributed` has found that Citus distributes the tables of an object."""
    return any(answers.get(are_distributed) for answers in tracked.statements.values())


def distributed_tables(connection: Connection, tables: Sequence[Table]) -> set[Table]:
    """Return the tables that Citus distributes among servers. One statement, and none if the server has no Citus."""
    if not tables or not has_citus(connection):
        return set()
    questions = (exists().where(_DISTRIBUTED.c.logicalrelid == oid_of(connection, table)) for table in tables)
    answers = connection.execute(select(*questions)).one()
    return {table for table, is_distributed in zip(tables, answers, strict=True) if is_distributed}


def has_citus(connection: Connection) -> bool:
    """Return whether the server has Citus. One statement per engine, on PostgreSQL."""
    kept = vars(connection.dialect)
    if _HAS_CITUS not in kept:
        question = select(func.to_regclass(_DISTRIBUTED.name).is_not(None))
        kept[_HAS_CITUS] = connection.dialect.name == "postgresql" and connection.scalar(question)
    return bool(kept[_HAS_CITUS])


def is_for_citus(dialect: Dialect) -> bool:
    """Return whether :func:`has_citus` has found Citus on the server of a dialect."""
    return bool(vars(dialect).get(_HAS_CITUS))


def tables_with_guard(connection: Connection, chain: Sequence[TrackedTable]) -> frozenset[TrackedTable]:
    """Return the tables whose history has the index of :class:`~sqlaudit.tracking.tables.AddOpenGuard`.

    One statement, on MariaDB and MySQL. A history table that was created by hand may lack the index.
    """
    if TRAITS[connection.dialect.name].has_partial_indexes:
        return frozenset()
    indexes = _INDEXES_OF_MYSQL.c
    conditions = (
        and_(
            indexes["TABLE_SCHEMA"] == (schema_of(connection, tracked.history) or func.database()),
            indexes["TABLE_NAME"] == tracked.history.name,
            indexes["INDEX_NAME"] == guard_index_name(tracked),
            indexes["COLUMN_NAME"] == guard_name(tracked),
        )
        for tracked in chain
    )
    names = set(connection.scalars(select(indexes["TABLE_NAME"]).where(or_(*conditions))))
    return frozenset(tracked for tracked in chain if tracked.history.name in names)


def columns_compared_as_text(connection: Connection, chain: Sequence[TrackedTable]) -> frozenset[Column[Any]]:
    """Return the live columns that can only be compared with history as texts, because their types have changed.

    The history column may still be a text when the live column is a number. PostgreSQL does not compare the two. In a
    statement that writes, MariaDB and MySQL fail if the text is not a number. One statement, on these databases.
    """
    if not TRAITS[connection.dialect.name].has_typed_columns:
        return frozenset()
    named = _columns_of_other_types if connection.dialect.name == "postgresql" else _columns_of_other_types_on_mysql
    names = (named(connection, tracked, literal_column(str(place), Integer())) for place, tracked in enumerate(chain))
    rows = set(map(tuple, connection.execute(union_all(*names))))
    return frozenset(
        live for place, tracked in enumerate(chain) for live, _ in tracked.columns if (place, live.name) in rows
    )


def _columns_of_other_types(connection: Connection, tracked: TrackedTable, place: ColumnElement[int]) -> Select[Any]:
    live_column, history_column, kind, history_kind = (
        _ATTRIBUTES.alias(),
        _ATTRIBUTES.alias(),
        _TYPES.alias(),
        _TYPES.alias(),
    )
    return (
        select(place, live_column.c.attname)
        .join_from(
            live_column,
            history_column,
            and_(history_column.c.attname == live_column.c.attname, history_column.c.attnum > 0),
        )
        .join(kind, kind.c.oid == live_column.c.atttypid)
        .join(history_kind, history_kind.c.oid == history_column.c.atttypid)
        .where(live_column.c.attrelid == oid_of(connection, tracked.live))
        .where(history_column.c.attrelid == oid_of(connection, tracked.history))
        .where(live_column.c.atttypid != history_column.c.atttypid)
        .where(
            or_(
                and_(history_kind.c.typcategory == _TEXT, kind.c.typcategory != _TEXT),
                history_kind.c.typcategory == _ARRAY,
                kind.c.typcategory == _ARRAY,
            )
        )
    )


def _columns_of_other_types_on_mysql(
    connection: Connection, tracked: TrackedTable, place: ColumnElement[int]
) -> Select[Any]:
    live_column, history_column = _COLUMNS_OF_MYSQL.alias(), _COLUMNS_OF_MYSQL.alias()
    statement = select(place, live_column.c.COLUMN_NAME).join_from(
        live_column, history_column, history_column.c.COLUMN_NAME == live_column.c.COLUMN_NAME
    )
    for columns, owner in ((live_column.c, tracked.live), (history_column.c, tracked.history)):
        schema = schema_of(connection, owner) or func.database()
        statement = statement.where(columns["TABLE_SCHEMA"] == schema, columns["TABLE_NAME"] == owner.name)
    return statement.where(
        history_column.c.DATA_TYPE.in_(_TEXTS_OF_MYSQL), live_column.c.DATA_TYPE.not_in(_TEXTS_OF_MYSQL)
    )


def ask_once(
    connection: Connection, chain: Sequence[TrackedTable], question: Callable[[Connection, Sequence[TrackedTable]], T]
) -> T:
    """Return what a function finds in the catalogue about the tables of a chain; an engine asks once."""
    kept = chain[-1].statements.setdefault(connection.dialect, {})
    if question not in kept:
        kept[question] = question(connection, chain)
    return cast_type(T, kept[question])


def can_lock_many(connection: Connection, source: Source) -> bool:
    """Return whether one statement can lock many rows of a table. Citus refuses it if it distributes the table."""
    if isinstance(source, TrackedTable):
        return not ask_once(connection, (source,), are_distributed)
    return not distributed_tables(connection, [source.live])
