"""SQL that was written by hand is noticed by its words."""

import sys
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


WRITES = [
    "DELETE i FROM bulk_items i JOIN x USING (id)",
    "DELETE i.* FROM x JOIN bulk_items AS i ON i.id = x.id",
    "DELETE FROM i USING bulk_items AS i JOIN x USING (id)",
    "DELETE FROM bulk_items i USING x WHERE i.id = x.id",
    "UPDATE x JOIN (bulk_items i) SET i.price = 1",
    "UPDATE (x, bulk_items) SET bulk_items.price = x.price",
    "UPDATE x JOIN bulk_items i ON i.id = x.id SET price = 1",
    "UPDATE ONLY (bulk_items) SET price = 1",
    "UPDATE bulk_items SET (price, title) = (1, 'x')",
    "UPDATE # a comment\n bulk_items SET price = 1",
    "/*M! UPDATE bulk_items SET price = 1 */",
    "/*!50000 UPDATE */ bulk_items SET price = 1",
    "UPDATE /* a /* b */ c */ bulk_items SET price = 1",
    "TRUNCATE ONLY x *, bulk_items CASCADE",
    "ALTER TABLE bulk_items TRUNCATE PARTITION p1",
    "ALTER TABLE IF EXISTS bulk_items DROP PARTITION p1",
    "ALTER TABLE x EXCHANGE PARTITION p1 WITH TABLE bulk_items",
    "ALTER TABLE x ATTACH PARTITION bulk_items FOR VALUES IN (1)",
    "CREATE OR REPLACE TABLE bulk_items AS SELECT 1",
    "MERGE INTO ONLY bulk_items b USING x ON b.id = x.id WHEN MATCHED THEN UPDATE SET price = 1",
    "COPY bulk_items (id, price) FROM STDIN",
    "COPY public.bulk_items FROM '/tmp/x' WITH (FORMAT csv)",
    "LOAD DATA LOCAL INFILE 'x' REPLACE INTO TABLE bulk_items FIELDS TERMINATED BY ','",
    "REPLACE DELAYED bulk_items SET price = 1",
    "EXPLAIN ANALYZE DELETE FROM bulk_items",
    "EXPLAIN (ANALYZE, BUFFERS) UPDATE bulk_items SET price = 1",
    "ANALYZE FORMAT=JSON DELETE FROM bulk_items",
    "PREPARE p (int) AS DELETE FROM bulk_items WHERE id = $1",
    "SET STATEMENT max_statement_time=1 FOR DELETE FROM bulk_items",
    "DO $$ BEGIN UPDATE bulk_items SET price = 1; END $$",
    "DO LANGUAGE plpgsql $x$ BEGIN IF true THEN DELETE FROM bulk_items; END IF; END $x$",
    "BEGIN NOT ATOMIC UPDATE bulk_items SET price = 1; END",
    "CREATE FUNCTION f() RETURNS int AS $$ SELECT 1 $$ LANGUAGE sql; DELETE FROM bulk_items",
    "CREATE TRIGGER t AFTER INSERT ON x BEGIN UPDATE y SET a = CASE WHEN b THEN 1 END; END; DELETE FROM bulk_items",
    "SELECT E'it\\'s'; DELETE FROM bulk_items",
    "INSERT INTO x VALUES (1.5, :delete, '%') ; INSERT INTO bulk_items VALUES (1)",
    'UPDATE "Bulk_Items" SET price = 1',
    "WITH gone AS MATERIALIZED (DELETE FROM x) INSERT INTO bulk_items SELECT 1",
]
READS = [
    "EXPLAIN DELETE FROM bulk_items",
    "EXPLAIN QUERY PLAN UPDATE bulk_items SET price = 1",
    "EXPLAIN (ANALYZE false) DELETE FROM bulk_items",
    "EXPLAIN FORMAT=JSON DELETE FROM bulk_items",
    "DESCRIBE UPDATE bulk_items SET price = 1",
    "EXPLAIN WITH gone AS (DELETE FROM bulk_items RETURNING id) SELECT 1",
    "CREATE FUNCTION f() RETURNS void AS $$ DELETE FROM bulk_items $$ LANGUAGE sql",
    "CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN DELETE FROM bulk_items; END $f$",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC UPDATE bulk_items SET price = 1; SELECT 1; END",
    "CREATE TRIGGER t AFTER UPDATE ON bulk_items BEGIN UPDATE bulk_items SET price = 1; DELETE FROM bulk_items; END",
    "CREATE DEFINER=`a`@`b` PROCEDURE p() BEGIN IF x THEN DELETE FROM bulk_items; END IF; DELETE FROM bulk_items; END",
    "CREATE RULE r AS ON UPDATE TO x DO INSTEAD (DELETE FROM bulk_items; DELETE FROM bulk_items)",
    "DO $$ BEGIN EXECUTE 'UPDATE bulk_items SET price = 1'; END $$",
    "DO $$ BEGIN EXECUTE $x$ UPDATE bulk_items SET price = 1 $x$; END $$",
    "INSERT INTO log VALUES ($$ DELETE FROM bulk_items $$) ON CONFLICT DO NOTHING",
    'SELECT "DELETE FROM bulk_items"',
    "SELECT 'it''s; DELETE FROM bulk_items'",
    "SELECT 'open; DELETE FROM bulk_items",
    "SELECT 1 /* DELETE FROM bulk_items",
    "SELECT 1 /* a /* b */ DELETE FROM bulk_items */",
    "INSERT INTO log SELECT * FROM bulk_items",
    "DELETE x FROM x JOIN bulk_items USING (id)",
    "DELETE FROM x USING bulk_items WHERE bulk_items.id = x.id",
    "UPDATE x SET a = 1 FROM bulk_items",
    "UPDATE x JOIN bulk_items i USING (id) SET x.price = i.price, x.title = 'a'",
    "MERGE INTO x USING bulk_items b ON b.id = x.id WHEN MATCHED THEN DELETE",
    "COPY (SELECT * FROM bulk_items) TO STDOUT",
    "SELECT INSERT('bulk_items', 1, 2, 'x'), TRUNCATE(1.5, 1) FROM bulk_items",
    "SELECT price AS delete FROM bulk_items",
    "SELECT price FROM bulk_items FOR UPDATE OF bulk_items",
    "GRANT DELETE, UPDATE ON bulk_items TO ana",
    "ALTER TABLE bulk_items ADD COLUMN copy INT",
    "ALTER TABLE bulk_items ADD PARTITION (PARTITION p2 VALUES IN (2))",
    "SELECT id FROM bulk_items WHERE id = %(delete)s",
]


@pytest.mark.parametrize("sql", WRITES)
def test_words_of_some_databases_that_write_are_known(sql: str) -> None:
    assert handwritten.table_written_by(sql) is not None


@pytest.mark.parametrize("sql", READS)
def test_words_of_some_databases_that_write_no_rows_of_a_tracked_table_are_not(sql: str) -> None:
    assert handwritten.table_written_by(sql) is None


PARTS = [
    *("'", "\\'", "''", '"', "`", "[", "[a", "(", "update(", "/* ", "*/", "$a$ ", "$a$ $b$", "-", "--", "\n", ";", "#"),
    *(
        "a",
        "a.",
        "a, ",
        ":@",
        "E'",
        "UPDATE ",
        "DELETE FROM ",
        "INSERT INTO x ON CONFLICT ",
        "LOAD DATA ",
        "BEGIN ",
        "END ",
    ),
]


@pytest.mark.parametrize("begin", ["", "UPDATE ", "UPDATE x SET a = ", "UPDATE '", "/*", "DO $$", "CREATE TRIGGER "])
@pytest.mark.parametrize("part", PARTS)
def test_a_text_is_read_once_whatever_is_in_it(begin: str, part: str) -> None:
    def steps(times: int) -> int:
        text, count = f"{begin}{part * times} bulk_items", 0

        def count_call(frame: Any, *args: Any) -> None:
            nonlocal count
            count += frame.f_globals is vars(handwritten)  # nor what collects garbage, or coverage

        sys.setprofile(count_call)
        try:
            handwritten.table_written_by(text)
        finally:
            sys.setprofile(None)
        return count

    assert steps(400) <= 4.5 * steps(100)
