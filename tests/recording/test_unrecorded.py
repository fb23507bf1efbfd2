"""What cannot be recorded is never silent, and what did not happen leaves no trace."""

import warnings
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column

from invariants import told
from sqlaudit import (
    AuditContextManager,
    CaptureError,
    ContextError,
    SQLAuditConfig,
    SQLAuditWarning,
    TrackingError,
    history_of,
    register_hooks,
    set_config,
    track_table,
    tracking_disabled,
    unregister_hooks,
    versions_of,
)


def page_of(base: type[Any]) -> Any:
    @track_table(exclude=["seen"])
    class Page(base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        title: Mapped[str] = mapped_column(sa.String(50))
        seen: Mapped[int | None]
        parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("page.id"))

    return Page


@pytest.mark.parametrize("configured_before", [False, True])
def test_a_second_class_of_a_tracked_table_warns_when_it_writes(base, engine, sessions, configured_before):
    page = page_of(base)
    if configured_before:
        orm.configure_mappers()

    class Other(base):
        __table__ = page.__table__

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(Other(id=1, title="a"))
        with pytest.warns(SQLAuditWarning, match="Other is not tracked, but writes the tracked table 'page'"):
            session.commit()
        set_config(SQLAuditConfig(strict=True))
        session.add(Other(id=2, title="a"))
        with pytest.raises(CaptureError, match="through the tracked model"):
            session.commit()
        session.rollback()
        with tracking_disabled(session):
            session.add(Other(id=3, title="a"))
        session.commit()
        assert sorted(session.scalars(sa.select(page.id))) == [1, 3]


def test_a_second_class_of_a_tracked_table_cannot_be_tracked(base):
    page = page_of(base)

    class Other(base):
        __table__ = page.__table__

    with pytest.raises(TrackingError, match="The table 'page' of Other is already tracked"):
        track_table(history_table_name="other_history")(Other)


@pytest.mark.parametrize("beside_a_row_that_goes", [False, True])
def test_a_row_that_is_not_found_by_its_key_warns(base, engine, sessions, beside_a_row_that_goes):
    page = page_of(base)

    @track_table()
    class Price(base):
        __tablename__ = "price"
        amount: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2), primary_key=True, autoincrement=False)

    base.metadata.create_all(engine)
    with sessions() as session, warnings.catch_warnings(record=True) as caught:
        session.add(gone := page(id=1, title="a"))
        session.commit()
        warnings.simplefilter("always")
        with session.begin():
            if beside_a_row_that_goes:
                session.delete(gone)
            session.add(Price(amount=Decimal("1.234")))
    with sessions() as session:
        recorded = session.scalar(sa.select(sa.func.count()).select_from(history_of(Price)))
    warned = [each for each in caught if "is not found by its key" in str(each.message)]
    assert len(warned) + recorded == 1  # some databases keep the key as it is given, the others round it


def test_a_write_of_an_excluded_column_leaves_no_baseline(base, engine, sessions):
    page = page_of(base)
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(page.__table__.insert(), {"id": 1, "title": "a"})
    with sessions() as session:
        old = session.get_one(page, 1)
        session.commit()
        old.seen = 7  # the object is expired
        session.commit()
        assert told(session, page, "title") == []
        old.title = "b"
        session.commit()
        assert told(session, page, "title") == [("baseline", "a"), ("update", "b")]


def test_a_row_that_a_listener_adds_needs_the_required_reason(base, engine, sessions):
    page = page_of(base)

    class Note(base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    set_config(SQLAuditConfig(require_reason=True))
    with sessions() as session:
        sa.event.listen(session, "before_flush", lambda session, *_: session.add(page(id=1, title="late")))
        session.add(Note(id=1))
        with pytest.raises(ContextError, match="require_reason"):
            session.commit()
        session.rollback()
        assert list(session.scalars(sa.select(page.id))) == []


def test_a_reason_may_be_long_and_of_any_script(base, engine, sessions):
    page = page_of(base)
    base.metadata.create_all(engine)
    reason = "Ωμέγα " * 20_000
    with AuditContextManager(reason=reason), sessions.begin() as session:
        session.add(page(id=1, title="a"))
    with sessions() as session:
        (version,) = versions_of(session, page, 1)
        assert version.audit_reason == reason


def by_a_session(maker, statement):
    with maker() as session:
        session.execute(statement)
        session.commit()


def by_its_connection(maker, statement):
    with maker() as session:
        session.connection().execute(statement)
        session.commit()


def by_a_registered_engine(maker, statement):
    engine = maker.kw["bind"]
    register_hooks(engine=engine)
    try:
        with engine.begin() as connection:
            connection.execute(statement)
    finally:
        unregister_hooks(Session, engine=engine)


@pytest.mark.parametrize("run", [by_a_session, by_its_connection, by_a_registered_engine])
def test_another_table_of_a_tracked_ones_name_is_noticed(base, engine, database, sessions, run):
    page = page_of(base)
    base.metadata.create_all(engine)
    light = sa.table("page", sa.column("id"), sa.column("title"))
    with sessions() as session:
        session.add(page(id=1, title="a"))
        session.commit()
    for statement in (
        light.update().values(title="b"),
        light.insert().values(id=2, title="c"),
        sa.delete(sa.Table("page", sa.MetaData(), autoload_with=engine)),
    ):
        with pytest.warns(SQLAuditWarning, match="'page' through another Table of the same name") as warned:
            run(sessions, statement)
        assert len(warned) == 1
    set_config(SQLAuditConfig(on_uncaptured="raise"))
    with pytest.raises(CaptureError, match="through another Table"):
        run(sessions, light.insert().values(id=5, title="c"))
    with sessions() as session:
        assert not session.scalars(sa.select(page.id)).all()
        namesake = sa.Table("page", sa.MetaData(), sa.Column("id", sa.Integer), schema=database.other_schema)
        namesake.create(session.connection())
        session.commit()
    run(sessions, namesake.insert().values(id=1))


def test_a_table_of_that_name_in_another_database_is_another_one(base, engine):
    page_of(base)
    base.metadata.create_all(engine)
    other = sa.create_engine("sqlite://")
    namesake = sa.Table("page", sa.MetaData(), sa.Column("id", sa.Integer))
    namesake.create(other)
    maker = orm.sessionmaker(other)
    register_hooks(maker)
    try:
        with maker() as session:
            for id in (1, 2):
                session.execute(namesake.insert().values(id=id))
            session.commit()
    finally:
        unregister_hooks(maker)
        other.dispose()
