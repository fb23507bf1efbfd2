"""A row is written and recorded whatever the type of its key: each way to write does what it does without sqlaudit."""

import enum
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.types import TypeDecorator, UserDefinedType

from differences import check_pages
from effort import EFFORT
from invariants import check_history
from sqlaudit import (
    OPEN_END,
    CaptureError,
    SQLAuditWarning,
    backfill,
    history_of,
    record_changes,
    track_table,
    versions_of,
)
from stock import upsert

pytestmark = pytest.mark.filterwarnings(
    "ignore:Type object .*(BIT|DOMAIN|YEAR)"
)  # to which SQLAlchemy gives no operators

Run = Callable[[Callable[[Session], Any]], Any]
Write = Callable[[Session], Any]


class Prefixed(TypeDecorator[str]):
    """Stored as ``k-<id>``: what ``uuid_to_bin()`` or ``pgp_sym_encrypt()`` do, in short."""

    impl = sa.String(30)
    cache_ok = True

    def bind_expression(self, bindparam):
        return sa.literal("k-", sa.String) + sa.type_coerce(bindparam, sa.String)

    def column_expression(self, column):
        return sa.func.substr(sa.type_coerce(column, sa.String), 3)


class Swapped(TypeDecorator[str]):
    """Lower case in the database, upper case in Python, by SQL."""

    impl = sa.String(30)
    cache_ok = True

    def bind_expression(self, bindparam):
        return sa.func.lower(sa.type_coerce(bindparam, sa.String))

    def column_expression(self, column):
        return sa.func.upper(column, type_=sa.String)


class Hex(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **kw):
        return "BYTEA"

    def bind_expression(self, bindvalue):
        return sa.func.decode(sa.type_coerce(bindvalue, sa.String), "hex")

    def column_expression(self, colexpr):
        return sa.func.encode(colexpr, "hex", type_=sa.String)


class Stripped(TypeDecorator[str]):
    impl = sa.String(30)
    cache_ok = True

    def process_result_value(self, value, dialect):
        return value.strip()


class Lowered(TypeDecorator[str]):
    impl = sa.String(30)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value and value.lower()


class Encrypted(TypeDecorator[str]):
    impl = sa.LargeBinary(30).with_variant(mysql.VARBINARY(30), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return bytes(byte ^ 7 for byte in value.encode())

    def process_result_value(self, value, dialect):
        return bytes(byte ^ 7 for byte in value).decode()


class GUID(TypeDecorator[uuid.UUID]):
    """The recipe of SQLAlchemy's documentation."""

    impl = sa.CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else sa.CHAR(32))

    def process_bind_param(self, value, dialect):
        return value if dialect.name == "postgresql" else f"{value.int:032x}"

    def process_result_value(self, value, dialect):
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


class GuidText(TypeDecorator[str]):
    """A decorator of a decorator."""

    impl = GUID
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return uuid.UUID(value)

    def process_result_value(self, value, dialect):
        return str(value)


class Point(TypeDecorator[tuple[int, ...]]):
    impl = sa.String(30)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return "/".join(map(str, value))

    def process_result_value(self, value, dialect):
        return tuple(map(int, value.split("/")))


class Shouted(sa.String):
    """A type of the program's own below no decorator."""

    cache_ok = True

    def bind_processor(self, dialect):
        return lambda value: value.lower()

    def result_processor(self, dialect, coltype):
        return lambda value: value.upper()


class Path(TypeDecorator[tuple[int, ...]]):
    """An array, as a tuple, by which a session can know an object."""

    impl = sa.ARRAY(sa.Integer)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return list(value)

    def process_result_value(self, value, dialect):
        return tuple(value)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


class Numbered(TypeDecorator[Colour]):
    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value.value

    def process_result_value(self, value, dialect):
        return Colour(value)


BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
UUIDS = [uuid.UUID(int=number) for number in (1, 2, 3)]
DAYS = [date(2024, 2, 29), date(1, 1, 1), date.max]
TIMES = [datetime(2024, 2, day, 1, 2, 3, tzinfo=UTC).replace(tzinfo=None) for day in (1, 2, 3)]
PRECISE = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

GIVEN: dict[str, tuple[Any, list[Any]]] = {
    "integer": (sa.Integer, [1, 2, 3]),
    "bigint": (sa.BigInteger, [-(2**63), 2**63 - 1, 3]),
    "string": (sa.String(30), ["a", "'c\\%", "d:x"]),
    "char": (sa.CHAR(5), list("abc")),
    "uuid": (sa.Uuid, UUIDS),
    "uuid_text": (sa.Uuid(as_uuid=False), [str(each) for each in UUIDS]),
    "uuid_char": (sa.Uuid(native_uuid=False), UUIDS),
    "date": (sa.Date, DAYS),
    "datetime": (PRECISE, [each + timedelta(microseconds=250000) for each in TIMES]),
    "time": (sa.Time, [time(1), time(2), time(23, 59, 59)]),
    "interval": (sa.Interval, [timedelta(days=day, hours=30) for day in (1, 2, 300)]),
    "numeric": (sa.Numeric(20, 2), [Decimal("1.50"), Decimal(2), Decimal("123456789012345.25")]),
    "numeric_float": (sa.Numeric(30, 10, asdecimal=False), [1.5, 2.25, 3.0]),
    "double": (sa.Double, [1.5, 2.1, 1 / 3]),
    "boolean": (sa.Boolean, [True, False]),
    "binary": (sa.LargeBinary(20).with_variant(mysql.VARBINARY(20), "mysql", "mariadb"), [b"a", b"\0b'", b"\\\xff%"]),
    "enum": (sa.Enum(Colour, name="colour"), list(Colour)),
    "enum_text": (sa.Enum("a", "b", "c", native_enum=False, name="letter"), list("abc")),
    "prefixed_by_sql": (Prefixed, list("abc")),
    "swapped_by_sql": (Swapped, list("ABC")),
    "stripped": (Stripped, list("abc")),
    "lowered": (Lowered, list("ABC")),
    "encrypted": (Encrypted, list("abc")),
    "guid": (GUID, UUIDS),
    "guid_text": (GuidText, [str(each) for each in UUIDS]),
    "point": (Point, [(1, 2), (3, 4), (5, 6)]),
    "own_string": (Shouted(20), list("ABC")),
    "numbered": (Numbered, list(Colour)),
    "text_as_number": (sa.String(30), [1, 20, 3]),
}
GIVEN_TO_ARRAYS: dict[str, tuple[Any, list[Any]]] = {
    "hex_by_sql": (Hex, ["00ff", "0a0b", "0c"]),
    "real": (sa.REAL, [1.5, 2.25, 3.0]),
    "datetime_tz": (sa.DateTime(timezone=True), [each.replace(tzinfo=UTC) for each in TIMES]),
    "domain": (postgresql.DOMAIN("code_of_keys", sa.Text()), list("abc")),
    "array": (Path, [(1, 2), (3,), ()]),
}
GIVEN_TO_MARIADB: dict[str, tuple[Any, list[Any]]] = {
    "unsigned": (mysql.BIGINT(unsigned=True), [2**63, 2**64 - 1, 3]),
    "float": (mysql.FLOAT, [1.5, 2.25, 3.0]),
    "decimal": (mysql.DECIMAL(40, 20), [Decimal("12345678901234567890.12345678901234567891"), Decimal(2), Decimal(3)]),
    "enum": (mysql.ENUM("z", "b", "a"), list("zba")),
    "year": (mysql.YEAR, [2001, 2002, 2003]),
}
STORED: dict[str, tuple[Any, list[str]]] = {
    "a type that lowers what it binds": (Lowered, ["ABC", "x", "Y"]),
    "a member that an enum has lost": (sa.Enum(Colour, name="colour", native_enum=False), ["LOST", "RED", "BLUE"]),
    "no colour": (Numbered, ["7", "1", "2"]),
}
STORED_IN_POSTGRESQL: dict[str, tuple[Any, list[str]]] = {
    "a type that strips what it reads": (Stripped, [" a ", "b", "c "]),
    "24:00": (sa.Time, ["24:00", "1:00", "2:00"]),
    "dates before Christ": (sa.Date, ["0044-03-15 BC", "infinity", "9999-12-31"]),
    "times of no end": (sa.DateTime, ["-infinity", "infinity", "294276-12-31 23:59:59.999999"]),
    "times with a zone": (sa.DateTime(timezone=True), ["infinity", "2026-10-25 00:30+00", "2026-10-25 01:30+00"]),
    "months": (sa.Interval, ["1 year", "30 days", "1 mon -1 days"]),
    "many digits": (sa.Numeric(30, 10, asdecimal=False), ["12345678901234567890.0123456789", "1.5", "2"]),
    "no numbers": (sa.Numeric, ["NaN", "1.50", "2"]),
    "floats": (sa.REAL, ["0.1", "NaN", "1e30"]),
    "ranges": (postgresql.DATERANGE, ["[2020-01-01,infinity)", "(,)", "empty"]),
    "arrays": (postgresql.ARRAY(sa.Integer), ["{1,2}", "{3}", "{}"]),
    "bits": (postgresql.BIT(3), ["001", "010", "100"]),
    "addresses": (postgresql.INET, ["10.0.0.1", "10.1.0.0/16", "::1"]),
    "documents": (postgresql.JSONB, ['{"a": 1}', "2", '"x"']),
}
STORED_IN_MARIADB: dict[str, tuple[Any, list[str]]] = {
    "long times": (mysql.TIME(fsp=3), ["25:00:01.5", "-03:00:00", "1:0:0"]),
    "floats": (mysql.FLOAT, ["0.1", "0.333333333", "1e30"]),
    "many digits": (sa.Numeric(30, 10, asdecimal=False), ["12345678901234567890.0123456789", "1.5", "2"]),
    "more than true": (sa.Boolean, ["0", "1", "7"]),
    "bits": (mysql.BIT(8), ["1", "z", "4"]),
    "sets": (mysql.SET("a", "b", "c"), ["a,b", "c", "b"]),
}
STORED_IN_SQLITE: dict[str, tuple[Any, list[str]]] = {
    "rubbish for a date": (sa.Date, ["2026-01-01", "rubbish", "2026"]),
    "rubbish for a time": (sa.DateTime, ["2026-01-01 00:00:00.000000", "2026-01-01T00:00:00Z", "17"]),
    "rubbish for a UUID": (sa.Uuid, ["00000000000000000000000000000001", "not-a-uuid", "1"]),
    "many digits": (sa.Numeric, ["1e300", "abc", "0.123456789012345678"]),
    "rubbish for a boolean": (sa.Boolean, ["1", "2", "x"]),
}


DRIVEN = ["date", "interval", "prefixed_by_sql", "double", "enum", "encrypted", "guid"][: None if EFFORT > 1 else 3]
DRIVEN_IN_POSTGRESQL = ["dates before Christ", "months", "24:00", "many digits", "ranges"][: None if EFFORT > 1 else 2]
"""The types that are tried by each driver."""


def models_of(base: Any, type_: Any, *, composite: bool) -> tuple[Any, Any]:
    """Return two models with a key of a type, the second of which is tracked."""

    class Plain(base):
        __tablename__ = "plain_things"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        place: Mapped[Any] = mapped_column(sa.Integer, primary_key=composite)
        value: Mapped[Any] = mapped_column(sa.Integer)

    class Tracked(base):
        __tablename__ = "tracked_things"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        place: Mapped[Any] = mapped_column(sa.Integer, primary_key=composite)
        value: Mapped[Any] = mapped_column(sa.Integer)

    return Plain, track_table()(Tracked)


def rows_of(session: Session, model: Any) -> list[Any]:
    return session.execute(sa.select(model.place, model.value).order_by(model.place)).all()


def open_versions_of(session: Session, model: Any) -> list[Any]:
    history = history_of(model)
    chosen = sa.select(history.place, history.value).where(history.valid_to == OPEN_END)
    return session.execute(chosen.order_by(history.place)).all()


def with_objects(model: Any, keys: Sequence[Any]) -> Iterator[Write]:
    """Yield writes by objects, of one row and of several."""

    def add(*places: int) -> Write:
        return lambda session: session.add_all([model(id=keys[at], place=at, value=at) for at in places])

    def change(count: int) -> Write:
        def write(session: Session) -> None:
            for place in range(min(count, len(keys))):
                session.scalars(sa.select(model).where(model.place == place)).one().value += 10
                # One by one, for SQLAlchemy sorts the objects of a flush by their keys, and some have no order.
                if not _have_an_order(keys):
                    session.flush()

        return write

    def delete(session: Session) -> None:
        for thing in session.scalars(sa.select(model)):
            session.delete(thing)
            session.flush() if not _have_an_order(keys) else None

    yield add(0)
    yield add(*range(1, len(keys)))
    yield from map(change, (1, 2, 3))
    yield delete


def _have_an_order(keys: Sequence[Any]) -> bool:
    return not isinstance(keys[0], enum.Enum)


def with_lists(model: Any, keys: Sequence[Any]) -> Iterator[Write]:
    """Yield writes by lists of rows, and of parameters."""
    table = model.__table__
    rows = [{"id": key, "place": place, "value": place} for place, key in enumerate(keys)]
    changed = [row | {"value": row["value"] + 50} for row in rows]
    by_key = sa.update(table).where(table.c.id == sa.bindparam("key")).values(value=sa.bindparam("new"))
    by_value = sa.update(table).where(table.c.value == sa.bindparam("old")).values(value=sa.bindparam("new"))
    yield lambda session: session.execute(sa.insert(model), rows)
    yield lambda session: session.execute(sa.update(model), changed)
    yield lambda session: session.execute(by_key, [{"key": key, "new": 60 + at} for at, key in enumerate(keys)])
    yield lambda session: session.execute(by_value, [{"old": 60 + at, "new": 70 + at} for at, _ in enumerate(keys)])
    yield lambda session: session.execute(sa.delete(table).where(table.c.id == sa.bindparam("key")), [{"key": keys[0]}])
    yield lambda session: session.execute(sa.delete(model).where(model.value > 0)).rowcount
    yield lambda session: session.execute(sa.insert(model).values(rows)) and None
    yield lambda session: session.bulk_update_mappings(model, changed)


def with_criteria(model: Any) -> Iterator[Write]:
    """Yield writes of rows that a criterion chooses."""
    yield lambda session: session.execute(sa.update(model).values(value=model.value + 1)).rowcount
    loaded_later: dict[str, Any] = {"synchronize_session": False}
    some = sa.update(model).where(model.value > 1).values(value=model.value * 2)
    yield lambda session: session.execute(some, execution_options=loaded_later).rowcount
    yield lambda session: session.execute(sa.delete(model).where(model.place == 0)).rowcount
    yield lambda session: session.execute(sa.delete(model)).rowcount


def _do(run: Run, write: Write) -> Any:
    def done(session: Session) -> Any:
        result = write(session)
        session.commit()
        return result if isinstance(result, int) else None

    return run(done)


def _write_alike(run: Run, plain: Any, tracked: Any, writes: Callable[..., Iterator[Write]], *args: Any) -> None:
    for number, (write, recorded) in enumerate(zip(writes(plain, *args), writes(tracked, *args), strict=True)):
        expected = _do(run, write)
        assert _do(run, recorded) == expected, number
        rows, same, versions = run(
            lambda session: (rows_of(session, plain), rows_of(session, tracked), open_versions_of(session, tracked))
        )
        assert same == rows, number
        assert versions == rows, number


def _created(run: Run, base: Any) -> None:
    run(lambda session: (base.metadata.create_all(session.connection()), session.commit()))


def _check_given(run: Run, base: Any, type_: Any, keys: Sequence[Any], *, composite: bool) -> None:
    plain, tracked = models_of(base, type_, composite=composite)
    _created(run, base)
    _write_alike(run, plain, tracked, with_objects, keys)
    _write_alike(run, plain, tracked, with_lists, keys)
    assert len(run(lambda session: check_pages(session, tracked, BEGIN, datetime.now(UTC)))) == len(keys)
    if not composite and not isinstance(keys[0], tuple):  # a tuple is an id of several columns
        found = run(lambda session: [version.value for version in versions_of(session, tracked, keys[0])])
        assert found[0] == 0
        assert len(found) > 4
    _write_alike(run, plain, tracked, with_criteria)


def by_name(types: dict[str, Any]) -> pytest.MarkDecorator:
    """Take each type for a key alone, or as part of a composite one; with more effort, both."""
    kinds = [
        pytest.param(name, composite, id=f"{name}-{'composite' if composite else 'alone'}")
        for place, name in enumerate(types)
        for composite in (False, True)
        if EFFORT > 1 or composite == place % 2
    ]
    return pytest.mark.parametrize(("name", "composite"), kinds)


@pytest.fixture
def run(sessions: sessionmaker[Session]) -> Run:
    def run(work: Callable[[Session], Any]) -> Any:
        with sessions() as session:
            return work(session)

    return run


@by_name(GIVEN)
def test_rows_are_written_as_without_tracking(name, composite, base, run):
    _check_given(run, base, *GIVEN[name], composite=composite)


@pytest.mark.requires("arrays")
@by_name(GIVEN_TO_ARRAYS)
def test_rows_with_keys_of_postgresql_are_written_as_without_tracking(name, composite, base, run):
    _check_given(run, base, *GIVEN_TO_ARRAYS[name], composite=composite)


OF_SEVERAL_TYPES: dict[str, tuple[Any, list[Any]]] = {
    "integers": (sa.Integer, [5, "6", Decimal(7)]),
    "numbers": (sa.Numeric(20, 2), [5, Decimal("5.25"), 2.5]),
    "floats": (sa.Double, [5, Decimal("5.25"), 2.5]),
    "texts": (sa.String(10), ["a", 5]),
    "days": (sa.Date, [DAYS[0], TIMES[1], "2024-02-03"]),
    "instants": (sa.DateTime, [DAYS[0], TIMES[1]]),
}


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("name", OF_SEVERAL_TYPES)
def test_keys_of_several_python_types_go_into_one_array(name, base, run):
    type_, keys = OF_SEVERAL_TYPES[name]
    _, tracked = models_of(base, type_, composite=False)
    _created(run, base)
    table = tracked.__table__
    rows = [{"id": key, "place": place, "value": place} for place, key in enumerate(keys)]
    run(lambda session: (session.execute(sa.insert(tracked), rows), session.commit()))
    changes = [{"key": key, "new": 10 + place} for place, key in enumerate(keys)]
    by_key = sa.update(table).where(table.c.id == sa.bindparam("key")).values(value=sa.bindparam("new"))
    run(lambda session: (session.connection().execute(by_key, changes), session.commit()))
    assert run(lambda session: len(session.scalars(tracked.all_versions()).all())) == 2 * len(keys)
    assert run(lambda session: open_versions_of(session, tracked)) == run(lambda session: rows_of(session, tracked))


@pytest.mark.requires("limited_updates")
@by_name(GIVEN_TO_MARIADB)
def test_rows_with_keys_of_mariadb_are_written_as_without_tracking(name, composite, base, run):
    _check_given(run, base, *GIVEN_TO_MARIADB[name], composite=composite)


@pytest.mark.requires("replacing_inserts")
def test_bytes_in_a_text_of_sqlite_are_keys_as_without_tracking(base, run):
    plain, tracked = models_of(base, sa.String(30), composite=False)
    _created(run, base)
    for writes in (with_objects, with_lists):
        _write_alike(run, plain, tracked, writes, [b"a", b"b", b"c"])


UNHASHABLE: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "postgresql": {
        "arrays": (postgresql.ARRAY(sa.Integer), [[1, 2], [3], []]),
        "documents": (postgresql.JSONB, [{"a": 1}, [2], {}]),
        "bytes": (sa.LargeBinary, [bytearray(b"a"), bytearray(b"b"), b"c"]),
    },
    "sqlite": {"documents": (sa.JSON, [{"a": 1}, [2], {}]), "bytes": (sa.LargeBinary, [bytearray(b"a"), b"b", b"c"])},
    "mariadb": {"sets": (mysql.SET("a", "b", "c"), [{"a", "b"}, {"c"}, {"b"}])},
}


def with_statements(model: Any, keys: Sequence[Any]) -> Iterator[Write]:
    """Yield writes by statements that give keys, none of which SQLAlchemy hashes."""
    table = model.__table__
    rows = [{"id": key, "place": place, "value": place} for place, key in enumerate(keys)]
    by_keys, found_by = [{"key": key, "new": 50} for key in keys], table.primary_key.c.keys()
    change = sa.update(table).where(table.c.id == sa.bindparam("key")).values(value=sa.bindparam("new"))
    move = sa.update(table).where(table.c.id == sa.bindparam("key")).values(id=sa.bindparam("to"), place=9)
    delete = sa.delete(table).where(table.c.id == sa.bindparam("key"))
    yield lambda session: session.execute(sa.insert(table), rows[1:]) and None
    yield lambda session: session.execute(sa.insert(table).values(rows[0])) and None
    yield lambda session: session.execute(change, {"key": keys[0], "new": 40}).rowcount
    yield lambda session: session.execute(change, by_keys).rowcount
    yield lambda session: session.execute(delete, by_keys[1:]).rowcount
    yield lambda session: session.execute(move, {"key": keys[0], "to": keys[1]}).rowcount
    yield lambda session: session.execute(upsert(session, table, {"value": 7}, *found_by).values(rows)) and None


@pytest.mark.parametrize("composite", [False, True])
def test_rows_are_written_by_statements_though_their_keys_cannot_be_hashed(composite, engine, run):
    for type_, keys in UNHASHABLE[engine.dialect.name].values():
        base = type("Base", (orm.DeclarativeBase,), {})
        plain, tracked = models_of(base, type_, composite=composite)
        _created(run, base)
        _write_alike(run, plain, tracked, with_statements, keys)
        _write_alike(run, plain, tracked, with_criteria)
        base.metadata.drop_all(engine)
        base.registry.dispose()


# --- keys that others have stored -------------------------------------------------------------------------------


def _check_stored(run: Run, base: Any, type_: Any, values: Sequence[str], *, composite: bool) -> Any:
    """Write rows whose keys Python can't read, or not as they are; tracked without history first, then with it."""
    plain, tracked = models_of(base, type_, composite=composite)
    _created(run, base)

    def store(session: Session) -> None:
        for model in (plain, tracked):
            for place, value in enumerate(values):
                text = value.replace("'", "''").replace(":", "\\:")
                session.execute(sa.text(f"INSERT INTO {model.__tablename__} VALUES ('{text}', {place}, {place})"))  # noqa: S608
        session.commit()

    with pytest.warns(SQLAuditWarning, match="Hand-written SQL"):
        run(store)
    _write_alike(run, plain, tracked, with_criteria)
    with pytest.warns(SQLAuditWarning, match="Hand-written SQL"):
        run(store)
    run(lambda session: (record_changes(session, tracked), session.commit()))
    assert run(lambda session: open_versions_of(session, tracked)) == run(lambda session: rows_of(session, tracked))
    _write_alike(run, plain, tracked, with_criteria)
    with pytest.warns(SQLAuditWarning, match="Hand-written SQL"):
        run(store)
    run(lambda session: (backfill(session.connection(), tracked), session.commit()))
    assert run(lambda session: open_versions_of(session, tracked)) == run(lambda session: rows_of(session, tracked))
    return tracked


@by_name(STORED)
def test_rows_are_written_whose_keys_do_not_come_back(name, composite, base, run):
    type_, values = STORED[name]
    tracked = _check_stored(run, base, type_, values, composite=composite)
    _do(run, next(with_criteria(tracked)))
    assert len(run(lambda session: check_pages(session, tracked, BEGIN, datetime.now(UTC)))) == len(values)


@pytest.mark.requires("arrays")
@by_name(STORED_IN_POSTGRESQL)
def test_rows_of_postgresql_are_written_whose_keys_python_cannot_read(name, composite, base, run):
    _check_stored(run, base, *STORED_IN_POSTGRESQL[name], composite=composite)


@pytest.mark.requires("limited_updates")
@by_name(STORED_IN_MARIADB)
def test_rows_of_mariadb_are_written_whose_keys_python_cannot_read(name, composite, base, run):
    _check_stored(run, base, *STORED_IN_MARIADB[name], composite=composite)


@pytest.mark.requires("replacing_inserts")
@by_name(STORED_IN_SQLITE)
def test_rows_of_sqlite_are_written_whose_keys_python_cannot_read(name, composite, base, run):
    _check_stored(run, base, *STORED_IN_SQLITE[name], composite=composite)


# --- drivers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVEN)
def test_rows_are_written_as_without_tracking_by_each_driver(name, base, by_driver):
    _check_given(by_driver, base, *GIVEN[name], composite=False)


@pytest.mark.slow
@pytest.mark.requires("arrays")
@pytest.mark.parametrize("name", DRIVEN_IN_POSTGRESQL)
def test_rows_are_written_whose_keys_a_driver_cannot_read(name, base, by_driver):
    _check_stored(by_driver, base, *STORED_IN_POSTGRESQL[name], composite=False)


# --- values that are bound otherwise, columns that are otherwise than the model says ------------------------------


def test_a_key_that_is_compared_as_another_type_finds_its_row(base, by_driver):
    plain, tracked = models_of(base, Prefixed, composite=False)
    _created(by_driver, base)

    def writes(model: Any) -> Iterator[Write]:
        raw = sa.literal("k-a", sa.String)
        yield lambda session: session.add(model(id="a", place=0, value=1))
        yield lambda session: session.execute(sa.update(model).where(model.id == raw).values(value=2)).rowcount
        yield lambda session: session.execute(sa.delete(model).where(model.id == raw)).rowcount

    _write_alike(by_driver, plain, tracked, writes)


@pytest.mark.requires("arrays")
def test_a_key_that_the_database_pads_is_found_though_the_model_does_not_say_so(base, by_driver):
    plain, tracked = models_of(base, sa.String(5), composite=False)
    _created(by_driver, base)

    def store(session: Session) -> None:
        for model in (plain, tracked):
            session.execute(sa.text(f"ALTER TABLE {model.__tablename__} ALTER id TYPE char(5)"))
            session.execute(sa.insert(model), [{"id": key, "place": at, "value": at} for at, key in enumerate("abc")])
        session.commit()

    by_driver(store)
    _write_alike(by_driver, plain, tracked, with_criteria)


@pytest.mark.parametrize("is_computed", [False, True], ids=["given", "computed"])
def test_a_list_that_moves_keys_of_a_users_type_is_recorded_or_warned_of(is_computed, base, recorded_engine):
    plain, tracked = models_of(base, Lowered, composite=False)
    base.metadata.create_all(recorded_engine)
    old, new = sa.bindparam("old"), sa.bindparam("new")
    moves = [{"old": "A", "new": "D"}, {"old": "c", "new": "F"}]
    if not is_computed:  # then rows may even move twice
        moves += [{"old": "d", "new": "a"}, {"old": "x", "new": "b"}, {"old": "F", "new": "d"}]
    rows = [{"id": key, "place": at, "value": at} for at, key in enumerate("abc")]

    def moved(connection: sa.Connection, table: Any) -> list[Any]:
        connection.execute(sa.insert(table), rows)
        value = sa.func.lower(new) if is_computed else new
        connection.execute(table.update().where(table.c.id == old).values(id=value), moves)
        return connection.execute(sa.select(table).order_by(table.c.id)).all()

    warned = pytest.warns(SQLAuditWarning, match="changes keys of the table") if is_computed else nullcontext()
    with recorded_engine.begin() as connection:
        untracked = moved(connection, plain.__table__)
        with warned:
            assert moved(connection, tracked.__table__) == untracked
    if not is_computed:
        with Session(recorded_engine) as session:
            check_history(session, tracked)


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("change", [sa.update, sa.delete])
def test_nothing_is_kept_of_a_statement_that_does_not_find_its_rows_again(change, returning, base, sessions):
    @track_table()
    class Part(base):
        __tablename__ = "part"

        size: Mapped[int] = mapped_column(primary_key=True)  # which the database has with fractions
        value: Mapped[int]

    with sessions() as session:
        base.metadata.create_all(session.connection())
        session.execute(sa.text("ALTER TABLE part ALTER size TYPE DOUBLE PRECISION"))
        with pytest.warns(SQLAuditWarning, match="Hand-written SQL"):
            session.execute(sa.text("INSERT INTO part VALUES (1, 0), (1.5, 0)"))
        session.commit()
        statement = change(Part).where(Part.value == 0)
        if change is sa.update:
            statement = statement.values(value=1)
        with pytest.raises(CaptureError, match=r"2 rows .* 'part', but 1 of them are not found again .* trigger"):
            session.execute(statement.returning(Part.value) if returning else statement)
        session.commit()
        assert session.execute(sa.text("SELECT size, value FROM part ORDER BY size")).all() == [(1, 0), (1.5, 0)]
        assert versions_of(session, Part, 1) == []
