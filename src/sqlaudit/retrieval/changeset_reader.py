"""What did all transactions do? Their changesets, all of them or those that meet filters, by pages or at once."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from struct import Struct
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Table,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, QueryableAttribute, Session, scoped_session

from sqlaudit.arguments import checked_actor_type, checked_count, checked_range, checked_user
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Changeset, Operation, Page
from sqlaudit.context import ActorType, text_in
from sqlaudit.erased import unmarked
from sqlaudit.exceptions import QueryError
from sqlaudit.period import EPOCH, TICK, Mark
from sqlaudit.retrieval.changesets import TablesOfBind, known_tables, read_all
from sqlaudit.retrieval.cursors import checked_size, cursor_of, digest_of, place_in
from sqlaudit.retrieval.ids import converted_ids, has_id
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.documents import text_under
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.links import Readable, model_of, related_by
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_GROWTH: Final = 10
_CURSOR: Final = Struct(">q16s")
"""An instant in microseconds, and the id of a changeset."""
_Instant = tuple[datetime, UUID]
"""The place of a changeset in the order of all."""


class FeedFilters(TypedDict, total=False):
    """Further arguments of :func:`~sqlaudit.changes_since`."""

    since: datetime | Mark | None
    user_id: str | int | UUID | None
    actor_type: ActorType | str | None
    on_behalf_of: str | int | UUID | None
    run_id: str | int | UUID | None
    reason: str | None
    extra: Mapping[str, str | int | UUID] | None
    model: Readable | Collection[Readable] | None
    key: Any


class ChangesetFilters(FeedFilters, total=False):
    """Further arguments of :func:`~sqlaudit.changesets` and :func:`~sqlaudit.changesets_page`."""

    until: datetime | Mark | None
    newest_first: bool


@also_async
def changesets(
    session: Session | scoped_session[Any],
    *,
    limit: int | None = None,
    offset: int = 0,
    **filters: Unpack[ChangesetFilters],
) -> list[Changeset]:
    """Return what each database transaction wrote, oldest first.

    .. code-block:: python

        changesets(session, model=Ticket, key=7, extra={"request_id": "42"})

    A transaction whose audit context changed has an entry for each context. A :func:`backfill` is a changeset of its
    own. Baselines that a first change wrote are not listed.

    It executes one statement per bind and 100 tracked tables; two with a filter or a limit. With a limit, it reads
    about as many versions as the changesets have that it returns, which takes more statements if they have many.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param limit: the greatest number of entries to return
    :param offset: the number of entries to leave out first
    :param since: the first instant, included; an aware datetime or a :class:`Mark`
    :param until: the last instant, included; an aware datetime or a :class:`Mark`
    :param user_id: the user who made the changes
    :param newest_first: reverse the order
    :param actor_type: the kind of actor, such as ``"agent"``
    :param on_behalf_of: the user for whom a service or an agent worked
    :param run_id: the run of an agent or a job
    :param reason: the whole reason
    :param extra: values, as text, that the ``extra`` of the audit context has under names
    :param model: only what wrote a tracked model, an association table or what a relationship leads to; or one of
        several
    :param key: only what wrote one row of ``model``: its primary key, also as text; a tuple if it is composite. For a
        relationship, the key of its owner; what moved a link or row to another owner is found for both
    :raises TrackingError: the model is not tracked
    :raises QueryError: a filter is invalid
    """
    session, wanted = checked_session(session), Wanted(**filters)
    begin = checked_count("offset", offset)
    end = None if limit is None else begin + checked_count("limit", limit)
    places = known_tables(session, wanted.tables or ())
    if end is None and wanted.is_everything:
        return sorted(_entries(session, places, wanted, None), key=_time_order, reverse=wanted.newest_first)[begin:]
    return _entries_in_order(session, places, wanted, list(_chosen_instants(session, places, wanted, end)))[begin:end]


@also_async
def changesets_page(
    session: Session | scoped_session[Any],
    *,
    after: str | None = None,
    size: int = 50,
    count: bool = False,
    **filters: Unpack[ChangesetFilters],
) -> Page[Changeset]:
    """Return a page of what database transactions wrote, and the cursor of the next page.

    A transaction that has an entry for each of several contexts is not divided. A page costs the same however far it
    is from the first one.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param after: the ``next`` of the page before; ``None`` for the first page
    :param size: the number of transactions of a page
    :param count: also count the entries of all pages, which reads all of them
    :param filters: the other parameters are those of :func:`changesets`, without ``limit`` and ``offset``
    :raises TrackingError: the model is not tracked
    :raises QueryError: a filter is invalid, ``size`` is less than 1, or ``after`` is not a cursor of this query
    """
    session, wanted, size = checked_session(session), Wanted(**filters), checked_size(size)
    digest = digest_of("changesets", wanted.newest_first, wanted.parameters, [*wanted.names])
    place: _Instant | None = None
    if after is not None:
        microseconds, changeset_id = place_in(after, digest, _CURSOR)
        place = EPOCH + microseconds * TICK, UUID(bytes=changeset_id)
    places = known_tables(session, wanted.tables or ())
    while True:
        chosen = _chosen_instants(session, places, wanted, size + 1, place)
        page = list(chosen)[:size]
        entries = _entries_in_order(session, places, wanted, page)
        is_last = len(chosen) <= size
        if entries or is_last:
            break
        place = chosen[page[-1]], page[-1]
    following = None
    if not is_last:
        end = _CURSOR.pack((chosen[page[-1]] - EPOCH) // TICK, page[-1].bytes)
        following = cursor_of(digest, end)
    total = len(changesets(session, **filters)) if count else None
    return Page(items=entries, next=following, total=total)


def changesets_after(
    session: Session,
    places: Sequence[TablesOfBind],
    wanted: Wanted,
    after: _Instant | None,
    size: int,
    *,
    before: datetime,
) -> tuple[list[Changeset], _Instant]:
    """Return what the next transactions wrote, oldest first, and the place up to which there are no others.

    :param after: the instant and id of the transaction to begin after
    :param size: the greatest number of transactions
    :param before: leave out the transactions from this instant on
    """
    chosen = _chosen_instants(session, places, wanted, size, after)
    page = [changeset_id for changeset_id, instant in chosen.items() if instant < before]
    end = (chosen[page[-1]], page[-1]) if len(page) == size else (before, UUID(int=0))
    return _entries_in_order(session, places, wanted, page), end


class Wanted:
    """Which changesets are asked for.

    :ivar parameters: the values of the filters, by the names of the statements' parameters
    :ivar actor: the attributes that an entry has to have
    :ivar tables: the tables of which a changeset has to have a version, each with the columns that hold the key that
        the version has to have; ``None`` for all tables
    """

    def __init__(
        self,
        *,
        since: datetime | Mark | None = None,
        until: datetime | Mark | None = None,
        user_id: str | int | UUID | None = None,
        newest_first: bool = False,
        actor_type: ActorType | str | None = None,
        on_behalf_of: str | int | UUID | None = None,
        run_id: str | int | UUID | None = None,
        reason: str | None = None,
        extra: Mapping[str, str | int | UUID] | None = None,
        model: Readable | Collection[Readable] | None = None,
        key: Any = None,
    ) -> None:
        self.newest_first = newest_first
        given = {"changed_by": user_id, "reason": reason}
        if reason is not None and not isinstance(reason, str):
            raise QueryError(f"reason is {reason!r}. Give a text.", reason)
        self.context = {
            name: checked_user("user_id", value) if name == "changed_by" else value
            for name, value in given.items()
            if value is not None
        }
        self.extra: dict[str, str] = {}
        if actor_type is not None:
            self.extra["actor_type"] = checked_actor_type("actor_type", actor_type)
        for name, value in (("on_behalf_of", on_behalf_of), ("run_id", run_id)):
            if value is not None:
                self.extra[name] = checked_user(name, value)
        if extra is not None and not isinstance(extra, Mapping):
            raise QueryError(f"extra is {extra!r}. Give a mapping of names to values.", extra)
        self.extra |= {name: checked_user(f"extra[{name!r}]", value) for name, value in (extra or {}).items()}
        self.range = checked_range("The range", since, until)
        self.ids: dict[str, Any] = {}
        self.tables = None if model is None else dict(self._tables_of(model, key))
        if model is None and key is not None:
            raise QueryError(f"key is {key!r}, and model is not given. Give the model whose row has this key.", key)
        names = {f"extra_{place}": value for place, value in enumerate(self.extra.values())}
        self.parameters: dict[str, Any] = {**self.range, **self.context, **names, **self.ids}

    def _tables_of(
        self, model: Readable | Collection[Readable], key: Any
    ) -> Iterator[tuple[TrackedTable, Sequence[Any] | None]]:
        sources = [model] if isinstance(model, (type, Table, Mapped)) else list(model)
        if key is not None and len(sources) != 1:
            raise QueryError(f"key is {key!r}, and model has several models. Give the one whose row has it.", key)
        for source in sources:
            table, columns = model_of(source).table, None
            if key is not None:
                columns = table.history_key
                if isinstance(source, QueryableAttribute):
                    columns = related_by(source).owner_key
                    table = tracked_table(columns[0].table) or table
                self.ids = converted_ids(columns, [key])
            yield table, columns

    @property
    def is_everything(self) -> bool:
        return not self.parameters and self.tables is None

    @property
    def names(self) -> list[str]:
        """The names of what is asked for, which the parameters do not tell."""
        tables = [] if self.tables is None else sorted(table.history.key for table in self.tables)
        columns = [] if self.tables is None else [str(column) for key in self.tables.values() for column in key or ()]
        return [*self.extra, "of", *tables, "by", *columns]

    def places(self, places: Sequence[TablesOfBind]) -> list[TablesOfBind]:
        """Return the tables of which a changeset has to have a version."""
        if self.tables is None:
            return list(places)
        chosen = self.tables
        return [
            TablesOfBind(place.bind_arguments, tuple(table for table in place.tables if table in chosen))
            for place in places
            if not chosen.keys().isdisjoint(place.tables)
        ]

    def is_of_row(self, table: TrackedTable) -> ColumnElement[bool] | None:
        """Return the condition that a version has the key that is asked for; ``None`` if any key will do."""
        columns = None if self.tables is None else self.tables[table]
        if columns is None:
            return None
        has_key = has_id(columns, self.ids)
        if set(table.history_key).issuperset(columns):
            return has_key
        before = HistoryAlias(table)  # a link or row that moves from one owner to another is of both
        had_key = has_id([before.clause.c[column.key] for column in columns], self.ids)
        is_before = before.is_version_of(HistoryAlias(table, table.history), -1)
        has_moved = and_(table.role("operation") == Operation.UPDATE, exists().where(is_before, had_key))
        return or_(has_key, has_moved)

    def conditions(self, table: TrackedTable) -> Iterator[ColumnElement[bool]]:
        """Yield the conditions that a version meets by its context and its key."""
        for name in self.context:
            yield table.role(name) == bindparam(name)
        for place, name in enumerate(self.extra):
            yield text_under(table.role("extra"), name) == bindparam(f"extra_{place}")
        if (is_of_row := self.is_of_row(table)) is not None:
            yield is_of_row

    def chooses(self, entry: Changeset) -> bool:
        """Return whether the context of an entry is asked for."""
        return all(getattr(entry, name) == value for name, value in self.context.items()) and all(
            text_in(entry.extra, name) == value for name, value in self.extra.items()
        )


def _time_order(entry: Changeset) -> tuple[Any, ...]:
    context = (entry.changed_by, entry.impersonated_by, entry.reason)
    return (entry.timestamp, entry.changeset_id, *(text or "" for text in context), _text_of(entry.extra))


def _text_of(extra: Any) -> str:
    return json.dumps(extra, sort_keys=True)


def _chosen_instants(
    session: Session,
    places: Sequence[TablesOfBind],
    wanted: Wanted,
    limit: int | None,
    after: _Instant | None = None,
) -> dict[UUID, datetime]:
    """Return the changesets that match the filters, in the order of their instants: id → instant.

    With a limit, this reads the first versions of each table in that order, by its index, and ten times as many where
    these have too few changesets. So its cost is that of the changesets which are returned, however long history is.

    :param after: leave out the changesets up to this one
    """
    newest_first = wanted.newest_first
    read = partial(_instants, session, wanted.places(places), wanted)
    size = None if limit is None else _GROWTH * (limit + 1)
    while True:
        instants, edge = read(size=size, begin=after and after[0])
        # These changesets may have versions beyond the edge or, the newest first, before the begin.
        if after is not None if newest_first else edge is not None:
            for ids in chunks(list(instants)):
                instants |= read(ids=ids)[0]
        order = sorted(((instant, changeset_id) for changeset_id, instant in instants.items()), reverse=newest_first)
        if after is not None:
            order = [place for place in order if (place < after if newest_first else place > after)]
        chosen = {changeset_id: instant for instant, changeset_id in order[:limit]}
        if edge is None or limit is None or size is None:
            return chosen
        if len(order) >= limit:
            last = order[limit - 1][0] if limit else edge
            if last > edge if newest_first else last < edge:
                return chosen
        size *= _GROWTH


def _instants(
    session: Session,
    places: Sequence[TablesOfBind],
    wanted: Wanted,
    *,
    size: int | None = None,
    ids: Sequence[UUID] | None = None,
    begin: datetime | None = None,
) -> tuple[dict[UUID, datetime], datetime | None]:
    """Return the last instant of each changeset that matches the filters, and the instant up to which all were read.

    :param size: the greatest number of versions to read of each table
    :param ids: the ids of the changesets to read; all if omitted
    :param begin: the first instant to read, in the order that is asked for
    :return: for the instant, ``None`` if all versions were read
    """
    newest_first = wanted.newest_first
    numbers = {table: number for number, table in enumerate(table for place in places for table in place.tables)}
    parameters = dict(wanted.parameters)
    if begin is not None:
        name, outer_of = ("until", min) if newest_first else ("since", max)
        parameters[name] = outer_of(begin, parameters.get(name, begin))

    def instants_in(table: TrackedTable) -> Any:
        at, changeset = table.valid_from, table.role("changeset_id")
        statement = select(changeset.label("changeset"), at.label("at")).where(*wanted.conditions(table))
        if "since" in parameters:
            statement = statement.where(at >= bindparam("since"))
        if "until" in parameters:
            statement = statement.where(at <= bindparam("until"))
        if ids is not None:
            statement = statement.where(changeset.in_(ids))
        if size is not None:
            statement = statement.order_by(at.desc() if newest_first else at).limit(size)
        version = statement.subquery().c
        return select(
            literal(numbers[table], Integer),
            version.changeset,
            func.min(version.at),
            func.max(version.at),
            func.count(),
        ).group_by(version.changeset)

    instants: dict[UUID, datetime] = {}
    counts, edges = Counter[int](), dict[int, datetime]()
    outer, inner = (max, min) if newest_first else (min, max)
    for number, changeset_id, first, last, count in read_all(session, places, instants_in, parameters):
        instants[changeset_id] = max(last, instants.get(changeset_id, last))
        counts[number] += count
        edges[number] = inner(first, last, edges.get(number, first if newest_first else last))
    return instants, outer((edges[number] for number in counts if counts[number] == size), default=None)


def _entries_in_order(
    session: Session, places: Sequence[TablesOfBind], wanted: Wanted, chosen: Sequence[UUID]
) -> list[Changeset]:
    """Return the entries of changesets, in the order of these."""
    order = {changeset_id: number for number, changeset_id in enumerate(chosen)}
    entries = [entry for ids in chunks(chosen) for entry in _entries(session, places, wanted, ids)]
    entries.sort(key=_time_order, reverse=wanted.newest_first)
    return sorted(entries, key=lambda entry: order[entry.changeset_id])


@dataclass(slots=True)
class _Context:
    """What one context of a changeset wrote.

    :ivar is_wanted: whether it wrote a table or row that is asked for
    """

    extra: Any
    tables: set[str]
    is_wanted: bool = False


def _entries(
    session: Session, places: Sequence[TablesOfBind], wanted: Wanted, ids: Sequence[UUID] | None
) -> Iterator[Changeset]:
    """Yield an entry for each context of each changeset, or of the changesets with the ids, if it is asked for."""
    numbers = {table: number for number, table in enumerate(table for place in places for table in place.tables)}
    one: ColumnElement[int] = literal_column("1", Integer)
    zero: ColumnElement[int] = literal_column("0", Integer)

    def contexts(table: TrackedTable) -> Any:
        changeset = table.role("changeset_id")
        columns = [changeset, *(table.role(role) for role in ("changed_by", "impersonated_by", "reason", "extra"))]
        baseline: ColumnElement[str] = literal_column(
            f"'{Operation.BASELINE.value}'"
        )  # a literal: pg8000 would send it as two different parameters
        is_baseline = case((table.role("operation") == baseline, one), else_=zero).label("is_baseline")
        is_wanted: ColumnElement[int] = one if wanted.tables is None or table in wanted.tables else zero
        if wanted.tables is not None and table in wanted.tables:
            is_of_row = wanted.is_of_row(table)
            is_wanted = one if is_of_row is None else func.max(case((is_of_row, one), else_=zero))
        statement = select(
            literal(numbers[table], Integer), is_baseline, is_wanted, func.max(table.valid_from), *columns
        ).group_by(*columns, is_baseline)
        return statement if ids is None else statement.where(changeset.in_(ids))

    names = {number: table.live.fullname for table, number in numbers.items()}
    written: dict[UUID, dict[tuple[Any, ...], _Context]] = defaultdict(dict)
    instants: dict[UUID, datetime] = {}
    rows = read_all(session, places, contexts, dict(wanted.ids))
    for number, is_baseline, is_wanted, at, changeset_id, *who_and_why, marked_extra in rows:
        extra = unmarked(marked_extra)
        instants[changeset_id] = max(at, instants.get(changeset_id, at))
        context = (bool(is_baseline), *who_and_why, _text_of(extra))
        told = written[changeset_id].setdefault(context, _Context(extra, set()))
        told.tables.add(names[number])
        told.is_wanted |= bool(is_wanted)
    for changeset_id, contexts_of_one in written.items():
        only_baselines = all(is_baseline for is_baseline, *_ in contexts_of_one)
        for (is_baseline, changed_by, impersonated_by, reason, _), told in contexts_of_one.items():
            entry = Changeset(
                changeset_id=changeset_id,
                timestamp=instants[changeset_id],
                changed_by=changed_by,
                reason=reason,
                impersonated_by=impersonated_by,
                extra=told.extra,
                tables=tuple(sorted(told.tables)),
            )
            if told.is_wanted and (only_baselines or not is_baseline) and wanted.chooses(entry):
                yield entry
