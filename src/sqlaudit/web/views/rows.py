"""What happened to a row, and what is it, or was it as of an instant?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup
from sqlalchemy import inspect, select
from sqlalchemy.orm import Mapper, RelationshipProperty, Session, lazyload, with_parent
from starlette.responses import Response

from sqlaudit.changes import FieldChange, Operation, Page, VersionInfo
from sqlaudit.display import safe
from sqlaudit.erased import ERASED
from sqlaudit.exceptions import QueryError, SQLAuditError
from sqlaudit.past.comparing import state_of
from sqlaudit.past.session import time_travel
from sqlaudit.period import OPEN_END, TICK
from sqlaudit.retrieval.field_changes import versions_of
from sqlaudit.retrieval.pages import changes_page
from sqlaudit.tracking.history import version_info
from sqlaudit.tracking.horizons import refuse_pruned_in
from sqlaudit.tracking.links import related_names
from sqlaudit.tracking.models import tracked_model
from sqlaudit.web.instants import instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.timeline import Teller
from sqlaudit.web.view import View
from sqlaudit.web.views.restoring import restore_url
from sqlaudit.web.visit import Visit

_STEPS: Final = 60
"""The latest versions for which the bar has marks."""
_NEIGHBOURS: Final = 5
"""The versions among which the previous change is looked for: one transaction may leave several."""
_RELATED: Final = 20
"""The rows of a relationship that are shown."""
_WIDTH: Final = 1000
"""The width of the bar, in units of its own."""


def _row(visit: Visit) -> Response:
    """Show a row, as it is or as it was, and what happened to it up to then."""
    with visit.reading():
        latest = versions_of(visit.session, visit.source, visit.key, newest_first=True, limit=_STEPS)
        if not latest:
            raise visit.unknown_row()
        version = latest[0] if visit.at is None else _state(visit, visit.at, latest)
        info = None if version is None else VersionInfo(**version_info(version))
        is_there = info is not None and info.operation is not Operation.DELETE
        is_deleted = info is not None and not is_there
        before = None if info is None else info.timestamp - TICK
        page = _changes(visit, latest[0])
        return visit.render(
            "row.html",
            heading=visit.row_name(visit.title, visit.key),
            is_absent=info is None,
            tombstone=info if is_deleted else None,
            before_deletion=None if before is None else instant_text(before),
            is_unknown=visit.at is None and is_there and _end_of(latest[0]) != OPEN_END,
            fields=list(_fields(visit, version)) if is_there else [],
            related=list(_related(visit)) if is_there else [],
            restore_url=restore_url(visit, before if is_deleted else visit.at),
            steps=_steps(visit, latest, version),
            stories=Teller(visit, _subject(visit, latest[0])).stories(page),
            is_cut=visit.is_cut(page),
            filters=list(_filters(visit)),
            beginning=_beginning(visit, latest) if page.next is None else None,
            older=None if page.next is None else visit.here(after=page.next),
            newest=visit.here(after=None) if visit.parameter("after") else None,
        )


ROW: Final = View(page="row", action="view", work=_row, needs_key=True)


def _state(visit: Visit, at: datetime, latest: Sequence[Any]) -> Any:
    """Return the version that was true at an instant; ``None`` if the row did not exist.

    :param latest: the latest versions: most visitors look no further back
    :raises Problem: it is unknown
    """
    refuse_pruned_in(visit.session, [visit.model.root.table], at)
    for version in latest:
        if version_info(version)["timestamp"] <= at < _end_of(version):
            return version
    try:
        return state_of(visit.session, visit.model, visit.source, visit.key, at)
    except QueryError:
        raise Problem(410, "unknown_state") from None


def _end_of(version: Any) -> datetime:
    end: datetime = getattr(version, version.__sqlaudit_model__.root.table.names.valid_to)
    return end


# --- values -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    value: Markup


def _fields(visit: Visit, version: Any) -> Iterator[_Field]:
    """Yield the values of a version, those of its key first. What refers to another row is a link to it."""
    model = version.__sqlaudit_model__
    references = dict(_references(visit, model))
    for name in sorted(model.columns, key=lambda name: (name not in model.key_names, name)):
        value = getattr(version, name)
        shown = visit.show.hidden() if visit.is_hidden(visit.source, name) else visit.show.value(value)
        if name in references and value is not None and value is not ERASED:
            url = visit.row_url("row", references[name], value)
            shown = markup('<a href="{}">{}</a>', url, visit.show.short(value))
        yield _Field(safe(name), shown)


def _references(visit: Visit, model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields that are the whole key of a row of another table, each with the source of that row."""
    for name, column in model.columns.items():
        live = model.table.live.c.get(column.key)
        for key in () if live is None else live.foreign_keys:
            source = visit.browser.sources.of_table(key.column.table) if _is_resolved(key) else None
            if source is not None and visit.may(source) and [*key.column.table.primary_key] == [key.column]:
                yield name, source


def _is_resolved(key: Any) -> bool:
    try:
        return key.column is not None
    except Exception:  # the table is in no MetaData
        return False


# --- what belongs to the row ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Relationship:
    name: str
    rows: Sequence[Markup]
    has_more: bool


def _related(visit: Visit) -> Iterator[_Relationship]:
    """Yield the rows that relationships lead to, now or at the instant of the page."""
    family = () if visit.has_links else visit.model.mapper.self_and_descendants
    if not any(_shown_relationships(visit, mapper) for mapper in family):
        return
    if visit.at is None:
        yield from _related_in(visit, visit.session)
        return
    with time_travel(visit.session, visit.at, untracked="live") as past:
        yield from _related_in(visit, past)


def _related_in(visit: Visit, session: Session) -> Iterator[_Relationship]:
    owner = session.get(visit.model.mapper.class_, visit.key, options=[lazyload("*")])  # no collection as a whole
    if owner is None:
        return
    for prop in _shown_relationships(visit, inspect(owner).mapper):
        if not _has_all(owner, prop.local_columns):
            continue
        target, attribute = prop.mapper.class_, getattr(type(owner), prop.key)
        statement = select(target).where(with_parent(owner, attribute)).options(lazyload("*"))
        statement = statement.order_by(*prop.mapper.primary_key).limit(_RELATED + 1)
        rows = session.scalars(statement).all()
        names = [_row_link(visit, each) for each in rows[:_RELATED]]
        yield _Relationship(safe(prop.key), names, len(rows) > _RELATED)


def _shown_relationships(visit: Visit, mapper: Mapper[Any]) -> list[RelationshipProperty[Any]]:
    return [
        prop
        for prop in mapper.relationships
        if prop.uselist and not prop.viewonly and _shown_source(visit, prop) is not None
    ]


def _has_all(row: Any, columns: Iterable[Any]) -> bool:
    """Return whether a row has a value in all columns: nothing can refer to NULL."""
    mapper = inspect(row).mapper
    return all(getattr(row, mapper.get_property_by_column(column).key) is not None for column in columns)


def _shown_source(visit: Visit, prop: RelationshipProperty[Any]) -> Any:
    """Return the source of what a relationship leads to; ``None`` if it is not shown."""
    model = tracked_model(prop.mapper)
    source = None if model is None else visit.browser.sources.of_table(model.table.live)
    return source if source is not None and visit.may(source) else None


def _row_link(visit: Visit, row: Any) -> Markup:
    model = tracked_model(inspect(row).mapper)
    assert model is not None
    parts = tuple(getattr(row, name) for name in model.key_names)
    key = parts if len(parts) > 1 else parts[0]
    source = visit.browser.sources.of_table(model.table.live)
    return markup('<a href="{}">{}</a>', visit.row_url("row", source, key), visit.row_name(model.label, key))


# --- the timeline -----------------------------------------------------------------------------------------------


def _changes(visit: Visit, version: Any) -> Page[FieldChange]:
    """Return the changes of the row, its links and owned rows that the visitor asks for, the latest first."""
    filters: dict[str, Any] = {}
    if visit.at is not None:
        filters["filter_date_range"] = None, visit.at
    if users := visit.parameters("user"):
        filters["filter_user_ids"] = users
    if fields := visit.parameters("field"):
        filters["filter_fields"] = fields
    elif included := _included(visit):
        filters["include"] = included
    field = visit.model.options.resource_id_field
    return changes_page(
        visit.session,
        visit.source,
        getattr(version, field) if field else visit.key,
        newest_first=True,
        after=visit.parameter("after"),
        size=visit.browser.page_size,
        most=visit.most,
        **filters,
    )


def _included(visit: Visit) -> list[str]:
    """Return the names of the relationships whose links and rows belong to the history of the row."""
    model = visit.model
    if visit.has_links or model.options.resource_id_field:
        return []
    names = []
    for prop in model.mapper.relationships:
        if prop.viewonly or _shown_source(visit, prop) is None:
            continue
        try:
            [related] = related_names(model, prop.key)
        except SQLAuditError:  # it leads to one row, or not by the key
            continue
        if visit.browser.sources.of_table(related.model.table.live) is not None:
            names.append(prop.key)
    return names


def _subject(visit: Visit, version: Any) -> tuple[str, Any]:
    field = visit.model.options.resource_id_field
    return visit.model.label, getattr(version, field) if field else visit.key


def _filters(visit: Visit) -> Iterator[tuple[Markup, str]]:
    """Yield the filters of the timeline, each with the URL of the page without it."""
    for name in ("field", "user"):
        values = visit.parameters(name)
        for value in values:
            rest = [other for other in values if other != value]
            text = visit.texts(f"filter_{name}", **{name: safe(value)})
            yield text, visit.here(**{name: rest, "after": None})


def _beginning(visit: Visit, latest: Sequence[Any]) -> Markup:
    """Return how the history of the row begins."""
    is_whole = len(latest) < _STEPS
    first = latest[-1] if is_whole else versions_of(visit.session, visit.source, visit.key, limit=1)[0]
    info = version_info(first)
    when = visit.show.time(info["timestamp"])
    if info["version"] > 1:
        return visit.texts("timeline_pruned", number=info["version"], when=when)
    if info["operation"] is Operation.BASELINE:
        return visit.texts("timeline_baseline", when=when)
    return visit.texts("timeline_begin")


# --- the bar of instants ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A mark of the bar.

    :ivar place: where it is, from the left
    """

    place: float
    url: str
    instant: str
    label: Markup
    is_current: bool


@dataclass(frozen=True, slots=True)
class _Steps:
    """The latest changes of the row on a bar, and the URLs of the changes before and after the instant of the page.

    :ivar current: the number of the mark at which the page is, from 1; 1 if it is before the first
    """

    marks: Sequence[_Step]
    current: int
    back: str | None
    on: str | None


def _steps(visit: Visit, latest: Sequence[Any], version: Any) -> _Steps:
    """Return the bar. Its places are even: much may have happened on one day, and nothing for a year."""
    infos = {info.timestamp: info for info in (VersionInfo(**version_info(version)) for version in latest)}
    instants = sorted(infos)
    at = visit.at or instants[-1]
    current = max((instant for instant in instants if instant <= at), default=None)
    gap = _WIDTH / max(len(instants) - 1, 1)
    urls = {instant: visit.here(at=instant_text(instant), after=None) for instant in instants}
    marks = [
        _Step(
            round(gap * number, 1),
            urls[instant],
            instant_text(instant),
            visit.texts(
                "step", when=instant_text(instant), who=safe(infos[instant].changed_by or visit.texts("nobody"))
            ),
            instant == current,
        )
        for number, instant in enumerate(instants)
    ]
    earlier = [instant for instant in instants if current is not None and instant < current]
    later = [instant for instant in instants if instant > at]
    if current is None and version is not None:  # the page is before the marks
        info = version_info(version)
        earlier = _instants_of(visit, range(info["version"] - 1, info["version"] - _NEIGHBOURS, -1))
        earlier = [instant for instant in earlier if instant < info["timestamp"]][:1]
        later = _instants_of(visit, range(info["version"] + 1, info["version"] + 2))
        urls |= {instant: visit.here(at=instant_text(instant), after=None) for instant in (*earlier, *later)}
    return _Steps(
        marks,
        current=1 if current is None else instants.index(current) + 1,
        back=urls[earlier[-1]] if earlier else None,
        on=urls[later[0]] if later else None,
    )


def _instants_of(visit: Visit, numbers: Iterable[int]) -> list[datetime]:
    """Return when the versions with these numbers were made, as far as there are such versions."""
    instants = []
    for number in numbers:
        with suppress(QueryError):
            version = state_of(visit.session, visit.model, visit.source, visit.key, number)
            instants.append(version_info(version)["timestamp"])
    return instants
