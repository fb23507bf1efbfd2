"""How are field changes read? By one statement for a model, or for what a relationship leads to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from datetime import datetime
from heapq import merge
from itertools import chain, islice, pairwise
from math import inf
from operator import attrgetter, itemgetter
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    case,
    literal_column,
    null,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.orm import QueryableAttribute, Session

from sqlaudit.arguments import checked_actor_type, checked_count, checked_range, checked_reason, checked_user
from sqlaudit.changes import Equality, FieldChange, Operation, diff, equalities_of
from sqlaudit.context import ACTOR_FACTS
from sqlaudit.erased import MARK, erased_fields, unmarked
from sqlaudit.exceptions import QueryError
from sqlaudit.period import Mark
from sqlaudit.retrieval.filters import ChangeFilters, ValueFilter, checked_operations, wanted_changes
from sqlaudit.retrieval.ids import converted_ids, has_id, is_id, listed_ids, one_id
from sqlaudit.sql.comparing import all_equal, any_of, differs
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.documents import text_under
from sqlaudit.sql.holding import may_hold
from sqlaudit.sql.keys import are_bound_in_sql
from sqlaudit.sql.lists import is_among, one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import rebased_on_history
from sqlaudit.tracking.horizons import refuse_pruned_in
from sqlaudit.tracking.links import Readable, Related, model_of, related_by, related_names
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable, tracked_table

DateRange = tuple[datetime | Mark | None, datetime | Mark | None]
BATCH: Final = 500
_GROWTH: Final = 4
_WIDE: Final = 800
"""The most fields with old and new values in one row: PostgreSQL selects at most 1,664 columns, SQLite 2,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeQuery:
    """Which field changes to read, from the arguments of :func:`~sqlaudit.get_resource_changes`.

    :ivar model: the model whose rows to report
    :ivar related: report the links or rows that a relationship leads to, and not the rows of a model
    :ivar related_rows: report these links and rows, too
    :ivar changeset_ids: report only what these transactions changed
    :ivar after_version: for one row, report only what comes after this version, in the order of the report
    """

    model: TrackedModel
    related: Related | None = None
    related_rows: Sequence[Related] = ()
    filter_resource_ids: Any = None
    filter_fields: str | Iterable[str] | None = None
    filter_user_ids: Any = None
    filter_date_range: DateRange | None = None
    filter_operations: Any = None
    filter_old_values: Any = None
    filter_new_values: Any = None
    filter_actor_types: Any = None
    filter_on_behalf_of: Any = None
    filter_run_ids: Any = None
    filter_reasons: Any = None
    newest_first: bool = False
    limit: int | None = None
    offset: int = 0
    changeset_ids: Sequence[UUID] | None = None
    after_version: int | None = None

    def actors(self) -> dict[str, list[str]]:
        """Return the values of the parameters that choose actors, and why they acted.

        :raises QueryError: a filter is invalid
        """
        filters = {
            "users": (self.filter_user_ids, checked_user, "filter_user_ids"),
            "actor_type": (self.filter_actor_types, checked_actor_type, "filter_actor_types"),
            "on_behalf_of": (self.filter_on_behalf_of, checked_user, "filter_on_behalf_of"),
            "run_id": (self.filter_run_ids, checked_user, "filter_run_ids"),
            "reasons": (self.filter_reasons, checked_reason, "filter_reasons"),
        }
        return {
            name: [check(argument, value) for value in listed_ids(given)]
            for name, (given, check, argument) in filters.items()
            if given is not None
        }


def change_query(source: Readable, filters: ChangeFilters, **arguments: Any) -> ChangeQuery:
    """Return the query of a source, from the arguments of :func:`~sqlaudit.get_resource_changes`.

    :raises TypeError: there is no such filter
    :raises TrackingError: the model, or what a relationship leads to, is not tracked
    :raises QueryError: a filter does not fit the source
    """
    if unknown := sorted(filters.keys() - ChangeFilters.__optional_keys__):
        raise TypeError(
            f"There is no keyword argument {unknown[0]!r}. The further filters are "
            f"{', '.join(sorted(ChangeFilters.__optional_keys__))}."
        )
    arguments |= filters
    include = arguments.pop("include", ())
    related = related_by(source) if isinstance(source, QueryableAttribute) else None
    model = model_of(source)
    if related is not None and related.has_links and arguments.get("filter_fields") is not None:
        raise QueryError(
            f"filter_fields is {arguments['filter_fields']!r}, but a link has no fields to report. Leave it out, or "
            f"read the association table {related.model.label!r}.",
            source,
        )
    if include and (related is not None or isinstance(source, Table)):
        raise QueryError(f"include is {include!r}, and only a model has relationships. Give the model.", source)
    # Each of several statements reads the filters.
    arguments = {name: list(value) if isinstance(value, Iterator) else value for name, value in arguments.items()}
    return ChangeQuery(model=model, related=related, related_rows=related_names(model, include), **arguments)


class ChangeReport:
    """The field changes of a query, read by one statement for the model and one for each relationship.

    :raises QueryError: the query is invalid
    """

    def __init__(self, query: ChangeQuery) -> None:
        self.newest_first = query.newest_first
        self.offset = checked_count("offset", query.offset)
        self.end = None if query.limit is None else self.offset + checked_count("limit", query.limit)
        if query.related_rows and query.model.options.resource_id_field:
            raise QueryError(
                f"The changes of {query.model.name} are reported by {query.model.options.resource_id_field!r}, and "
                "those of its links by its key, so they cannot be read together. Leave include out, and read the "
                "relationship.",
                query.model.mapper.class_,
            )
        included = (replace(query, related=related, filter_fields=None) for related in query.related_rows)
        self.readers = [ChangeReader(each, self.end) for each in (query, *included)]

    def refuse_pruned(self, session: Session, dates: DateRange | None) -> None:
        """Raise if the user's date range begins before the horizon of a table; or ends, if it has no begin.

        :raises PrunedError: it does
        """
        if bounds := date_range(dates):
            refuse_pruned_in(session, [reader.model.root.table for reader in self.readers], min(bounds.values()))

    def changes(self, session: Session, **options: Any) -> Generator[FieldChange]:
        """Yield the field changes from ``offset`` to ``offset + limit``, in the order of time.

        At one instant, those of the model come first.
        """
        readers = self.readers
        if len(readers) > 1 and session.get_bind(self.readers[0].model.mapper).dialect.name in MYSQL:
            options.pop("yield_per", None)  # its drivers stream one result at a time
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(reader.changes(session, options))) for reader in readers]
            changes: Iterator[FieldChange] = streams[0]
            if len(streams) > 1:
                streams = streams[::-1] if self.newest_first else streams
                changes = merge(*streams, key=attrgetter("timestamp"), reverse=self.newest_first)
            yield from islice(changes, self.offset, self.end)


class ChangeReader:
    """One statement that reads the versions of a model, each with the version before it.

    :param end: the number of field changes that suffice; ``None`` to read all
    :ivar ids: the history columns that give the id of a row; for links, which have it among the fields, none
    :ivar fields: the names and history columns of the fields; for links, of both ends
    :ivar links: the relationship whose links are reported, or ``None``
    :ivar are_asked_of_ends: whether each side of a link tells if its owner is one that the query asks for
    :ivar asked: the history columns that have one of the ids that the query asks for
    :ivar read_again: the version that is read only as the one before the first version to report
    """

    def __init__(self, query: ChangeQuery, end: int | None) -> None:
        self.query = query
        self.related = related = query.related
        self.model = model = query.model if related is None else related.model
        self.newest_first = query.newest_first
        self.links = links = related if related is not None and related.has_links else None
        self.ids = self.asked = tuple(model.resource_id_columns())
        if related is not None:
            self.asked = related.owner_key
        if links is None:
            self.fields = valued = _chosen_fields(model, query.filter_fields)
        else:
            self.ids = ()
            self.fields = tuple((column.key, column) for column in links.ends)
            valued = self.fields[len(links.owner_key) :]
        link = None if links is None else links.name
        operations = None if query.filter_operations is None else checked_operations(query.filter_operations)
        given = (query.filter_old_values, query.filter_new_values)
        self.values = [None if each is None else ValueFilter(valued, each, link) for each in given]
        self.is_wanted = wanted_changes(operations, *self.values)
        asked = [each for each in self.values if each is not None]
        self.asks_for_values = links is None and bool(asked) and all(each.may_be_asked_in_sql for each in asked)
        self.read_again = None if self.newest_first else query.after_version
        self.parameters: dict[str, Any] = {**date_range(query.filter_date_range), **query.actors()}
        if query.changeset_ids is not None:
            self.parameters["changesets"] = list(query.changeset_ids)
        parameters: dict[str, Any] = {}
        if query.filter_resource_ids is not None:
            parameters = converted_ids(self.asked, listed_ids(query.filter_resource_ids, composite=len(self.asked) > 1))
        # The versions of one row need no join: in the order of their numbers, each follows the version before it. Those
        # up to an instant have the first numbers.
        self.of_one_row = (
            not model.options.resource_id_field
            and related is None
            and len(parameters.get("ids", ())) == 1
            and self.parameters.keys() <= {"until"}
            and identities(model) is None
        )
        self.parameters |= one_id(parameters) if self.of_one_row else parameters
        if operations is not None and not self.of_one_row:
            made_by = {} if links is None else _MADE_BY
            self.parameters["operations"] = [made for each in operations for made in made_by.get(each, (each,))]
        if query.after_version is not None:
            self.parameters["after_version"] = query.after_version
        self.are_asked_of_ends = links is not None and links.may_move and "ids" in self.parameters
        self.is_wide = len(self.fields) > _WIDE and not self.of_one_row
        if end is not None:
            rows = end * 2 if self.is_wide else end + self.of_one_row  # with the version before them
            self.parameters |= {"limit": rows, "offset": 0}
        shape = (
            "changes",
            related,
            self.fields,
            self.ids,
            frozenset(self.parameters),
            self.newest_first,
            self.of_one_row,
        )
        if self.asks_for_values and not self.of_one_row:  # the statement contains the values
            self.statement = self._build().execution_options(**INTERNAL)
        else:
            self.statement = cached_statement(model, shape, self._build)

    def _build(self) -> Select[Any]:
        model, base, related = self.model, self.model.root.table, self.query.related
        tables = list(dict.fromkeys(table for submodel in model.family() for table in submodel.chain))
        now, before, both = (aliases(tables, name) for name in ("now", "before", "both"))
        version, version_before = now[base.history], before[base.history]
        source = version.clause
        of_family = identities(model)
        left: dict[
            Any, ColumnElement[bool]
        ] = {}  # whether the row has left the class, whose table has a tombstone then
        for table in tables[1:]:
            other, is_optional = now[table.history], table not in model.chain
            if of_family is None or is_optional:
                source = source.join(other.clause, other.belongs_to(version), isouter=is_optional)
            else:
                source = source.join(other.clause, other.is_version_of(version))
                left[table.history] = other.operation != version.operation
        values: list[ColumnElement[Any]]
        stored = [now[column.table].clause.c[column.key] for _, column in self.fields]
        new = [
            case((left[column.table], null()), else_=value) if column.table in left else value
            for (_, column), value in zip(self.fields, stored, strict=True)
        ]
        ids = [now[column.table].clause.c[column.key] for column in self.ids]
        roles = {role: version.role(role) for role, _ in base.names.items()}
        audit_columns = [roles[name] for name in _ROLES]
        if self.of_one_row:
            statement = select(*audit_columns, *ids, *new).select_from(source).where(is_id(ids, self.parameters))
            number = roles["version"]
            if "after_version" in self.parameters:  # which is read, too, if the next version follows it
                after: ColumnElement[int] = bindparam("after_version", type_=number.type)
                statement = statement.where(number < after if self.newest_first else number >= after)
            if "until" in self.parameters:
                statement = statement.where(roles["valid_from"] <= bindparam("until"))
            return self._limited(statement.order_by(number.desc() if self.newest_first else number))
        asked = [now[column.table].clause.c[column.key] for column in self.asked]
        may_move = related is not None and related.may_move
        if "ids" in self.parameters and may_move:
            touched = self._touched_versions()
            source = source.join(touched, all_equal((*version.key, version.version), touched.c))
        source = source.outerjoin(version_before.clause, version_before.is_version_of(version, -1))
        for table in tables[1:]:
            other = before[table.history]
            source = source.outerjoin(other.clause, other.belongs_to(version_before))
        old = [before[column.table].clause.c[column.key] for _, column in self.fields]
        order: list[ColumnElement[Any]] = [roles["valid_from"], *version.key, roles["version"]]
        order = [column.desc() for column in order] if self.newest_first else order
        if self.is_wide:  # two rows for each version: first the version before it
            two = both[base.history]
            is_one = and_(two.has_key(version.key), two.version.between(roles["version"] - 1, roles["version"]))
            source = source.join(two.clause, is_one)
            for table in tables[1:]:
                other = both[table.history]
                source = source.outerjoin(other.clause, other.belongs_to(two))
            values = [*(both[column.table].clause.c[column.key] for _, column in self.fields), two.role("extra")]
            number = two.version
            order = [*order, number]
        else:
            values, number = [*new, *old, version_before.role("extra")], version_before.version
            if self.are_asked_of_ends:
                before_owner = [before[column.table].clause.c[column.key] for column in self.asked]
                values += [self._is_asked(asked), self._is_asked(before_owner)]
        statement = select(*audit_columns, *ids, *values, number).select_from(source).order_by(*order)
        statement = statement.where(
            self._is_reported(version, version_before, new, old), *self._narrowing(version, new)
        )
        if of_family is not None:
            discriminator, values = of_family
            is_of, was_of = (
                rebased_on_history(discriminator, dict(each.columns)).in_(values) for each in (version, version_before)
            )
            statement = statement.where(or_(is_of, and_(roles["operation"] == Operation.UPDATE, was_of)))
        parameters = self.parameters
        if "ids" in parameters and not may_move:
            statement = statement.where(has_id(asked, parameters))
        if "users" in parameters:
            statement = statement.where(
                is_among(roles["changed_by"], bindparam("users", type_=roles["changed_by"].type, expanding=True))
            )
        if "reasons" in parameters:
            statement = statement.where(
                is_among(roles["reason"], bindparam("reasons", type_=roles["reason"].type, expanding=True))
            )
        for name in filter(parameters.__contains__, ACTOR_FACTS):
            told = text_under(version.role("extra"), name)
            statement = statement.where(is_among(told, bindparam(name, type_=String(), expanding=True)))
        if "operations" in parameters:
            statement = statement.where(roles["operation"].in_(bindparam("operations", expanding=True)))
        if "changesets" in parameters:
            changeset = roles["changeset_id"]
            wanted = bindparam("changesets", type_=changeset.type, expanding=True)
            statement = statement.where(is_among(changeset, wanted))
        if "since" in parameters:
            statement = statement.where(roles["valid_from"] >= bindparam("since"))
        if "until" in parameters:
            statement = statement.where(roles["valid_from"] <= bindparam("until"))
        return self._limited(statement)

    def _is_reported(
        self,
        version: HistoryAlias,
        before: HistoryAlias,
        new: Sequence[ColumnElement[Any]],
        old: Sequence[ColumnElement[Any]],
    ) -> ColumnElement[bool]:
        """Return the condition that a version has changes to report, with values that are asked for."""
        operation, is_marked = version.operation, text_under(version.role("extra"), MARK).is_not(None)
        is_set: list[ColumnElement[bool]] = [column.is_not(None) for column in new]
        is_changed: list[ColumnElement[bool]] = [differs(one, other) for one, other in zip(new, old, strict=True)]
        made = removed = is_set
        if self.asks_for_values:
            was_old, is_old, is_new = self._held(0, old), self._held(0, new), self._held(1, new)
            from_nothing, to_nothing = self._accept_none(0), self._accept_none(1)
            made = [and_(*each) for *each, may in zip(is_set, is_new, from_nothing, strict=True) if may]
            removed = [and_(*each) for *each, may in zip(is_set, is_old, to_nothing, strict=True) if may]
            is_changed = [and_(*each) for each in zip(is_changed, was_old, is_new, strict=True)]
        is_update = and_(operation == Operation.UPDATE, before.version.is_not(None), any_of(*is_changed))
        if made is removed:
            is_other = and_(operation.in_([Operation.INSERT, Operation.DELETE]), or_(any_of(*is_set), is_marked))
            return or_(is_other, is_update)
        is_insert = and_(operation == Operation.INSERT, or_(any_of(*made), is_marked))
        return or_(is_insert, and_(operation == Operation.DELETE, or_(any_of(*removed), is_marked)), is_update)

    def _narrowing(self, version: HistoryAlias, new: Sequence[ColumnElement[Any]]) -> Iterator[ColumnElement[bool]]:
        """Yield conditions by which a database leaves out rows before it looks for the version before each."""
        if not self.asks_for_values:
            return
        old_values, new_values = self.values
        if new_values is not None and not any(self._accept_none(1)):
            yield any_of(*self._held(1, new))
        if old_values is not None and not any(self._accept_none(0)):
            has_held = []
            for table in dict.fromkeys(column.table for _, column in self.fields):
                holding = HistoryAlias(cast("TrackedTable", tracked_table(table)))
                own = [(name, column) for name, column in self.fields if column.table is table]
                held = self._held(0, [holding.clause.c[column.key] for _, column in own], own)
                keys = select(*holding.key).where(any_of(*held))
                has_held.append(one_of(version.key, keys))
            yield or_(*has_held)

    def _held(
        self, side: int, columns: Sequence[ColumnElement[Any]], fields: Sequence[tuple[str, Column[Any]]] | None = None
    ) -> list[ColumnElement[bool]]:
        """Return, for each field, the condition that a column may hold a value that is asked for on a side."""
        given = self.values[side]
        if given is None:
            return [true()] * len(columns)
        asked = zip(columns, self.fields if fields is None else fields, strict=True)
        return [may_hold(column, stored.type, given.values[name]) for column, (name, stored) in asked]

    def _accept_none(self, side: int) -> list[bool]:
        """Return, for each field, whether it may have no value on a side."""
        given = self.values[side]
        return [given is None or given.accepts(name, None) for name, _ in self.fields]

    def _limited(self, statement: Select[Any]) -> Select[Any]:
        if "limit" not in self.parameters:
            return statement
        return statement.limit(bindparam("limit")).offset(bindparam("offset"))

    def _is_asked(self, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[int]:
        """Return 1 if the columns have one of the ids that the query asks for, else 0."""
        one, zero = literal_column("1", Integer), literal_column("0", Integer)
        return case((has_id(columns, self.parameters), one), else_=zero)

    def _touched_versions(self) -> FromClause:
        """Return the versions of rows that refer to an owner, and updates that follow them: they may refer to another.

        A tombstone is not followed by an update. The row that has its key later is another one.
        """
        table = tracked_table(self.asked[0].table)
        assert table is not None
        owned = HistoryAlias(table)
        refers = [owned.clause.c[column.key] for column in self.asked]
        numbered = (*owned.key, owned.version.label("version"), owned.operation.label("operation"))
        own = select(*numbered).where(has_id(refers, self.parameters)).cte()
        *key, number, operation = own.c
        following = select(*key, number + 1).where(operation != Operation.DELETE)
        return union(select(*key, number), following).subquery()

    def changes(self, session: Session, options: Mapping[str, Any]) -> Generator[FieldChange]:
        """Return a generator of the field changes, or of the links and unlinks."""
        changes = self._all_changes(session, options)
        return changes if self.is_wanted is None else _filtered(changes, self.is_wanted)

    def _all_changes(self, session: Session, options: Mapping[str, Any]) -> Generator[FieldChange]:
        names, equalities = [name for name, _ in self.fields], equalities_of(self.fields)
        label = self.model.label
        ids = len(_ROLES)  # the index of the resource id, after the audit columns
        new = ids + len(self.ids)
        old = new + len(names)
        with closing(rows_of(session, self.model, self.statement, self.parameters, options)) as rows:
            for row, row_before in self._with_rows_before(rows):
                if self.links is not None:
                    changes = self._links_in_row(self.links, row, row[new:old], row[old : old + len(names)], equalities)
                else:
                    before: Sequence[Any] | None = None
                    extra_before: Any = None
                    if row_before is not row:
                        if row_before is not None:
                            before, extra_before = row_before[new:old], row_before[old if self.is_wide else ids - 1]
                    elif row[-1] is not None:
                        before, extra_before = row[old : old + len(names)], row[old + len(names)]
                    erased = erased_fields(extra_before, self.fields), erased_fields(row[ids - 1], self.fields)
                    changes = _changes_in_row(label, names, equalities, row[ids:new], row, before, row[new:old], erased)
                yield from reversed(list(changes)) if self.newest_first else changes

    def _links_in_row(
        self,
        links: Related,
        row: Sequence[Any],
        ends: Sequence[Any],
        ends_before: Sequence[Any],
        equalities: Mapping[str, Equality],
    ) -> Iterator[FieldChange]:
        """Yield what a version of a link says of the relationship. Without one of its ends, a row is no link."""
        operation, (is_asked, was_asked) = row[2], row[-3:-1] if self.are_asked_of_ends else (1, 1)
        if operation is Operation.UPDATE:
            if any(diff([name for name, _ in self.fields], operation, ends_before, ends, equalities)):
                sides = [(Operation.UNLINK, ends_before, was_asked), (Operation.LINK, ends, is_asked)]
            else:
                sides = []
        else:
            sides = [(Operation.LINK if operation is Operation.INSERT else Operation.UNLINK, ends, is_asked)]
        size = len(links.owner_key)
        for made, values, of_asked in sides:
            if of_asked and not any(value is None for value in values):
                yield _link_change(links.owner.label, links.name, values[:size], row, made, tuple(values[size:]))

    def _with_rows_before(self, rows: Iterable[Row[Any]]) -> Iterator[tuple[Row[Any], Row[Any] | None]]:
        """Yield each row with the row that has the version before it: another row, the same row, or ``None``."""
        if self.is_wide:
            last: Row[Any] | None = None
            for version_row in rows:
                is_changed = version_row[-1] == version_row[0]
                if is_changed:
                    yield version_row, last
                last = None if is_changed else version_row
            return
        if not self.of_one_row:
            yield from ((row, row) for row in rows)
            return
        neighbours = pairwise(chain(rows, (None,)) if self.newest_first else chain((None,), rows))
        for first, second in neighbours:
            row, before = (first, second) if self.newest_first else (second, first)
            if row is not None and row[0] != self.read_again:
                yield row, before if before is not None and before[0] == row[0] - 1 else None


def _filtered(changes: Generator[FieldChange], is_wanted: Callable[[FieldChange], bool]) -> Generator[FieldChange]:
    with closing(changes):
        yield from filter(is_wanted, changes)


_MADE_BY: Final = {
    Operation.LINK: (Operation.INSERT, Operation.UPDATE),
    Operation.UNLINK: (Operation.DELETE, Operation.UPDATE),
}
"""The operations of the versions that make or remove a link. An update of one end does both."""
_ROLES: Final = (
    "version",
    "valid_from",
    "operation",
    "changeset_id",
    "changed_by",
    "impersonated_by",
    "reason",
    "extra",
)
_SLOTS: Final = [getattr(FieldChange, field.name).__set__ for field in dataclass_fields(FieldChange)]


def _field_change(*values: Any) -> FieldChange:
    """Make a field change in half the time that the constructor takes: a report has one for each of its lines."""
    change = object.__new__(FieldChange)
    for fill, value in zip(_SLOTS, values, strict=True):
        fill(change, value)
    return change


def _changes_in_row(
    label: str,
    names: Sequence[str],
    equalities: Mapping[str, Equality],
    key: Sequence[Any],
    row: Sequence[Any],
    before: Sequence[Any] | None,
    now: Sequence[Any],
    erased: tuple[Collection[str], Collection[str]],
) -> Iterator[FieldChange]:
    """Yield the field changes of a row that begins with the audit columns, in the order of ``_ROLES``."""
    version, timestamp, operation, changeset_id, changed_by, impersonated_by, reason, extra = row[: len(_ROLES)]
    resource_id, extra = key[0] if len(key) == 1 else tuple(key), unmarked(extra)
    for field_name, old_value, new_value in diff(names, operation, before, now, equalities, erased):
        yield _field_change(
            version,
            timestamp,
            operation,
            changeset_id,
            changed_by,
            impersonated_by,
            reason,
            extra,
            label,
            resource_id,
            field_name,
            old_value,
            new_value,
        )


def _link_change(
    label: str, name: str, key: Sequence[Any], row: Sequence[Any], made: Operation, other_key: tuple[Any, ...]
) -> FieldChange:
    """Return the change of a relationship by one link, which a version made or removed."""
    version, timestamp, _, *context, extra = row[: len(_ROLES)]
    values = (None, other_key) if made is Operation.LINK else (other_key, None)
    resource_id = key[0] if len(key) == 1 else tuple(key)
    return _field_change(version, timestamp, made, *context, unmarked(extra), label, resource_id, name, *values)


def _chosen_fields(model: TrackedModel, chosen: str | Iterable[str] | None) -> tuple[tuple[str, Column[Any]], ...]:
    fields = sorted(model.reported_fields(), key=itemgetter(0))
    if chosen is None:
        return tuple(fields)
    names = {chosen} if isinstance(chosen, str) else set(chosen)
    known = {name for name, _ in fields}
    if unknown := names - known:
        raise QueryError(
            f"{model.mapper.class_.__name__} has no tracked field {', '.join(sorted(map(repr, unknown)))}. It has "
            f"{', '.join(sorted(known))}."
        )
    return tuple((name, column) for name, column in fields if name in names)


def aliases(tables: Iterable[TrackedTable], name: str) -> dict[Any, HistoryAlias]:
    """Return an alias of each history table: history table → alias."""
    return {
        table.history: HistoryAlias(table, table.history.alias(f"{name}_{place}")) for place, table in enumerate(tables)
    }


def identities(model: TrackedModel) -> tuple[Any, list[Any]] | None:
    """Return the discriminator and its values for a subclass of the hierarchy, or ``None`` for other models."""
    mapper = model.mapper
    if model.parent is None or mapper.polymorphic_on is None:
        return None
    return mapper.polymorphic_on, [submodel.mapper.polymorphic_identity for submodel in model.family()]


def date_range(dates: DateRange | None) -> dict[str, datetime]:
    """Return the parameters ``since`` and ``until`` of a date range, without those that are ``None``."""
    if dates is None:
        return {}
    try:
        start, end = dates
    except (TypeError, ValueError):
        raise QueryError(f"filter_date_range is {dates!r}. Give (from, to); either may be None.", dates) from None
    return checked_range("filter_date_range", start, end)


def cached_statement(model: TrackedModel, shape: tuple[Any, ...], build: Callable[[], Select[Any]]) -> Select[Any]:
    """Return the statement of a shape from a cache: building it takes as long as executing it."""
    if are_bound_in_sql(model.root.table.key):  # the statement contains the ids
        return build()
    cache, key = model.root.table.cache, (*model.family(), *shape)
    statement: Select[Any] | None = cache.get(key)
    if statement is None:
        statement = cache[key] = build().execution_options(**INTERNAL)
    return statement


def rows_of(
    session: Session,
    model: TrackedModel,
    statement: Select[Any],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Generator[Row[Any]]:
    """Yield the rows of a statement. If it has a limit and they do not suffice, execute it again for the next rows.

    They suffice unless the rows are filtered by values, or Python considers values equal that differ in the database,
    such as ``{"a": 1, "b": 2}`` and ``{"b": 2, "a": 1}``.
    """
    session._autoflush()
    parameters, where = dict(parameters), bind_arguments_for(session, model.mapper)
    size = parameters.get("limit", inf)
    while True:
        count = 0
        with explaining_history_errors(table for submodel in model.family() for table in submodel.chain):
            result = session.execute(statement, parameters, bind_arguments=where, execution_options=options)
        with closing(result):
            for batch in result.partitions(BATCH):
                count += len(batch)
                yield from batch
        if count < size:
            return
        size *= _GROWTH
        parameters |= {"offset": parameters["offset"] + count, "limit": size}
