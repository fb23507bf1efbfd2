"""A restricted session sees what it would see in a database that has only the rows of its tenant."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    sessionmaker,
)

from clock import Clock
from databases import Database
from sqlaudit import (
    AuditContextManager,
    QueryError,
    ReadOnlyError,
    Temporal,
    as_of,
    blame,
    changes_in,
    changes_page,
    changes_since,
    changesets,
    changesets_page,
    compare,
    compare_page,
    diff,
    get_resource_changes,
    history_of,
    stream_resource_changes,
    time_travel,
    track_table,
    versions_of,
)
from sqlaudit.retrieval.restricting import restricted

TENANT, OTHER = 1, 2


class Base(DeclarativeBase):
    pass


case_labels = sa.Table(
    "case_labels",
    Base.metadata,
    sa.Column("case_id", sa.ForeignKey("cases.id"), primary_key=True),
    sa.Column("label_id", sa.ForeignKey("labels.id"), primary_key=True),
)


@track_table(exclude=["secret"])
class Case(Temporal, Base):
    __tablename__ = "cases"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(10))
    tenant: Mapped[int]
    title: Mapped[str] = mapped_column("the title", sa.String(50))
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    labels: Mapped[list["Label"]] = relationship(secondary=case_labels)
    notes: Mapped[list["Note"]] = relationship(order_by="Note.id")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "case"}


@track_table()
class Claim(Case):
    __tablename__ = "claims"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Case.id), primary_key=True)
    amount: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "claim"}


@track_table()
class Note(Temporal, Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    case_id: Mapped[int] = mapped_column(sa.ForeignKey(Case.id))
    tenant: Mapped[int]
    text: Mapped[str] = mapped_column(sa.String(50))


@track_table()
class Label(Temporal, Base):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[int]
    name: Mapped[str] = mapped_column(sa.String(50))


TABLES = (Case, Claim, Note, Label)


def let_happen(sessions: sessionmaker[Session], clock: Clock, *, only: int | None = None) -> None:
    """Let transactions happen that write rows of two tenants, or only what one of them wrote, at the same instants.

    The keys of the first tenant's rows are odd, and those of the other's even.
    """
    tenants = [tenant for tenant in (TENANT, OTHER) if only in (None, tenant)]
    with sessions() as session:
        for tenant in tenants:
            with AuditContextManager(user_id=f"user {tenant}"):
                label = Label(id=tenant, tenant=tenant, name=f"label {tenant}")
                case = Case(id=tenant, tenant=tenant, title=f"case {tenant}", secret="s", labels=[label])
                claim = Claim(id=tenant + 2, tenant=tenant, title=f"claim {tenant}", amount=5)
                case.notes = [Note(id=tenant, tenant=tenant, text="first")]
                session.add_all([case, claim])
                session.flush()
        session.commit()
        for number in range(3):
            for tenant in tenants:
                with AuditContextManager(user_id=f"user {tenant}", reason=f"round {number}"):
                    session.get_one(Case, tenant).title += "!"
                    session.get_one(Claim, tenant + 2).amount += number
                    session.flush()
            session.commit()
        for tenant in tenants:
            session.get_one(Case, tenant).labels = []
            session.delete(session.get_one(Note, tenant))
            session.delete(session.get_one(Claim, tenant + 2))
        session.commit()
        for tenant in (OTHER, TENANT):  # a transaction of each
            if tenant in tenants:
                session.get_one(Label, tenant).name += "?"
                session.commit()
            else:
                clock()


def told(value: Any) -> Any:
    """Return what does not depend on the ids of changesets."""
    if isinstance(value, Base):
        names = sa.inspect(value).mapper.column_attrs.keys()
        return type(value).__name__, [getattr(value, name, None) for name in names if name != "secret"]
    values = value.to_dict("json") if hasattr(value, "to_dict") else value
    if isinstance(values, dict):
        return {name: each for name, each in values.items() if "changeset" not in name and name != "extra"}
    return values


def everything(session: Session) -> Iterator[tuple[str, Any]]:
    """Yield all that a session can read, by each way to read it."""
    keys = range(1, 5)
    instants = sorted({change.timestamp for source in TABLES for change in get_resource_changes(source, session)})
    yield "instants", instants
    for source in (*TABLES, case_labels, Case.labels, Case.notes):
        yield f"changes of {source}", get_resource_changes(source, session)
        yield f"stream of {source}", list(stream_resource_changes(source, session))
    for key in keys:
        yield f"case {key}", versions_of(session, Case, key)
        yield f"changes of case {key}", get_resource_changes(Case, session, key, include=["labels", "notes"])
        yield f"blame of case {key}", [*blame(session, Case, key).items()]
        yield f"label {key}", versions_of(session, Label, key)
        yield f"links of {key}", versions_of(session, Case.labels, key)
        for when in instants[::2]:
            yield f"case {key} as of", session.scalars(Case.as_of(when).where(Case.id == key)).all()
            yield f"label {key} as of", session.scalars(Label.as_of(when).where(Label.id == key)).all()
        if versions_of(session, Case, key):
            yield f"diff of case {key}", [diff(session, Case, key, 1, when) for when in instants]
    for when in instants:
        yield "cases as of", session.scalars(as_of(Case, when).order_by(Case.id)).all()
        yield "claims as of", session.scalars(as_of(Claim, when).order_by(Claim.id)).all()
        yield "keys as of", session.scalars(as_of(Case, when).where(Case.id.in_([1, 2, 3])).order_by(Case.id)).all()
        loaded = session.scalars(
            Case.as_of(when).order_by(Case.id).options(selectinload(Case.notes), selectinload(Case.labels))
        ).all()
        yield "eager", [(case.id, [n.id for n in case.notes], [each.name for each in case.labels]) for case in loaded]
        with time_travel(session, when) as past:
            joined = past.execute(sa.select(Case, Label.name).join(Case.labels).order_by(Case.id)).all()
            yield "join", [(told(case), name) for case, name in joined]
            yield "got", [past.get(Case, key) for key in keys]
            cases = sa.select(Case).order_by(Case.id).options(joinedload(Case.labels))
            yield "lazy", [len(case.notes) for case in past.scalars(cases).unique()]
            yield "count", past.scalar(sa.select(sa.func.count()).select_from(Case))
            exists = sa.select(Note.id).where(Note.case_id == Case.id).exists()
            yield "exists", past.scalars(sa.select(Case.id).where(exists).order_by(Case.id)).all()
    found = changesets(session, newest_first=True)
    yield "changesets", found
    yield "changesets of a user", changesets(session, user_id="user 2")
    yield "changesets of a case", changesets(session, model=Case, key=2)
    yield "changesets, page", changesets_page(session, size=2, count=True).total
    yield "changes in", [changes_in(session, each.changeset_id) for each in found]
    yield "page", changes_page(session, Case, size=3, count=True).total
    if instants:
        compared = [Case, Note, Label], instants[0], instants[-1]
        yield "compare", (rows := list(compare(session, *compared)))
        first = compare_page(session, *compared, size=2, count=True)
        rest = [] if first.next is None else compare_page(session, *compared, size=99, after=first.next).items
        assert first.items + rest == rows
        yield "compare, page", first.total
    yield "live", session.scalars(sa.select(Case).order_by(Case.id)).all()
    yield "live labels", session.execute(sa.select(Label.id, Label.name).order_by(Label.id)).all()
    yield "versions", sorted(map(str, map(told, session.scalars(sa.select(Case.History)).unique())))
    yield "all versions", sorted(map(str, map(told, session.scalars(Note.all_versions()))))
    yield (
        "relationship",
        [len(case.versions) for case in session.scalars(sa.select(Case).options(selectinload(Case.versions)))],
    )
    yield "raw history", session.execute(sa.select(history_of(case_labels).__table__.c.case_id)).all()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return told(value)


def seen(session: Session) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in everything(session):
        found.setdefault(name, []).append(_plain(value))
    return found


def criteria(tenant: int) -> dict[Any, Any]:
    return {
        Case: Case.tenant == tenant,
        Note: Note.tenant == tenant,
        Label: Label.tenant == tenant,
        case_labels: case_labels.c.case_id == tenant,
    }


@pytest.mark.spread
@pytest.mark.parametrize("tenant", [TENANT, OTHER])
def test_a_tenant_sees_what_a_database_of_its_own_would_show(
    engine: sa.Engine, sessions: sessionmaker[Session], clock: Clock, tenant: int
) -> None:
    begin = clock.now
    let_happen(sessions, clock, only=tenant)
    with sessions() as session:
        expected = seen(session)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    clock.now = begin
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, criteria(tenant)):
        found = seen(session)
    assert found == expected
    with sessions() as session:
        assert len(changesets(session)) > len(expected["changesets"][0])  # no longer restricted


def test_masked_values_are_read_in_no_way(sessions: sessionmaker[Session], clock: Clock) -> None:
    let_happen(sessions, clock)
    masked = {Case: ["title", "amount"], Label: {"name"}}
    with sessions() as session:
        everything_seen = str(seen(session))
    with sessions() as session, restricted(session, {}, masked=masked):
        found = str(seen(session))
        assert get_resource_changes(Claim, session, filter_fields=["amount", "title"]) == []
        assert session.scalars(sa.select(Case.id).where(Case.title.is_not(None))).all() == []
        assert session.scalars(sa.select(Case.History.id).where(Case.History.title.is_not(None))).all() == []
        assert session.scalars(sa.select(Case.tenant).distinct().order_by(Case.tenant)).all() == [TENANT, OTHER]
    for secret in ("case 1!", "claim 1", "label 2?"):
        assert secret in everything_seen
        assert secret not in found
    assert "first" in found  # the text of a note
    with sessions() as session, restricted(session, criteria(TENANT), masked=masked):
        assert {change.field_name for change in get_resource_changes(Case, session, 1)} == {"id", "kind", "tenant"}


@pytest.mark.parametrize(
    ("masked", "told"),
    [({Case: ["colour"]}, "no column 'colour'"), ({Case: ["id"]}, "'id' of Case"), ({Claim: ["kind"]}, "'kind'")],
)
@pytest.mark.spread
def test_what_identifies_a_row_cannot_be_masked(sessions: sessionmaker[Session], masked: Any, told: str) -> None:
    with sessions() as session, pytest.raises(QueryError, match=told), restricted(session, {}, masked=masked):
        pass


def test_a_feed_is_restricted(sessions: sessionmaker[Session], clock: Clock) -> None:
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, criteria(TENANT)):
        # A transaction of another test may hold the feed back, so it may lack the latest changesets.
        assert {change.changed_by for change in changes_since(session, size=100)} <= {"user 1", None}


def test_a_row_that_moves_is_visible_to_each_tenant_for_its_time(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        label = Label(id=1, tenant=TENANT, name="a")
        session.add(label)
        session.commit()
        label.name = "b"
        session.commit()
        label.tenant, label.name = OTHER, "c"
        session.commit()
        label.name = "d"
        session.commit()
    for tenant, names, changes in ((TENANT, ["a", "b"], [("a", "b")]), (OTHER, ["c", "d"], [("c", "d")])):
        with sessions() as session, restricted(session, criteria(tenant)):
            assert [version.name for version in versions_of(session, Label, 1)] == names
            told_changes = get_resource_changes(Label, session, filter_fields="name", filter_operations="update")
            assert [(change.old_value, change.new_value) for change in told_changes] == changes


@pytest.mark.parametrize("criterion", [False, True])
def test_all_or_none_of_a_model_can_be_seen(sessions: sessionmaker[Session], clock: Clock, criterion: bool) -> None:
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, dict.fromkeys([Case, Note, Label, case_labels], criterion)):
        assert bool(changesets(session)) is criterion
        assert bool(session.scalars(sa.select(Case)).all()) is criterion
        assert bool(get_resource_changes(Case, session)) is criterion


def test_other_values_of_a_criterion_are_not_answered_from_the_statement_cache(
    sessions: sessionmaker[Session], clock: Clock
) -> None:
    let_happen(sessions, clock)
    for tenant in (TENANT, OTHER, TENANT):
        with sessions() as session, restricted(session, criteria(tenant)):
            assert session.scalars(sa.select(Case.tenant).distinct()).all() == [tenant]
            assert {version.tenant for version in session.scalars(sa.select(Note.History))} == {tenant}


@pytest.mark.parametrize("name", ["tenant", "id_0", "at", "begin", "limit", "tenant_1"])
def test_a_parameter_of_a_criterion_is_no_parameter_of_a_statement_or_of_another_criterion(
    sessions: sessionmaker[Session], clock: Clock, name: str
) -> None:
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, {Case: Case.tenant == sa.bindparam(name, TENANT)}):
        found = [case.resource_id for case in compare(session, Case, clock.now - timedelta(hours=1), clock.now)]
        assert found == [TENANT]
        assert versions_of(session, Case, OTHER, limit=5) == []
        given = sa.select(Case.tenant).where(Case.id > sa.bindparam(name))
        assert session.scalars(given, {name: 0}).all() == [TENANT]
        with pytest.raises(QueryError, match="no history"):
            diff(session, Case, OTHER, clock.now, clock.now)
        with restricted(session, {Case: Case.tenant == sa.bindparam(name, OTHER)}):
            assert session.scalars(sa.select(Case.tenant)).all() == []


def test_a_criterion_may_name_columns_as_statements_of_sqlaudit_name_parameters(
    sessions: sessionmaker[Session], clock: Clock
) -> None:
    let_happen(sessions, clock)
    cases = sa.select(Case.id).where(Case.id == TENANT)  # SQLAlchemy names this parameter id_1
    with sessions() as session, restricted(session, {case_labels: case_labels.c.case_id.in_(cases)}):
        assert versions_of(session, case_labels, (TENANT, TENANT))
        assert not versions_of(session, case_labels, (OTHER, OTHER))


@pytest.mark.parametrize(
    "statement",
    [
        sa.text("SELECT tenant FROM cases"),
        sa.select(sa.text("tenant")).select_from(sa.text("cases")),
        sa.select(sa.text("(SELECT max(tenant) FROM cases)")),
        sa.select(sa.literal_column("(SELECT max(tenant) FROM cases)")),
        sa.update(Case).values(tenant=TENANT),
        sa.delete(Note),
    ],
    ids=["text", "text within", "text of a column", "literal column", "update", "delete"],
)
def test_a_restricted_session_executes_no_statement_that_it_cannot_restrict(
    sessions: sessionmaker[Session], statement: Any
) -> None:
    with sessions() as session, restricted(session, criteria(TENANT)), pytest.raises(ReadOnlyError, match="a part"):
        session.execute(statement)


@pytest.mark.parametrize("name", ["cases", "cases_history"])
def test_another_object_for_a_restricted_table_is_refused(sessions: sessionmaker[Session], name: str) -> None:
    namesake = sa.table(name, sa.column("tenant"))
    with sessions() as session, restricted(session, criteria(TENANT)), pytest.raises(QueryError, match="another Table"):
        session.execute(sa.select(namesake.c.tenant))


def test_a_restricted_session_flushes_nothing(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        with restricted(session, criteria(TENANT)):
            session.add(Label(id=1, tenant=TENANT, name="a"))
            with pytest.raises(ReadOnlyError, match="a part"):
                session.flush()
        session.commit()
        assert len(versions_of(session, Label, 1)) == 1


@pytest.mark.parametrize(
    "inner", [{}, criteria(OTHER), {Case: False}, {Case: True}], ids=["whole", "other", "none", "all"]
)
def test_a_block_within_another_makes_nothing_visible(
    sessions: sessionmaker[Session], clock: Clock, inner: dict[Any, Any]
) -> None:
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, criteria(TENANT), masked={Case: ["title"]}):
        before = session.execute(sa.select(Case.id, Case.title)).all()
        with restricted(session, inner):
            within = session.execute(sa.select(Case.id, Case.title)).all()
            assert within == (before if inner in ({}, {Case: True}) else [])
        assert session.execute(sa.select(Case.id, Case.title)).all() == before
        session.add(Label(id=99, tenant=TENANT, name="a"))
        with pytest.raises(ReadOnlyError, match="a part"):
            session.flush()
        session.expunge_all()
    assert before
    assert {title for _, title in before} == {None}


def test_whole_tables_are_not_copied_for_a_restricted_session(sessions: sessionmaker[Session], clock: Clock) -> None:
    let_happen(sessions, clock)
    with sessions() as session, restricted(session, criteria(TENANT)):
        instant = changesets(session)[0].timestamp
        with time_travel(session, instant, materialize=True) as past, pytest.raises(QueryError, match="materialize"):
            past.scalars(sa.select(Case)).all()


def test_a_criterion_needs_columns_that_history_stores(session: Session) -> None:
    with pytest.raises(QueryError, match="'secret'"), restricted(session, {Case: Case.secret == "s"}):
        pass


def test_a_criterion_is_one_of_the_model(session: Session) -> None:
    told = "The criterion for Note needs cases, which is not its table"
    with pytest.raises(QueryError, match=told), restricted(session, {Note: Case.tenant == 1}):
        pass


def test_an_asynchronous_session_is_restricted(async_engine: AsyncEngine, sessions: Any, clock: Clock) -> None:
    let_happen(sessions, clock)

    async def read() -> set[int]:
        async with AsyncSession(async_engine) as session:
            with restricted(session, criteria(OTHER)):
                return {version.tenant for version in await versions_of(session, Case, 2)}

    assert asyncio.run(read()) == {OTHER}


def test_tables_of_another_schema_are_restricted(
    database: Database, base: type[Any], engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    @track_table()
    class Page(Temporal, base):
        __tablename__ = "pages"
        __table_args__ = {"schema": database.other_schema}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        tenant: Mapped[int]

    base.metadata.create_all(engine)
    try:
        with sessions() as session:
            session.add_all([Page(id=1, tenant=TENANT), Page(id=2, tenant=OTHER)])
            session.commit()
        with sessions() as session, restricted(session, {Page: Page.tenant == TENANT}):
            assert [page.id for page in session.scalars(sa.select(Page).where(Page.id > 0))] == [1]
            assert {change.resource_id for change in get_resource_changes(Page, session)} == {1}
            [when] = {change.timestamp for change in get_resource_changes(Page, session)}
            assert [page.id for page in session.scalars(Page.as_of(when).where(Page.tenant > 0))] == [1]
            assert session.scalars(Page.as_of(when).where(Page.id == 2)).all() == []
            assert len(changesets(session)) == 1
    finally:
        base.metadata.drop_all(engine)
