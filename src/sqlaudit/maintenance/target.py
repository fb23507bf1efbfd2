"""Where does a checkout go? Into an empty database, of which nothing is left if the checkout fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, MetaData, NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.schema import CreateSchema

from sqlaudit.exceptions import QueryError, SQLAuditError
from sqlaudit.sql.dialects import MYSQL, TRAITS

_FAST: Final = ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF")
"""What a new file of SQLite does not need, since it is removed after a failure."""


@contextmanager
def opened_target(to: str | URL | Engine) -> Iterator[Engine]:
    """Give an engine for an empty database. A file of SQLite gets its name when the block has succeeded.

    :raises QueryError: it is no URL, its driver is not installed, or the file exists
    """
    if isinstance(to, Engine):
        yield to
        return
    try:
        url = make_url(to)
        dialect = url.get_dialect()
        if dialect.is_async:
            raise QueryError("checkout() writes with a synchronous driver. Give a URL with one, such as 'sqlite:///…'.")
        if dialect.name != "sqlite":
            engine = create_engine(url, poolclass=NullPool)
    except ValueError as error:
        if isinstance(error, QueryError):
            raise
        raise QueryError(
            "checkout() cannot read the URL of the target. Give one such as 'sqlite:///march.db'."
        ) from None
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise QueryError(f"checkout() cannot use the URL of the target: {_first_line(error)}", None) from error
    if dialect.name == "sqlite":
        with _new_file(url) as engine:
            yield engine
        return
    try:
        yield engine
    finally:
        engine.dispose()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") + "."


@contextmanager
def _new_file(url: URL) -> Iterator[Engine]:
    name = url.database or ""
    if not name or name == ":memory:" or name.startswith("file:"):
        raise QueryError("checkout() makes a file of SQLite. Give its path: sqlite:///march.db.", name)
    file = Path(name).absolute()
    _refuse_existing(file)
    if not file.parent.is_dir():
        raise QueryError(f"The directory {str(file.parent)!r} does not exist. Make it first.", name)
    handle, partial = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    os.close(handle)
    engine = create_engine(url.set(database=partial), poolclass=NullPool)
    event.listen(engine, "connect", _write_fast)
    try:
        yield engine
        engine.dispose()
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        _refuse_existing(file)
        _share_like_others(partial)
        os.replace(partial, file)
    finally:
        engine.dispose()
        with suppress(FileNotFoundError):
            os.unlink(partial)


def _refuse_existing(file: Path) -> None:
    if file.exists() and file.stat().st_size:
        raise QueryError(f"{str(file)!r} exists already. Give the path of a new file.", str(file))


def _write_fast(connection: Any, record: object) -> None:
    for pragma in _FAST:
        connection.execute(pragma)


def _share_like_others(partial: str) -> None:
    """Give a temporary file, which only its owner may read, the rights of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(partial, 0o666 & ~mask)


@contextmanager
def filled_at_once(engine: Engine, metadata: MetaData) -> Iterator[Connection]:
    """Give a connection to an empty database, in a transaction. If the block fails, no table is left.

    :raises QueryError: the database cannot be reached, or has tables
    """
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise QueryError(f"checkout() cannot connect to the target: {_first_line(error.orig or error)}") from error
    with connection:
        schemas = {table.schema for table in metadata.tables.values()}
        _refuse_tables(connection, {None, *schemas})
        connection.rollback()
        try:
            with connection.begin():
                _prepare(connection)
                for schema in sorted(filter(None, schemas)):
                    connection.execute(CreateSchema(schema, if_not_exists=True))
                yield connection
        except BaseException:
            traits = TRAITS[connection.dialect.name]
            if traits.commits_ddl or traits.begins_late:
                connection.rollback()
                _drop_tables(connection, metadata)
            raise


def _refuse_tables(connection: Connection, schemas: Iterable[str | None]) -> None:
    inspector = inspect(connection)
    existing = inspector.get_schema_names()
    for schema in schemas:
        names = [] if schema is not None and schema not in existing else inspector.get_table_names(schema)
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise QueryError(f"The target of checkout() has tables already: {shown}. Give an empty database.", names)


def _prepare(connection: Connection) -> None:
    name = connection.dialect.name
    if name == "postgresql":
        connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))  # for naive values of other databases
    elif name in MYSQL:
        connection.execute(text("SET SESSION sql_mode = CONCAT(@@sql_mode, ',NO_AUTO_VALUE_ON_ZERO')"))


def _drop_tables(connection: Connection, metadata: MetaData) -> None:
    with suppress(DBAPIError):
        if connection.dialect.name in MYSQL:
            connection.execute(text("SET SESSION foreign_key_checks = 0"))
        for table in metadata.tables.values():
            table.drop(connection, checkfirst=True)
        connection.commit()


def refused_rows_error(table: str, error: Exception) -> SQLAuditError:
    """Return the error for rows that the target refuses."""
    cause = getattr(error, "orig", None) or error
    return SQLAuditError(
        f"The target of checkout() refuses rows of {table}: {_first_line(cause)} Nothing is left of the checkout. "
        "Check out into a database of the kind of the source.",
        table,
    )
