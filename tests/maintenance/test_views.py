"""Views of the past show, to those who have SQL alone, what as_of() gives."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from sqlaudit import QueryError, changesets, time_travel
from sqlaudit.maintenance import create_past_views, drop_past_views
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    Item,
    Part,
    Person,
    Place,
    Tag,
    Worker,
    fill,
    item_tags,
)

SOURCES = (Item, Part, Tag, Person, Worker, Place, item_tags)


@pytest.fixture
def views(engine: sa.Engine) -> Iterator[list[str]]:
    """Create the views, and drop them in the end, so that the tables can be dropped."""
    yield create_past_views(engine, Item, Part, Tag, Person, Place, item_tags)
    drop_past_views(engine)


def set_instant(connection: sa.Connection, when: str) -> None:
    match connection.dialect.name:
        case "postgresql":
            connection.exec_driver_sql(f"SET sqlaudit.as_of = '{when}+00'")
        case "sqlite":
            connection.exec_driver_sql("DROP VIEW past_instant")
            connection.exec_driver_sql(f"CREATE VIEW past_instant AS SELECT '{when}' AS at")
        case _:
            connection.exec_driver_sql(f"SET @sqlaudit_as_of = '{when}'")


def rows_in(connection: sa.Connection, name: str) -> list[Any]:
    return sorted(map(str, connection.execute(sa.select(sa.text("*")).select_from(sa.text(name)))))


def test_a_view_shows_what_a_read_as_of_its_instant_gives(
    engine: sa.Engine, sessions: sessionmaker[Session], clock: Any, views: list[str]
) -> None:
    with sessions() as session:
        fill(session)
        session.get_one(Item, 1).price = 77
        session.delete(session.scalars(sa.select(Worker)).one())
        session.commit()
        instants = sorted({each.timestamp for each in changesets(session)})
    tables = {name.rpartition(".")[2].removeprefix("past_"): name for name in views}
    assert len(tables) == 7
    for when in instants:
        text = when.replace(tzinfo=None).isoformat(" ", "microseconds")
        with engine.connect() as connection, sessions() as session, time_travel(session, when) as past:
            set_instant(connection, text)
            for source in SOURCES:
                table = source if isinstance(source, sa.Table) else source.__table__
                expected = past.scalar(sa.select(sa.func.count()).select_from(table))
                assert len(rows_in(connection, tables[table.name])) == expected, (table.name, when)
            prices = past.execute(sa.select(Item.__table__.c.id, Item.__table__.c.price)).all()
            statement = sa.select(sa.text("id, price")).select_from(sa.text(tables["bulk_items"]))
            shown = connection.execute(statement).all()
            assert sorted(map(tuple, shown)) == sorted(map(tuple, prices))
            if engine.dialect.name == "postgresql":
                function = f"{tables['bulk_items']}_as_of('{text}+00')"
                assert rows_in(connection, function) == rows_in(connection, tables["bulk_items"])
            connection.rollback()


def test_without_an_instant_a_view_shows_the_present(
    engine: sa.Engine, sessions: sessionmaker[Session], views: list[str]
) -> None:
    with sessions() as session:
        fill(session)
    [items] = [name for name in views if name.endswith("bulk_items")]
    with engine.connect() as connection:
        assert len(rows_in(connection, items)) == 4


def test_views_are_made_anew_and_dropped(engine: sa.Engine, views: list[str]) -> None:
    assert create_past_views(engine, Item) == [name for name in views if name.endswith("bulk_items")]
    drop_past_views(engine)
    drop_past_views(engine)
    for name in views:
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError):
            rows_in(connection, name)


def test_a_view_of_the_user_is_left_alone(engine: sa.Engine, views: list[str]) -> None:
    if engine.dialect.name == "postgresql":
        return  # the views have a schema of their own
    drop_past_views(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE VIEW past_sales AS SELECT id FROM bulk_items"))
        connection.execute(sa.text("CREATE VIEW past_bulk_items AS SELECT id FROM bulk_items"))
    try:
        with pytest.raises(QueryError, match="'past_bulk_items' already"):
            create_past_views(engine, Item)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP VIEW past_bulk_items"))
        create_past_views(engine, Item)
        drop_past_views(engine)
        with engine.connect() as connection:
            assert rows_in(connection, "past_sales") == []
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("DROP VIEW past_sales"))


def test_a_schema_of_the_user_is_left_alone(engine: sa.Engine) -> None:
    if engine.dialect.name != "postgresql":
        return  # others have no schemas for views
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("of_the_user"))
    try:
        with pytest.raises(QueryError, match="has not made it"):
            create_past_views(engine, Item, schema="of_the_user")
        with pytest.raises(QueryError, match="has not made it"):
            drop_past_views(engine, schema="of_the_user")
    finally:
        with engine.begin() as connection:
            connection.execute(sa.schema.DropSchema("of_the_user"))
