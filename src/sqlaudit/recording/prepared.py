"""How is a statement executed again and again? It is compiled once for a dialect, and then only gets parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from typing import cast as cast_type
from weakref import WeakKeyDictionary

from sqlalchemy import (
    Connection,
    CursorResult,
    Dialect,
    Executable,
)
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from sqlaudit.sql.options import INTERNAL


class Prepared:
    """A statement compiled for one dialect: to execute it, only the parameters have to be bound.

    This halves the cost of the two statements, measured on a transaction that changes one row. The statement itself
    takes ten times the memory of its text, and is built again for the few connections that need it.
    """

    def __init__(self, statement: Executable, rebuild: Callable[[], Executable]) -> None:
        self._statement: Executable | None = statement
        self._rebuild = rebuild
        self._is_compiled = False
        self._sql: str | None = None
        self._positions: list[str] | None = None
        self._constants: dict[str, Any] = {}
        self._called: dict[str, Callable[[], Any]] = {}
        self._types: dict[str, TypeEngine[Any]] = {}

    @property
    def statement(self) -> Executable:
        if (statement := self._statement) is None:
            statement = self._statement = self._rebuild()
        return statement

    def _compile(self, dialect: Dialect) -> None:
        compiled = cast_type(SQLCompiler, self.statement.compile(dialect=dialect))  # type: ignore[attr-defined]
        for name, bind in compiled.binds.items():
            if bind.callable is not None:
                self._called[name] = bind.callable
            elif name.startswith("sqlaudit_"):
                self._types[name] = bind.type
            else:
                processor = _processor(bind.type, dialect)
                self._constants[name] = bind.value if processor is None else processor(bind.value)
        self._positions = compiled.positiontup
        if dialect.bind_typing is not BindTyping.SETINPUTSIZES and not any(
            bind.expanding or bind.literal_execute for bind in compiled.binds.values()
        ):
            self._sql, self._statement = compiled.string, None
        self._is_compiled = True

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        if not self._is_compiled:
            self._compile(connection.dialect)
        if self._sql is None or "schema_translate_map" in connection.get_execution_options():
            return connection.execute(self.statement, parameters)
        bound = self._constants.copy()
        for name, processor in self._processors(connection.dialect):
            bound[name] = parameters[name] if processor is None else processor(parameters[name])
        for name, call in self._called.items():
            bound[name] = call()
        values = bound if self._positions is None else tuple(map(bound.__getitem__, self._positions))
        return connection.exec_driver_sql(self._sql, values, execution_options=INTERNAL)

    def _processors(self, dialect: Dialect) -> list[tuple[str, Any]]:
        """Return the functions that convert the parameters to values for the driver.

        They refer to the dialect, so the dialect keeps them; kept here, they would keep the dialect alive.
        """
        try:
            return cast_type("list[tuple[str, Any]]", vars(dialect)[_PROCESSORS][self])
        except KeyError:
            processors_of_dialect = vars(dialect).setdefault(_PROCESSORS, WeakKeyDictionary())
            processors = processors_of_dialect[self] = [
                (name, _processor(type_, dialect)) for name, type_ in self._types.items()
            ]
            return processors


_PROCESSORS: Final = "sqlaudit_processors"


def _processor(type_: TypeEngine[Any], dialect: Dialect) -> Any:
    return type_.dialect_impl(dialect).bind_processor(dialect)


P = ParamSpec("P")
S = TypeVar("S", bound="Steps")


class Steps:
    """Keeps the statements of the steps that its methods build.

    :ivar built: the statements of each step, by the method and its arguments
    """

    def __init__(self) -> None:
        self.built: dict[Any, list[Prepared]] = {}


def step(build: Callable[Concatenate[S, P], list[Executable]]) -> Callable[Concatenate[S, P], list[Prepared]]:
    """Let a method that builds the statements of one step return them compiled, and build them once per choice."""

    @wraps(build)
    def prepared(self: S, /, *choices: P.args, **named: P.kwargs) -> list[Prepared]:
        kept = (build, *choices, *named.values())
        try:
            return self.built[kept]
        except KeyError:
            statements = built(self, *choices, **named)
            self.built[kept] = [
                Prepared(statement, lambda place=place: built(self, *choices, **named)[place])  # type: ignore[misc]
                for place, statement in enumerate(statements)
            ]
            return self.built[kept]

    def built(self: S, /, *choices: P.args, **named: P.kwargs) -> list[Executable]:
        return [
            statement.execution_options(preserve_rowcount=True, **INTERNAL)
            for statement in build(self, *choices, **named)
        ]

    return prepared
