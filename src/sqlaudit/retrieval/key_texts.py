"""How is a key of a row kept as text? As JSON, from which the types of its columns read it again."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

from sqlaudit.exceptions import QueryError
from sqlaudit.retrieval.ids import converted_ids
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import json_value


def checked_key(table: TrackedTable, resource_id: Any, remedy: str) -> tuple[Key, str]:
    """Return a key, and the text that stands for it in the tables of maintenance.

    :param remedy: what to do if there is no such text

    :raises QueryError: it is no key of the table, or cannot be read from a text again
    """
    ids = converted_ids(table.history_key, [resource_id])["ids"]
    if not ids:
        raise QueryError(
            f"{resource_id!r} is no key of {table.live.fullname!r}. Give the primary key; a tuple if it is composite.",
            resource_id,
        )
    key = ids[0] if len(table.key) > 1 else (ids[0],)
    text = json.dumps([_part(value) for value in key])
    try:
        parsed = parsed_key(table, text)
    except QueryError:
        parsed = ()
    if parsed != key:
        raise QueryError(
            f"The key {resource_id!r} of {table.live.fullname!r} is of a type that cannot be kept as text. {remedy}",
            resource_id,
        )
    return key, text


def _part(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else json_value(value)


def key_texts(key: Any) -> list[str]:
    """Return the texts of the parts of a key, for a URL. :func:`key_from_texts` reads them again."""
    parts = [_part(value) for value in (key if isinstance(key, tuple) else (key,))]
    return [part if isinstance(part, str) else json.dumps(part) for part in parts]


def key_from_texts(table: TrackedTable, texts: Sequence[str]) -> Any:
    """Return the key that texts stand for: a tuple if it is composite; ``None`` if they are no key of the table."""
    if len(texts) != len(table.history_key):
        return None
    with suppress(ValueError):
        pairs = zip(texts, table.history_key, strict=True)
        ids = converted_ids(table.history_key, [tuple(_from_part(text, column.type) for text, column in pairs)])["ids"]
        return ids[0] if ids else None
    return None


def parsed_key(table: TrackedTable, text: str) -> Key:
    """Return the key that a text stands for.

    :raises QueryError: the table has another key now
    """
    with suppress(ValueError):
        pairs = zip(json.loads(text), table.history_key, strict=True)
        parts = [_from_part(part, column.type) for part, column in pairs]
        for key in converted_ids(table.history_key, [parts])["ids"]:
            return key if len(table.key) > 1 else (key,)
    raise QueryError(
        f"A hold or an erasure names the row {text} of {table.live.fullname!r}, which is no key of it. Has its key "
        "changed? Release the hold, and renew it; or correct the row in the table.",
        table.live,
    )


def _from_part(part: Any, type_: Any) -> Any:
    try:
        wanted = type_.python_type
    except NotImplementedError:
        return part
    if isinstance(part, str) and wanted is bytes:
        return b64decode(part)
    if isinstance(part, str) and wanted is bool:
        return {"true": True, "false": False}.get(part, part)
    return wanted[part] if isinstance(part, str) and issubclass(wanted, Enum) and part in wanted.__members__ else part
