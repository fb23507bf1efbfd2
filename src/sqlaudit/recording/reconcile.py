"""Which changes did sqlaudit miss? It compares live rows with their open versions, and records the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, select, true
from sqlalchemy.orm import Session

from sqlaudit.context import get_audit_context
from sqlaudit.period import is_open
from sqlaudit.recording.bulk.locking import take_write_lock
from sqlaudit.recording.capture import MissingRows, WriteContext
from sqlaudit.recording.cascades import split_by_chain
from sqlaudit.recording.changeset import changeset_of, connection_for_versions
from sqlaudit.recording.policy import warn_of_visible_history
from sqlaudit.recording.tracked_mappers import user_fields_of
from sqlaudit.retrieval.ids import converted_ids, listed_ids
from sqlaudit.sql.batches import chunks, pages
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.history import rebased_on_history
from sqlaudit.tracking.models import base_table_of, tracked_model_of
from sqlaudit.tracking.rights import lockable_tables
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable


def record_changes(session: Session, model_class: Any, which: Any = None) -> None:
    """Compare rows with their history, and record the differences as changes of this transaction.

    Use it for what sqlaudit could not record: hand-written SQL, other clients, triggers. The database compares each
    live row with its open version. A row without history is recorded as inserted. Rows that agree with their history
    are left alone.

    It executes a few statements per 1,000 rows, in flat memory and in the order of the keys. If row security hides a
    row from the role of the session, sqlaudit does not take the row for deleted, and warns if its version is open.

    .. code-block:: python

        record_changes(session, Customer)
        record_changes(session, Customer, Customer.city == "Rome")
        record_changes(session, Customer, [1, 2, 3])

    :param session: a session that records
    :param model_class: a tracked model, or an association table
    :param which: a list of keys, or a criterion that the live row or its open version fulfils; all rows if omitted
    :raises TrackingError: the model is not tracked
    """
    session, root = checked_session(session), base_table_of(model_class)
    session.flush()
    connection = connection_for_versions(session, root.mapper)
    warn_of_visible_history(connection, [root])
    take_write_lock(connection, root)
    write = WriteContext(connection, changeset_of(session, connection), get_audit_context())
    for keys in _pages(connection, root, model_class, which):
        for chain, keys_of_chain in split_by_chain(connection, root, keys):
            capture = write.capture(chain, user_fields_of(chain))
            capture.settle(
                keys_of_chain, inserted=frozenset(keys_of_chain), must_be_found=False, missing_rows=MissingRows.UNKNOWN
            )


def _pages(connection: Connection, root: TrackedTable, model_class: Any, asked_ids: Any) -> Iterator[Sequence[Key]]:
    """Yield the keys of the chosen rows in batches; a key may appear twice."""
    chain = (root,) if root.is_association else tracked_model_of(model_class).chain
    if asked_ids is not None and not isinstance(asked_ids, ColumnElement):
        asked_keys = converted_ids(root.key, listed_ids(asked_ids, composite=len(root.key) > 1))["ids"]
        yield from chunks([key if isinstance(key, tuple) else (key,) for key in asked_keys])
        return
    criterion = true() if asked_ids is None else asked_ids
    live = select(*root.key).select_from(model_class).where(criterion)
    live = live.with_for_update(of=root.live) if lockable_tables(connection, [root.live]) else live
    yield from pages(connection, live, root.key)
    recorded: FromClause = root.history
    for table in chain[1:]:
        same = zip((*table.history_key, table.version), (*root.history_key, root.version), strict=True)
        recorded = recorded.join(table.history, and_(*(left == right for left, right in same)))
    criterion_then = rebased_on_history(criterion, dict(pair for table in chain for pair in table.columns))
    versions = select(*root.history_key).select_from(recorded).where(is_open(root.valid_to), criterion_then)
    yield from pages(connection, versions, root.history_key)
