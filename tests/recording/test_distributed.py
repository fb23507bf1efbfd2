"""Does Citus accept all statements of sqlaudit, where it distributes tables and their histories by the key?

Citus is not here: a table of its catalogue says what is distributed, and :mod:`citus` reads the statements.
"""

import uuid
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker

from citus import refusals
from counting import counted
from databases import Database
from invariants import check_history
from registering import recording
from sqlaudit import (
    AuditContextManager,
    CaptureError,
    as_of,
    backfill,
    changes_in,
    changesets,
    get_resource_changes,
    record_changes,
    restore,
    time_travel,
    track_table,
    tracking_disabled,
    undo,
    versions_of,
)

pytestmark = pytest.mark.requires("writing_ctes")


class Base(orm.DeclarativeBase):
    pass


class Upper(sa.types.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value.upper()


wearing = sa.Table(
    "wearing",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("badge_code", sa.ForeignKey("badges.code", ondelete="CASCADE"), primary_key=True),
)


@track_table()
class Badge(Base):
    __tablename__ = "badges"

    code: Mapped[str] = mapped_column(Upper, primary_key=True)
    note: Mapped[str | None]


@track_table()
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    email: Mapped[str | None] = mapped_column(unique=True)
    badges: Mapped[list[Badge]] = relationship(secondary=wearing)


@track_table()
class Order(Base):
    """Its rows are beside those of their customers, by the first column of the key."""

    __tablename__ = "orders"

    customer_id: Mapped[int] = mapped_column(
        sa.ForeignKey("customers.id", ondelete="CASCADE", onupdate="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]


@track_table()
class Visit(Base):
    """Its rows are not beside those of their customers."""

    __tablename__ = "visits"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    customer_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id", ondelete="SET NULL"))
    note: Mapped[str | None]


@track_table()
class Holiday(Base):
    """The database's own texts find its rows again."""

    __tablename__ = "holidays"

    day: Mapped[date] = mapped_column(primary_key=True)
    land: Mapped[str] = mapped_column(sa.CHAR(2), primary_key=True)
    note: Mapped[str | None]


@track_table()
class Animal(Base):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    note: Mapped[str | None]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
    trick: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "dog"}


MODELS: list[Any] = [Customer, Order, Visit, Badge, Animal, Holiday]
LIVE = [Customer, Order, Visit, Badge, Holiday, Animal, Dog]
BESIDE = {"orders": "customers", "wearing": "customers", "dogs": "animals"}
COLUMNS: dict[str, str] = {}
GROUPS: dict[str, str] = {}
for table in (wearing, *(model.__table__ for model in LIVE)):
    for name in (table.name, f"{table.name}_history"):
        COLUMNS[name] = table.primary_key.columns[0].name
        GROUPS[name] = BESIDE.get(table.name, table.name)


@pytest.fixture
def sessions(database: Database, tables: None) -> Iterator[sessionmaker[Session]]:
    engine = database.create_engine(pool_size=3)
    catalogue = sa.table("pg_dist_partition", sa.column("logicalrelid", postgresql.REGCLASS()))
    with engine.begin() as connection:
        connection.execute(sa.DDL("CREATE TABLE pg_dist_partition (logicalrelid regclass)"))
        connection.execute(catalogue.insert(), [{"logicalrelid": name} for name in COLUMNS])
    with recording(engine) as maker:
        yield maker
    engine.dispose()


Step = Callable[[Session], Any]
STEPS: list[Step] = []


def inserts(session: Session) -> None:
    session.add_all([Customer(id=1), Customer(id=2), Customer(id=3)])
    session.add_all([Badge(code="a"), Badge(code="b")])
    session.add_all([Dog(id=1), Dog(id=2), Animal(id=3)])
    session.flush()
    session.add_all([Order(customer_id=1, number=1), Order(customer_id=1, number=2), Order(customer_id=2, number=1)])
    session.add_all([Visit(customer_id=1), Visit(customer_id=1), Visit(customer_id=2)])
    session.add_all([Holiday(day=date(2024, 1, day), land="de") for day in (1, 6)])


def updates(session: Session) -> None:
    for model in MODELS:
        one, *_ = rows = session.scalars(sa.select(model)).all()
        one.note = "one"
        session.flush()
        for number, row in enumerate(rows):
            row.note = f"all {number}"
        session.flush()


def updates_under_two_reasons(session: Session) -> None:
    updates(session)
    with AuditContextManager(reason="again"):
        updates(session)


def links(session: Session) -> None:
    first, second, _ = session.scalars(sa.select(Customer).order_by(Customer.id)).all()
    badges = session.scalars(sa.select(Badge)).all()
    first.badges.extend(badges)
    session.flush()
    second.badges.append(badges[0])
    first.badges.remove(badges[0])
    session.flush()
    first.badges.append(badges[0])


def changed_keys(session: Session) -> None:
    session.get_one(Order, (1, 2)).number = 7
    session.get_one(Order, (2, 1)).number = 8


def deletes(session: Session) -> None:
    session.delete(session.get_one(Customer, 3))
    session.flush()
    for model, key in ((Dog, 1), (Dog, 2), (Order, (1, 1))):
        session.delete(session.get_one(model, key))
    session.flush()
    for key in (1, 2):
        session.delete(session.get_one(Customer, key))
    session.flush()
    session.add(Customer(id=1))


def rows_without_history(session: Session) -> None:
    with tracking_disabled(session):
        session.execute(sa.insert(Customer), [{"id": number} for number in range(20, 25)])
        session.execute(sa.insert(Animal), [{"id": number, "kind": "animal"} for number in range(20, 25)])
        session.execute(sa.insert(Order), [{"customer_id": 20, "number": number} for number in range(20, 25)])
    session.get_one(Customer, 20).note = "x"
    session.get_one(Order, (20, 20)).note = "x"
    session.delete(session.get_one(Order, (20, 21)))
    session.flush()
    for row in (*session.scalars(sa.select(Order)).all(), *session.scalars(sa.select(Animal)).all()):
        session.delete(row)
    session.flush()
    session.execute(sa.update(Customer).values(note="new"))


def bulk_inserts(session: Session) -> None:
    session.execute(sa.insert(Customer), [{"id": number, "email": str(number)} for number in range(40, 46)])
    session.execute(sa.insert(Order), [{"customer_id": 40 + number, "number": number} for number in range(6)])
    session.execute(sa.insert(Visit), [{"customer_id": 40 + number} for number in range(6)])
    session.execute(sa.insert(Holiday), [{"day": date(2024, 3, number), "land": "ch"} for number in (1, 2, 3)])
    session.execute(sa.insert(Badge), [{"code": letter} for letter in "uvw"])
    session.execute(sa.insert(Dog), [{"id": number} for number in range(40, 46)])
    session.execute(sa.insert(Customer).from_select(["id"], sa.select(Customer.id + 100)))


def bulk_updates(session: Session) -> None:
    columns = (Customer.id, Order.customer_id, Visit.customer_id, Badge.code, Animal.id, Holiday.land)
    for model, column in zip(MODELS, columns, strict=True):
        some = session.scalars(sa.select(column).limit(2)).all()
        for update in (
            sa.update(model),
            sa.update(model).where(column == some[0]),
            sa.update(model).where(column.in_(some)),
            sa.update(model).where(column == some[0], model.note != "x"),
        ):
            session.execute(update.values(note="bulk"))
    session.execute(sa.update(Customer), [{"id": 40, "note": "a"}, {"id": 41, "note": "b"}])
    by_key = sa.update(Customer.__table__).where(Customer.id == sa.bindparam("key")).values(note=sa.bindparam("new"))
    session.connection().execute(by_key, [{"key": 40, "new": "x"}, {"key": 41, "new": "y"}])
    session.execute(sa.update(Order).where(Order.note == "bulk").values(number=Order.number + 100))
    session.execute(sa.update(Order).where(Order.customer_id == 40, Order.number == 100).values(number=7))


def bulk_deletes(session: Session) -> None:
    for delete in (
        sa.delete(Order).where(Order.customer_id == 41),
        sa.delete(Order).where(Order.customer_id == 42, Order.number == 102),
        sa.delete(Customer).where(Customer.id == 43),
        sa.delete(Customer).where(Customer.id.in_([44, 45])),
        sa.delete(Dog.__table__).where(Dog.__table__.c.id == 40),
        sa.delete(Animal).where(Animal.note == "none"),
        sa.delete(Badge),
        sa.delete(Holiday).where(Holiday.land == "ch"),
    ):
        session.execute(delete)


def upserts(session: Session) -> None:
    into_customers, into_orders = postgresql.insert(Customer), postgresql.insert(Order)
    for numbers in ((1,), (1, 2, 50)):
        rows = [{"id": number, "note": "u", "email": f"e{number}"} for number in numbers]
        session.execute(into_customers.on_conflict_do_update(index_elements=["id"], set_={"note": "set"}), rows)
        session.execute(into_customers.on_conflict_do_nothing(), rows)
    rows = [{"customer_id": 1, "number": number} for number in (1, 2, 3)]
    for note in ("first", "second"):
        upsert = into_orders.on_conflict_do_update(index_elements=["customer_id", "number"], set_={"note": note})
        session.execute(upsert, rows)


def maintenance(session: Session) -> None:
    with tracking_disabled(session):
        session.execute(sa.update(Customer).values(note="unseen"))
        session.execute(sa.insert(Order), [{"customer_id": 1, "number": number} for number in (60, 61, 62)])
        session.execute(sa.insert(Holiday), [{"day": date(2024, 5, day), "land": "fr"} for day in (1, 2, 3)])
        session.execute(sa.insert(Dog), [{"id": number} for number in (60, 61, 62)])
        session.execute(sa.insert(Badge), [{"code": code} for code in "yz"])
        session.execute(sa.insert(wearing), [{"customer_id": 1, "badge_code": code} for code in "yz"])
    for model in (Holiday, Animal, wearing, Badge):
        backfill(session, model)
    record_changes(session, Order, [(1, 60), (1, 61)])
    record_changes(session, Customer, Customer.note == "unseen")
    for model in MODELS:
        record_changes(session, model)


def restoring(session: Session) -> None:
    latest = changesets(session)[-2:]
    for model, key in ((Customer, 1), (Customer, 40), (Order, (1, 2)), (Dog, 41)):
        restore(session, versions_of(session, model, key)[0])
    for changeset in latest:
        undo(session, changeset.changeset_id, force=True)


def reads(session: Session) -> None:
    now = changesets(session)[-1].timestamp
    assert session.scalars(as_of(Customer, now).where(Customer.id == 1)).one().badges is not None
    for query in (
        as_of(Customer, now),
        as_of(Customer, now).where(Customer.id.in_([1, 2, 3])),
        as_of(Customer, now).options(orm.selectinload(Customer.badges)),
        as_of(Dog, now),
        as_of(Order, now).where(Order.customer_id == 1),
        as_of(Order, now).where(Order.customer_id == 1, Order.number == 2),
    ):
        session.scalars(query).all()
    with time_travel(session, now) as past:
        past.get(Customer, 1)
        past.scalar(sa.select(sa.func.count()).select_from(Customer))
    for model in MODELS:
        get_resource_changes(model, session=session)
        get_resource_changes(model, session=session, newest_first=True, limit=3)
    get_resource_changes(Customer, session=session, filter_resource_ids=[1, 2, 3])
    get_resource_changes(Order, session=session, filter_resource_ids=[(1, 1), (1, 2)])
    for changeset in changesets(session, newest_first=True, limit=3):
        changes_in(session, changeset.changeset_id)


WRITES = (
    inserts, updates, updates_under_two_reasons, links, changed_keys, deletes, rows_without_history, bulk_inserts,
    bulk_updates, bulk_deletes, upserts, maintenance,
)  # fmt: skip


def is_of_the_program(sql: str) -> bool:
    """Return whether SQLAlchemy loads a collection of the program, whose tables are not colocated."""
    return "_history" not in sql and "badges" in sql and "wearing" in sql


def test_citus_accepts_every_statement(sessions: sessionmaker[Session]) -> None:
    refused: dict[str, list[str]] = {}
    for step in (*WRITES, restoring, reads):
        with sessions.begin() as session, counted(session.get_bind()) as statements:
            step(session)
        for sql in set(statements):
            is_read = step in (restoring, reads) and sql.startswith("SELECT")
            reasons = [] if is_of_the_program(sql) else refusals(sql, COLUMNS, GROUPS, is_read=is_read)
            if reasons:
                refused.setdefault(f"{step.__name__}: {', '.join(reasons)}", []).append(sql)
    assert not refused
    with sessions() as session:
        for source in (*MODELS, wearing):
            check_history(session, source)


TABLES = {"c": "id", "h": "id", "o": "id"}
BESIDE_EACH_OTHER = {"c": 1, "h": 1, "o": 2}


@pytest.mark.parametrize(
    ("sql", "reasons"),
    [
        (
            "WITH x AS (UPDATE h SET a=1 WHERE h.id=%(k)s::INTEGER RETURNING h.id) INSERT INTO h SELECT c.id FROM c "
            "JOIN x ON x.id=c.id WHERE c.id=%(k)s",
            ["writes in WITH"],
        ),
        (
            "SELECT h.id FROM h WHERE h.id=%(k)s AND h.v = (SELECT a.v FROM h AS a WHERE a.id=%(k)s ORDER BY a.v DESC "
            "LIMIT 1 FOR SHARE) FOR UPDATE",
            [],
        ),
        (
            "SELECT h.id FROM h WHERE h.id=%(k)s AND h.v = (SELECT a.v FROM h AS a WHERE a.id=h.id ORDER BY a.v DESC "
            "LIMIT 1 FOR SHARE) FOR UPDATE",
            ["locks many rows", "correlates one row"],
        ),
        ("SELECT c.id FROM c WHERE c.id = 5 ORDER BY c.id FOR UPDATE", []),
        ("SELECT c.id FROM c WHERE c.id = 5 OR c.note = 'x' FOR UPDATE", ["locks many rows"]),
        ("SELECT c.id FROM c WHERE c.id IN (%(k_1)s, %(k_2)s) FOR UPDATE OF c", ["locks many rows"]),
        (
            "SELECT c.id, EXISTS (SELECT 1 FROM h AS a WHERE a.id = c.id) FROM c WHERE c.id = %(k)s FOR UPDATE",
            ["locks many rows", "correlates one row"],
        ),
        (
            "INSERT INTO h (id, v) SELECT c.id, coalesce((SELECT a.v FROM h AS a WHERE a.id=c.id LIMIT 1), 0) + 1 "
            "FROM c WHERE c.id=%(k)s",
            ["correlates one row"],
        ),
        (
            "INSERT INTO h (id, v) SELECT c.id, coalesce((SELECT a.v FROM h AS a WHERE a.id=%(k)s LIMIT 1), 0) + 1 "
            "FROM c WHERE c.id=%(k)s",
            [],
        ),
        (
            "INSERT INTO h (id, v) SELECT c.id, coalesce((SELECT a.v FROM h AS a WHERE a.id=c.id LIMIT 1), 0) + 1 "
            "FROM c WHERE c.id = ANY(%(k)s::INTEGER[])",
            [],
        ),
        (
            "INSERT INTO h (id, n) SELECT c.id, c.n FROM c WHERE (c.id, c.n) IN ((%(a)s, %(b)s), (%(c)s, %(d)s)) "
            "AND NOT (EXISTS (SELECT 1 FROM h AS a WHERE a.id = c.id AND a.n = c.n))",
            ["lists tuples"],
        ),
        (
            "INSERT INTO h (id, n) SELECT c.id, c.n FROM c WHERE (c.id, c.n) IN (SELECT u.k0, u.k1 FROM "
            "unnest(%(a)s::INTEGER[], %(b)s::INTEGER[]) AS u(k0, k1)) "
            "AND NOT (EXISTS (SELECT 1 FROM h AS a WHERE a.id = c.id AND a.n = c.n))",
            [],
        ),
        (
            "SELECT o.id FROM o WHERE EXISTS (SELECT 1 FROM c AS p WHERE o.customer_id = p.id AND p.id = ANY(%(k)s))",
            ["joins what is not colocated"],
        ),
        ("SELECT c.id FROM c JOIN h ON c.n = h.n WHERE c.id = ANY(%(k)s)", ["joins what is not colocated"]),
        ("SELECT o.id FROM o JOIN h ON o.id = h.id WHERE o.id = ANY(%(k)s)", ["joins what is not colocated"]),
        (
            "SELECT h.id FROM h WHERE (h.id, h.v) IN (SELECT u.k0, (SELECT a.v FROM h AS a WHERE a.id=u.k0 LIMIT 1) "
            "FROM unnest(%(a)s) AS u(k0))",
            ["joins what is not colocated", "correlates with what is not distributed"],
        ),
        (
            "SELECT h.id FROM h JOIN (SELECT a.id AS id, max(a.v) AS m FROM h AS a WHERE a.id = ANY(%(a)s) "
            "GROUP BY a.id) AS l ON h.id = l.id AND h.v = l.m",
            [],
        ),
        (
            "SELECT h.id FROM h JOIN (WITH RECURSIVE r(id) AS (SELECT c.id FROM c WHERE c.id = ANY(%(k)s) UNION ALL "
            "SELECT r.id FROM r) SELECT r.id FROM r) AS s ON s.id = h.id",
            ["is recursive"],
        ),
        (
            "UPDATE h SET t=%(t)s WHERE h.id = ANY (%(k)s) AND (EXISTS (SELECT 1 FROM c WHERE c.id = h.id "
            "AND (c.n IS DISTINCT FROM h.n)))",
            [],
        ),
    ],
)
def test_what_citus_refuses_is_found(sql: str, reasons: list[str]) -> None:
    assert refusals(sql, TABLES, BESIDE_EACH_OTHER) == reasons


@pytest.mark.parametrize(
    ("meanwhile", "updated", "deleted"),
    [
        (
            sa.update(Customer).where(Customer.id == 2).values(note="other"),
            {1: "bulk", 2: "other", 3: "b"},
            {2: "other", 3: "b"},
        ),
        (sa.update(Customer).where(Customer.id == 3).values(note="a"), {1: "bulk", 2: "bulk", 3: "a"}, {3: "a"}),
        (sa.delete(Customer).where(Customer.id == 2), {1: "bulk", 3: "b"}, {3: "b"}),
    ],
    ids=["one row matches no more", "another row matches", "one row is deleted"],
)
@pytest.mark.parametrize("is_update", [True, False], ids=["update", "delete"])
def test_what_others_write_between_read_and_write_is_neither_overwritten_nor_lost(
    is_update: bool, meanwhile: Any, updated: dict[int, str], deleted: dict[int, str], sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        session.add_all([Customer(id=1, note="a"), Customer(id=2, note="a"), Customer(id=3, note="b")])
    waiting = [meanwhile]

    def interfere(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if waiting and sql.startswith(("UPDATE customers ", "DELETE FROM customers ")):
            with sessions.begin() as other:
                other.execute(waiting.pop())

    with sessions.begin() as session:
        sa.event.listen(session.get_bind(), "before_cursor_execute", interfere)
        write = sa.update(Customer).values(note="bulk") if is_update else sa.delete(Customer)
        session.execute(write.where(Customer.note == "a"))
    with sessions() as session:
        rows = {row.id: row.note for row in session.scalars(sa.select(Customer))}
        assert rows == (updated if is_update else deleted)
        check_history(session, Customer)


def refuse_inserts(connection: sa.Connection, table: str) -> None:
    connection.execute(
        sa.DDL(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN RAISE EXCEPTION ''complex joins are only supported'' USING ERRCODE = ''0A000''; END'"
        )
    )
    connection.execute(sa.DDL(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} EXECUTE FUNCTION refuse()"))


@pytest.mark.new_tables
def test_a_statement_for_history_that_citus_refuses_is_explained(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        refuse_inserts(session.connection(), "customers_history")
        session.add(Customer(id=1))
        with pytest.raises(CaptureError, match=r"'customers_history' by the same column .* complex joins") as raised:
            session.flush()
        assert raised.value.subject is Customer.__table__


@pytest.mark.new_tables
def test_the_programs_own_statement_that_citus_refuses_fails_as_without_sqlaudit(
    sessions: sessionmaker[Session],
) -> None:
    with sessions() as session:
        refuse_inserts(session.connection(), "customers")
        session.add(Customer(id=1))
        with pytest.raises(sa.exc.NotSupportedError):
            session.flush()
