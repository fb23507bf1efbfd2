"""Which instants have a name? Marks, such as "before the import", in a table that only those have who use it.

The table is declared next to the models, so that ``create_all`` and Alembic see it:

.. code-block:: python

    marks_table(Base.metadata)

A mark is usable wherever an instant is: ``Customer.as_of(mark_named(session, "before the import"))``.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Column, MetaData, Table, delete, insert, literal, select, type_coerce
from sqlalchemy.exc import IntegrityError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.asynchronous import also_async
from sqlaudit.config import current_config, current_user_id
from sqlaudit.context import USER_ID_LENGTH
from sqlaudit.exceptions import QueryError, TrackingError
from sqlaudit.period import Mark, UTCDateTime, stored_instant_type
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import audit_column_types

_INFO_KEY: Final = "sqlaudit_marks"
_with_marks: WeakSet[MetaData] = WeakSet()
_AnySession = Session | scoped_session[Any]


def marks_table(metadata: MetaData, name: str = "sqlaudit_marks", *, schema: str | None = None) -> Table:
    """Return the table of marks of a MetaData, which has it from then on.

    Call it next to the models; ``create_all`` and Alembic's autogenerate then create the table.

    :param metadata: such as ``Base.metadata``; its tables are in the database in which the marks are kept
    :param name: the name of the table
    :param schema: the schema of the table; the default schema of the MetaData if omitted
    :raises TrackingError: another table has this name
    """
    if (known := marks_table_of(metadata)) is not None:
        return known
    key = ".".join(filter(None, (schema or metadata.schema, name)))
    if key in metadata.tables:
        raise TrackingError(
            f"The table of marks cannot be named {key!r}, because a table of this name exists already. Give another "
            "name: marks_table(metadata, name=…).",
            metadata.tables[key],
        )
    text = audit_column_types()["changed_by"]
    table = Table(
        name,
        metadata,
        Column("name", text, primary_key=True),
        Column("at", stored_instant_type(), nullable=False),
        Column("changed_by", text),
        schema=schema,
    )
    metadata.info[_INFO_KEY] = table
    _with_marks.add(metadata)
    return table


def marks_table_of(metadata: MetaData) -> Table | None:
    """Return the table of marks of a MetaData, or ``None`` if it has none."""
    known: Table | None = metadata.info.get(_INFO_KEY)
    return known if known is not None and metadata.tables.get(known.key) is known else None


@also_async
def mark(session: _AnySession, name: str) -> Mark:
    """Give the current instant a name, in the session's transaction.

    Whatever the session has written or has still to flush is flushed first. What one transaction writes has one
    instant, that of its first write: make a mark before it, or in a transaction of its own.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param name: a text of 1 to 255 characters
    :return: the mark, which has the user of the audit context
    :raises QueryError: a mark has this name already, the name is invalid, or the database has no table of marks
    """
    session = checked_session(session)
    if not _may_be_name(name):
        raise QueryError(f"The name of a mark is {name!r}. Give a text of 1 to {USER_ID_LENGTH} characters.", name)
    table, where = _place_of_marks(session)
    session.flush()
    _refuse_known(session, table, where, name)
    made = Mark(name, current_config().now(), current_user_id())
    statement = insert(table).values(name=name, at=literal(made.at, UTCDateTime()), changed_by=made.changed_by)
    try:
        session.execute(statement, bind_arguments=where, execution_options=INTERNAL)
    except IntegrityError as error:  # another transaction made it just now
        raise _known_error(name) from error
    return made


@also_async
def mark_named(session: _AnySession, name: str) -> Mark:
    """Return the mark with a name.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :raises QueryError: there is no such mark, or the database has no table of marks
    """
    session = checked_session(session)
    table, where = _place_of_marks(session)
    for found in _marks_in(session, table, where, name) if _may_be_name(name) else ():
        return found
    raise _unknown_error(session, name)


@also_async
def marks(session: _AnySession) -> list[Mark]:
    """Return all marks, the earliest first.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :raises QueryError: the database has no table of marks
    """
    session = checked_session(session)
    table, where = _place_of_marks(session)
    return _marks_in(session, table, where)


@also_async
def remove_mark(session: _AnySession, name: str) -> None:
    """Remove the mark with a name, in the session's transaction. History is left as it is.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :raises QueryError: there is no such mark, or the database has no table of marks
    """
    session = checked_session(session)
    table, where = _place_of_marks(session)
    statement = delete(table).where(table.c.name == name)
    if _may_be_name(name):
        removed: Any = session.execute(statement, bind_arguments=where, execution_options=INTERNAL)
        if removed.rowcount > 0:
            return
    raise _unknown_error(session, name)


def _may_be_name(name: object) -> bool:
    """Return whether a mark may have a name: a text of the right length, which every database can store."""
    if not isinstance(name, str) or not 0 < len(name) <= USER_ID_LENGTH:
        return False
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name)


def _marks_in(session: Session, table: Table, where: dict[str, Any], name: str | None = None) -> list[Mark]:
    at = type_coerce(table.c.at, UTCDateTime()).label("at")
    statement = select(table.c.name, at, table.c.changed_by).order_by(table.c.at, table.c.name)
    if name is not None:
        statement = statement.where(table.c.name == name)
    rows = session.execute(statement, bind_arguments=where, execution_options=INTERNAL)
    return [Mark(row.name, row.at, row.changed_by) for row in rows]


def _refuse_known(session: Session, table: Table, where: dict[str, Any], name: str) -> None:
    for known in _marks_in(session, table, where, name):
        raise _known_error(name, f", of {known.at.isoformat()}")


def _known_error(name: str, of: str = "") -> QueryError:
    return QueryError(
        f"There is a mark {name!r} already{of}. Choose another name, or call remove_mark(session, {name!r}) first.",
        name,
    )


def _unknown_error(session: Session, name: object) -> QueryError:
    known = ", ".join(repr(each.name) for each in marks(session)[-10:])
    return QueryError(f"There is no mark {name!r}. The latest marks are: {known or 'none'}.", name)


def _place_of_marks(session: Session) -> tuple[Table, dict[str, Any]]:
    """Return the table of marks that a session reads, and the arguments with which it executes a statement there.

    :raises QueryError: there is none
    """
    tables = [metadata.info[_INFO_KEY] for metadata in list(_with_marks)]
    for table in sorted(tables, key=lambda table: str(table.key)):
        where = _bind_arguments_of(session, table)
        if where is not None and table_exists(session.connection(bind_arguments=dict(where)), table):
            return table, where
    missing = ", ".join(sorted({repr(str(table.key)) for table in tables}))
    raise QueryError(
        f"The database has no table {missing}. Create it: Base.metadata.create_all(engine), or a migration."
        if tables
        else "Marks are kept in a table, which no MetaData has. Write marks_table(Base.metadata) next to the models, "
        "and create the table with create_all() or a migration.",
        session,
    )


def _bind_arguments_of(session: Session, table: Table) -> dict[str, Any] | None:
    """Return the bind arguments of the table of marks; it is where the first tracked table of its MetaData is."""
    mapper = next((tracked.mapper for tracked in tracked_tables(table.metadata)), None)
    try:
        return {"clause": table} if mapper is None else bind_arguments_for(session, mapper)
    except UnboundExecutionError:
        return None
