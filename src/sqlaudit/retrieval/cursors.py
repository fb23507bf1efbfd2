"""Where does the next page begin? A cursor says it, as a short text that may be part of a URL.

A cursor is the place at which a page of a query ended, which is numbers of a fixed size, or the key of a row as JSON;
and a digest of both the query and the place, so that a cursor is only taken as it was given.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from struct import Struct
from typing import Any, Final
from uuid import UUID

from sqlaudit.arguments import checked_count
from sqlaudit.exceptions import QueryError
from sqlaudit.retrieval.ids import listed_ids


def checked_size(size: Any) -> int:
    """Return the size of a page.

    :raises QueryError: it is not an int from 1
    """
    if checked_count("size", size) == 0:
        raise QueryError("size is 0, and a page has at least one item. Give an int from 1.", size)
    return int(size)


def cursor_of(digest: bytes, place: bytes) -> str:
    """Return the cursor of a place, as text that may be part of a URL."""
    return _text_of(_sealed(digest, place) + place)


def place_in(cursor: Any, digest: bytes, *forms: Struct) -> tuple[Any, ...]:
    """Return what a cursor says of the place where a page ended.

    :param forms: the forms that it may have, of different sizes
    :raises QueryError: it is not a cursor, it is one of another query, or it was altered
    """
    place = _place_in(cursor, digest)
    form = next((form for form in forms if form.size == len(place)), None)
    if form is None:
        raise _foreign(cursor)
    return form.unpack(place)


def _text_of(packed: bytes) -> str:
    return urlsafe_b64encode(packed).decode().rstrip("=")


def _place_in(cursor: Any, digest: bytes) -> bytes:
    try:
        packed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if _text_of(packed) != cursor:
            raise ValueError(cursor)
    except (TypeError, ValueError):
        packed = b""
    if len(packed) < len(digest):
        raise QueryError(f"after is {cursor!r}, which is not a cursor. Give the next of the page before.", cursor)
    seal, place = packed[: len(digest)], packed[len(digest) :]
    if seal != _sealed(digest, place):
        raise _foreign(cursor)
    return place


def _sealed(digest: bytes, place: bytes) -> bytes:
    return hashlib.blake2b(digest + place, digest_size=len(digest)).digest()


def _foreign(cursor: Any) -> QueryError:
    return QueryError(
        f"after is {cursor!r}, which is the cursor of another query, or was altered. Give it with the model, filters "
        "and order of the page that it comes from, or begin without it.",
        cursor,
    )


# --- keys of rows -----------------------------------------------------------------------------------------------

_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_AS_TEXT: Final[Mapping[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]]] = {
    "bytes": (bytes, lambda value: b64encode(value).decode(), b64decode),
    "decimal": (Decimal, str, Decimal),
    "uuid": (UUID, str, UUID),
}
"""How JSON holds the values of a raw key that it does not know: by the name of their type."""


def key_cursor(digest: bytes, table: int, key: Sequence[Any]) -> str:
    """Return the cursor of a page that ended at the row with a raw key.

    :param table: the place of the row's table among those of the query
    """
    return cursor_of(digest, _JSON.encode([table, *map(_as_json, key)]).encode("utf-8", "surrogatepass"))


def key_in(cursor: Any, digest: bytes, lengths: Sequence[int]) -> tuple[int, list[Any]]:
    """Return the place of the table, and the raw key, of a cursor.

    :param lengths: the numbers of columns of the keys of the query's tables
    :raises QueryError: it is not a cursor, it is one of another query, or it was altered
    """
    place = _place_in(cursor, digest)
    try:  # who knows the query can seal anything
        table, *key = json.loads(place.decode("utf-8", "surrogatepass"))
        values = [*map(_from_json, key)]
        is_key = table >= 0 and len(values) == lengths[table]
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError):
        is_key = False
    if not is_key:
        raise _foreign(cursor)
    return table, values


def _as_json(value: Any) -> Any:
    value = bytes(value) if isinstance(value, (bytearray, memoryview)) else value
    for name, (type_, write, _) in _AS_TEXT.items():
        if isinstance(value, type_):
            return {name: write(value)}
    return value


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(name, text)] = value.items()
    return _AS_TEXT[name][2](text)


# --- queries ----------------------------------------------------------------------------------------------------


def digest_of(*parts: Any) -> bytes:
    """Return a digest of what a query asks for: the same in every process."""
    return hashlib.blake2b(repr([*map(_plainly, parts)]).encode(), digest_size=8).digest()


def _plainly(part: Any) -> Any:
    """Return a value whose text depends on nothing but the value. The order of filters does not matter."""
    if isinstance(part, dict):
        return sorted((repr(name), sorted(repr(_plainly(item)) for item in listed_ids(part[name]))) for name in part)
    if isinstance(part, (set, frozenset)):
        return sorted(repr(_plainly(item)) for item in part)
    if isinstance(part, (list, tuple)):
        return [*map(_plainly, part)]
    text = repr(part)
    return type(part).__qualname__ if text == object.__repr__(part) else text
