"""What does a read give for a value that was erased? ``ERASED``, which is no value of any column.

A version tells by itself which of its values were erased: its ``extra`` has the names of their columns under
:data:`MARK`. The column is NULL then; in an open version it has the value of the live row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Column

MARK: Final = "sqlaudit_erased"
"""The name in the ``extra`` of a version under which the names of its erased columns stand, as a list in JSON."""

ERASED_USER: Final = "(erased)"
"""What reads give for a user whom :func:`~sqlaudit.maintenance.erase_actor` has erased. It is the text in the database,
and an audit context takes no user of this name."""


class Erased:
    """The class of :data:`ERASED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ERASED"

    def __reduce__(self) -> str:
        return "ERASED"


ERASED: Final = Erased()
"""What reads give for a value that :func:`~sqlaudit.maintenance.erase` has erased. JSON tells it as
``{"erased": true}``."""


def erased_columns(extra: Any) -> Collection[str]:
    """Return the names of the erased columns of a version.

    :param extra: the ``extra`` of the version
    """
    if not isinstance(extra, dict) or MARK not in extra:
        return ()
    names: list[str] = json.loads(extra[MARK])
    return names


def erased_fields(extra: Any, fields: Iterable[tuple[str, Column[Any]]]) -> Collection[str]:
    """Return the names of the erased fields of a version.

    :param extra: the ``extra`` of the version
    :param fields: the names and history columns of its fields
    """
    columns = erased_columns(extra)
    return {name for name, column in fields if column.name in columns} if columns else ()


def marked(extra: Any, columns: Iterable[str]) -> Any:
    """Return the ``extra`` of a version with further erased columns."""
    known = extra if isinstance(extra, dict) else {} if extra is None else {"extra": extra}
    return {**known, MARK: json.dumps(sorted({*erased_columns(extra), *columns}))}


def unmarked(extra: Any) -> Any:
    """Return what the audit context held: the ``extra`` of a version without the names of its erased columns."""
    if not isinstance(extra, dict) or MARK not in extra:
        return extra
    return {name: value for name, value in extra.items() if name != MARK} or None


def with_erased(names: Sequence[str], values: Iterable[Any], erased: Collection[str]) -> list[Any]:
    """Return values with ``ERASED`` in the place of those that were erased."""
    return [ERASED if name in erased else value for name, value in zip(names, values, strict=True)]
