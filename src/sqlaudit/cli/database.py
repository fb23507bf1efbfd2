"""Which database does a command work on, and which models?"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import URL, Engine, MetaData, Table, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError
from sqlalchemy.orm import Session, configure_mappers, sessionmaker

from sqlaudit.cli.failures import Failure, UsageProblem
from sqlaudit.cli.output import row_name
from sqlaudit.cli.reflection import reflected_models
from sqlaudit.cli.secrets import secrets_of
from sqlaudit.hooks.sessions import register_hooks, unregister_hooks
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.sources import name_of, other_names_of, sources_in

_DRIVERS: Final[dict[str, dict[str, str]]] = {
    "postgresql": {"psycopg": "psycopg", "psycopg2": "psycopg2", "pg8000": "pg8000"},
    "mysql": {"pymysql": "pymysql", "mysqldb": "MySQLdb", "mysqlconnector": "mysql.connector"},
}
_DRIVERS["mariadb"] = {**_DRIVERS["mysql"], "mariadbconnector": "mariadb"}
"""The drivers that are not asynchronous, and their packages, the one to prefer first."""
_ASYNCHRONOUS: Final = {"asyncpg", "psycopg_async", "aiomysql", "asyncmy", "aiosqlite", "aioodbc"}
_INSTALL: Final = {"postgresql": "sqlaudit[postgresql]", "mysql": "sqlaudit[mysql]", "mariadb": "sqlaudit[mysql]"}


@dataclass
class Database:
    """The database and the models of a command, found when they are first asked for.

    :ivar given_url: the value of ``--url``, or of ``SQLAUDIT_URL``
    :ivar given_models: the values of ``--models``
    :ivar further_secrets: passwords of other databases
    """

    given_url: str | None
    given_models: Sequence[str]
    further_secrets: list[str] = field(default_factory=list)

    @cached_property
    def url(self) -> URL:
        """The URL, with a driver that is installed.

        :raises UsageProblem: there is none, or it is invalid
        """
        if not self.given_url:
            raise UsageProblem("No database is given. Add --url, or set SQLAUDIT_URL.")
        try:
            url = make_url(self.given_url)
        except (ArgumentError, ValueError):  # the port is no number
            raise UsageProblem(
                "The URL of the database cannot be read. Write one such as "
                "postgresql://user@localhost/shop or sqlite:///shop.db."
            ) from None
        return _with_installed_driver(url)

    def target(self, text: str) -> URL:
        """Return the URL of another database, given as such or as the name of a SQLite file.

        :raises UsageProblem: it cannot be read
        """
        try:
            url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
        except (ArgumentError, ValueError):
            raise UsageProblem("The URL after --to cannot be read. Write one such as sqlite:///march.db.") from None
        self.further_secrets = secrets_of(url)
        return _with_installed_driver(url)

    def untracked(self, name: str) -> Table:
        """Return a table without history, as the database has it.

        :raises UsageProblem: there is none
        """
        schema, _, table = name.rpartition(".")
        try:
            return Table(table, MetaData(), schema=schema or None, autoload_with=self.engine)
        except NoSuchTableError:
            raise UsageProblem(f"The database has no table {name!r}.") from None

    @property
    def secrets(self) -> list[str]:
        """The passwords that no message may show."""
        try:
            own = secrets_of(make_url(self.given_url)) if self.given_url else []
            return own + self.further_secrets
        except (ArgumentError, ValueError):
            return [self.given_url] if self.given_url else []

    @cached_property
    def engine(self) -> Engine:
        """An engine for the URL.

        :raises UsageProblem: there is no such file or driver
        """
        url = self.url
        if url.get_backend_name() == "sqlite":
            _require_file(url)
        try:
            return create_engine(url)
        except (ImportError, NoSuchModuleError) as error:
            raise UsageProblem(f"The driver of {url.drivername}:// is not installed: {error}.") from None

    @cached_property
    def declared(self) -> list[Any]:
        """The tracked classes and association tables that the application declares; empty if it names none."""
        specifications = self.given_models or _models_of_project()
        return [source for text in specifications for source in _sources(text)]

    @cached_property
    def sources(self) -> dict[str, Any]:
        """The tracked classes and association tables, by their names; those of the database if none are declared."""
        declared = self.declared or reflected_models(self.engine)
        if not declared:
            raise Failure(
                "The database has no history tables. Check --url, or create them: see the documentation on migrations."
            )
        by_name: dict[str, Any] = {}
        for source in declared:  # a base class comes before the classes that share its table
            by_name.setdefault(name_of(source), source)
        return by_name

    def row_name(self, table: str, key: Any) -> str:
        """Return the name of a row of a table, which may no longer be tracked."""
        source = self.sources.get(table)
        return row_name(table if source is None else model_of(source).label, key)

    @property
    def roots(self) -> dict[str, Any]:
        """The association tables, and the classes that inherit from no other tracked class, by their names."""
        return {name: each for name, each in self.sources.items() if model_of(each).parent is None}

    def source(self, name: str) -> Any:
        """Return the class or the association table of a name: that of its table, of the class, or its label.

        :raises UsageProblem: there is none
        """
        by_name: dict[str, Any] = {}
        for table_name, source in self.sources.items():
            by_name |= {each.casefold(): source for each in (*other_names_of(source), table_name)}
        found = by_name.get(name.casefold())
        if found is None:
            close = get_close_matches(name.casefold(), by_name, 1)
            hint = f"Did you mean {name_of(by_name[close[0]])!r}?" if close else f"There are {_listed(self.sources)}."
            raise UsageProblem(f"No tracked table is named {name!r}. {hint}")
        return found

    def declared_source(self, name: str) -> Any:
        """Return what :meth:`source` does, where a command needs the application's own models.

        :raises UsageProblem: no models are given
        """
        self.require_models()
        return self.source(name)

    def require_models(self) -> None:
        """Raise if the application's models are not given.

        :raises UsageProblem: they are not
        """
        if not self.declared:
            raise UsageProblem(
                "This command needs the models of the application. Add --models package.module:Base, set "
                'SQLAUDIT_MODELS, or write models = ["package.module:Base"] under [tool.sqlaudit] in pyproject.toml.'
            )

    def chosen(self, names: Iterable[str]) -> list[Any]:
        """Return the application's models of some names; without any all, of a hierarchy of classes the base class.

        :raises UsageProblem: no models are given, or one of them has no such name
        """
        self.require_models()
        return [self.source(name) for name in names] or list(self.roots.values())

    @contextmanager
    def connectable(self) -> Iterator[Engine]:
        """Give the engine."""
        try:
            yield self.engine
        finally:
            self.engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Give a session that records and reads the past. It is committed by the caller."""
        self.sources  # noqa: B018  # the models must be there before the hooks
        sessions = sessionmaker(self.engine)
        register_hooks(sessions)
        try:
            with sessions() as session:
                yield session
        finally:
            unregister_hooks(sessions)
            self.engine.dispose()


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)[:20]) + (" …" if len(names) > 20 else "")


# --- URLs -------------------------------------------------------------------------------------------------------


def _with_installed_driver(url: URL) -> URL:
    """Return a URL whose driver is not asynchronous; without a driver, one that is installed."""
    backend = url.get_backend_name()
    named = url.drivername.partition("+")[2]
    if named and named not in _ASYNCHRONOUS:
        return url
    if backend == "sqlite":
        return url.set(drivername="sqlite")
    drivers = _DRIVERS.get(backend)
    if drivers is None:
        return url
    for driver, package in drivers.items():
        if find_spec(package.partition(".")[0]) is not None:
            return url.set(drivername=f"{backend}+{driver}")
    raise UsageProblem(f"No driver for {backend} is installed. Run pip install '{_INSTALL[backend]}'.")


def _require_file(url: URL) -> None:
    """Raise if a SQLite database is not there, because to connect would create it."""
    name = url.database
    if not name or name == ":memory:" or "mode=memory" in name or url.query.get("mode") == "memory":
        return
    path = Path(unquote(name.removeprefix("file:").partition("?")[0]) if name.startswith("file:") else name)
    if not path.is_file():
        raise UsageProblem(f"There is no file {str(path)!r}. Check the path after sqlite:///.")


# --- models -----------------------------------------------------------------------------------------------------


def _models_of_project() -> list[str]:
    """Return the models that ``SQLAUDIT_MODELS`` or the pyproject.toml of this directory, or one above it, names."""
    if text := os.environ.get("SQLAUDIT_MODELS"):
        return text.replace(",", " ").split()
    for directory in (Path.cwd(), *Path.cwd().parents):
        file = directory / "pyproject.toml"
        if file.is_file():
            try:
                section = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("sqlaudit", {})
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise Failure(f"{file} cannot be read: {error}.") from error
            models = section.get("models", [])
            return [models] if isinstance(models, str) else list(models)
    return []


def _sources(text: str) -> list[Any]:
    """Return the tracked classes and association tables of ``package.module:name``.

    The name is that of a declarative base, a MetaData, a registry or a class; without a name, the module itself.

    :raises UsageProblem: there is no such object, or nothing of it is tracked
    """
    module_name, _, name = text.partition(":")
    if not module_name:
        raise UsageProblem(f"The models are {text!r}. Write package.module:Base.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageProblem(f"The models {text!r} cannot be imported: {error}. Check --models.") from error
    for part in filter(None, name.split(".")):
        if not hasattr(found, part):
            raise UsageProblem(f"{module_name} has no {name!r}. Give a declarative base: {module_name}:Base.")
        found = getattr(found, part)
    configure_mappers()
    sources = sources_in(found)
    if not sources:
        raise UsageProblem(f"{text!r} has no tracked model. Give the base of the models that @track_table decorates.")
    return sources
