"""Which rows is an UPDATE or DELETE about to write? They are locked, and it is confined to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    Alias,
    ColumnElement,
    Connection,
    Delete,
    GenerativeSelect,
    Select,
    TextClause,
    Update,
    and_,
    any_,
    column,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.bulk.reading import SQL, Parameters, keys_given, terms, value_given, values_set
from sqlaudit.bulk.writes import Write
from sqlaudit.capture import uncaptured
from sqlaudit.statements import JSONList, Key, chunks, goes_into_json, has_open_version, one_of, one_of_json
from sqlaudit.tables import TrackedTable


def prepare_change(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """Lock the rows that an UPDATE or DELETE is about to write, and return it confined to them."""
    connection, written = write.connection, clause.table
    key = [written.c[column.key] for column in tracked.key] if isinstance(written, Alias) else list(tracked.key)
    values = {} if isinstance(clause, Delete) else values_set(clause, tracked, parameters)
    new_key = [values.get(column, here) for column, here in zip(tracked.key, key, strict=True)]
    moves = not values.keys().isdisjoint(tracked.key)
    given, width = None if moves else keys_given(clause, key, parameters), len(key)
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
    old = keys_given(clause, key, parameters)
    if old is not None and len(list(terms(clause._where_criteria))) == len(key):
        if len(set(old)) == len(old) and set(old).isdisjoint(write.moved_to.values()):
            return ()  # none is moved twice
        new = [
            tuple([was if to is col else value_given(to, each) for to, col, was in zip(new_key, key, one, strict=True)])
            for one, each in zip(old, parameters, strict=True)
        ]
        if not any(value is SQL for each in new for value in each):
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
