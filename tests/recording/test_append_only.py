"""History is append-only to all who are recorded: no statement of theirs writes a history table."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from invariants import told
from sqlaudit import ReadOnlyError, backfill, history_of, record_changes, track_table, tracking_disabled


class Base(DeclarativeBase):
    pass


LINKS = sa.Table(
    "customer_tags",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    tags: Mapped[list["Tag"]] = relationship(secondary=LINKS)


class VIP(Customer):
    __tablename__ = "vips"
    id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"), primary_key=True)
    level: Mapped[int]


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


History: Any = history_of(Customer)
VIPHistory: Any = history_of(VIP)
sa.orm.configure_mappers()
T: Any = History.__table__
NAMESAKE = sa.table(T.name, *(sa.column(column.name) for column in T.c))
REFLECTED = sa.Table(T.name, sa.MetaData(), *(sa.Column(column.name, column.type) for column in T.c))
VERSION = {
    "id": 7,
    "name": "Eve",
    "audit_version": 1,
    "valid_from": datetime(2020, 1, 1, tzinfo=UTC),
    "valid_to": datetime(9999, 12, 31, tzinfo=UTC),
    "audit_operation": "insert",
    "audit_changeset_id": UUID(int=1),
}
LINK = {"customer_id": 1, "tag_id": 1} | {key: VERSION[key] for key in VERSION if key not in ("id", "name")}
KEY = {"id": 1, "audit_version": 1}


LINKS_HISTORY = Base.metadata.tables["customer_tags_history"]

STATEMENTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "an update": lambda: (sa.update(History).values(name="Eve"), None),
    "a delete": lambda: (sa.delete(History), None),
    "a delete of one": lambda: (sa.delete(History).where(History.id == 1), None),
    "an insert": lambda: (sa.insert(History).values(VERSION), None),
    "an insert of a list": lambda: (sa.insert(History), [VERSION]),
    "an insert of a select": lambda: (sa.insert(T).from_select(["id"], sa.select(Customer.id)), None),
    "an upsert": lambda: (sqlite.insert(T).values(VERSION).on_conflict_do_nothing(), None),
    "an upsert of PostgreSQL": lambda: (postgresql.insert(T).values(VERSION).on_conflict_do_nothing(), None),
    "an update by table": lambda: (sa.update(T).values(name="Eve"), None),
    "a delete by table": lambda: (sa.delete(T), None),
    "an update that gives objects": lambda: (
        sa.select(History).from_statement(sa.update(History).values(name="Eve").returning(History)),
        None,
    ),
    "an update of a list": lambda: (
        sa.update(T).where(T.c.id == sa.bindparam("key")).values(name=sa.bindparam("given")),
        [{"key": 1, "given": "Eve"}, {"key": 2, "given": "Eve"}],
    ),
    "an update of an alias": lambda: (sa.update(T.alias("h")).values(name="Eve"), None),
    "a subclass": lambda: (sa.update(VIPHistory.__table__).values(level=9), None),
    "links": lambda: (sa.delete(LINKS_HISTORY), None),
    "a list of links": lambda: (sa.insert(LINKS_HISTORY), [LINK]),
    "a lambda": lambda: (sa.lambda_stmt(lambda: sa.update(T).values(name="Eve")), None),
    "a CTE": lambda: (sa.select(sa.delete(T).returning(T.c.id).cte("gone")), None),
    "another Table of its name": lambda: (sa.delete(REFLECTED), None),
    "what table() makes": lambda: (sa.update(NAMESAKE).values(name="Eve"), None),
}


@pytest.fixture
def filled(sessions: Any) -> Any:
    with sessions() as session:
        session.add_all([VIP(id=1, name="Ada", level=1, tags=[Tag(id=1)]), Customer(id=2, name="Bob")])
        session.commit()
    return sessions


def histories(session: Session) -> list[Any]:
    session.rollback()
    return [told(session, Customer, "id", "name"), told(session, VIP, "level"), told(session, LINKS, "tag_id")]


REFUSED = re.compile("_history.*maintenance")
LOOKED_INTO = {"a CTE", "another Table of its name", "what table() makes"}
"""What is seen only where statements are recorded."""


@pytest.mark.spread
@pytest.mark.parametrize("how", ["session", "connection", "engine", "engine of a session"])
@pytest.mark.parametrize("what", STATEMENTS)
def test_no_statement_rewrites_history(filled: Any, request: pytest.FixtureRequest, what: str, how: str) -> None:
    statement, parameters = STATEMENTS[what]()
    if what == "an update that gives objects" and how in ("connection", "engine"):
        statement = sa.update(History).values(name="Eve").returning(T)
    with filled() as session:
        before = histories(session)
    engine = request.getfixturevalue("recorded_engine") if "engine" in how else None
    given: Any = filled() if engine is None else engine.connect() if how == "engine" else Session(engine)
    with given, pytest.raises(ReadOnlyError, match=REFUSED):
        (given.connection() if how == "connection" else given).execute(statement, parameters)
    with filled() as session:
        assert histories(session) == before


@pytest.mark.spread
@pytest.mark.parametrize("what", sorted(STATEMENTS.keys() - LOOKED_INTO))
def test_nor_does_one_while_tracking_is_disabled(filled: Any, what: str) -> None:
    with filled() as session, tracking_disabled(session), pytest.raises(ReadOnlyError, match=REFUSED):
        session.execute(*STATEMENTS[what]())


METHODS: dict[str, Callable[[Session], Any]] = {
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(History, [VERSION]),
    "bulk_update_mappings": lambda session: session.bulk_update_mappings(History, [KEY | {"name": "Eve"}]),
    "bulk_save_objects": lambda session: session.bulk_save_objects([History(**VERSION)]),
    "an update of a list": lambda session: session.execute(sa.update(History), [KEY | {"name": "Eve"}]),
    "a query's delete": lambda session: session.query(History).delete(),
    "a query's update": lambda session: session.query(History).update({"name": "Eve"}),
    "add": lambda session: (session.add(History(**VERSION)), session.flush()),
    "delete": lambda session: (session.delete(session.scalars(sa.select(History)).first()), session.flush()),
    "merge": lambda session: (session.merge(VIPHistory(**KEY, name="Eve")), session.flush()),
}


@pytest.mark.spread
@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_a_session_rewrites_history(filled: Any, method: str, disabled: bool) -> None:
    with filled() as session:
        before = histories(session)
        with tracking_disabled(session) if disabled else nullcontext(), pytest.raises(ReadOnlyError):
            METHODS[method](session)
        assert histories(session) == before


WRITES: dict[str, Callable[[Session, Any], Any]] = {
    "add": lambda session, row: (session.add(type(row)(**VERSION)), session.flush()),
    "change": lambda session, row: (setattr(row, "name", "Eve"), session.flush()),
    "delete": lambda session, row: (session.delete(row), session.flush()),
}


@pytest.fixture
def other() -> Any:
    class Other:
        def __init__(self, **values: Any) -> None:
            for name, value in values.items():
                setattr(self, name, value)

    registry = sa.orm.registry()
    registry.map_imperatively(Other, T)
    yield Other
    registry.dispose()


@pytest.mark.spread
@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_no_object_of_another_mapper_rewrites_history(filled: Any, other: Any, write: str, disabled: bool) -> None:
    with filled() as session:
        before = histories(session)
        with tracking_disabled(session) if disabled else nullcontext(), pytest.raises(ReadOnlyError, match=REFUSED):
            WRITES[write](session, session.scalars(sa.select(other)).first())
        assert histories(session) == before


def test_what_sqlaudit_writes_itself_is_no_rewriting(recorded_engine: sa.Engine, filled: Any) -> None:
    with filled() as session, tracking_disabled(session):
        session.add_all([Customer(id=3, name="Cy"), Customer(id=4, name="Di")])
        session.commit()
    assert backfill(recorded_engine, Customer).rows == 2
    with recorded_engine.begin() as connection:
        connection.execute(sa.update(Customer.__table__).values(name="Eve"))
        connection.execute(sa.delete(Customer.__table__).where(Customer.id > 2))
    with filled() as session:
        session.execute(sa.text("UPDATE customers_history SET audit_reason = 'by hand'"))  # which is not looked at
        record_changes(session, Customer)
        session.commit()


def test_a_migration_may_write_history(recorded_engine: sa.Engine, filled: Any, other: Any) -> None:
    with recorded_engine.begin() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context) as operations:
            operations.execute(sa.update(T).values(audit_reason="migrated"))
            operations.execute(sa.update(NAMESAKE).values(audit_reason="by an object"))
            with filled(bind=connection) as session:
                for row in session.scalars(sa.select(other)):
                    row.audit_reason = "migrated"
                session.flush()
        with pytest.raises(ReadOnlyError):
            connection.execute(sa.update(T).values(audit_reason="later"))
    with filled() as session:
        assert set(session.scalars(sa.select(T.c.audit_reason))) == {"migrated"}
