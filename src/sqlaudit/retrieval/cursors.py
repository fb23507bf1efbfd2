"""Where does the next page begin? A cursor says it, as a short text that may be part of a URL.

A cursor is the digest of a query, and the place at which a page of this query ended: numbers of a fixed size, or the
key of a row, as JSON.
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


def cursor_text(cursor: bytes) -> str:
    """Return a cursor as text that may be part of a URL."""
    return urlsafe_b64encode(cursor).decode().rstrip("=")


def place_in(cursor: Any, digest: bytes, *forms: Struct) -> tuple[Any, ...]:
    """Return what a cursor says of the place where a page ended.

    :param forms: the forms that it may have, of different sizes
    :raises QueryError: it is not a cursor, or it is one of another query
    """
    packed = _packed(cursor, len(digest))
    form = next((form for form in forms if form.size == len(packed)), None)
    if packed[: len(digest)] != digest or form is None:
        raise _foreign(cursor)
    return form.unpack(packed)[1:]


def _packed(cursor: Any, least: int) -> bytes:
    try:
        packed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if cursor_text(packed) != cursor:
            raise ValueError(cursor)
    except (TypeError, ValueError):
        packed = b""
    if len(packed) < least:
        raise QueryError(f"after is {cursor!r}, which is not a cursor. Give the next of the page before.", cursor)
    return packed


def _foreign(cursor: Any) -> QueryError:
    return QueryError(
        f"after is {cursor!r}, which is the cursor of another query. Give it with the model, filters and order of "
        "the page that it comes from, or begin without it.",
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


def key_cursor(digest: bytes, place: int, key: Sequence[Any]) -> str:
    """Return the cursor of a page that ended at the row with a raw key.

    :param place: the place of the row's table among those of the query
    """
    text = _JSON.encode([place, *map(_as_json, key)]).encode("utf-8", "surrogatepass")
    return cursor_text(_sealed(digest, text) + text)


def key_in(cursor: Any, digest: bytes) -> tuple[int, list[Any]]:
    """Return the place and the raw key of a cursor. Its text is as :func:`key_cursor` wrote it, to the byte.

    :raises QueryError: it is not a cursor, or it is one of another query
    """
    packed = _packed(cursor, len(digest))
    seal, text = packed[: len(digest)], packed[len(digest) :]
    if seal != _sealed(digest, text):
        raise _foreign(cursor)
    place, *key = json.loads(text.decode("utf-8", "surrogatepass"))
    return place, [*map(_from_json, key)]


def _sealed(digest: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(digest + text, digest_size=len(digest)).digest()


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
