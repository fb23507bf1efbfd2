"""What does history store in place of a text that it must not have? A keyed hash, which the database computes.

The hash is HMAC-SHA256 of the text in UTF-8, by RFC 2104: ``SHA256(outer || SHA256(inner || text))``, in hexadecimal
digits. PostgreSQL, MariaDB and MySQL have the functions for it. SQLite does not: :func:`prepare_redaction` gives them
to a connection.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal

from sqlalchemy import CHAR, BindParameter, ColumnElement, Connection, String, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.config import required_redaction_key
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.keys import undecorated

Redaction = Literal["hash", "mask"] | Callable[[ColumnElement[Any]], ColumnElement[Any]]
"""What history stores in place of a value, as ``track_table(redact=…)`` names it."""

REDACTED_LENGTH: Final = 64
"""The length of a hash, which is longer than a mask."""
_BLOCK: Final = 64
_READY: Final = "sqlaudit_redacts"


class _Secret(str):
    """A text that is not shown by logs and errors, which contain the ``repr`` of parameters."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def _padded_key(byte: int) -> str:
    key = required_redaction_key()
    block = sha256(key).digest() if len(key) > _BLOCK else key
    return _Secret(bytes(part ^ byte for part in block.ljust(_BLOCK, b"\0")).hex())


def _padded_keys() -> tuple[BindParameter[str], BindParameter[str]]:
    """Return the parameters for the inner and the outer key. They are not known before a statement is executed."""
    names = (("inner", 0x36), ("outer", 0x5C))
    inner, outer = (
        bindparam(f"sqlaudit_{name}_key", callable_=partial(_padded_key, byte), type_=String()) for name, byte in names
    )
    return inner, outer


class _Redacted(FunctionElement[str]):
    """What history stores in place of a text. NULL stays NULL."""

    type = String(REDACTED_LENGTH)
    inherit_cache = True

    def __init__(self, text: ColumnElement[Any]) -> None:
        super().__init__(text, *_padded_keys())

    @property
    def value(self) -> ColumnElement[Any]:
        return next(iter(self.clauses))

    @property
    def padded_keys(self) -> list[ColumnElement[str]]:
        """The inner and the outer key."""
        return list(self.clauses)[1:]


class hashed(_Redacted):
    """The keyed hash of a text."""

    inherit_cache = True


class masked(_Redacted):
    """The last four characters of a text, and a short keyed hash, which tells apart texts that end alike.

    Of a text of at most eight characters, none is shown.
    """

    inherit_cache = True


def redacted(value: ColumnElement[Any], redaction: Redaction) -> ColumnElement[Any]:
    """Return the expression that history stores in place of a value.

    :param redaction: what ``track_table(redact=…)`` has for its column
    """
    if redaction == "hash":
        return hashed(value)
    return masked(value) if redaction == "mask" else redaction(value)


def prepare_redaction(connection: Connection) -> None:
    """Let the statements of a connection hash and mask.

    :raises SQLAuditError: no key is configured
    """
    required_redaction_key()
    if connection.dialect.name == "sqlite" and _READY not in connection.info:
        driver_connection: Any = connection.connection.dbapi_connection
        for name, function in (("sqlaudit_hashed", _hash), ("sqlaudit_masked", _mask)):
            driver_connection.create_function(name, 1, function, deterministic=True)
        connection.info[_READY] = True


# --- PostgreSQL -------------------------------------------------------------------------------------------------


@compiles(hashed)
def _hashed(element: _Redacted, compiler: SQLCompiler, **kw: Any) -> str:
    inner, outer = (compiler.process(key, **kw) for key in element.padded_keys)
    first = f"sha256(decode({inner}, 'hex') || convert_to({_text_of(element, compiler, **kw)}, 'UTF8'))"
    return f"encode(sha256(decode({outer}, 'hex') || {first}), 'hex')"


@compiles(masked)
def _masked(element: masked, compiler: SQLCompiler, **kw: Any) -> str:
    text = _text_of(element, compiler, **kw)
    end = f"CASE WHEN char_length({text}) > 8 THEN right({text}, 4) ELSE '' END"
    return f"('****' || {end} || ' ' || left({_hashed(element, compiler, **kw)}, 8))"


def _text_of(element: _Redacted, compiler: SQLCompiler, **kw: Any) -> str:
    """Return the value as text; without the blanks that a CHAR is padded with, as a parameter of its type has them."""
    text = f"CAST({compiler.process(element.value, **kw)} AS TEXT)"
    return f"rtrim({text})" if isinstance(undecorated(element.value.type, compiler.dialect), CHAR) else text


# --- MariaDB and MySQL ------------------------------------------------------------------------------------------


@compiles(hashed, *MYSQL)
def _hashed_on_mysql(element: _Redacted, compiler: SQLCompiler, **kw: Any) -> str:
    text, inner, outer = (compiler.process(clause, **kw) for clause in element.clauses)
    first = f"SHA2(CONCAT(UNHEX({inner}), CAST(CONVERT({text} USING utf8mb4) AS BINARY)), 256)"
    return f"SHA2(CONCAT(UNHEX({outer}), UNHEX({first})), 256)"


@compiles(masked, *MYSQL)
def _masked_on_mysql(element: masked, compiler: SQLCompiler, **kw: Any) -> str:
    text, hash_ = compiler.process(element.value, **kw), _hashed_on_mysql(element, compiler, **kw)
    return f"CONCAT('****', IF(CHAR_LENGTH({text}) > 8, RIGHT({text}, 4), ''), ' ', LEFT({hash_}, 8))"


# --- SQLite -----------------------------------------------------------------------------------------------------


@compiles(hashed, "sqlite")
def _hashed_on_sqlite(element: hashed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"sqlaudit_hashed({compiler.process(element.value, **kw)})"


@compiles(masked, "sqlite")
def _masked_on_sqlite(element: masked, compiler: SQLCompiler, **kw: Any) -> str:
    return f"sqlaudit_masked({compiler.process(element.value, **kw)})"


def _hash(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, bytes) else str(value).encode()
    return hmac.digest(required_redaction_key(), text, "sha256").hex()


def _mask(value: Any) -> str | None:
    hash_ = _hash(value)
    if hash_ is None:
        return None
    text = str(value)
    return f"****{text[-4:] if len(text) > 8 else ''} {hash_[:8]}"
