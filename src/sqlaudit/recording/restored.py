"""What does a restore leave for the flush that writes its objects? Their reasons, and their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Connection, Table
from sqlalchemy.orm import (
    Mapper,
    Session,
    UOWTransaction,
)

from sqlaudit.recording.overriding import makes_its_keys, override_keys
from sqlaudit.recording.units import State

try:
    from sqlalchemy.orm.unitofwork import _DeleteAll, _SaveUpdateAll  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # before SQLAlchemy 2.1
    from sqlalchemy.orm.unitofwork import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        DeleteAll as _DeleteAll,
    )
    from sqlalchemy.orm.unitofwork import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        SaveUpdateAll as _SaveUpdateAll,
    )

RESTORING: Final = "sqlaudit_restoring"


@dataclass(slots=True)
class Restoring:
    """What restored objects tell the flush that writes them, and no other.

    :ivar reasons: why they are written, if the context does not say, and what was set: if that has been taken back,
        by a refresh for instance, the reason is void
    :ivar links: the same of links, by table and :func:`link_identity`
    :ivar order: (base mapper, base mapper whose rows refer to the first's), where no relationship need say so
    :ivar overridden: what ends the overriding of keys that the database makes
    :ivar overriding: the tables whose keys are overridden, by connection
    """

    reasons: WeakKeyDictionary[State, tuple[str, Mapping[str, Any]]] = field(default_factory=WeakKeyDictionary)
    links: dict[tuple[Table, frozenset[Any]], str] = field(default_factory=dict)
    order: set[tuple[Mapper[Any], Mapper[Any]]] = field(default_factory=set)
    overridden: list[Callable[[], None]] = field(default_factory=list)
    overriding: dict[Connection, set[Table]] = field(default_factory=lambda: defaultdict(set))

    def reason_of(self, state: State) -> str | None:
        """Return why an object is written, if it was restored."""
        reason, values = self.reasons.get(state, (None, {}))
        if values and not any(state.dict.get(name, state) is value for name, value in values.items()):
            return None
        return reason

    def override_keys(self, state: State, connection: Connection) -> None:
        """Let a restored object be inserted with its old key."""
        tables = {table for table in state.mapper.tables if isinstance(table, Table) and makes_its_keys(table)}
        if state in self.reasons and not tables <= self.overriding[connection]:
            self.overridden.append(override_keys(connection, tables - self.overriding[connection]))
            self.overriding[connection] |= tables


def restoring(session: Session) -> Restoring:
    """Return the place where a restore leaves what the next flush of the session needs to know."""
    found: Restoring = session.info.setdefault(RESTORING, Restoring())
    return found


def forget_restoring(session: Session) -> None:
    """Let what a restore left be gone: its flush is over, or its work was rolled back."""
    found: Restoring | None = session.info.pop(RESTORING, None)
    for end in found.overridden if found is not None else ():
        end()


def prepare_restoring(session: Session, context: UOWTransaction) -> None:
    """Let a flush write restored rows in an order that their foreign keys allow.

    The unit of work takes its order from the relationships that changed; restored rows have columns set.
    """
    found: Restoring | None = session.info.get(RESTORING)
    if found is None:
        return
    save: Callable[[UOWTransaction, Mapper[Any]], Any] = _SaveUpdateAll
    delete: Callable[[UOWTransaction, Mapper[Any]], Any] = _DeleteAll
    for parent, child in found.order:
        save_parent, save_child = save(context, parent), save(context, child)
        delete_parent, delete_child = delete(context, parent), delete(context, child)
        context.dependencies |= {
            (save_parent, save_child),
            (save_child, delete_parent),
            (delete_child, delete_parent),
        }


def link_identity(columns: Iterable[Column[Any]], link: Iterable[Any]) -> frozenset[tuple[str, Any]]:
    """Return what tells a link from others, from whichever side it is seen."""
    return frozenset(zip((column.key for column in columns), link, strict=True))
