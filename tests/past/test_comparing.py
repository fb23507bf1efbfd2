"""What differs between two states of a row, or of all rows of a table."""

from itertools import combinations

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from clock import at
from differences import check_pages, pages_of
from sqlaudit import (
    Mark,
    QueryError,
    as_of,
    changes_page,
    changesets,
    compare,
    compare_page,
    diff,
    get_resource_changes,
    history_of,
    track_table,
    tracking_disabled,
    versions_of,
)
from sqlaudit.retrieval.cursors import digest_of, key_cursor, key_in


class Base(DeclarativeBase):
    pass


links = Table(
    "ticket_tags",
    Base.metadata,
    Column("ticket_id", ForeignKey("tickets.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    kind: Mapped[str] = mapped_column(String(10))
    hours: Mapped[int | None]
    tags: Mapped[list["Tag"]] = relationship(secondary=links)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "ticket"}


class Bug(Ticket):
    __tablename__ = "bugs"
    id: Mapped[int] = mapped_column(ForeignKey("tickets.id"), primary_key=True)
    severity: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "bug"}


@track_table(exclude=["secret"], tracked_fields=["name"])
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(50))
    place: Mapped[int | None]
    secret: Mapped[str | None] = mapped_column(String(50))


END = 12


@pytest.fixture
def lived(tables, clock, session):
    """Rows come, change, change back, and go; one comes again. There is a transaction each second, from 0 on."""
    one, two, bug, tag = Ticket(id=1, title="a"), Ticket(id=2, title="b"), Bug(id=3, title="c", severity=1), Tag(id=1)
    session.add_all([one, two, bug, tag])
    session.commit()
    one.title, bug.severity = "x", 2
    session.commit()
    one.title, one.hours = "a", 5
    one.tags.append(tag)
    session.commit()
    session.delete(two)
    bug.title = "d"
    session.commit()
    one.hours = None
    tag.place = 7
    session.commit()
    session.add(Ticket(id=2, title="again"))
    session.add(Ticket(id=4, title="short"))
    session.commit()
    session.delete(session.get(Ticket, 4))
    one.tags.remove(tag)
    session.commit()
    session.delete(bug)
    session.commit()
    session.get(Ticket, 2).title = "b"
    tag.name = "t"
    session.commit()
    return session


def state(session, model, instant):
    session.expire_all()
    if isinstance(model, Table):
        return {tuple(row): row._asdict() for row in session.execute(as_of(model, instant))}
    names = {Ticket: ["id", "title", "kind", "hours"], Bug: ["id", "title", "kind", "hours", "severity"], Tag: ["name"]}
    rows = session.scalars(as_of(model, instant)).all()
    wanted = names[model] if model is not Ticket else None
    return {
        row.id: {name: getattr(row, name) for name in wanted or names[type(row)] if getattr(row, name) is not None}
        for row in rows
    }


def expected(session, model, a, b):
    old, new = state(session, model, a), state(session, model, b)
    found = {}
    for key in old.keys() | new.keys():
        before, after = old.get(key, {}), new.get(key, {})
        changed = {
            name: (before.get(name), after.get(name))
            for name in before.keys() | after.keys()
            if before.get(name) != after.get(name)
        }
        if changed:
            operation = "insert" if key not in old else "delete" if key not in new else "update"
            found[key] = (operation, changed)
    return found


@pytest.mark.spread
@pytest.mark.parametrize("model", [Ticket, Bug, Tag, links], ids=str)
def test_what_differs_between_instants_is_what_reads_of_both_tell(lived, model):
    assert len(changesets(lived)) < END
    for a, b in combinations([-1, 0, 1, 2, 3, 4, 5, 6, 7, END], 2):
        rows = check_pages(lived, model, at(a), at(b))
        found = {row.resource_id: (row.operation, row.fields) for row in rows}
        assert found == expected(lived, model, at(a), at(b))
        assert [row.resource_id for row in rows] == sorted(found)
        if model is links:
            continue
        for row in rows:
            assert diff(lived, model, row.resource_id, at(a), at(b)) == row


def test_a_row_that_changes_its_class_leaves_one_and_comes_to_another(tables, clock, session):
    tickets, bugs = Ticket.__table__, Bug.__table__
    writes = [
        [tickets.insert().values(id=1, title="a", kind="ticket")],
        [tickets.update().values(kind="bug", title="b"), bugs.insert().values(id=1, severity=3)],
        [bugs.update().values(severity=4)],
        [bugs.delete(), tickets.update().values(kind="ticket")],
        [tickets.update().values(hours=1)],
        [tickets.update().values(kind="bug"), bugs.insert().values(id=1)],
        [bugs.delete(), tickets.delete()],
    ]
    for statements in writes:
        for statement in statements:
            session.execute(statement)
        session.commit()
    for a, b in combinations(range(-1, len(writes)), 2):
        for model in (Ticket, Bug):
            rows = check_pages(session, model, at(a), at(b))
            assert {row.resource_id: (row.operation, row.fields) for row in rows} == expected(
                session, model, at(a), at(b)
            )
            differs = diff(session, model, 1, at(a), at(b))
            assert ([differs] if differs else []) == rows
    assert diff(session, Bug, 1, 1, 2).operation == "insert"
    assert not diff(session, Bug, 1, 1, 4)
    for newest_first in (False, True):
        changes = get_resource_changes(Bug, session, newest_first=newest_first)
        changed = {change.timestamp: {} for change in changes}
        for change in changes:
            changed[change.timestamp][change.field_name] = (change.old_value, change.new_value)
        assert changed == {
            at(1): {"title": ("a", "b"), "kind": ("ticket", "bug"), "severity": (None, 3)},
            at(2): {"severity": (3, 4)},
            at(3): {"kind": ("bug", "ticket"), "severity": (4, None)},
            at(5): {"kind": ("ticket", "bug")},
            at(6): {"id": (1, None), "title": ("b", None), "kind": ("bug", None), "hours": (1, None)},
        }


def test_several_models_are_compared_one_after_the_other(lived):
    first, *_, last = changesets(lived)
    rows = list(compare(lived, [Tag, Ticket], first.changeset_id, str(last.changeset_id)))
    found = [(row.resource_type, row.resource_id, row.operation) for row in rows]
    assert found == [("Tag", 1, "update"), ("Ticket", 3, "delete")]
    assert rows == check_pages(lived, (Tag, Ticket), Mark("begin", at(0)), Mark("end", at(END)))
    rows = check_pages(lived, [links, Tag, Bug, Ticket], at(-1), at(3))
    assert [row.resource_id for row in rows] == [(1, 1), 3, 1, 3]
    assert list(compare(lived, Tag, at(1), at(1))) == []


def test_comparing_takes_one_statement_for_a_model(lived, engine):
    statements = set()
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.add(args[2]))
    assert len(list(compare(lived, [Ticket, Tag, links], at(-1), at(END)))) == 3
    assert sum(statement.startswith("WITH") for statement in statements) == len(statements - {"BEGIN"}) == 3


def test_instants_that_are_none_or_in_the_wrong_order_are_refused(lived):
    with pytest.raises(QueryError, match="earlier instant first"):
        compare(lived, Ticket, at(2), at(1))
    with pytest.raises(QueryError, match="earlier instant first"):
        compare_page(lived, Ticket, at(2), at(1))
    for when in (None, "yesterday", 7, True):
        with pytest.raises(QueryError):
            compare(lived, Ticket, when, at(1))


# --- pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "key"),
    [(1, [1]), (-1, [1]), (0.0, [1]), ("x", [1]), ([], [1]), (0, []), (0, [1, 2]), (0, [{"decimal": "x"}])],
)
def test_a_cursor_that_somebody_has_made_names_a_row_of_the_query_or_is_refused(place, key):
    digest = digest_of("compare")
    assert key_in(key_cursor(digest, 0, [1]), digest, [1]) == (0, [1])
    with pytest.raises(QueryError, match="another query"):
        key_in(key_cursor(digest, place, key), digest, [1])


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**63, -(2**70)])
def test_numbers_that_no_column_holds_are_of_no_row_and_no_version(lived, number):
    for when in (1, at(1)):
        with pytest.raises(QueryError, match="no history"):
            diff(lived, Ticket, number, when, when)
    with pytest.raises(QueryError, match="no version"):
        diff(lived, Ticket, 1, 1, number)


def test_a_cursor_belongs_to_the_tables_and_instants_of_its_page(lived):
    first, *_, last = changesets(lived)
    cursor = compare_page(lived, [Ticket, Tag], at(-1), at(3), size=1).next
    assert compare_page(lived, [Ticket, Tag], Mark("m", at(-1)), at(3), after=cursor).items
    for models, a, b in [
        ([Tag, Ticket], at(-1), at(3)),
        (Ticket, at(-1), at(3)),
        ([Ticket, Tag], at(0), at(3)),
        ([Ticket, Tag], at(-1), at(2)),
        ([Bug, Tag], at(-1), at(3)),
        ([Ticket, Tag], first.changeset_id, last.changeset_id),
    ]:
        with pytest.raises(QueryError, match="another query"):
            compare_page(lived, models, a, b, after=cursor)
    of_changes = changes_page(lived, Ticket, size=1).next
    for text in (cursor[:-4] + "AAAA", cursor + "AAAA", "A" * len(cursor), of_changes):
        with pytest.raises(QueryError, match="another query"):
            compare_page(lived, [Ticket, Tag], at(-1), at(3), after=text)
    for text in ("", "x", "ö", cursor + "=", 7, cursor[:5]):
        with pytest.raises(QueryError, match="not a cursor"):
            compare_page(lived, [Ticket, Tag], at(-1), at(3), after=text)
    with pytest.raises(QueryError, match="another query"):
        changes_page(lived, Ticket, after=cursor)


@pytest.mark.parametrize("size", [0, -1, None, "5", True, 1.5])
def test_a_page_of_differences_has_at_least_one_row(lived, size):
    with pytest.raises(QueryError, match="size is"):
        compare_page(lived, Ticket, at(0), at(1), size=size)


def test_a_page_takes_few_statements_though_many_rows_were_written_that_do_not_differ(tables, clock, sessions, engine):
    with sessions.begin() as session:
        session.add_all(Tag(id=number, name="a") for number in range(1, 301))
    with sessions.begin() as session:
        for tag in session.scalars(sa.select(Tag)):
            tag.place = 1  # which is not reported
            if tag.id % 100 == 0:
                tag.name = "b"
    statements = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with sessions() as session:
        begin, end = at(0), at(1)
        pages = list(pages_of(session, Tag, begin, end, size=1))
    assert [row.resource_id for page in pages for row in page] == [100, 200, 300]
    assert len([statement for statement in statements if statement.startswith("WITH")]) <= 5 * len(pages)


# --- one row ----------------------------------------------------------------------------------------------------


def test_two_states_of_a_row_are_given_by_versions_numbers_instants_or_changesets(lived):
    first, second, third, *_ = versions_of(lived, Ticket, 1)
    renamed = {"title": ("a", "x")}
    for a, b in [
        (first, second),
        (1, 2),
        (at(0), at(1.5)),
        (Mark("m", at(0)), second),
        (first.audit_changeset_id, str(second.audit_changeset_id)),
    ]:
        found = diff(lived, Ticket, "1", a, b)
        assert (found.operation, found.fields, found.resource_id) == ("update", renamed, 1)
    assert diff(lived, Ticket, 1, second, first).fields == {"title": ("x", "a")}
    assert diff(lived, Ticket, 1, 1, 3).fields == {"hours": (None, 5)}
    same = diff(lived, Ticket, 1, 1, 1)
    assert not same
    assert (same.operation, same.fields) == (None, {})
    with pytest.raises(QueryError, match="is not a version of Ticket 2"):
        diff(lived, Ticket, 2, third, 1)
    with pytest.raises(QueryError, match="Ticket 1 has no version 99"):
        diff(lived, Ticket, 1, 1, 99)
    for key in (99, "none such"):
        with pytest.raises(QueryError, match="no history"):
            diff(lived, Ticket, key, 1, 2)
    for when in (None, True, "x", 1.5):
        with pytest.raises(QueryError):
            diff(lived, Ticket, 1, when, 2)


def test_a_row_that_is_not_there_has_no_fields(lived):
    gone = diff(lived, Ticket, 2, 1, at(3))
    assert (gone.operation, gone.fields) == (
        "delete",
        {"id": (2, None), "kind": ("ticket", None), "title": ("b", None)},
    )
    assert diff(lived, Ticket, 2, at(-1), 2) == diff(lived, Ticket, 2, at(3), at(4))
    assert diff(lived, Ticket, 2, at(3), 1).operation == "insert"
    assert diff(lived, links, (1, 1), at(0), at(2)).fields == {"ticket_id": (None, 1), "tag_id": (None, 1)}


def test_a_row_that_is_older_than_its_history_was_what_its_baseline_says(tables, clock, sessions):
    with sessions.begin() as session, tracking_disabled(session):
        session.add(Tag(id=1, name="a"))
        session.flush()
    with sessions.begin() as session:
        session.get(Tag, 1).name = "b"
    with sessions() as session:
        [row] = check_pages(session, Tag, at(-5), at(5))
        assert (row.operation, row.fields) == ("update", {"name": ("a", "b")})
        assert diff(session, Tag, 1, at(-5), at(5)) == row


def test_what_differs_is_unknown_if_versions_have_been_removed(lived, engine):
    version = history_of(Ticket).__table__
    numbers = [each.audit_version for each in versions_of(lived, Ticket, 1)]
    lived.rollback()
    with engine.begin() as connection:
        connection.execute(sa.delete(version).where(version.c.id == 1, version.c.audit_version.in_(numbers[:2])))
    [row] = [row for row in check_pages(lived, Ticket, at(1), at(2)) if row.resource_id == 1]
    assert (row.operation, row.fields, row.is_unknown) == ("update", {}, True)
    assert not next(row for row in compare(lived, Ticket, at(2), at(END)) if row.resource_id == 1).is_unknown
    with pytest.raises(QueryError, match="unknown, because versions have been removed"):
        diff(lived, Ticket, 1, at(1), 3)
    lived.rollback()
    with engine.begin() as connection:
        connection.execute(sa.delete(version).where(version.c.id == 1, version.c.audit_version == numbers[-1]))
    [row] = [row for row in compare(lived, Ticket, at(1), at(END)) if row.resource_id == 1]
    assert (row.fields, row.is_unknown) == ({}, True)
    with pytest.raises(QueryError, match="unknown, because versions have been removed"):
        diff(lived, Ticket, 1, 3, at(END))
