"""When was it true? Half-open UTC periods ``[valid_from, valid_to)`` with microsecond resolution.

The open end is a constant, never NULL, so that one comparison serves every read. It lies one day before
the largest date that databases know, so that no session time zone can overflow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, DateTime, Dialect, and_, cast, func
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.exceptions import QueryError, warn_caller
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.wire import Report

OPEN_END: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""The ``valid_to`` of a current version, whose period has no end yet."""
TICK: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, repr=False)
class Mark(Report):
    """An instant with a name, which is usable wherever an instant is.

    :param name: its name
    :param at: the instant, in UTC
    :param changed_by: the user who made the mark; ``None`` if no user is known
    """

    name: str
    at: datetime
    changed_by: str | None = None


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime with microseconds, on every database.

    ``TIMESTAMP WITH TIME ZONE`` where there is one; ``DATETIME(6)`` on MySQL and MariaDB; ISO text on SQLite.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if not TRAITS[dialect.name].fraction_digits:
            return dialect.type_descriptor(DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value if TRAITS[dialect.name].has_time_zones else value.replace(tzinfo=None)

    process_literal_param = process_bind_param  # type: ignore[assignment]  # the base returns str

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any]:
        # One function, as below, which remembers: a read of one row has the instant five times.
        traits = TRAITS[dialect.name]
        if not traits.has_datetimes:
            return _iso_text
        if not traits.has_time_zones:
            return lambda value: None if value is None else value.astimezone(UTC).replace(tzinfo=None)
        return lambda value: value if value is None or value.tzinfo is UTC else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        # One function in place of the three that the base class would compose: every row that is read calls it.
        traits = TRAITS[dialect.name]
        if not traits.has_datetimes:
            return lambda text: None if text is None else datetime.fromisoformat(text + "+00:00")
        if not traits.has_time_zones:
            return lambda value: None if value is None else value.replace(tzinfo=UTC)
        return lambda value: value if value is None or value.tzinfo is UTC else value.astimezone(UTC)


def stored_instant_type() -> TypeEngine[datetime]:
    """Return SQLAlchemy's own type for a column of instants, which a revision of Alembic can render.

    Statements read and write such a column as :class:`UTCDateTime`.
    """
    return DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql", "mariadb")


def _iso_text(value: datetime | None) -> str | None:
    return None if value is None else _text_of_utc(value if value.tzinfo is UTC else value.astimezone(UTC))


@lru_cache
def _text_of_utc(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat(" ", "microseconds")


class OpenEnd(FunctionElement[datetime]):
    """The open end as a literal, so that databases recognise the predicate of a partial index."""

    type = UTCDateTime()
    inherit_cache = True


@compiles(OpenEnd)
def _render_open_end(element: OpenEnd, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.render_literal_value(OPEN_END, element.type)


def is_open(valid_to: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the predicate that a version is the current one."""
    return valid_to == OpenEnd()


def was_valid(
    valid_from: ColumnElement[datetime],
    valid_to: ColumnElement[datetime],
    when: datetime | ColumnElement[datetime],
) -> ColumnElement[bool]:
    """Return the predicate that the period contains ``when``."""
    # The end first: it alone excludes most versions, since most of them had ended.
    return and_(valid_to > when, unindexed(valid_from) <= when)


class unindexed(FunctionElement[datetime]):
    """An instant that SQLite does not look up in its index.

    Most versions have begun before a recent instant. SQLite expects few, and would read them one by one.
    """

    type = UTCDateTime()
    inherit_cache = True


@compiles(unindexed)
def _render_plainly(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(next(iter(element.clauses)), **kw)


@compiles(unindexed, "sqlite")
def _render_plus(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{_render_plainly(element, compiler, **kw)}"


class is_tick_after(FunctionElement[bool]):
    """True if an instant is a microsecond after another one, as :data:`TICK` is."""

    type = Boolean()
    inherit_cache = True


@compiles(is_tick_after)
def _render_interval(element: is_tick_after, compiler: SQLCompiler, **kw: Any) -> str:
    later, earlier = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{later} = {earlier} + INTERVAL '1' MICROSECOND"


@compiles(is_tick_after, "postgresql")
def _render_interval_text(element: is_tick_after, compiler: SQLCompiler, **kw: Any) -> str:
    later, earlier = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{later} = {earlier} + INTERVAL '1 microsecond'"


@compiles(is_tick_after, "sqlite")
def _render_microseconds(element: is_tick_after, compiler: SQLCompiler, **kw: Any) -> str:
    later, earlier = (compiler.process(clause, **kw) for clause in element.clauses)
    numbers = [f"strftime('%s', {text}) * 1000000 + substr({text}, 21)" for text in (later, earlier)]
    return f"{numbers[0]} = {numbers[1]} + 1".replace("%", "%%" if compiler.preparer._double_percents else "%")


class PeriodToIndex(ColumnElement[Any]):
    """The expression to index for :func:`was_valid`: a range on PostgreSQL; the end, then the start, elsewhere.

    The end comes first because few periods end after a recent instant, while most began before it.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # as SQLAlchemy declares it
        ("valid_to", InternalTraversal.dp_clauseelement),
        ("valid_from", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, valid_from: ColumnElement[datetime], valid_to: ColumnElement[datetime]) -> None:
        self.valid_from = valid_from
        self.valid_to = valid_to


@compiles(PeriodToIndex)
def _render_ends(element: PeriodToIndex, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.valid_to, **kw)}, {compiler.process(element.valid_from, **kw)}"


@compiles(PeriodToIndex, "postgresql")
def _render_range(element: PeriodToIndex, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(func.tstzrange(element.valid_from, element.valid_to), **kw)


def range_contains(
    valid_from: ColumnElement[datetime], valid_to: ColumnElement[datetime], when: ColumnElement[datetime]
) -> ColumnElement[bool]:
    """Return the predicate of :func:`was_valid` in the form for which PostgreSQL uses the index of ranges.

    Do not combine the two: PostgreSQL would expect far too few rows. It also expects too few for a parameter, once it
    uses a generic plan, so ``when`` must be a literal.
    """
    return PeriodToIndex(valid_from, valid_to).bool_op("@>")(cast(when, UTCDateTime()))


def as_utc(when: datetime | Mark) -> datetime:
    """Return ``when``, or the instant of a mark, as an aware UTC datetime.

    A naive datetime is taken as local time, as :meth:`datetime.datetime.astimezone` does, with a warning.

    :raises QueryError: ``when`` is not a datetime, or is out of range in UTC
    """
    if isinstance(when, Mark):
        when = when.at
    if not isinstance(when, datetime):
        raise QueryError(f"{when!r} is not a datetime. Give an aware datetime, such as datetime.now(UTC).", when)
    if when.tzinfo is None:
        warn_caller(
            f"The datetime {when} is naive, so sqlaudit takes it as local time. Give an aware datetime, such as "
            "datetime.now(UTC).",
        )
    try:
        return when.astimezone(UTC)
    except (OverflowError, ValueError, OSError):
        raise QueryError(f"{when} cannot be converted to UTC. Give a later or an earlier datetime.", when) from None
