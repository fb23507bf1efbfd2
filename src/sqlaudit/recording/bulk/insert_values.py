"""Which values does an INSERT give to its rows? Those in its VALUES and in the parameters of its executions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any
from typing import cast as cast_type

from sqlalchemy import (
    Column,
)
from sqlalchemy.engine.default import DefaultDialect

from sqlaudit.recording.bulk.parsing import DATABASE_ONLY, bound_value, is_null
from sqlaudit.recording.bulk.writes import Write
from sqlaudit.sql.keys import Key


def inserted_values(write: Write, columns: Iterable[Column[Any]]) -> list[dict[str, Any]] | None:
    """Return the values that an INSERT gives to ``columns``, by column key, for each row; ``None`` for INSERT … SELECT.

    A NULL that the database replaces by a number is left out.
    """
    parsed, live = write.parsed, write.source.live
    if parsed.statement.select is not None:
        return None
    wanted, number = set(columns), live.autoincrement_column
    dialect = cast_type("DefaultDialect", write.connection.dialect)
    is_numbered = number is not None and dialect.insert_null_pk_still_autoincrements
    null_key = number.key if number is not None and is_numbered and number.default is None else None
    named = [_by_column(row, parsed.column_named, wanted) for row in parsed.inserted_rows]
    own = _by_column({name: name for name in parsed.parameters[0]}, parsed.column_of_parameter, wanted)
    if not own and not any(named):  # the usual case of a key that the database makes
        return [{}] * (len(parsed.parameters) * len(named))
    merged = (
        (values | {key: execution[name] for key, name in own.items() if name in execution}, execution)
        for execution in parsed.parameters
        for values in named
    )
    return [
        {
            key: bound_value(value, execution, live.c[key])
            for key, value in row.items()
            if key != null_key or not is_null(value, execution)
        }
        for row, execution in merged
    ]


def _by_column(
    values: Mapping[Any, Any], column_of: Callable[[Any], Column[Any] | None], wanted: Set[Column[Any]]
) -> dict[str, Any]:
    """Return the values for the asked columns, by the keys of these columns."""
    pairs = ((column_of(name), value) for name, value in values.items())
    return {column.key: value for column, value in pairs if column is not None and column in wanted}


def keys_of_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column[Any]]) -> list[Key]:
    return [tuple([row.get(column.key, DATABASE_ONLY) for column in columns]) for row in rows]
