"""Each line of README's table of ways to write a row, and that there are no others in it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import Executable

import sqlaudit
from databases import SQLALCHEMY_2_1
from invariants import check_history
from stock import (
    SOURCES,
    Base,  # noqa: F401  # whose tables the tests find
    Crate,
    Item,
    Part,
    Tag,
    Worker,
    do_nothing,
    happen,  # noqa: F401  # what has happened when the tests begin
    item_tags,
    items,
    upsert,
)

README = (Path(__file__).parent.parent / "README.md").read_text()
TABLE = README.partition("## Ways to write a row")[2].partition("## ")[0]
LINES = dict(re.findall(r"^\| (.+?) \| (\w+)", TABLE, re.MULTILINE)[1:])


@pytest.fixture
def sessions(happened: None, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, on a stock that is filled."""
    return sessions


def by_objects(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.add(Item(name="new", parts=[Part(id=UUID(int=9))]))
        session.get_one(Item, 1).price = 5
        (second := session.get_one(Item, 2)).tags.append(session.get_one(Tag, 1))
        session.delete(session.get_one(Worker, 1))
        session.merge(Item(id=3, name="merged"))
        session.commit()
        assert second.tags


def by_cascades(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.delete(session.get_one(Item, 1))
        session.flush()
        session.execute(sa.update(Item).where(Item.id == 2).values(id=20))
        session.commit()


def by_untracked_rows(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.add_all([Crate(id=1), Crate(id=2)])
        session.flush()
        session.execute(sa.update(Part).where(Part.item_id < 3).values(crate_id=Part.item_id))
        session.delete(session.get_one(Crate, 1))
        session.flush()
        session.execute(sa.delete(Crate))
        session.commit()


def by_bulk_methods(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.bulk_save_objects([Item(name="a")])
        session.bulk_insert_mappings(Item, [{"name": "b"}])
        session.bulk_update_mappings(Item, [{"id": 1, "price": 3}])
        session.commit()


def by_statements(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.execute(sa.insert(Item).values(name="a"))
        session.execute(items.insert(), [{"title": "b"}, {"title": "c"}])
        session.execute(items.insert().from_select(["title"], sa.select(items.c.title + " copy")))
        session.scalars(sa.insert(Item).returning(Item), [{"name": "d"}]).all()
        session.execute(sa.update(Item).where(Item.price > 10).values(price=1))
        session.execute(sa.update(Item), [{"id": 1, "price": 3}])
        session.execute(sa.delete(Item).where(Item.id.in_(sa.select(Part.item_id))))
        session.query(Item).filter(Item.id == 3).update({"price": 4})
        session.query(Item).filter(Item.id == 4).delete()
        session.commit()


def by_upserts(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.execute(upsert(session, items, {"price": 4}, "title").values(title="item 1"))
        session.execute(do_nothing(session, items).values(title="item 2"))
        session.execute(do_nothing(session, items).values(title="new"))
        session.commit()


def by_wrapped_statements(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.execute(sa.lambda_stmt(lambda: sa.update(Item).values(price=9)))
        statement = sa.insert(Item).values(name="new").returning(Item)
        session.scalars(sa.select(Item).from_statement(statement)).all()
        session.commit()


def by_a_connection_of_a_session(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.connection().execute(items.update().values(price=9))
        session.commit()


def by_a_registered_engine(sessions: Any, engine: sa.Engine) -> None:
    sqlaudit.register_hooks(sessions, engine=engine)
    try:
        with engine.begin() as connection:
            connection.execute(items.update().values(price=9))
        with Session(engine) as session:
            session.get_one(Item, 1).price = 11
            session.execute(items.delete().where(items.c.id == 4))
            session.commit()
        by_a_listener(sessions, engine)
    finally:
        sqlaudit.unregister_hooks(engine=engine)


def by_a_listener(sessions: Any, engine: sa.Engine) -> None:
    def restock(mapper: Any, connection: sa.Connection, tag: Tag) -> None:
        connection.execute(items.update().values(stock=items.c.stock + 1))

    sa.event.listen(Tag, "after_insert", restock)
    try:
        with sessions() as session:
            session.add(Tag(id=5))
            session.commit()
    finally:
        sa.event.remove(Tag, "after_insert", restock)


def by_another_engine(sessions: Any, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(items.update().values(price=9))
        connection.exec_driver_sql("UPDATE bulk_items SET stock = 9")
    with Session(engine) as session:
        session.execute(sa.update(Item).values(price=10))
        session.commit()


def by_objects_without_hooks(sessions: Any, engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.get_one(Item, 1).price = 11
        session.commit()


def by_statements_within(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        if engine.dialect.name == "postgresql":
            session.execute(sa.select(items.update().values(price=3).returning(items.c.id).cte()))
        else:
            tags = item_tags.update().where(item_tags.c.item_id == items.c.id)
            session.execute(tags.values({items.c.price: 3, item_tags.c.tag_id: 1}))
        session.commit()


def by_moves_again_and_again(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        move = items.update().where(items.c.id == sa.bindparam("old")).values(id=items.c.id + 10)
        session.execute(move, [{"old": 4}, {"old": 14}])
        session.commit()


def by_shards(sessions: Any, engine: sa.Engine) -> None:
    with ShardedSession(
        shards={"one": engine},
        shard_chooser=lambda *_: "one",
        identity_chooser=lambda *_, **__: ["one"],
        execute_chooser=lambda _: ["one"],
    ) as session:
        sqlaudit.register_hooks(session)
        try:
            session.execute(sa.update(Item).values(price=3))
            session.commit()
        finally:
            sqlaudit.unregister_hooks(session)


def by_namesakes(sessions: Any, engine: sa.Engine) -> None:
    reflected = sa.Table("bulk_items", sa.MetaData(), autoload_with=engine)
    with sessions() as session:
        session.execute(reflected.update().values(price=3))
        session.connection().execute(sa.table("bulk_items", sa.column("stock")).update().values(stock=3))
        session.commit()


class Hinted(sa.Insert):
    inherit_cache = False


class Reprice(Executable, sa.ClauseElement):
    inherit_cache = False


@compiles(Hinted)
def _hinted(element: Hinted, compiler: SQLCompiler, **kw: Any) -> str:
    text: str = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return text.replace("INTO", "/* a hint */ INTO", 1)


@compiles(Reprice)
def _reprice(element: Reprice, compiler: SQLCompiler, **kw: Any) -> str:
    return "UPDATE bulk_items SET price = 3"


def by_classes_of_the_users(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.execute(Reprice())
        session.connection().execute(Reprice())
        session.execute(Hinted(items).values(title="new", stock=1, price=1))
        if not SQLALCHEMY_2_1:
            session.connection().execute(items.update().values(stock=3).compile(engine))
        session.commit()


def by_hand(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session:
        session.execute(sa.text("UPDATE bulk_items SET price = 3"))
        session.connection().exec_driver_sql("UPDATE bulk_items SET stock = 3")
        session.commit()


def by_a_cursor(sessions: Any, engine: sa.Engine) -> None:
    connection = engine.raw_connection()
    connection.cursor().execute("UPDATE bulk_items SET price = 3")
    connection.commit()
    connection.close()


def while_paused(sessions: Any, engine: sa.Engine) -> None:
    with sessions() as session, sqlaudit.tracking_disabled(session):
        session.get_one(Item, 1).price = 11
        session.flush()
        session.execute(items.update().values(stock=3))
        session.commit()


WAYS: dict[str, Callable[[Any, sa.Engine], None]] = {
    "`session.add`, `session.delete`, `session.merge`, changed attributes and collections": by_objects,
    "what the database does then: `ON DELETE CASCADE`, `SET NULL`, `ON UPDATE CASCADE`": by_cascades,
    "rows of an untracked table that tracked ones refer to by such a foreign key, at once or by way of others": (
        by_untracked_rows
    ),
    "`bulk_save_objects`, `bulk_insert_mappings`, `bulk_update_mappings`": by_bulk_methods,
    "`session.execute` of `insert`, `update`, `delete`; `Query.update`, `Query.delete`": by_statements,
    "… with `ON CONFLICT`, `ON DUPLICATE KEY`, `IGNORE`, `OR REPLACE`": by_upserts,
    "… in `lambda_stmt()`, or in `select().from_statement()`": by_wrapped_statements,
    "the same by `session.connection().execute`": by_a_connection_of_a_session,
    "the same by any connection of a registered engine: in sessions without hooks, in listeners of mappers": (
        by_a_registered_engine
    ),
    "the same by any other connection": by_another_engine,
    "objects, by a session without hooks": by_objects_without_hooks,
    "a list of parameters that may move a row twice, by an expression of its key, or found by other columns": (
        by_moves_again_and_again
    ),
    "statements of a `ShardedSession`": by_shards,
    "the same, of another `Table` of the tracked one's name: a reflected one, `table()`": by_namesakes,
    "`text()`, `exec_driver_sql`, by a session, its connection, or a connection of a registered engine": by_hand,
    "statements of your own classes, compiled by `@compiles`, and compiled ones, which SQLAlchemy 2.0 executes": (
        by_classes_of_the_users
    ),
    "other clients, cursors of the driver, triggers that write other tables": by_a_cursor,
    "anything inside `tracking_disabled(session)`": while_paused,
}
WAYS_ON_SERVERS = {
    "statements in the CTE of another one, or the second table of MariaDB's `UPDATE` of two": by_statements_within,
}


def check(sessions: Any, engine: sa.Engine, write: Callable[[Any, sa.Engine], None], expected: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        write(sessions, engine)
    assert bool(seen) == (expected == "noticed"), [str(each.message) for each in seen]
    with sessions() as session:
        if expected != "recorded":
            with pytest.raises(AssertionError):
                check_history(session, Item)
            sqlaudit.record_changes(session, Item)
            session.commit()
        for source in SOURCES:
            check_history(session, source)


def test_every_line_of_the_table_is_a_test() -> None:
    assert LINES.keys() == WAYS.keys() | WAYS_ON_SERVERS.keys()


@pytest.mark.parametrize("way", WAYS)
def test_history_shows_what_the_table_says(sessions: Any, engine: sa.Engine, way: str) -> None:
    check(sessions, engine, WAYS[way], LINES[way])


@pytest.mark.requires("concurrent_writes")
@pytest.mark.parametrize("way", WAYS_ON_SERVERS)
def test_history_shows_what_the_table_says_of_servers(sessions: Any, engine: sa.Engine, way: str) -> None:
    check(sessions, engine, WAYS_ON_SERVERS[way], LINES[way])
