"""SQL that was written by hand is noticed by its words."""

from typing import Any

import pytest
import sqlalchemy as sa

import sqlaudit
from sqlaudit import handwritten
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    fill,
)


@pytest.mark.parametrize("how", ["session", "connection", "driver"])
def test_sql_that_was_written_by_hand_is_noticed(recorded_engine: sa.Engine, sessions: Any, how: str) -> None:
    sql = "UPDATE bulk_items SET price = 1"
    with sessions() as session:
        fill(session)
        run = {
            "session": lambda: session.execute(sa.text(sql)),
            "connection": lambda: session.connection().execute(sa.text(sql)),
            "driver": lambda: session.connection().exec_driver_sql(sql),
        }[how]
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"bulk_items.*UPDATE bulk_items SET price") as seen:
            run()
        assert len(seen) == 1
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
        with pytest.raises(sqlaudit.CaptureError, match="record_changes"):
            run()
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
        run()
    with pytest.raises(sqlaudit.SQLAuditError, match="'warn', 'raise' or 'ignore'"):
        sqlaudit.SQLAuditConfig(on_uncaptured="whisper")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sql",
    [
        "insert into bulk_items (title) values ('x')",
        "INSERT OR REPLACE INTO bulk_items (title) VALUES ('x')",
        "REPLACE INTO bulk_items (title) VALUES ('x')",
        "UPDATE ONLY bulk_items SET price = 1",
        'UPDATE "bulk_items" AS i SET price = 1',
        "UPDATE public.bulk_items SET price = 1",
        "/* a comment */ DELETE\n FROM\n bulk_items",
        "-- DELETE\nDELETE FROM `bulk_items`",
        "TRUNCATE TABLE bulk_items",
        "TRUNCATE bulk_items",
        "MERGE INTO bulk_items USING x ON (1=1) WHEN MATCHED THEN DELETE",
        "COPY bulk_items FROM STDIN",
        "WITH x AS (SELECT 1) UPDATE bulk_items SET price = 1",
        "WITH x AS (DELETE FROM bulk_items RETURNING id) SELECT * FROM x",
        "LOAD DATA INFILE 'x' INTO TABLE bulk_items",
        "DELETE FROM bulk_item_tags",
        "DELETE bulk_items FROM bulk_items JOIN x ON x.id = bulk_items.id",
        "DELETE x, bulk_items FROM x JOIN bulk_items",
        "DELETE FROM ONLY (bulk_items)",
        "INSERT bulk_items VALUES (1)",
        "REPLACE bulk_items VALUES (1)",
        "TRUNCATE x, bulk_items",
        'UPDATE"bulk_items"SET price = 1',
        "UPDATE x AS y LEFT JOIN bulk_items AS i SET i.price = 1",
        "UPDATE x, bulk_items SET price = 1",
        "LOAD XML INFILE 'x' INTO TABLE bulk_items",
        "SELECT '--'; DELETE FROM bulk_items",
        """SELECT "it's"; DELETE FROM bulk_items""",
        r"SELECT '\'; DELETE FROM bulk_items WHERE title = 'x'",
        r"SELECT 'it\'s'; DELETE FROM bulk_items WHERE title = 'x'",
        "/*!40000 DELETE FROM bulk_items */",
    ],
)
def test_words_that_write_are_known(sessions: Any, sql: str) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with sessions() as session, pytest.raises(sqlaudit.CaptureError, match="bulk_item"):
        session.execute(sa.text(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT price FROM bulk_items",
        "SELECT price AS UPDATED FROM bulk_items",
        "SELECT 1 -- DELETE FROM bulk_items",
        "SELECT 'DELETE FROM bulk_items'",
        "SELECT REPLACE('bulk_items', 'x', 'y')",
        "SELECT price FROM bulk_items AS updated",
        "DELETE FROM bulk_items_history WHERE id < 0",
    ],
)
def test_other_words_are_not(sessions: Any, sql: str) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with sessions() as session:
        session.execute(sa.text(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO log (id) VALUES (1) ON DUPLICATE KEY UPDATE bulk_items = 1",
        "INSERT INTO log (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET bulk_items = 1",
        "SELECT 1 FROM log FOR UPDATE",
        "COPY bulk_items TO STDOUT",
        "COPY bulk_items (id, price) TO STDOUT",
        "CREATE TABLE log (id INT REFERENCES bulk_items ON DELETE CASCADE ON UPDATE CASCADE)",
    ],
)
def test_words_that_only_some_databases_know_and_that_write_nothing_are_not(sql: str) -> None:
    assert handwritten.table_written_by(sql) is None
