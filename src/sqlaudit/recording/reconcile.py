"""What has changed that nobody told? Live rows compared with their open versions, and recorded where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, select, true
from sqlalchemy.orm import Session

from sqlaudit.context import get_audit_context
from sqlaudit.period import is_open
from sqlaudit.recording.bulk.locking import keep_others_out
from sqlaudit.recording.capture import Unseen, WriteContext
from sqlaudit.recording.cascades import by_chain
from sqlaudit.recording.changeset import changeset_of, own_connection
from sqlaudit.recording.policy import warn_of_history_in_sight
from sqlaudit.recording.units import user_fields_of
from sqlaudit.retrieval.ids import ids_given, ids_listed
from sqlaudit.sql.batches import chunks, pages
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.history import moved
from sqlaudit.tracking.models import base_table_of, tracked_model_of
from sqlaudit.tracking.rights import lockable
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable


def record_changes(session: Session, model_class: Any, which: Any = None) -> None:
    """Record what SQL that passed sqlaudit by has done to rows of a model, or of an association table.

    Live rows are compared with their open versions, in the database, and what is missing is written, as changes of
    this transaction in its context: a row without history is taken for a new one. Rows that agree are left alone.
    A few statements per 1,000 rows, in flat memory and in the order of their keys. Where row security restricts the
    role, a row that it does not see is not taken for deleted, and sqlaudit warns if its version is open.

    :param which: the rows: a list of keys, or a criterion, which a row need fulfil now or in its open version; all of
        them if omitted
    :raises TrackingError: the class is not tracked
    """
    session, root = checked_session(session), base_table_of(model_class)
    session.flush()
    connection = own_connection(session, root.mapper)
    warn_of_history_in_sight(connection, [root])
    keep_others_out(connection, root)
    write = WriteContext(connection, changeset_of(session, connection), get_audit_context())
    for keys in _pages(connection, root, model_class, which):
        for chain, some in by_chain(connection, root, keys):
            capture = write.capture(chain, user_fields_of(chain))
            capture.settle(some, inserted=frozenset(some), must_be_found=False, unseen=Unseen.UNKNOWN)


def _pages(connection: Connection, root: TrackedTable, model_class: Any, which: Any) -> Iterator[Sequence[Key]]:
    """Yield the keys of the rows that are meant, in portions; a row may come twice."""
    chain = (root,) if root.is_association else tracked_model_of(model_class).chain
    if which is not None and not isinstance(which, ColumnElement):
        given = ids_given(root.key, ids_listed(which, composite=len(root.key) > 1))["ids"]
        yield from chunks([key if isinstance(key, tuple) else (key,) for key in given])
        return
    criterion = true() if which is None else which
    live = select(*root.key).select_from(model_class).where(criterion)
    live = live.with_for_update(of=root.live) if lockable(connection, [root.live]) else live
    yield from pages(connection, live, root.key)
    recorded: FromClause = root.history
    for table in chain[1:]:
        same = zip((*table.history_key, table.version), (*root.history_key, root.version), strict=True)
        recorded = recorded.join(table.history, and_(*(one == other for one, other in same)))
    then = moved(criterion, dict(pair for table in chain for pair in table.columns))
    versions = select(*root.history_key).select_from(recorded).where(is_open(root.valid_to), then)
    yield from pages(connection, versions, root.history_key)
