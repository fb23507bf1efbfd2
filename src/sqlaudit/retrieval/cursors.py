"""Where does the next page begin? A cursor says it, as a short text that may be part of a URL.

A cursor is the digest of a query, and the place at which a page of this query ended.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from struct import Struct
from typing import Any

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


def place_in(cursor: Any, digest: bytes, form: Struct) -> tuple[Any, ...]:
    """Return what a cursor says of the place where a page ended.

    :raises QueryError: it is not a cursor, or it is one of another query
    """
    try:
        packed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if cursor_text(packed) != cursor:
            raise ValueError(cursor)
    except (TypeError, ValueError):
        packed = b""
    if len(packed) < len(digest):
        raise QueryError(f"after is {cursor!r}, which is not a cursor. Give the next of the page before.", cursor)
    if packed[: len(digest)] != digest or len(packed) != form.size:
        raise QueryError(
            f"after is {cursor!r}, which is the cursor of another query. Give it with the model, filters and order of "
            "the page that it comes from, or begin without it.",
            cursor,
        )
    return form.unpack(packed)[1:]


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
