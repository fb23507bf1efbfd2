"""SQL that was written by hand is noticed by its words."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sqlaudit
from sqlaudit.recording import handwritten
from sqlaudit.tracking.tables import forget_metadata
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    fill,
)


@pytest.mark.parametrize("how", ["session", "connection", "driver", "session's DDL", "connection's DDL"])
def test_sql_that_was_written_by_hand_is_noticed(recorded_engine: sa.Engine, sessions: Any, how: str) -> None:
    sql = "UPDATE bulk_items SET price = 1"
    with sessions() as session:
        fill(session)
        run = {
            "session": lambda: session.execute(sa.text(sql)),
            "connection": lambda: session.connection().execute(sa.text(sql)),
            "driver": lambda: session.connection().exec_driver_sql(sql),
            "session's DDL": lambda: session.execute(sa.DDL(sql)),
            "connection's DDL": lambda: session.connection().execute(
                sa.DDL("UPDATE %(name)s SET price = 1", context={"name": "bulk_items"})
            ),
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
    assert handwritten.table_written_by_text(sql) is None


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
    'EXPLAIN ("analyze") DELETE FROM bulk_items',
    "EXPLAIN (BUFFERS off, ANALYZE 'on') DELETE FROM bulk_items",
    "DO $$ BEGIN FOR r IN UPDATE bulk_items SET price = 1 RETURNING * LOOP NULL; END LOOP; END $$",
    "DO $$ BEGIN FOR r IN SELECT * FROM x FOR UPDATE LOOP DELETE FROM bulk_items; END LOOP; END $$",
    "DO $$ BEGIN OPEN c NO SCROLL FOR INSERT INTO bulk_items VALUES (1) RETURNING id; END $$",
    "DO $$ DECLARE c CURSOR (k int) FOR DELETE FROM bulk_items WHERE id = k RETURNING id; BEGIN OPEN c(1); END $$",
    "DO 'BEGIN UPDATE bulk_items SET title = ''x''; END'",
    "DO LANGUAGE 'plpgsql' E'BEGIN\\n\\tDELETE FROM bulk_items;\\nEND'",
    "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR SQLEXCEPTION DELETE FROM bulk_items; SELECT 1; END",
    "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1644, NOT FOUND UPDATE bulk_items SET price = 1; SELECT 1; END",
    "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR SQLSTATE '45000' BEGIN DELETE FROM bulk_items; END; SELECT 1; END",
    "CREATE PROCEDURE p() BEGIN CASE 1 WHEN 1 THEN SELECT 1; END CASE; END; DELETE FROM bulk_items",
    "UPDATE 'bulk_items' SET price = 1",
    "INSERT OR IGNORE INTO 'bulk_items' VALUES (1)",
    "DELETE FROM 'main'.'bulk_items'",
    'UPDATE U&"bulk_items" SET price = 1',
    'UPDATE public.U&"b\\0075lk\\+00005fitems" SET price = 1',
    "SELECT 5--1; DELETE FROM bulk_items",
    "-- note\rDELETE FROM bulk_items",
    "/*M!999999\\- enable the sandbox mode */ DELETE FROM bulk_items",
    "SELECT $\u01d8\u0301$ ' $\u01d8\u0301$; DELETE FROM bulk_items",
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
    "EXPLAIN (ANALYZE 'off') DELETE FROM bulk_items",
    "EXPLAIN (\"analyze\" 'off') DELETE FROM bulk_items",
    "/*!99999 DELETE FROM bulk_items */",
    "SELECT 1 /*M!999999 ; DELETE FROM bulk_items */",
    "--DELETE FROM bulk_items\nSELECT 1",
    "SELECT 1 FROM x, bulk_items FOR UPDATE OF x, bulk_items SKIP LOCKED",
    "DO $$ BEGIN FOR r IN SELECT * FROM bulk_items FOR UPDATE LOOP NULL; END LOOP; END $$",
    "DO 'BEGIN EXECUTE ''DELETE FROM bulk_items''; END'",
    "DO RELEASE_LOCK('DELETE FROM bulk_items')",
    "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR NOT FOUND SELECT 1; DELETE FROM x; SELECT * FROM bulk_items; END",
    "CREATE POLICY p ON bulk_items FOR UPDATE USING (bulk_items.id = 1)",
    "REVOKE GRANT OPTION FOR UPDATE, DELETE ON x, bulk_items FROM ana",
    "CREATE PROCEDURE p() BEGIN CASE 1 WHEN 1 THEN SELECT 1; END CASE; DELETE FROM bulk_items; END",
    "INSERT INTO x SELECT 1, 'bulk_items'",
    "UPDATE x SET title = 'bulk_items', 'price' = 1 WHERE title IN ('bulk_items')",
    "INSERT INTO x VALUES ('a', 'bulk_items')",
    "SELECT POSITION('a' IN REPLACE(bulk_items.title, 'a', 'b')) FROM bulk_items",
]


@pytest.mark.parametrize("sql", WRITES)
def test_words_of_some_databases_that_write_are_known(sql: str) -> None:
    assert handwritten.table_written_by_text(sql) is not None


@pytest.mark.parametrize("sql", READS)
def test_words_of_some_databases_that_write_no_rows_of_a_tracked_table_are_not(sql: str) -> None:
    assert handwritten.table_written_by_text(sql) is None


@pytest.fixture
def track(base: Any) -> Iterator[Callable[..., None]]:
    """A function that tracks a table of a name, which no other test finds."""

    def track(name: str, **options: Any) -> None:
        namespace = {"__tablename__": name, "__table_args__": options, "id": sa.Column(sa.Integer, primary_key=True)}
        sqlaudit.track_table()(type("Tracked", (base,), namespace))
        orm.configure_mappers()

    yield track
    forget_metadata(base.metadata)


MYSQL = {"mysql", "mariadb"}


@pytest.mark.parametrize(
    ("sql", "dialects"),
    [
        (r"SELECT 'it\'s'; DELETE FROM bulk_items WHERE title = 'x'", MYSQL),
        ("/*!40000 DELETE FROM bulk_items */", MYSQL),
        ("SELECT 1 # it's\n; DELETE FROM bulk_items", MYSQL),
        ("SELECT 5--1; DELETE FROM bulk_items", MYSQL),
        ("-- note\rDELETE FROM bulk_items", {"postgresql"}),
        ("SELECT 1 /* /* */; DELETE FROM bulk_items -- */", {"sqlite", *MYSQL}),
    ],
)
def test_a_text_is_read_as_its_database_reads_it(engine: sa.Engine, sql: str, dialects: set[str]) -> None:
    assert (handwritten.table_written_by_text(sql, engine) is not None) == (engine.dialect.name in dialects)


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("ลูกค้า", "UPDATE ลูกค้า SET a = 1"),
        ("ग्राहक", "DELETE FROM main.ग्राहक"),
        ("cafe\u0301", "INSERT INTO cafe\u0301(id) VALUES (1)"),
        ("😀t", "UPDATE 😀t SET a = 1"),
        ("😀t", "DELETE FROM [😀t]"),
        ('a"b', 'UPDATE "a""b" SET a = 1'),
        ('a"b', 'UPDATE `a"b` SET a = 1'),
        ("a`b", "DELETE FROM `a``b`"),
        ("a'b", "DELETE FROM 'a''b'"),
        ("only", "UPDATE only SET a = 1"),
        ("only", "UPDATE only AS o SET a = 1"),
        ("only", "INSERT INTO only (id) VALUES (1)"),
        ("ignore", "DELETE FROM ignore"),
        ("ignore", "TRUNCATE x, ignore"),
        ("ignore", "INSERT INTO ignore SELECT 1"),
        ("replace", "WITH gone AS (DELETE FROM x) UPDATE replace SET a = 1"),
        ("partition", "UPDATE partition AS p SET a = 1"),
        ("partition", "DELETE FROM partition WHERE a = 1"),
        ("partition", "INSERT INTO partition(id) VALUES (1)"),
        ("values", "INSERT INTO values VALUES (1)"),
        ("values", "TRUNCATE values"),
        ("set", "UPDATE set SET a = 1"),
        ("set", "DELETE FROM set"),
        ("set", "INSERT INTO set SELECT 1"),
    ],
)
def test_a_table_of_any_name_is_known(track: Callable[..., None], name: str, sql: str) -> None:
    track(name)
    assert handwritten.table_written_by_text(sql) is not None


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("ลูก", "UPDATE ลูกค้า SET a = 1"),
        ('a""b', 'UPDATE "a""b" SET a = 1'),
        ("only", "UPDATE ONLY x SET a = 1"),
        ("only", "DELETE FROM ONLY (x)"),
        ("ignore", "INSERT IGNORE INTO x VALUES (1)"),
        ("replace", "INSERT OR REPLACE INTO x VALUES (1)"),
        ("partition", "ALTER TABLE x TRUNCATE PARTITION p"),
        ("values", "MERGE INTO x USING y ON x.id = y.id WHEN NOT MATCHED THEN INSERT VALUES (1)"),
        ("set", "INSERT INTO x VALUES (1) ON CONFLICT (id) DO UPDATE SET a = 1"),
    ],
)
def test_a_word_of_sql_is_no_name_where_another_follows(track: Callable[..., None], name: str, sql: str) -> None:
    track(name)
    assert handwritten.table_written_by_text(sql) is None


@pytest.mark.parametrize("how", ["engine", "connection"])
def test_a_schema_that_may_be_translated_may_be_any(track: Any, engine: sa.Engine, sessions: Any, how: str) -> None:
    track("bulk_tenants", schema="tenant")
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    sql, options = sa.text("UPDATE t1.bulk_tenants SET id = 1"), {"schema_translate_map": {"tenant": "t1"}}
    binds = {"engine": engine.execution_options(**options), "connection": engine}
    with sessions(bind=binds[how]) as session:
        if how == "connection":
            session.connection(execution_options=options)
        with pytest.raises(sqlaudit.CaptureError, match="bulk_tenants"):
            session.execute(sql)


def test_a_schema_that_is_not_translated_is_another(track: Callable[..., None], engine: sa.Engine) -> None:
    track("bulk_tenants", schema="tenant")
    assert handwritten.table_written_by_text("UPDATE t1.bulk_tenants SET id = 1", engine) is None
    assert handwritten.table_written_by_text("UPDATE Tenant.bulk_tenants SET id = 1", engine) is not None


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
        "--a",
        "\r",
        "FOR ",
        "IN ",
        "ONLY ",
        "SET ",
        "HANDLER FOR ",
        'U&"',
        "DO '",
        "DO $$",
        "DO 'a' ",
        "'a' ",
    ),
]


@pytest.mark.parametrize(
    "begin", ["", "UPDATE ", "UPDATE x SET a = ", "UPDATE '", "/*", "DO $$", "DO '", "CREATE TRIGGER "]
)
@pytest.mark.parametrize("part", PARTS)
def test_a_text_is_read_once_whatever_is_in_it(begin: str, part: str) -> None:
    def steps(times: int) -> int:
        text, count = f"{begin}{part * times} bulk_items", 0

        def count_call(frame: Any, *args: Any) -> None:
            nonlocal count
            count += frame.f_globals is vars(handwritten)  # nor what collects garbage, or coverage

        sys.setprofile(count_call)
        try:
            handwritten.table_written_by_text(text)
        finally:
            sys.setprofile(None)
        return count

    assert steps(400) <= 4.5 * steps(100)
