"""What a statement returns, and what it carries: the same whether its table is tracked or not."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import (
    Bundle,
    Mapped,
    Session,
    defer,
    lazyload,
    load_only,
    mapped_column,
    raiseload,
    selectinload,
    sessionmaker,
)

import sqlaudit
from invariants import check_history
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    Item,
    happen,  # noqa: F401  # what has happened when the tests begin
    items,
)

Statement = Any
ROWS = [{"name": "a"}, {"name": "b"}]
BULK: dict[str, tuple[Statement, Any]] = {"insert of a list": (sa.insert(Item), ROWS)}
INSERTS: dict[str, tuple[Statement, Any]] = {
    "insert": (sa.insert(Item).values(name="a"), None),
    "insert of values": (sa.insert(Item).values(ROWS), None),
    "insert of a given key": (sa.insert(Item).values(id=4711, name="a"), None),
    "insert from a select": (sa.insert(Item).from_select([Item.name], sa.select(Item.name + "!")), None),
    "insert into a table": (items.insert().values(title="a"), None),
    "insert of a list into a table": (items.insert(), [{"title": "a"}, {"title": "b"}]),
}
CHANGES: dict[str, tuple[Statement, Any]] = {
    "update": (sa.update(Item).where(Item.id < 3).values(price=2), None),
    "update of a table": (items.update().where(items.c.id < 3).values(price=2), None),
    "update of none": (sa.update(Item).where(Item.id < 0).values(price=2), None),
    "delete": (sa.delete(Item).where(Item.id == 4), None),
    "delete of a table": (items.delete().where(items.c.id == 4), None),
    "delete by a function": (sa.delete(Item).where(sa.func.lower(Item.name) == "item 4"), None),
    "delete by a query": (
        sa.delete(Item).where(Item.id.in_(sa.select(items.c.id + 1).where(items.c.id == 3))),
        None,
    ),
}
UPDATED = mysql.insert(items).values(title="item 2")
SEVERAL = mysql.insert(items).from_select(
    ["title"], sa.select(items.c.title).where(items.c.id < 3).union_all(sa.select(sa.literal("new")))
)
CONFLICTS: dict[str, dict[str, tuple[Statement, Any]]] = {
    "sqlite": {
        f"{prefix} of {what}": (items.insert().prefix_with(prefix).values(title=title), None)
        for prefix in ("OR IGNORE", "OR REPLACE", "OR ABORT", "OR FAIL", "OR ROLLBACK")
        for what, title in {"a new row": "a", "a row": "item 4"}.items()
    },
    "mysql": {
        f"{prefix} of {what}": (items.insert().prefix_with(prefix), [{"title": title} for title in titles])
        for prefix in ("IGNORE", "LOW_PRIORITY", "HIGH_PRIORITY")
        for what, titles in {"a row": ["item 2"], "a new row": ["a"], "rows": ["item 2", "a", "b"]}.items()
    }
    | {
        "an update": (UPDATED.on_duplicate_key_update(price=5), None),
        "an update that tells the number": (
            UPDATED.on_duplicate_key_update(price=5, id=sa.func.LAST_INSERT_ID(items.c.id)),
            None,
        ),
        "an update that changes nothing": (UPDATED.on_duplicate_key_update(price=20), None),
        "updates from a select": (SEVERAL.on_duplicate_key_update(price=5), None),
        "updates from a select, one of which changes nothing": (SEVERAL.on_duplicate_key_update(price=20), None),
        "an update of the key": (UPDATED.on_duplicate_key_update(id=4711), None),
    },
}
RETURNING: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "*": (sa.literal_column("*"),),
    "* of text": (sa.text("*"),),
    "objects": (Item,),
    "a key": (Item.id,),
    "a column": (Item.name,),
    "a column of the table": (items.c.title,),
    "a label": (Item.name.label("q"),),
    "a key that is called like a column": (Item.id.label("title"),),
    "a function": (sa.func.upper(Item.name),),
    "expressions": (Item.price + 1, sa.func.lower(Item.name).label("z")),
    "a literal": (sa.literal(5),),
    "text": (sa.text("title"),),
    "a column twice": (Item.name, Item.name),
    "objects and a column": (Item, Item.name),
    "a bundle": (Bundle("b", Item.name, Item.price),),
}
LOADING: dict[str, Any] = {
    "load_only": load_only(Item.name),
    "defer": defer(Item.stock),
    "selectinload": selectinload(Item.parts),
    "lazyload": lazyload(Item.parts),
    "raiseload": raiseload("*"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "yield_per": {"yield_per": 1},
    "stream_results": {"stream_results": True},
    "preserve_rowcount": {"preserve_rowcount": True},
    "populate_existing": {"populate_existing": True},
    "pages": {"insertmanyvalues_page_size": 1},
    "fetch": {"synchronize_session": "fetch"},
    "no synchronization": {"synchronize_session": False},
    "one of the user's": {"mine": 1},
}
READERS: dict[str, Callable[[Any], Any]] = {
    "all": lambda result: result.all(),
    "mappings": lambda result: result.mappings().all(),
    "scalars": lambda result: result.scalars().all(),
    "last column": lambda result: result.scalars(-1).all(),
    "one": lambda result: result.one(),
    "partitions": lambda result: [row for rows in result.partitions(1) for row in rows],
    "freeze": lambda result: result.freeze()().all(),
    "keys": lambda result: list(result.keys()),
    "unique": lambda result: result.unique().all(),
    "parts": lambda result: [*result.fetchmany(1), *result.fetchall()],
    "name": lambda result: [row._mapping[items.c.title] for row in result],
    "facts": lambda result: facts(result),
    "facts, read": lambda result: (result.all() and None, facts(result)),
}
FEW = {name: READERS[name] for name in ("all", "facts, read")}
FACTS = ("is_insert", "returns_rows", "rowcount", "inserted_primary_key", "inserted_primary_key_rows")
FACTS += ("returned_defaults", "returned_defaults_rows", "lastrow_has_defaults", "closed")


def facts(result: Any) -> list[Any]:
    """Return what a result tells of itself, but for what it may tell the more of for sqlaudit has asked for it."""
    told: list[Any] = []
    for name in (*FACTS, *(["lastrowid"] if result.context.isinsert else [])):  # it tells changes of others' numbers
        try:
            value = getattr(result, name)
            told.append(shown(value() if callable(value) else value))
        except Exception as error:
            told.append(type(error))
    return told


def shown(value: Any) -> Any:
    """Return a value so that it can be compared; keys that are made are shown as ..."""
    if isinstance(value, Item):
        columns = ("id", "name", "price", "stock", "note")
        return "Item", [shown(sa.inspect(value).dict.get(name, "unloaded")) for name in columns]
    if isinstance(value, sa.RowMapping):
        return [(str(name), shown(each)) for name, each in value.items()]
    if isinstance(value, sa.Row):
        return value._fields, [shown(each) for each in value]
    if isinstance(value, (list, tuple)):
        return sorted(map(shown, value), key=repr)
    return "…" if isinstance(value, int) and 4 < value < 4711 else value


def outcome(session: Session, execute: Callable[..., Any], statement: Any, parameters: Any, read: Any) -> Any:
    """Return what a caller sees of a statement, and the rows that it leaves; undo it."""
    try:
        result = execute(statement, *([] if parameters is None else [parameters]))
        seen: Any = shown(read(result))
    except Exception as error:
        seen = type(error)
    else:
        seen = seen, [shown(row) for row in session.execute(sa.select(items).order_by(items.c.title))]
    return seen


ANONYMOUS = re.compile(r"(?<=^anon_)\d+$")


def is_no_less(told: Any, expected: Any) -> bool:
    """Tell whether what is told is what is expected; where that is -1 or None, what sqlaudit asked for will do."""
    if isinstance(told, (list, tuple)) and isinstance(expected, (list, tuple)) and len(told) == len(expected):
        return all(map(is_no_less, told, expected))
    if isinstance(told, str) and isinstance(expected, str):  # SQLAlchemy numbers what has no name
        return ANONYMOUS.sub("", told) == ANONYMOUS.sub("", expected)
    return bool(told == expected) or expected in (-1, None)


@contextmanager
def executing(engine: sa.Engine, maker: sessionmaker[Session], by: str) -> Iterator[tuple[Session, Any]]:
    with engine.connect() as connection, maker(bind=connection) if by == "connection" else maker() as session:
        yield session, connection.execute if by == "connection" else session.execute
        session.rollback()


def check(engine: sa.Engine, statement: Any, parameters: Any, readers: Any = FEW) -> None:
    """See that a statement does and returns the same tracked as untracked, by a session and by a connection."""
    for by in ("session", "connection"):
        for name, read in readers.items():
            with executing(engine, sessionmaker(engine), by) as (session, execute):
                expected = outcome(session, execute, statement, parameters, read)
            recording = type("Recording", (Session,), {})
            sqlaudit.register_hooks(recording, engine=engine if by == "connection" else None)
            try:
                with executing(engine, sessionmaker(engine, class_=recording), by) as (session, execute):
                    seen = outcome(session, execute, statement, parameters, read)
                    if not isinstance(seen, type):
                        check_history(session, Item)
            finally:
                sqlaudit.unregister_hooks(recording, engine=engine if by == "connection" else None)
            assert is_no_less(seen, expected), f"{statement}, by a {by}, {name}: {expected} → {seen}"


def test_an_insert_that_may_come_upon_rows_tells_the_same(happened: None, engine: sa.Engine) -> None:
    for statement, parameters in CONFLICTS.get(engine.dialect.name.replace("mariadb", "mysql"), {}).values():
        check(engine, statement, parameters, {"facts": READERS["facts"]})


@pytest.mark.requires("on_conflict")
@pytest.mark.filterwarnings("ignore:Class OnConflictDo:sqlalchemy.exc.SAWarning")  # once, of SQLAlchemy 2.0's own class
def test_an_upsert_returns_the_same(happened: None, engine: sa.Engine) -> None:
    upsert = {"sqlite": sqlite, "postgresql": postgresql}[engine.dialect.name].insert(Item)
    upsert = upsert.on_conflict_do_update(index_elements=["title"], set_={"price": 5})
    for rows in ([{"name": "item 2"}], [{"name": "item 2"}, {"name": "a"}], [{"id": 4711, "name": "item 2"}]):
        for name, columns in RETURNING.items():
            if not name.startswith("*"):  # the ORM refuses it for lists
                check(engine, returning(upsert, *columns), rows)


@pytest.mark.requires("on_conflict")
def test_an_upsert_tells_the_key_that_the_database_made(base: Any, engine: sa.Engine) -> None:
    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    base.metadata.create_all(engine)
    insert = {"sqlite": sqlite, "postgresql": postgresql}[engine.dialect.name].insert
    recording = type("Recording", (Session,), {})
    sqlaudit.register_hooks(recording)
    try:
        with recording(engine) as session:
            for model in (Thing, Thing.__table__):
                for upsert in (
                    insert(model).on_conflict_do_nothing(),
                    insert(model).on_conflict_do_update(index_elements=["id"], set_={"n": 5}),
                ):
                    (key,) = session.execute(upsert.values(n=1)).inserted_primary_key
                    assert key == session.scalar(sa.select(sa.func.max(Thing.id)))
            session.commit()
            check_history(session, Thing)
    finally:
        sqlaudit.unregister_hooks(recording)


def test_what_sqlalchemy_returns_of_no_query_is_not_returned(happened: None, engine: sa.Engine) -> None:
    copies = sa.insert(items).from_select(["title"], sa.select(items.c.title + "!")).return_defaults()
    check(engine, copies, None, {"rows": lambda result: result.returns_rows})


def returning(statement: Any, *columns: Any) -> Any:
    return statement.returning(*columns) if columns else statement


@pytest.mark.spread
@pytest.mark.parametrize("name", BULK | INSERTS)
def test_an_insert_returns_the_same(happened: None, engine: sa.Engine, name: str) -> None:
    statement, parameters = (BULK | INSERTS)[name]
    for columns in RETURNING.values():
        check(engine, returning(statement, *columns), parameters, FEW if columns else {"facts": READERS["facts"]})


@pytest.mark.spread
@pytest.mark.requires("update_returning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_returns_the_same(happened: None, engine: sa.Engine, name: str) -> None:
    statement, parameters = CHANGES[name]
    for columns in RETURNING.values():
        check(engine, returning(statement, *columns), parameters)


@pytest.mark.spread
@pytest.mark.parametrize("columns", ["nothing", "*", "objects", "a column twice", "expressions"])
@pytest.mark.parametrize("name", ["insert of a list", "insert of values", "insert of a list into a table"])
def test_a_result_reads_the_same(happened: None, engine: sa.Engine, name: str, columns: str) -> None:
    statement, parameters = (BULK | INSERTS)[name]
    check(engine, returning(statement, *RETURNING[columns]), parameters, READERS)


@pytest.mark.spread
@pytest.mark.parametrize("name", ["insert of a list", "insert", "insert of values", "update", "delete"])
def test_options_of_loading_do_the_same(happened: None, engine: sa.Engine, name: str) -> None:
    statement, parameters = (BULK | INSERTS | CHANGES)[name]
    for option in LOADING.values():
        for each in [statement, *([] if name in CHANGES else [statement.returning(Item)])]:
            check(engine, each.options(option), parameters, {"all": READERS["all"]})


@pytest.mark.spread
@pytest.mark.parametrize("name", ["insert of a list", "insert", "insert of values", "update", "delete of a table"])
def test_options_of_execution_do_the_same(happened: None, engine: sa.Engine, name: str) -> None:
    statement, parameters = (BULK | INSERTS | CHANGES)[name]
    for options in OPTIONS.values():
        for each in [statement, *([] if name in CHANGES else [statement.returning(Item.name)])]:
            check(engine, each.execution_options(**options), parameters)


def test_a_select_loads_what_an_insert_returns(happened: None, engine: sa.Engine) -> None:
    insert = sa.insert(Item).values(name="a").returning(Item)
    for options in ([], [selectinload(Item.parts)], [load_only(Item.name)]):
        check(engine, sa.select(Item).options(*options).from_statement(insert), None)
