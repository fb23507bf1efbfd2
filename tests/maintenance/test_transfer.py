"""Databases of one kind give each other every value as it is: in a checkout, and in a patch."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import Mapped, mapped_column

from connecting import opened
from sqlaudit import SQLAuditError, changesets, record_changes, track_table
from sqlaudit.maintenance import checkout, patch


class OfPostgreSQL(orm.DeclarativeBase):
    pass


@track_table()
class Sample(OfPostgreSQL):
    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[Any | None] = mapped_column(sa.Double)
    exact: Mapped[Any | None] = mapped_column(sa.Numeric)
    words: Mapped[Any | None] = mapped_column(postgresql.ARRAY(sa.String))
    document: Mapped[Any | None] = mapped_column(postgresql.JSONB)
    days: Mapped[Any | None] = mapped_column(postgresql.DATERANGE)
    address: Mapped[Any | None] = mapped_column(postgresql.INET)
    shades: Mapped[Any | None] = mapped_column(postgresql.ARRAY(sa.Enum("light", "dark", name="shade_of_array")))
    moment: Mapped[Any | None] = mapped_column(sa.DateTime(timezone=True))
    bits: Mapped[Any | None] = mapped_column(postgresql.BIT(3))
    span: Mapped[Any | None] = mapped_column(postgresql.INTERVAL)
    fixed: Mapped[Any | None] = mapped_column(sa.CHAR(5))
    raw: Mapped[Any | None] = mapped_column(sa.LargeBinary)
    tiny: Mapped[Any | None] = mapped_column(sa.Float(5))


SAMPLES = r"""
INSERT INTO samples (id, value, exact, words, document, days, address, shades, moment, bits, span, fixed, raw, tiny)
VALUES
(1, 'NaN', 'NaN', '{"a,b",NULL,"c\"d"}', '{"b": 1e400, "a": null}', '[2024-01-01,)', '::1/64', '{dark,light}',
 'infinity', '101', '1 month 2 days', 'a', '\x00ff27', 0.1),
(2, '-Infinity', '1e100', '{}', 'null', 'empty', '10.0.0.1', NULL, '0044-03-15 12:00 BC', '000', '-1 sec',
 '', '', 'NaN'),
(3, 1e-300, '0.00000000000000000001', '{{x},{y}}', NULL, NULL, NULL, '{}', '2024-01-01 00:00:00.000001+05',
 NULL, NULL, NULL, NULL, 3.4e38)
"""


class OfMariaDB(orm.DeclarativeBase):
    pass


@track_table()
class Row(OfMariaDB):
    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    big: Mapped[Any | None] = mapped_column(mysql.BIGINT(unsigned=True))
    small: Mapped[Any | None] = mapped_column(mysql.FLOAT)
    value: Mapped[Any | None] = mapped_column(sa.Double)
    bits: Mapped[Any | None] = mapped_column(mysql.BIT(9))
    several: Mapped[Any | None] = mapped_column(mysql.SET("a", "b", "c"))
    year: Mapped[Any | None] = mapped_column(mysql.YEAR)
    lapse: Mapped[Any | None] = mapped_column(mysql.TIME(fsp=3))
    moment: Mapped[Any | None] = mapped_column(mysql.DATETIME(fsp=6))
    stamp: Mapped[Any | None] = mapped_column(mysql.TIMESTAMP(fsp=2))
    one: Mapped[Any | None] = mapped_column(mysql.ENUM("x", "y"))
    fixed: Mapped[Any | None] = mapped_column(sa.BINARY(4))
    words: Mapped[Any | None] = mapped_column(mysql.MEDIUMTEXT)
    exact: Mapped[Any | None] = mapped_column(sa.Numeric(65, 30))


ROWS = r"""
INSERT INTO samples (id, big, small, value, bits, several, year, lapse, moment, stamp, one, fixed, words, exact) VALUES
(1, 18446744073709551615, 0.1, 1e308, b'100000001', 'a,c', 2024,
 '-838:59:59', '9999-12-31 23:59:59.999999', '2024-01-01 00:00:00.12',
 'y', X'00FF27',
 'a\\b''c\0d😀', 12345678901234567890123456789012345.123456789012345678901234567890),
(2, 0, 16777217, -0.1, b'0', '', 0, '25:00:00.5', '0001-01-01', NULL, 'x', '', '', 0)
"""


def write(engine: sa.Engine, base: Any, text: str) -> None:
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(text)


def refuse_loss(engine: sa.Engine, sessions: Any, empty: Any, model: Any, whole: sa.TextClause) -> None:
    """Check that a checkout, and a patch on an empty checkout, hold what the live table held."""
    with sessions.begin() as session:
        record_changes(session, model)
    with engine.connect() as connection:
        live = connection.execute(whole).all()
    with sessions.begin() as session:
        session.execute(sa.delete(model).where(model.id == 1))
    with sessions() as session:
        made, _ = changesets(session)
        script = patch(session, made.changeset_id)
    for when, statements in ((made.timestamp, []), (made.timestamp - timedelta(microseconds=1), script)):
        with opened(empty(engine.dialect.name)) as target:
            checkout(engine, when, target)
            with target.begin() as connection:
                cursor = connection.connection.cursor()
                for statement in statements:
                    cursor.execute(statement)
                assert connection.execute(whole).all() == live


@pytest.mark.requires("arrays")
@pytest.mark.no_tables
def test_postgresql_keeps_infinity_ranges_arrays_and_dates_before_christ(engine, sessions, empty):
    write(engine, OfPostgreSQL, SAMPLES)
    refuse_loss(engine, sessions, empty, Sample, sa.text("SELECT s::text FROM samples s ORDER BY id"))


@pytest.mark.requires("datetimes_in_seconds")
@pytest.mark.no_tables
def test_mariadb_keeps_unsigned_numbers_bits_sets_and_long_times(engine, sessions, empty):
    write(engine, OfMariaDB, ROWS)
    numbers = "id, big, small + 0e0, value, bits + 0, year, exact"
    texts = "several, cast(lapse AS char), cast(moment AS char), cast(stamp AS char), one, hex(fixed), hex(words)"
    refuse_loss(engine, sessions, empty, Row, sa.text(f"SELECT {numbers}, {texts} FROM samples ORDER BY id"))  # noqa: S608  # literals


@pytest.mark.requires("datetimes_in_seconds")
@pytest.mark.no_tables
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_mariadb_gives_others_its_own_types_as_texts_and_numbers(engine, sessions, empty, kind):
    write(engine, OfMariaDB, ROWS.replace("\\0d", "d").replace("18446744073709551615", str(2**63 - 1)))
    with sessions.begin() as session:
        record_changes(session, Row)
    with opened(empty(kind)) as target:
        checkout(engine, datetime.now(UTC), target)
        with target.connect() as connection:
            columns = sa.text("SELECT big, small, bits, several, year, lapse, one, words FROM samples ORDER BY id")
            first, second = connection.execute(columns).all()
    assert first[:1] + first[2:] == (2**63 - 1, 257, "a,c", 2024, "-838:59:59.000", "y", "a\\b'cd😀")
    assert second == (0, 2.0**24, 0, "", 0, "25:00:00.500", "x", "")


@pytest.mark.requires("datetimes_in_seconds")
@pytest.mark.no_tables
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_value_that_the_target_cannot_hold_ends_the_checkout_and_leaves_nothing(engine, sessions, empty, kind):
    write(engine, OfMariaDB, ROWS)  # PostgreSQL has no NUL in texts, SQLite no number of 64 bits without a sign
    with sessions.begin() as session:
        record_changes(session, Row)
    url = empty(kind)
    with pytest.raises(SQLAuditError, match="refuses rows of samples"):
        checkout(engine, datetime.now(UTC), url)
    with opened(url) as target:
        assert sa.inspect(target).get_table_names() == []
