"""What sqlaudit 0.5 to 0.7 has logged becomes history, as far as the log tells."""

import enum
import hmac
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlaudit
from invariants import check_history, told
from sqlaudit import ChangeLogReport, as_of, get_resource_changes, import_change_log, versions_of

pytestmark = pytest.mark.spread

KEY = "a key that nobody guesses"
NOON = datetime(2024, 5, 6, 12, 0, 0, 5, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    red = "r"
    green = "g"


@sqlaudit.track_table(exclude=["secret"], redact={"iban": "hash"})
class Customer(Base):
    __tablename__ = "logged_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column("full_name", sa.String(20))
    born: Mapped[date | None]
    vip: Mapped[bool | None]
    money: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    colour: Mapped[Colour | None]
    tags: Mapped[list[str] | None] = mapped_column(sa.JSON)
    secret: Mapped[str | None] = mapped_column(sa.String(20))
    iban: Mapped[str | None] = mapped_column(sa.String(20))


class LogBase(DeclarativeBase):
    """The tables of the log, as they were."""


class LogTable(LogBase):
    __tablename__ = "SQLAuditTables"
    table_id: Mapped[int] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(sa.String(50))
    resource_id_field: Mapped[str] = mapped_column(sa.String(50))
    label: Mapped[str | None] = mapped_column(sa.String(50))


class LogField(LogBase):
    __tablename__ = "SQLAuditFields"
    field_id: Mapped[int] = mapped_column(primary_key=True)
    table_id: Mapped[int] = mapped_column(sa.ForeignKey("SQLAuditTables.table_id"))
    field_name: Mapped[str] = mapped_column(sa.String(50))


class Log(LogBase):
    __tablename__ = "SQLAuditLogs"
    record_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    table_id: Mapped[int] = mapped_column(sa.ForeignKey("SQLAuditTables.table_id"))
    resource_id: Mapped[str] = mapped_column(sa.String(50))
    timestamp: Mapped[datetime] = mapped_column(
        sa.DateTime().with_variant(sa.dialects.mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    changed_by: Mapped[str | None] = mapped_column(sa.String(256))
    impersonated_by: Mapped[str | None] = mapped_column(sa.String(256))
    reason: Mapped[str | None] = mapped_column(sa.String(512))


class LogChange(LogBase):
    __tablename__ = "SQLAuditFieldChanges"
    change_id: Mapped[int] = mapped_column(primary_key=True)
    record_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("SQLAuditLogs.record_id"))
    field_id: Mapped[int] = mapped_column(sa.ForeignKey("SQLAuditFields.field_id"))
    old_value: Mapped[str | None] = mapped_column(sa.Text)
    new_value: Mapped[str | None] = mapped_column(sa.Text)


FIELDS = ["name", "born", "vip", "money", "colour", "tags", "forgotten", "iban"]


def log(
    session: Session, id: int, minutes: int, by: str | None = "ana", **changes: tuple[str | None, str | None]
) -> None:
    record = uuid.uuid4()
    at = (NOON + timedelta(minutes=minutes)).replace(tzinfo=None)
    session.add(Log(record_id=record, table_id=1, resource_id=str(id), timestamp=at, changed_by=by, reason="then"))
    session.flush()
    for name, (old, new) in changes.items():
        session.add(LogChange(record_id=record, field_id=FIELDS.index(name) + 1, old_value=old, new_value=new))


@pytest.fixture
def session(tables: None, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("SQLAUDIT_REDACTION_KEY", KEY)
    LogBase.metadata.create_all(engine)
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with Session(engine) as session:
        session.add(LogTable(table_id=1, table_name="logged_customers", resource_id_field="id"))
        session.flush()
        session.add_all([LogField(field_id=n, table_id=1, field_name=name) for n, name in enumerate(FIELDS, 1)])
        session.add(
            Customer(id=1, name="Ada", born=date(1815, 12, 10), vip=True, tags=["b"], secret="s", colour=Colour.red)
        )
        session.add(Customer(id=2, name="unseen", money=Decimal("3.50")))
        session.add(Customer(id=4, name="never logged"))
        session.flush()
        log(session, 1, 0, name=(None, "A"), born=(None, "1815-12-10"), tags=(None, '["a"]'), colour=(None, "red"))
        log(session, 1, 1, by=None, name=("A", "Ada"), vip=(None, "1"))
        log(session, 1, 1, tags=('["a"]', '["b"]'), forgotten=("x", "y"))
        log(session, 2, 5, name=("Bob", "Bo"))
        log(session, 3, 6, name=(None, "Cy"), money=(None, "many"))
        session.commit()
        sqlaudit.clear_config()
        yield session


def test_logs_become_versions_of_whole_rows(session: Session) -> None:
    report = import_change_log(session, Customer)
    session.commit()
    assert report == ChangeLogReport(rows=3, versions=6, left_alone=0, baselines=1, recorded=2, unread=1)
    check_history(session, Customer)
    first, second, third = versions_of(session, Customer, 1)
    assert (first.name, first.born, first.vip, first.tags) == ("A", date(1815, 12, 10), None, ["a"])
    assert (second.name, second.vip, second.tags, second.colour) == ("Ada", True, ["a"], Colour.red)
    assert (third.name, third.tags) == ("Ada", ["b"])
    assert [version.audit_operation for version in (first, second, third)] == ["insert", "update", "update"]
    assert first.valid_from == NOON
    assert second.valid_from == NOON + timedelta(minutes=1)
    assert third.valid_from == second.valid_from + timedelta(microseconds=1)
    assert [version.audit_changed_by for version in (first, second, third)] == ["ana", None, "ana"]
    assert first.audit_reason == "then"


def test_a_row_that_was_older_than_the_log_has_a_baseline_and_what_it_missed_is_of_now(session: Session) -> None:
    began = datetime.now(UTC)
    import_change_log(session, Customer)
    session.commit()
    versions = versions_of(session, Customer, 2)
    assert [(str(version.audit_operation), version.name) for version in versions] == [
        ("baseline", "Bob"),
        ("update", "Bo"),
        ("update", "unseen"),
    ]
    assert versions[0].valid_from == versions[0].valid_to
    assert {version.money for version in versions} == {Decimal("3.50")}
    assert versions[-1].valid_from >= began
    changes = get_resource_changes(Customer, session, filter_resource_ids=[2])
    assert [(change.old_value, change.new_value) for change in changes] == [("Bob", "Bo"), ("Bo", "unseen")]


def test_a_row_that_is_gone_ends_now_and_what_cannot_be_read_is_kept(session: Session) -> None:
    import_change_log(session, Customer)
    session.commit()
    first, end = versions_of(session, Customer, 3)
    assert (first.name, first.money, first.audit_extra) == ("Cy", None, {"unread": {"money": "many"}})
    assert end.audit_operation == "delete"


def test_the_past_can_be_read(session: Session) -> None:
    import_change_log(session, Customer, time_zone=timezone(timedelta(hours=2)))
    session.commit()
    sqlaudit.register_hooks(session)
    try:
        past = session.scalars(as_of(Customer, NOON - timedelta(hours=2)).where(Customer.id == 1)).one()
        assert past.name == "A"
    finally:
        sqlaudit.unregister_hooks(session)


def test_it_is_done_once(session: Session) -> None:
    import_change_log(session.connection(), Customer)
    before = told(session, Customer, "id")
    again = import_change_log(session, Customer)
    assert again == ChangeLogReport(rows=0, versions=0, left_alone=3, baselines=0, recorded=0, unread=0)
    assert told(session, Customer, "id") == before


def test_what_cannot_be_imported_is_named(session: Session, base: Any) -> None:
    @sqlaudit.track_table()
    class Other(base):
        __tablename__ = "others"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(session.connection())
    with pytest.raises(sqlaudit.QueryError, match="the table 'others'"):
        import_change_log(session, Other)
    session.execute(sa.update(LogTable).values(resource_id_field="email"))
    with pytest.raises(sqlaudit.QueryError, match="by 'email', but the key of the rows is id"):
        import_change_log(session, Customer)
    session.execute(sa.update(LogTable).values(resource_id_field="id"))
    session.execute(sa.update(Log).values(resource_id="one"))
    with pytest.raises(sqlaudit.QueryError, match="'one', which is not a key"):
        import_change_log(session, Customer)
    session.execute(sa.update(Log).values(resource_id="1"))
    log(session, 1, 9, name=("x", "y"))
    session.flush()
    session.execute(sa.update(Log).where(Log.timestamp > NOON.replace(tzinfo=None)).values(resource_id="01"))
    with pytest.raises(sqlaudit.QueryError, match="in two ways"):
        import_change_log(session, Customer)
    assert told(session, Customer) == []


def test_without_a_log_it_says_so(engine: sa.Engine) -> None:
    with Session(engine) as session, pytest.raises(sqlaudit.QueryError, match="The table 'SQLAuditTables'"):
        import_change_log(session, Customer)


def test_a_log_without_changes_tells_nothing(session: Session) -> None:
    log(session, 4, 1)
    log(session, 7, 1)
    report = import_change_log(session, Customer)
    assert (report.rows, report.baselines) == (3, 1)
    assert [operation for operation, id in told(session, Customer, "id") if id == 4] == ["baseline"]
    assert not versions_of(session, Customer, 7)
    check_history(session, Customer)


@pytest.mark.parametrize("changes", [{"forgotten": ("x", "y")}, {"money": ("many", "3")}])
def test_a_change_of_what_history_cannot_tell_is_no_insert(session: Session, changes: Any) -> None:
    log(session, 4, 1, **changes)
    import_change_log(session, Customer)
    told_of_it = [operation for operation, id in told(session, Customer, "id") if id == 4]
    assert told_of_it[:2] == ["baseline", "update"]
    check_history(session, Customer)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("name", "n" * 21),
        ("money", "NaN"),
        ("money", "-Infinity"),
        ("money", "123456789.5"),
        ("tags", "[NaN]"),
        ("vip", "perhaps"),
        ("born", "0000-00-00"),
    ],
)
def test_a_value_that_the_database_would_refuse_is_kept_as_a_text(session: Session, name: str, text: str) -> None:
    """Databases differ in what they take: it is in its field, or among what could not be read."""
    log(session, 4, 1, **{name: (None, text)})
    report = import_change_log(session, Customer)
    session.commit()
    check_history(session, Customer)
    told_of_it = versions_of(session, Customer, 4)[0]
    stored = getattr(told_of_it, name)
    is_stored = str(stored) == text or stored == Decimal("123456789.5")
    assert is_stored or told_of_it.audit_extra == {"unread": {name: text}}
    assert report.unread == (1 if is_stored else 2)


def test_a_user_that_history_has_no_room_for_is_named_before_anything_is_written(session: Session) -> None:
    log(session, 4, 1, by="u" * 256, name=(None, "x"))
    with pytest.raises(sqlaudit.ContextError, match="changed_by of a log of '4' has 256 characters"):
        import_change_log(session, Customer)
    assert told(session, Customer) == []


@pytest.mark.parametrize("iban", ["DE89 3704", "longer than the column of the live table"])
def test_what_history_redacts_is_not_imported_in_clear(session: Session, iban: str) -> None:
    log(session, 4, 1, iban=(None, iban))
    import_change_log(session, Customer)
    first = versions_of(session, Customer, 4)[0]
    hashed = hmac.new(KEY.encode(), iban.encode(), "sha256").hexdigest()
    assert (first.iban, first.audit_extra) == (hashed, None)
    check_history(session, Customer)
