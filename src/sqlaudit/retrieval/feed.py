"""What is new since a consumer last asked? A feed of changesets, in which none is skipped, however late it commits.

A changeset has the instant before its first write, and others see it when it commits. So an older changeset may appear
after a newer one. The feed ends at a watermark: an instant before which no changeset can still appear.

On PostgreSQL, transactions have numbers, which they get when they first write or lock a row. Each call takes a number
itself, unless a statement without a number is still looking for the rows that it will write, or waiting for them. As
soon as all transactions with smaller numbers have ended, every changeset is visible whose first statement was sent
before the call. The cursor keeps the number until then. So sqlaudit needs no right to see what other roles do.
Elsewhere, the watermark is some time ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from struct import Struct
from typing import Any, Final, Unpack
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Connection, case, column, exists, func, select, table
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Changeset, Page
from sqlaudit.config import current_config
from sqlaudit.exceptions import PrunedError, QueryError
from sqlaudit.period import EPOCH, TICK
from sqlaudit.retrieval.changeset_reader import FeedFilters, Wanted, changesets_after
from sqlaudit.retrieval.changesets import TablesOfBind, known_tables
from sqlaudit.retrieval.cursors import checked_size, cursor_of, digest_of, place_in
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import has_citus
from sqlaudit.tracking.horizons import Look
from sqlaudit.tracking.maintenance_tables import with_maintenance_tables
from sqlaudit.tracking.sessions import checked_session

_DIGEST: Final = digest_of("changes_since")
_CURSOR: Final = Struct(">3qq16s")
"""The three instants of a :class:`_Place` in microseconds, and its two numbers."""
_NEVER: Final = -(1 << 63)
_AGE: Final = timedelta(minutes=1)
_AGE_WITH_NUMBERS: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a consumer is in the feed.

    :ivar last: the instant and the id of the last changeset up to which it was given all
    :ivar watermark: the instant before which no changeset can still appear
    :ivar waiting: the number of a transaction of its own, and the watermark once all with smaller numbers have ended
    """

    last: tuple[datetime, UUID] | None = None
    watermark: datetime | None = None
    waiting: tuple[int, datetime] | None = None

    def pack(self) -> str:
        at, changeset_id = self.last or (None, UUID(int=0))
        number, following = self.waiting or (0, None)
        instants = map(_microseconds, (at, self.watermark, following))
        return cursor_of(_DIGEST, _CURSOR.pack(*instants, number, changeset_id.bytes))

    @classmethod
    def unpack(cls, cursor: str) -> _Place:
        *microseconds, number, changeset_id = place_in(cursor, _DIGEST, _CURSOR)
        at, watermark, following = map(_instant, microseconds)
        last = None if at is None else (at, UUID(bytes=changeset_id))
        return cls(last, watermark, None if following is None else (number, following))


def _microseconds(at: datetime | None) -> int:
    return _NEVER if at is None else (at - EPOCH) // TICK


def _instant(microseconds: int) -> datetime | None:
    return None if microseconds == _NEVER else EPOCH + microseconds * TICK


@also_async
def changes_since(
    session: Session | scoped_session[Any],
    after: str | None = None,
    *,
    size: int = 50,
    min_age: timedelta | None = None,
    **filters: Unpack[FeedFilters],
) -> Page[Changeset]:
    """Return what database transactions wrote since the last call of a consumer, oldest first, and a new cursor.

    .. code-block:: python

        page = changes_since(session, cursor)
        for changeset in page:
            deliver(changeset)
        cursor = page.next  # keep it: it is never None

    Each changeset is given once, and none is skipped, even if it commits after younger ones. So the newest changesets
    are given by a later call: on PostgreSQL, when the transactions that were writing during an earlier call have
    ended; elsewhere, when they have an age. An empty page means that nothing is ready yet.

    Filters leave out transactions, for a consumer that needs some tables only, say. The cursor tells how far the
    consumer has come, whatever the filters: with others, the next page goes on from there.

    On PostgreSQL it executes two statements more than :func:`changesets_page`, and gives its transaction a number.

    :param session: a session; if it is an ``AsyncSession``, await the result. Calls in one transaction see the same
        watermark, so end the transaction between calls
    :param after: the ``next`` of the last page that the consumer has dealt with; ``None`` to begin with the first
        changeset of history
    :param size: the number of transactions of a page
    :param min_age: the age from which changesets are given. On PostgreSQL, where the default is 5 seconds, it must be
        longer than what passes from the begin of a flush until it sends its first write, plus the difference of the
        applications' clocks. Where the default is a minute, it must be longer than any transaction that writes, plus
        what the transaction of this call has taken so far, plus that difference. This is so on other databases, on
        standby servers, on PostgreSQL with Citus, and in a session with several binds or shards
    :param filters: ``since``, the first instant, for a consumer that begins without what was before; ``user_id``,
        ``actor_type``, ``on_behalf_of``, ``run_id``, ``reason``, ``extra``, ``model`` and ``key``, as those of
        :func:`changesets`
    :raises TrackingError: the model is not tracked
    :raises QueryError: ``size`` is less than 1, ``min_age`` is no timedelta or negative, ``after`` is not a cursor
        of this function, or a filter is invalid
    :raises PrunedError: a history was pruned, and the consumer had not seen all that was before its horizon; with
        ``since``, that is before it
    """
    if unknown := filters.keys() - FeedFilters.__annotations__.keys():
        raise TypeError(
            f"changes_since() has no keyword argument {min(unknown)!r}. It has the filters "
            f"{', '.join(sorted(FeedFilters.__annotations__))}."
        )
    session, size, wanted = checked_session(session), checked_size(size), Wanted(**filters)
    if min_age is not None and not (isinstance(min_age, timedelta) and min_age >= timedelta(0)):
        raise QueryError(f"min_age is {min_age!r}. Give a timedelta that is not negative.", min_age)
    place = _Place() if after is None else _Place.unpack(after)
    places = known_tables(session, wanted.tables or ())
    place = _advanced(session, places, place, min_age)
    if place.watermark is None:
        _refuse_pruned(session, places, wanted, place)
        return Page(items=[], next=place.pack())
    items, last = changesets_after(session, places, wanted, place.last, size, before=place.watermark)
    _refuse_pruned(session, places, wanted, place)
    return Page(items=items, next=_Place(last, place.watermark, place.waiting).pack())


def _advanced(session: Session, places: list[TablesOfBind], place: _Place, min_age: timedelta | None) -> _Place:
    """Return a place with the watermark of this moment. It never goes back."""
    now = current_config().now()  # before the number is taken
    connection = _numbering(session, places)
    number = _STANDBY if connection is None else connection.scalars(_NUMBER).one()
    if connection is None or number == _STANDBY:
        watermark = now - (_AGE if min_age is None else min_age)
        return _Place(place.last, max(watermark, place.watermark or watermark))
    oldest: int = connection.scalars(_OLDEST).one()
    waiting = [] if place.waiting is None else [place.waiting]
    if number != _UNKNOWN:
        waiting.append((number, now - (_AGE_WITH_NUMBERS if min_age is None else min_age)))
    reached = [watermark for own, watermark in waiting if own <= oldest]
    reached += [] if place.watermark is None else [place.watermark]
    waiting = [(own, watermark) for own, watermark in waiting if own > oldest]
    return _Place(place.last, max(reached, default=None), waiting[0] if waiting else None)


def _refuse_pruned(session: Session, places: list[TablesOfBind], wanted: Wanted, place: _Place) -> None:
    """Raise if changesets that the consumer has not seen may have been removed by ``prune``.

    A consumer that begins with what there is misses none.

    :raises PrunedError: they may
    """
    since = wanted.parameters.get("since")
    begin = max((at for at in (place.last and place.last[0], since) if at is not None), default=None)
    if begin is None or not with_maintenance_tables:
        return
    for each in places:
        look = Look(session.connection(bind_arguments=dict(each.bind_arguments)))
        for tracked in each.tables:
            horizon = look.horizon_of(tracked) if wanted.tables is None or tracked in wanted.tables else None
            if horizon is not None and begin < horizon:
                raise PrunedError(
                    f"{tracked.live.fullname!r} was pruned before {horizon.isoformat()}, and the consumer has seen its "
                    f"changesets up to {begin.isoformat()} only, so some may be gone. Let the consumer read what there "
                    "is now, and go on from the horizon: changes_since(…, since=error.pruned_before).",
                    tracked.live,
                    horizon,
                )


def _numbering(session: Session, places: list[TablesOfBind]) -> Connection | None:
    """Return the connection whose database numbers all transactions that write what a session reads, if any."""
    if len(places) != 1 or "bind" not in places[0].bind_arguments:
        return None
    connection = session.connection(bind_arguments=dict(places[0].bind_arguments))
    return connection if connection.dialect.name == "postgresql" and not has_citus(connection) else None


# --- the numbers of PostgreSQL's transactions -------------------------------------------------------------------

_STANDBY, _UNKNOWN = -1, 0


def _is_about_to_write() -> ColumnElement[bool]:
    """Return the condition that a transaction without a number executes a statement that writes or locks rows."""
    names = ("locktype", "mode", "virtualtransaction", "database")
    locks = table("pg_locks", *map(column, names), schema="pg_catalog")
    databases = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
    of_table, of_number = locks.alias(), locks.alias()
    has_number = exists().where(
        of_number.c.locktype == "transactionid",
        of_number.c.mode == "ExclusiveLock",
        of_number.c.virtualtransaction == of_table.c.virtualtransaction,
    )
    this_database = select(databases.c.oid).where(databases.c.datname == func.current_database()).scalar_subquery()
    return exists().where(
        of_table.c.locktype == "relation",
        of_table.c.mode.in_(["RowShareLock", "RowExclusiveLock"]),
        of_table.c.database == this_database,
        ~has_number,
    )


_NUMBER: Final = select(
    case(
        (func.pg_is_in_recovery(), _STANDBY),  # it gives no numbers
        (_is_about_to_write(), _UNKNOWN),
        else_=func.txid_current(type_=BigInteger),  # after the locks have been looked at
    )
).execution_options(**INTERNAL)
"""Takes the number of the own transaction."""
_OLDEST: Final = select(func.txid_snapshot_xmin(func.txid_current_snapshot(), type_=BigInteger)).execution_options(
    **INTERNAL
)
"""Reads the smallest number of a transaction that is running."""
