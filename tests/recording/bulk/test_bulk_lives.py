"""Random lives of rows that bulk statements write, held against a reference: every version, who, why and when.

What the statements do is not foretold: after each step the reference is told which rows the database holds. It is
foretold, by a rehearsal that is not recorded, that they do the same without us.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import sqlaudit
from databases import Database
from effort import profile
from invariants import check_history
from reference import Context, Place, Reference, Rows, Version


class Base(DeclarativeBase):
    pass


def refers(column: Any, ondelete: str = "CASCADE") -> sa.ForeignKey:
    return sa.ForeignKey(column, ondelete=ondelete, onupdate="CASCADE")


links = sa.Table(
    "life_links",
    Base.metadata,
    sa.Column("item_id", refers("life_items.id"), primary_key=True),
    sa.Column("tag_id", refers("life_tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Item(Base):
    __tablename__ = "life_items"

    id: Mapped[int] = mapped_column(sa.Identity(start=100), primary_key=True)
    code: Mapped[str | None] = mapped_column(sa.String(5), unique=True)
    n: Mapped[int] = mapped_column(default=0)
    tags: Mapped[list["Tag"]] = relationship(secondary=links, passive_deletes=True)


@sqlaudit.track_table()
class Part(Base):
    """Goes with its item, or follows its key by its own."""

    __tablename__ = "life_parts"

    item_id: Mapped[int] = mapped_column(refers(Item.id), primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(server_default="7")


@sqlaudit.track_table()
class Note(Base):
    """Goes with the part, or follows its key."""

    __tablename__ = "life_notes"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["item_id", "number"], ["life_parts.item_id", "life_parts.number"], ondelete="CASCADE", onupdate="CASCADE"
        ),
    )

    id: Mapped[int] = mapped_column(sa.Identity(start=100), primary_key=True)
    item_id: Mapped[int | None]
    number: Mapped[int | None]


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "life_tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@sqlaudit.track_table()
class Person(Base):
    """Stays when the item goes."""

    __tablename__ = "life_people"

    id: Mapped[int] = mapped_column(sa.Identity(start=100), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10), default="person")
    name: Mapped[str] = mapped_column(sa.String(5))
    item_id: Mapped[int | None] = mapped_column(refers(Item.id, ondelete="SET NULL"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Worker(Person):
    __tablename__ = "life_workers"

    id: Mapped[int] = mapped_column(refers(Person.id), primary_key=True)
    wage: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "worker"}


items, parts, notes, tags, people, workers = (model.__table__ for model in (Item, Part, Note, Tag, Person, Worker))
TABLES: tuple[Any, ...] = (items, parts, notes, tags, links, people)
SOURCES = (Item, Part, Note, Tag, Person, links)
REFUSED = (sa.exc.IntegrityError, sa.exc.OperationalError, StaleDataError)


def key_of(table: Any, row: Any) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.primary_key)


def all_rows(connection: sa.Connection) -> Rows:
    """Return all that the live tables hold; what a worker has besides is told with the person."""
    rows: Rows = {}
    for table in TABLES:
        statement = sa.select(table)
        if table is people:
            statement = statement.add_columns(workers.c.wage).outerjoin(workers, workers.c.id == people.c.id)
        for row in connection.execute(statement).mappings():
            rows[table.name, key_of(table, row)] = dict(row)
    return rows


def all_versions(connection: sa.Connection) -> dict[Place, list[Version]]:
    found: dict[Place, list[Version]] = {}
    of_workers = Base.metadata.tables["life_workers_history"]
    for table in TABLES:
        history = Base.metadata.tables[f"{table.name}_history"]
        statement = sa.select(history).order_by(history.c.audit_version)
        if table is people:
            same = sa.and_(of_workers.c.id == history.c.id, of_workers.c.audit_version == history.c.audit_version)
            statement = statement.outerjoin(of_workers, same)
            statement = statement.add_columns(of_workers.c.wage, of_workers.c.audit_operation.label("of_worker"))
        for row in connection.execute(statement).mappings():
            values = {column.name: row[column.name] for column in table.c}
            if table is people:
                is_worker_no_more = row["of_worker"] == "delete" != row["audit_operation"]
                values["wage"] = None if is_worker_no_more else row["wage"]
            version = Version(
                row["audit_version"],
                row["audit_operation"],
                values,
                Context(row["audit_changed_by"], row["audit_reason"]),
                row["valid_from"],
                row["valid_to"],
                row["audit_changeset_id"],
            )
            found.setdefault((table.name, key_of(table, row)), []).append(version)
    return found


def check_against_reference(reference: Reference, found: dict[Place, list[Version]]) -> None:
    transactions: dict[Any, int] = {}
    for place, versions in found.items():
        for version, expected in zip(versions, reference.history.get(place, []), strict=False):
            number = transactions.setdefault(version.transaction, expected.transaction)
            assert number == expected.transaction, "two transactions share a changeset id"
    assert len(transactions) == len(set(transactions.values())), "one transaction has two changeset ids"
    for place in {**found, **reference.history}:
        numbered = [
            Version(**{**vars(each), "transaction": transactions.get(each.transaction)})
            for each in found.get(place, [])
        ]
        assert numbered == reference.history.get(place, []), place


def connection_of(executor: Any) -> sa.Connection:
    return executor.connection() if isinstance(executor, Session) else executor


KEY = st.integers(1, 4)
PICK = st.integers(0, 3)
CODE = st.sampled_from([None, "a", "b", "c", "A"])
NUMBER = st.integers(0, 2)
SMALL = st.integers(1, 2)
WAY = st.sampled_from(["orm", "query", "table", "connection"])
THEN = st.sampled_from(["session", "late", "plain", "connection"])

ITEMS: dict[str, Callable[[int], Any]] = {
    "all": lambda k: sa.true(),
    "one": lambda k: items.c.id == k,
    "one, and more": lambda k: sa.and_(items.c.id == k, items.c.n < 2),
    "some": lambda k: items.c.id.in_([k, k + 1]),
    "by number": lambda k: items.c.n >= k - 1,
    "with parts": lambda k: sa.exists().where(parts.c.item_id == items.c.id),
    "linked": lambda k: items.c.id.in_(sa.select(links.c.item_id)),
}
VALUES: dict[str, Callable[[int], dict[str, Any]]] = {
    "number": lambda k: {"n": k},
    "increment": lambda k: {"n": items.c.n + 1},
    "count": lambda k: {
        "n": sa.select(sa.func.count()).select_from(parts).where(parts.c.item_id == items.c.id).scalar_subquery()
    },
    "code": lambda k: {"code": "xyzw"[k - 1]},
    "no code": lambda k: {"code": None},
    "key": lambda k: {"id": items.c.id + 10 * k},
    "key by number": lambda k: {"id": items.c.id + 10 * items.c.n},
    "key and more": lambda k: {"id": k + 1, "n": k},
}


class Life(RuleBasedStateMachine):
    """The work of sessions and connections, one after the other."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__()
        tables = Base.metadata.sorted_tables[::-1]
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # Whether keys can be moved depends there on where the rows lie, and so on what was deleted before.
                connection.execute(sa.DDL(f"TRUNCATE {', '.join(table.name for table in tables)}"))
            for table in tables:
                connection.execute(table.delete())
        self.engine = engine
        self.dialect = engine.dialect.name
        self.maker = sessionmaker(engine)
        self.is_engine_recorded = False
        self.now = datetime(2024, 1, 1, tzinfo=UTC)
        self.instants: list[datetime] = []
        self.has_written = False
        sqlaudit.register_hooks(self.maker)
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=self.clock, strict=True))
        sqlaudit.clear_audit_context()
        self.context = Context()
        self.reference = Reference()
        self.savepoints: list[tuple[Any, Any]] = []
        self.executors: dict[str, Any] = {"session": self.maker(), "late": self.maker(autoflush=False)}
        self.at: Any = self.executors["session"]

    def clock(self) -> datetime:
        self.instants.append(self.now)
        return self.now

    def teardown(self) -> None:
        try:
            if sys.exception() is None:
                self.commit("session")
        finally:
            for executor in self.executors.values():
                executor.close()
            sqlaudit.unregister_hooks(self.maker, engine=self.engine if self.is_engine_recorded else None)

    @initialize(is_engine_recorded=st.booleans(), rows=st.integers(0, 3))
    def begin(self, is_engine_recorded: bool, rows: int) -> None:
        self.is_engine_recorded = is_engine_recorded
        if is_engine_recorded:
            sqlaudit.register_hooks(self.maker, engine=self.engine)
            self.executors |= {"plain": Session(self.engine), "connection": self.engine.connect()}
        for id in range(1, rows + 1):
            self.at.add_all([Item(id=id, code="abc"[id - 1], n=id), Tag(id=id)])
            self.at.flush()
            self.at.add(Part(item_id=id, number=1, n=0))
            self.at.add(Worker(id=id, name="a", wage=1, item_id=id) if id > 1 else Person(id=id, name="a", item_id=id))
            self.at.flush()
            self.at.add(Note(id=id, item_id=id, number=1))
            self.at.execute(links.insert().values(item_id=id, tag_id=1))
        self.flush()
        self.commit("session")

    # -- the database

    @property
    def in_session(self) -> bool:
        return isinstance(self.at, Session)

    def rows(self) -> Rows:
        return all_rows(connection_of(self.at))

    def has(self, table: Any, *key: Any) -> bool:
        return (table.name, key) in self.reference.rows

    def note(self) -> None:
        """Tell the reference what there is now."""
        self.has_written |= self.reference.flush(self.rows(), self.context)
        if self.has_written:
            assert len(set(self.instants)) == 1, "a transaction takes one instant, before its first write"

    def run(self, work: Callable[[Any], Any], *, in_parts: bool = False, makes_keys: bool = False) -> None:
        """Execute what the database may refuse.

        :param in_parts: whether several statements may have been executed by then
        :param makes_keys: whether the database makes keys, which it never does twice
        """
        before, expected = self.reference.rows, None
        flushes = self.in_session and (self.at.new or self.at.dirty or self.at.deleted)
        is_rehearsed = self.at in (self.executors["session"], self.executors["late"]) and not (makes_keys or flushes)
        if is_rehearsed:
            expected = self.rehearse(work)
        try:
            work(self.at)
        except REFUSED as error:
            if isinstance(error, sa.exc.OperationalError) and error.orig.args[0] != 1761:  # a key that a cascade takes
                raise
            assert expected is None, "it is refused with us alone"
            if self.dialect == "postgresql" or (self.in_session and not self.at.is_active):
                self.undo()
                return
            if not (in_parts or flushes or isinstance(error, StaleDataError)):  # which comes when all is done
                assert self.rows() == before, "what is refused leaves nothing"
        else:
            if is_rehearsed:
                assert self.rows() == expected, "it does the same without us"
        self.note()

    def rehearse(self, work: Callable[[Any], Any]) -> Rows | None:
        """Return what there would be after some work that is not recorded; `None` if it is refused."""
        plain = Session(self.at.connection(), join_transaction_mode="create_savepoint")
        with sqlaudit.tracking_disabled(self.at), plain:
            try:
                work(plain)
                return self.rows()
            except REFUSED:
                return None

    def write(self, way: str, statement: Any, *parameters: Any, table: Any = None, **how: bool) -> None:
        """Execute a statement: of the ORM, or of Core, in the session or beneath it."""
        if not self.in_session:
            way = "connection"
        if table is not None and way in ("table", "connection"):
            statement = table
        if way != "orm":
            self.flush()
        beneath = way == "connection"
        self.run(lambda x: (connection_of(x) if beneath else x).execute(statement, *parameters), **how)
        self.forget()

    def through_session(self, work: Callable[[Session], Any], **how: bool) -> None:
        self.flush()
        self.run(work, **how)
        self.forget()

    def forget(self) -> None:
        """Let objects be loaded anew, for the database has changed rows on its own."""
        if self.in_session:
            self.at.expunge_all()

    def undo(self) -> None:
        self.rollback_to_savepoint() if self.savepoints else self.rollback("same")

    @rule()
    def flush(self) -> None:
        if self.in_session:
            try:
                self.at.flush()
            except REFUSED:
                self.undo()
            else:
                self.note()

    # -- the transaction

    @rule()
    def savepoint(self) -> None:
        self.flush()
        self.savepoints.append((self.at.begin_nested(), self.reference.savepoint()))

    @precondition(lambda self: self.savepoints)
    @rule()
    def release_savepoint(self) -> None:
        self.flush()
        if self.savepoints:
            self.savepoints.pop()[0].commit()

    @precondition(lambda self: self.savepoints)
    @rule()
    def rollback_to_savepoint(self) -> None:
        nested, state = self.savepoints.pop()
        nested.rollback()
        self.reference.rollback_to(state)
        self.forget()
        assert self.rows() == self.reference.rows

    @rule(then=THEN)
    def commit(self, then: str) -> None:
        self.flush()
        self.at.commit()
        assert len(set(self.instants)) <= 1, "a transaction takes one instant; what was refused may have taken it, too"
        self.reference.commit(self.instants[0] if self.instants else None)
        self.ended(then)
        with self.maker() as session:
            assert all_rows(session.connection()) == self.reference.rows
            check_against_reference(self.reference, all_versions(session.connection()))
            for source in SOURCES:
                check_history(session, source)

    @rule(then=THEN)
    def rollback(self, then: str) -> None:
        self.at.rollback()
        self.reference.rollback()
        self.ended(then)

    def ended(self, then: str) -> None:
        self.forget()
        self.savepoints.clear()
        self.instants.clear()
        self.has_written = False
        self.at = self.executors.get(then, self.at)

    # -- UPDATE

    @rule(way=WAY, which=st.sampled_from(list(ITEMS)), what=st.sampled_from(list(VALUES)), k=KEY)
    def update_items(self, way: str, which: str, what: str, k: int) -> None:
        criterion, values = ITEMS[which](k), VALUES[what](k)
        if way == "query" and self.in_session:
            return self.through_session(lambda s: s.query(Item).filter(criterion).update(values, "fetch"))
        entity = sa.update(Item).where(criterion).values(values)
        return self.write(way, entity, table=items.update().where(criterion).values(values))

    @rule(way=WAY, changes=st.dictionaries(KEY, st.tuples(CODE, NUMBER), min_size=1, max_size=3), codes=st.booleans())
    def update_items_by_keys(self, way: str, changes: dict[int, Any], codes: bool) -> None:
        some = [{"id": id, "n": n} | ({"code": code} if codes else {}) for id, (code, n) in changes.items()]
        if way == "query" and self.in_session:
            return self.through_session(lambda s: s.bulk_update_mappings(Item, some))
        if way == "orm" and self.in_session:
            return self.write(way, sa.update(Item), some)
        by_key = items.update().where(items.c.id == sa.bindparam("k")).values(n=sa.bindparam("m"))
        return self.write(way, by_key, [{"k": each["id"], "m": each["n"]} for each in some])

    @rule(way=WAY, steps=st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=3))
    def update_items_many_times(self, way: str, steps: list[tuple[int, int]]) -> None:
        statement = items.update().where(items.c.n == sa.bindparam("a")).values(n=sa.bindparam("b"))
        self.write(way, statement, [{"a": a, "b": b} for a, b in steps])

    @rule(
        way=WAY,
        table=st.sampled_from([items, tags, people]),
        steps=st.lists(st.tuples(KEY, st.integers(1, 6)), min_size=1, max_size=3),
    )
    def move_many_times(self, way: str, table: Any, steps: list[tuple[int, int]]) -> None:
        statement = table.update().where(table.c.id == sa.bindparam("a")).values(id=sa.bindparam("b"))
        self.write(way, statement, [{"a": a, "b": b} for a, b in steps])

    @rule(way=WAY, which=st.none() | KEY, what=st.sampled_from(["n", "number", "item", "both"]), k=KEY)
    def update_parts(self, way: str, which: int | None, what: str, k: int) -> None:
        criterion = sa.true() if which is None else parts.c.item_id == which
        values = {
            "n": {"n": parts.c.n + 1},
            "number": {"number": parts.c.number + k},
            "item": {"item_id": k},
            "both": {"item_id": k, "number": parts.c.number + 1},
        }[what]
        entity = sa.update(Part).where(criterion).values(values).execution_options(synchronize_session=False)
        self.write(way, entity, table=parts.update().where(criterion).values(values))

    @rule(way=WAY, which=KEY, tag=KEY)
    def update_links(self, way: str, which: int, tag: int) -> None:
        self.write(way, links.update().where(links.c.item_id == which).values(tag_id=tag))

    @rule(way=WAY, id=KEY, new=KEY)
    def move_tag(self, way: str, id: int, new: int) -> None:
        self.write(way, tags.update().where(tags.c.id == id).values(id=new))

    # -- DELETE

    @rule(way=WAY, which=st.sampled_from(list(ITEMS)[1:]), k=KEY)
    def delete_items(self, way: str, which: str, k: int) -> None:
        criterion = ITEMS[which](k)
        if way == "query" and self.in_session:
            return self.through_session(lambda s: s.query(Item).filter(criterion).delete(False))
        return self.write(way, sa.delete(Item).where(criterion), table=items.delete().where(criterion))

    @rule(way=WAY, table=st.sampled_from([items, tags, people]), keys=st.lists(KEY, min_size=1, max_size=3))
    def delete_many_times(self, way: str, table: Any, keys: list[int]) -> None:
        self.write(way, table.delete().where(table.c.id == sa.bindparam("k")), [{"k": key} for key in keys])

    @rule(way=WAY, table=st.sampled_from([parts, links, notes]), k=KEY)
    def delete_dependents(self, way: str, table: Any, k: int) -> None:
        self.write(way, table.delete().where(table.c.item_id == k))

    # -- INSERT

    @rule(
        way=st.sampled_from(["orm", "mappings", "objects", "values", "table", "connection"]),
        rows=st.lists(st.tuples(KEY, CODE, NUMBER), min_size=1, max_size=3),
        given=st.booleans(),
    )
    def insert_items(self, way: str, rows: list[tuple[int, Any, int]], given: bool) -> None:
        some = [{"code": code, "n": n} | ({"id": id} if given else {}) for id, code, n in rows]
        if way == "mappings" and self.in_session:
            work = lambda s: s.bulk_insert_mappings(Item, [dict(each) for each in some])  # noqa: E731
            return self.through_session(work, makes_keys=not given)
        if way == "objects" and self.in_session:
            work = lambda s: s.bulk_save_objects([Item(**each) for each in some])  # noqa: E731
            return self.through_session(work, makes_keys=not given)
        if way == "values":
            return self.write("table", items.insert().values(some), makes_keys=not given)
        one_or_many = some[0] if len(some) == 1 else some
        in_parts = way == "orm"  # which executes one statement for rows with a code, and one for those without
        table = items.insert()
        return self.write(way, sa.insert(Item), one_or_many, table=table, in_parts=in_parts, makes_keys=not given)

    @rule(way=WAY, n=NUMBER, add=st.sampled_from([None, 0, 5]))
    def insert_items_from_select(self, way: str, n: int, add: int | None) -> None:
        names, chosen = ["n"], sa.select(items.c.n + 1).where(items.c.n == n)
        if add is not None:
            names, chosen = ["n", "id"], chosen.add_columns(items.c.id + add)
        table = items.insert().from_select(names, chosen)
        self.write(way, sa.insert(Item).from_select(names, chosen), table=table, makes_keys=add is None)

    @rule(
        way=WAY,
        rows=st.lists(
            st.tuples(KEY, CODE, NUMBER),
            min_size=1,
            max_size=3,
            unique_by=(lambda row: row[0], lambda row: (row[1] or str(row[0])).lower()),
        ),
        by=st.sampled_from(["id", "code"]),
        given=st.booleans(),
        what=st.sampled_from(["n", "other", "nothing", "replace", "key"]),
        form=st.sampled_from(["list", "values", "select"]),
    )
    def upsert_items(self, way: str, rows: list[Any], by: str, given: bool, what: str, form: str) -> None:
        some = [{"code": code, "n": n} | ({"id": id} if given else {}) for id, code, n in rows]
        dialects: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mysql": mysql, "mariadb": mysql}
        statement = dialects[self.dialect].insert(items)
        is_mysql = hasattr(statement, "on_duplicate_key_update")
        new = statement.inserted if is_mysql else statement.excluded
        values = {
            "n": {"n": new.n + sa.literal_column("1")},  # PyMySQL takes no parameter there
            "other": {"n": items.c.n + sa.literal_column("1"), "code": sa.null()},
            "key": {"id": items.c.id + sa.literal_column("20")},
        }.get(what)
        if what == "replace" and self.dialect == "sqlite":
            statement = statement.prefix_with("OR REPLACE")
        elif values is None:
            statement = statement.prefix_with("IGNORE") if is_mysql else statement.on_conflict_do_nothing()
        elif is_mysql:
            statement = statement.on_duplicate_key_update(values)
        else:
            statement = statement.on_conflict_do_update(index_elements=[by], set_=values)
        parameters: tuple[Any, ...] = ()
        if form == "list":
            parameters = (some,)
        elif form == "values":
            statement = statement.values(some)
        else:
            row = [sa.literal(value, items.c[name].type) for name, value in some[0].items()]
            statement = statement.from_select(list(some[0]), sa.select(*row).where(sa.true()))
        self.write("table" if way == "orm" else way, statement, *parameters, makes_keys=not given)

    @rule(way=WAY, rows=st.lists(st.tuples(KEY, SMALL), min_size=1, max_size=3), table=st.sampled_from([parts, links]))
    def insert_dependents(self, way: str, rows: list[tuple[int, int]], table: Any) -> None:
        statement = sa.insert(Part) if table is parts else table.insert()
        names = [column.name for column in table.primary_key]
        self.write(way, statement, [dict(zip(names, row, strict=True)) for row in rows], table=table.insert())

    @rule(way=WAY, item=KEY, number=SMALL, id=st.none() | KEY)
    def insert_note(self, way: str, item: int, number: int, id: int | None) -> None:
        values = {"item_id": item, "number": number} | ({} if id is None else {"id": id})
        table = notes.insert().values(values)
        self.write(way, sa.insert(Note).values(values), table=table, makes_keys=id is None)

    @rule(way=WAY, ids=st.lists(KEY, min_size=1, max_size=2))
    def insert_tags(self, way: str, ids: list[int]) -> None:
        self.write(way, sa.insert(Tag), [{"id": id} for id in ids], table=tags.insert())

    # -- a subclass

    @rule(
        way=st.sampled_from(["orm", "mappings", "table", "connection"]),
        rows=st.lists(st.tuples(KEY, NUMBER), min_size=1, max_size=2),
        given=st.booleans(),
    )
    def insert_workers(self, way: str, rows: list[tuple[int, int]], given: bool) -> None:
        some = [{"name": "b", "wage": wage} | ({"id": id} if given else {}) for id, wage in rows]
        if way == "orm" and self.in_session:
            work = lambda s: s.execute(sa.insert(Worker), some)  # noqa: E731
            return self.through_session(work, in_parts=True, makes_keys=not given)
        if way == "mappings" and self.in_session:
            return self.through_session(lambda s: s.bulk_insert_mappings(Worker, some), makes_keys=not given)
        self.write(way, people.insert(), [{"id": id, "kind": "worker", "name": "b"} for id, _ in rows])
        there = [{"id": id, "wage": wage} for id, wage in rows if self.has(people, id)]
        if there:
            self.write(way, workers.insert(), there)
            self.name_kinds(way)
        return None

    def name_kinds(self, way: str) -> None:
        """Let each row say whether it is a worker's, for objects that are loaded."""
        is_worker = people.c.id.in_(sa.select(workers.c.id))
        self.write(way, people.update().values(kind=sa.case((is_worker, "worker"), else_="person")))

    @rule(way=WAY, which=st.none() | KEY, what=st.sampled_from(["wage", "name", "item", "key"]), k=KEY)
    def update_people(self, way: str, which: int | None, what: str, k: int) -> None:
        table: Any = workers if what == "wage" else people
        values: dict[str, Any] = {
            "wage": {"wage": workers.c.wage + 1},
            "name": {"name": "abcd"[k - 1]},
            "item": {"item_id": k},
            "key": {"id": people.c.id + k},
        }[what]
        criterion = sa.true() if which is None else table.c.id == which
        entity = sa.update(Worker if what == "wage" else Person).where(criterion).values(values)
        self.write(way, entity, table=table.update().where(criterion).values(values))

    @precondition(lambda self: self.in_session)
    @rule(mappings=st.booleans(), changes=st.dictionaries(KEY, st.tuples(NUMBER, st.sampled_from("ab")), max_size=3))
    def update_workers_by_keys(self, mappings: bool, changes: dict[int, Any]) -> None:
        self.flush()
        are_workers = {
            id: values
            for id, values in changes.items()
            if self.reference.rows.get((people.name, (id,)), {}).get("wage") is not None
        }
        some = [{"id": id, "wage": wage, "name": name} for id, (wage, name) in are_workers.items()]
        if some and mappings:
            self.through_session(lambda s: s.bulk_update_mappings(Worker, some))
        elif some:
            self.through_session(lambda s: s.execute(sa.update(Worker), some), in_parts=True)

    @rule(way=WAY, id=KEY, what=st.sampled_from(["worker", "all workers", "person"]))
    def delete_people(self, way: str, id: int, what: str) -> None:
        if what == "person":
            criterion = people.c.id == id
            return self.write(way, sa.delete(Person).where(criterion), table=people.delete().where(criterion))
        criterion = sa.true() if what == "all workers" else workers.c.id == id
        self.write(way, sa.delete(Worker).where(criterion), table=workers.delete().where(criterion))
        return self.name_kinds(way)

    # -- objects

    def some(self, model: Any, pick: int) -> Any:
        """Load a row that there is, if there is one."""
        places = sorted(key for name, key in self.reference.rows if name == model.__tablename__)
        if not places or not self.in_session:
            return None
        with self.at.no_autoflush:
            found = self.at.get(model, places[pick % len(places)])
        return None if found in self.at.deleted else found

    @precondition(lambda self: self.in_session)
    @rule(id=st.none() | KEY, code=CODE, n=NUMBER)
    def add_item(self, id: int | None, code: str | None, n: int) -> None:
        if (id is None or not self.has(items, id)) and all(
            row.get("code") != code for row in self.reference.rows.values() if code
        ):
            self.at.add(Item(id=id, code=code, n=n))

    @precondition(lambda self: self.in_session)
    @rule(pick=PICK, n=NUMBER)
    def edit_item(self, pick: int, n: int) -> None:
        if (item := self.some(Item, pick)) is not None:
            item.n = n

    @precondition(lambda self: self.in_session)
    @rule(pick=PICK, number=SMALL)
    def edit_part(self, pick: int, number: int) -> None:
        if (part := self.some(Part, pick)) is not None:
            part.n, part.number = number, number

    @precondition(lambda self: self.in_session)
    @rule(pick=PICK, name=st.sampled_from("ab"), wage=NUMBER)
    def edit_person(self, pick: int, name: str, wage: int) -> None:
        if (person := self.some(Person, pick)) is not None:
            person.name = name
            if isinstance(person, Worker):
                person.wage = wage

    @precondition(lambda self: self.in_session)
    @rule(model=st.sampled_from([Item, Person]), pick=PICK)
    def delete_object(self, model: Any, pick: int) -> None:
        if (found := self.some(model, pick)) is not None:
            self.at.delete(found)

    @precondition(lambda self: self.in_session)
    @rule(pick=PICK, tag=PICK)
    def link_or_unlink(self, pick: int, tag: int) -> None:
        self.flush()
        item, other = self.some(Item, pick), self.some(Tag, tag)
        if item is not None and other is not None:
            (item.tags.remove if other in item.tags else item.tags.append)(other)

    # -- who, why and when

    @rule(user=st.sampled_from([None, "ann", "bob"]), reason=st.sampled_from([None, "why"]))
    def change_context(self, user: str | None, reason: str | None) -> None:
        self.context = Context(user, reason)
        sqlaudit.set_audit_context(user_id=user, reason=reason)

    @precondition(lambda self: self.has_written or not self.instants)  # what wrote no history may have taken it
    @rule(microseconds=st.sampled_from([-3_000_000, -2, -1, 1, 2, 5_000_000]))
    def tick(self, microseconds: int) -> None:
        self.now += timedelta(microseconds=microseconds)


def test_history_tells_what_bulk_statements_did(database: Database, engine: sa.Engine) -> None:
    lives = profile(database, few=5, many=10, stateful_step_count=30, report_multiple_bugs=False)
    run_state_machine_as_test(lambda: Life(engine), settings=lives)
