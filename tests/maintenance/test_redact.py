"""No history has what it redacts in clear; it still shows that the value changed, and no restore writes it back."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

import sqlaudit
from invariants import told
from registering import recording
from sqlaudit import QueryError, SQLAuditConfig, SQLAuditError, TrackingError, set_config, track_table
from sqlaudit.maintenance import FindingCode, check, checkout, erase, maintenance_tables, patch

KEY = "a key that nobody guesses"
CLEAR = "DE89 3704 0044"
OTHER = "FR14 2004 1010"


class Base(orm.DeclarativeBase):
    type_annotation_map = {str: sa.String(20)}


def initial(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return sa.func.substr(column, 1, 1)


@track_table(redact={"iban": "hash", "phone": "mask", "city": initial})
class Payer(Base):
    __tablename__ = "redact_payers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="-")
    iban: Mapped[str | None] = mapped_column("account", unique=True)
    phone: Mapped[str | None]
    city: Mapped[str | None]


@track_table(redact={"text": "hash"})
class Note(Base):
    __tablename__ = "redact_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.Text)


@track_table(redact={"email": "hash"})
class Person(Base):
    __tablename__ = "redact_people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    email: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


@track_table(redact={"tax_id": "hash"})
class Worker(Person):
    __tablename__ = "redact_workers"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"), primary_key=True)
    tax_id: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "worker"}


maintenance_tables(Base.metadata)
SOURCES = (Payer, Note, Person)
history = Payer.History


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLAUDIT_REDACTION_KEY", KEY)


def hashed(text: str) -> str:
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def in_history(session: Session) -> str:
    """All that the history tables hold, as text."""
    tables = (table for table in Base.metadata.sorted_tables if table.name.endswith("_history"))
    columns = ((table, map(sa.column, table.c.keys())) for table in tables)
    return repr([session.connection().execute(sa.select(*each).select_from(table)).all() for table, each in columns])


def assert_redacted(session: Session) -> None:
    """Fail if a clear value is in a history, or an open version does not have what its row would be redacted to."""
    everything = in_history(session)
    assert CLEAR not in everything
    assert OTHER not in everything
    assert check(session, *SOURCES).findings == ()


# --- what is stored ---------------------------------------------------------------------------------------------

TEXTS = ["", "x", "12345678", "123456789", CLEAR, "ä€😀 ñandú", 'it\'s "quoted" 100% \\ ;--', "é" * 20_000, None]


def test_history_has_the_keyed_hash_of_each_text(tables, session):
    session.add_all([Note(id=number, text=text) for number, text in enumerate(TEXTS, 1)])
    session.commit()
    stored = session.scalars(sa.select(Note.History.text).order_by(Note.History.id)).all()
    assert stored == [None if text is None else hashed(text) for text in TEXTS]
    assert session.scalars(sa.select(Note.text).order_by(Note.id)).all() == TEXTS
    assert_redacted(session)


def test_a_mask_shows_the_end_of_a_long_text_and_tells_apart_texts_that_end_alike(tables, session):
    texts = ["", "12345678", "123456789", "020 123 6789", "ä€😀ñéööß€", None]
    session.add_all([Payer(id=number, phone=text) for number, text in enumerate(texts, 1)])
    session.commit()
    stored = session.scalars(sa.select(history.phone).order_by(history.id)).all()
    shown = ["", "", "6789", "6789", "ööß€"]
    expected = [f"****{end} {hashed(text)[:8]}" for end, text in zip(shown, texts[:-1], strict=True)]
    assert stored == [*expected, None]


def test_a_function_says_in_sql_what_is_stored(tables, session):
    session.add_all([Payer(id=1, city="Rome"), Payer(id=2)])
    session.commit()
    session.get_one(Payer, 1).city = "Riga"  # history cannot tell them apart
    session.commit()
    assert told(session, Payer, "id", "city") == [("insert", 1, "R"), ("insert", 2, None)]


def test_blanks_with_which_the_database_pads_a_text_do_not_matter(base, engine):
    model = track_table(redact={"code": "hash"})(
        type(
            "Padded",
            (base,),
            {
                "__tablename__": "redact_padded",
                "id": sa.Column(sa.Integer, primary_key=True),
                "code": sa.Column(sa.CHAR(8)),
            },
        )
    )
    with recording(engine, base.metadata) as maker, maker() as session:
        with sqlaudit.tracking_disabled(session):
            session.add(model(id=1, code="ab"))
            session.commit()
        session.get_one(model, 1).code = "cd"
        session.commit()
        assert told(session, model, "code") == [("baseline", hashed("ab")), ("update", hashed("cd"))]
        assert check(session, model).findings == ()


def test_an_append_only_history_keeps_what_a_transaction_superseded_redacted(base, engine):
    class Memo(base):
        __tablename__ = "redact_memos"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(20))

    track_table(append_only=True, redact={"text": "hash"})(Memo)
    with recording(engine, base.metadata) as maker, maker() as session:
        session.add(memo := Memo(id=1, text=CLEAR))
        session.flush()
        memo.text = OTHER
        session.commit()
        assert told(session, Memo, "text") == [("insert", hashed(CLEAR)), ("update", hashed(OTHER))]
        assert check(session, Memo).findings == ()


# --- all ways to write ------------------------------------------------------------------------------------------


def by_flush(session: Session) -> None:
    session.add_all([Payer(id=1, iban=CLEAR), Payer(id=2, phone=CLEAR, city=CLEAR)])
    session.add_all([Worker(id=1, email=CLEAR, tax_id=CLEAR), Note(id=1, text=CLEAR)])
    session.commit()
    for model, field in ((Payer, "iban"), (Worker, "email"), (Worker, "tax_id"), (Note, "text")):
        setattr(session.get_one(model, 1), field, OTHER)
        session.flush()  # within one transaction, versions are replaced
    session.commit()
    session.delete(session.get_one(Payer, 1))
    session.delete(session.get_one(Worker, 1))
    session.commit()
    session.add(Payer(id=1, iban=CLEAR))
    session.commit()


def by_statements(session: Session) -> None:
    session.execute(sa.insert(Payer), [{"id": number, "iban": f"{CLEAR} {number}"} for number in (101, 102)])
    session.execute(sa.insert(Payer).values(iban=OTHER, phone=OTHER))
    session.execute(sa.insert(Note).values(id=1, text=CLEAR))
    session.commit()
    session.execute(sa.update(Payer).values(iban=Payer.iban + " x"))
    session.execute(sa.update(Note).where(Note.id == 1).values(text=OTHER))
    session.execute(sa.update(Payer).where(Payer.id == 101).values(phone=CLEAR))
    session.commit()
    session.execute(sa.delete(Payer).where(Payer.id == 102))
    session.commit()


def to_rows_without_history(session: Session) -> None:
    """Baselines have old values that only objects know, and what the statements find."""
    with sqlaudit.tracking_disabled(session):
        session.add_all([Payer(id=number, iban=f"{CLEAR} {number}", phone=CLEAR) for number in (1, 2, 3, 4)])
        session.add_all([Worker(id=number, email=CLEAR, tax_id=CLEAR) for number in (1, 2)])
        session.commit()
    session.get_one(Payer, 1).iban = OTHER
    session.get_one(Worker, 1).tax_id = OTHER
    session.delete(session.get_one(Payer, 2))
    session.delete(session.get_one(Worker, 2))
    session.commit()
    session.execute(sa.update(Payer).where(Payer.id == 3).values(iban=None))
    session.execute(sa.delete(Payer).where(Payer.id == 4))
    session.commit()


def past_the_hooks(session: Session) -> None:
    with sqlaudit.tracking_disabled(session):
        session.add_all([Payer(id=1, iban=CLEAR), Worker(id=1, email=CLEAR, tax_id=OTHER), Note(id=1, text=CLEAR)])
        session.commit()
    for model in SOURCES:
        sqlaudit.backfill(session, model)
    with sqlaudit.tracking_disabled(session):
        session.execute(sa.update(Payer).values(iban=OTHER))
        session.add(Payer(id=2, iban=CLEAR))
        session.commit()
    sqlaudit.record_changes(session, Payer)
    session.commit()


WRITES: list[Callable[[Session], None]] = [by_flush, by_statements, to_rows_without_history, past_the_hooks]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_no_history_has_the_clear_value_whatever_writes_it(tables, session, write):
    write(session)
    assert CLEAR in repr(session.connection().execute(sa.select(Payer.__table__)).all())
    assert_redacted(session)
    versions = session.scalar(sa.select(sa.func.count()).select_from(history))
    sqlaudit.record_changes(session, Payer)
    assert session.scalar(sa.select(sa.func.count()).select_from(history)) == versions


def test_old_values_that_only_objects_know_are_redacted_as_the_rows_are(tables, session):
    to_rows_without_history(session)
    first = f"{CLEAR} 1", OTHER
    assert told(session, Payer, "iban")[:2] == [("baseline", hashed(first[0])), ("update", hashed(first[1]))]
    assert told(session, Worker, "tax_id")[:2] == [("baseline", hashed(CLEAR)), ("update", hashed(OTHER))]
    deleted = [each for each in told(session, Payer, "id", "iban") if each[1] == 2]
    assert deleted == [("baseline", 2, hashed(f"{CLEAR} 2")), ("delete", 2, hashed(f"{CLEAR} 2"))]


def test_changes_are_seen_and_writes_of_the_same_value_are_not(tables, session):
    session.add(Payer(id=1, iban=CLEAR, phone="0201236789"))
    session.commit()
    session.execute(sa.update(Payer).values(iban=CLEAR, phone="0201236789"))
    session.commit()
    session.execute(sa.update(Payer).values(iban=OTHER, phone="0301236789"))
    session.commit()
    changes = sqlaudit.get_resource_changes(Payer, session, 1, filter_fields=["iban", "phone"])
    assert [(change.version, change.field_name, change.old_value, change.new_value) for change in changes] == [
        (1, "iban", None, hashed(CLEAR)),
        (1, "phone", None, f"****6789 {hashed('0201236789')[:8]}"),
        (2, "iban", hashed(CLEAR), hashed(OTHER)),
        (2, "phone", f"****6789 {hashed('0201236789')[:8]}", f"****6789 {hashed('0301236789')[:8]}"),
    ]


def test_a_redacted_column_names_no_user(tables, session):
    set_config(SQLAuditConfig(user_model_user_id_field="iban"))
    session.add(Payer(id=1, iban=CLEAR))
    session.commit()
    session.execute(sa.update(Payer).values(name="x"))
    session.commit()
    assert [version.changed_by for version in sqlaudit.versions_of(session, Payer, 1)] == [None, None]


def test_check_reports_what_was_stored_before_the_column_was_redacted(tables, session, engine):
    session.add(Payer(id=1, iban=CLEAR))
    session.commit()
    with engine.begin() as connection:
        connection.execute(sa.update(history.__table__).values(account=CLEAR))
    (finding,) = check(session, Payer).findings
    assert (finding.code, finding.key) == (FindingCode.UNRECORDED_CHANGE, 1)
    assert CLEAR not in finding.message


@pytest.mark.no_tables
def test_imports_from_other_libraries_are_redacted(engine):
    others = sa.MetaData()
    transactions = sa.Table(
        "transaction", others, sa.Column("id", sa.Integer, primary_key=True), sa.Column("issued_at", sa.DateTime)
    )
    columns = [sa.Column(name, sa.String(20)) for name in ("name", "account", "phone", "city")]
    numbers = [sa.Column(name, sa.Integer) for name in ("id", "transaction_id", "operation_type")]
    versions = sa.Table("redact_payers_version", others, *numbers, *columns)
    others.create_all(engine)
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session, sqlaudit.tracking_disabled(session):
            session.execute(transactions.insert().values(id=1, issued_at=datetime(2024, 1, 1)))  # noqa: DTZ001  # as they do
            session.execute(
                versions.insert().values(id=1, transaction_id=1, operation_type=0, account=CLEAR, phone=CLEAR)
            )
            session.execute(sa.insert(Payer).values(id=1, iban=CLEAR, name="a"))
            sqlaudit.import_continuum(session, Payer)
            session.commit()
            assert told(session, Payer, "iban") == [("insert", hashed(CLEAR)), ("update", hashed(CLEAR))]
            assert_redacted(session)
    finally:
        others.drop_all(engine)


def test_every_asynchronous_driver_redacts(tables, async_engine):
    async def write() -> list[str]:
        async with AsyncSession(async_engine, sync_session_class=maker.class_) as session:
            session.add(Payer(id=1, iban=CLEAR))
            await session.commit()
            await session.execute(sa.update(Payer).values(iban=OTHER))
            await session.commit()
            return list(await session.scalars(sa.select(history.iban).order_by(history.audit_version)))

    with recording(async_engine.sync_engine) as maker:
        assert asyncio.run(write()) == [hashed(CLEAR), hashed(OTHER)]


def test_every_driver_redacts(tables, by_driver):
    def write(session: Session) -> list[str]:
        session.add(Payer(id=1, iban=CLEAR))
        session.commit()
        session.execute(sa.update(Payer).values(iban=OTHER))
        session.commit()
        return list(session.scalars(sa.select(history.iban).order_by(history.audit_version)))

    assert by_driver(write) == [hashed(CLEAR), hashed(OTHER)]


# --- reads, restore and undo ------------------------------------------------------------------------------------


@pytest.fixture
def changed(tables, session, clock):
    """A session, and a payer in it whose name changed, and then the name and the account."""
    session.add(Payer(id=1, iban=CLEAR, name="a"))
    session.commit()
    session.get_one(Payer, 1).name = "b"
    session.commit()
    payer = session.get_one(Payer, 1)
    payer.name, payer.iban = "c", OTHER
    session.commit()
    return session


def test_the_past_has_what_is_stored(changed, tmp_path, engine):
    first = sqlaudit.versions_of(changed, Payer, 1)[0]
    past = changed.scalars(sqlaudit.as_of(Payer, first.valid_from)).one()
    assert past.iban == hashed(CLEAR)
    with sqlaudit.time_travel(changed, first.valid_from, materialize=True) as travel:
        assert travel.get_one(Payer, 1).iban == hashed(CLEAR)
    assert hashed(OTHER) in "".join(patch(changed, sqlaudit.versions_of(changed, Payer, 1)[2].changeset_id))
    changed.commit()
    report = checkout(engine, first.valid_from, to=f"sqlite:///{tmp_path / 'past.db'}")
    assert any("account is redacted" in note for note in report.notes)
    with sa.create_engine(f"sqlite:///{tmp_path / 'past.db'}").connect() as copy:
        assert copy.scalar(sa.text("SELECT account FROM redact_payers")) == hashed(CLEAR)


def test_restore_leaves_a_redacted_field_that_is_what_it_was(changed):
    _, second, _ = sqlaudit.versions_of(changed, Payer, 1)
    changed.get_one(Payer, 1).iban = CLEAR
    changed.commit()
    report = sqlaudit.restore(changed, second)
    changed.commit()
    assert [item.fields for item in report.items] == [{"name": ("c", "b")}]
    assert (changed.get_one(Payer, 1).name, changed.get_one(Payer, 1).iban) == ("b", CLEAR)
    assert_redacted(changed)


def test_restore_refuses_to_write_a_redacted_value(changed):
    first = sqlaudit.versions_of(changed, Payer, 1)[0]
    with pytest.raises(QueryError, match="cannot get back its iban of version 1, because history has redacted"):
        sqlaudit.restore(changed, first)
    assert changed.get_one(Payer, 1).iban == OTHER
    sqlaudit.restore(changed, first, fields=["name"])
    assert (changed.get_one(Payer, 1).name, changed.get_one(Payer, 1).iban) == ("a", OTHER)
    sqlaudit.restore(changed, first, values={Payer: {"iban": CLEAR}})
    changed.commit()
    assert changed.get_one(Payer, 1).iban == CLEAR
    assert_redacted(changed)


def test_a_deleted_row_comes_back_with_the_values_that_it_is_given(changed):
    last = sqlaudit.versions_of(changed, Payer, 1)[-1]
    changed.delete(changed.get_one(Payer, 1))
    changed.commit()
    with pytest.raises(QueryError, match=r"Name the other fields: fields=\[…\]; or give values={Payer: {'iban': …}}"):
        sqlaudit.restore(changed, last)
    sqlaudit.restore(changed, last, values={Payer: {"iban": CLEAR}})
    changed.commit()
    assert (changed.get_one(Payer, 1).name, changed.get_one(Payer, 1).iban) == ("c", CLEAR)


def test_undo_refuses_to_write_a_redacted_value(changed):
    *_, renamed, moved = sqlaudit.versions_of(changed, Payer, 1)
    with pytest.raises(QueryError, match="cannot get back its iban of version 2"):
        sqlaudit.undo(changed, moved.changeset_id)
    sqlaudit.undo(changed, moved.changeset_id, fields=["name"])
    assert (changed.get_one(Payer, 1).name, changed.get_one(Payer, 1).iban) == ("b", OTHER)
    changed.rollback()
    changed.get_one(Payer, 1).name = "b"
    changed.commit()
    sqlaudit.undo(changed, renamed.changeset_id, force=True)  # the account stays as it is
    assert (changed.get_one(Payer, 1).name, changed.get_one(Payer, 1).iban) == ("a", OTHER)


def test_a_redacted_value_is_erased_and_what_replaces_it_is_redacted(changed):
    record = erase(changed, Payer, 1, fields=["iban"], reason="request", values={"iban": OTHER})
    changed.commit()
    assert record.versions == 3
    assert changed.get_one(Payer, 1).iban == OTHER
    assert hashed(CLEAR) not in in_history(changed)
    assert_redacted(changed)


# --- the key ----------------------------------------------------------------------------------------------------

WITHOUT_A_KEY: dict[str, Callable[[Session], Any]] = {
    "a flush": lambda session: (session.add(Payer(id=1, iban=CLEAR)), session.flush()),
    "a flush of a subclass": lambda session: (session.add(Worker(id=1, email="-")), session.flush()),
    "a statement": lambda session: session.execute(sa.insert(Payer).values(id=1, iban=CLEAR)),
    "backfill": lambda session: sqlaudit.backfill(session, Payer),
    "check": lambda session: check(session, Payer),
}


@pytest.mark.spread
@pytest.mark.parametrize("act", WITHOUT_A_KEY.values(), ids=list(WITHOUT_A_KEY))
def test_without_a_key_nothing_is_written(tables, session, monkeypatch, act):
    with sqlaudit.tracking_disabled(session):
        session.add(Payer(id=9))
        session.commit()
    monkeypatch.delenv("SQLAUDIT_REDACTION_KEY")
    statements: list[str] = []
    sa.event.listen(session.get_bind(), "before_cursor_execute", lambda *told: statements.append(told[2]))
    with pytest.raises(SQLAuditError, match=r"no redaction key is configured\. Call set_config"):
        act(session)
    assert not [each for each in statements if each.startswith(("INSERT", "UPDATE", "BEGIN NOT", "WITH"))]
    session.rollback()


@pytest.mark.spread
def test_rows_that_are_not_redacted_need_no_key(tables, session, monkeypatch):
    session.add(Payer(id=1, iban=CLEAR))
    session.commit()
    monkeypatch.delenv("SQLAUDIT_REDACTION_KEY")
    set_config(SQLAuditConfig())
    session.get_one(Payer, 1)
    session.flush()
    assert sqlaudit.versions_of(session, Payer, 1)[0].iban == hashed(CLEAR)


@pytest.mark.spread
@pytest.mark.parametrize("key", ["k" * 16, b"\x00\xff" * 50], ids=["a text", "many bytes"])
def test_the_configuration_has_the_key(tables, session, monkeypatch, key):
    set_config(SQLAuditConfig(redaction_key=key))
    session.add(Payer(id=1, iban=CLEAR))
    session.commit()
    encoded = key.encode() if isinstance(key, str) else key
    assert session.scalar(sa.select(history.iban)) == hmac.new(encoded, CLEAR.encode(), hashlib.sha256).hexdigest()
    assert check(session, Payer).findings == ()


def test_the_key_is_in_no_log_and_no_error(tables, database, caplog):
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    engine = database.create_engine()
    with recording(engine) as maker, maker() as session:
        session.add(Payer(id=1, iban=CLEAR))
        session.commit()
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE redact_payers_history RENAME TO redact_gone"))
        try:
            with pytest.raises(SQLAuditError) as caught:
                session.execute(sa.update(Payer).values(iban=OTHER))
            session.rollback()
        finally:
            with engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE redact_gone RENAME TO redact_payers_history"))
    engine.dispose()
    padded = [bytes(part ^ byte for part in KEY.encode()).hex() for byte in (0x36, 0x5C)]
    said = caplog.text + str(caught.value) + repr(caught.value.__cause__)
    assert "redact_payers_history" in said
    assert not [each for each in (KEY, *padded) if each in said]
    assert KEY not in repr(SQLAuditConfig(redaction_key=KEY))


@pytest.mark.parametrize("key", ["short", b"", 17], ids=repr)
def test_a_key_that_can_be_guessed_is_refused(key):
    with pytest.raises(SQLAuditError, match="redaction_key") as caught:
        SQLAuditConfig(redaction_key=key)
    assert "'short'" not in str(caught.value)


# --- what can be redacted ---------------------------------------------------------------------------------------


class Upper(sa.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value.upper()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a key": ({"redact": {"id": initial}}, "id cannot be redacted, because it shows to which row"),
    "a foreign key": (
        {"redact": {"other_id": "hash"}},
        "other_id cannot be redacted, because it refers to another row",
    ),
    "the user": ({"redact": {"name": "hash"}, "user_id_field": "name"}, "because it is the user_id_field"),
    "the id": ({"redact": {"name": "hash"}, "resource_id_field": "name"}, "because it is the resource_id_field"),
    "an excluded column": ({"redact": {"name": "hash"}, "exclude": ["name"]}, "because it is excluded"),
    "a number": (
        {"redact": {"size": "hash"}},
        r"Thing.size cannot be redacted by 'hash', because its type Integer\(\)",
    ),
    "an enum": ({"redact": {"kind": "mask"}}, "is not a plain text. Give a function of the column"),
    "a decorated text": ({"redact": {"shout": "hash"}}, "is not a plain text"),
    "an unknown name": ({"redact": {"nome": "hash"}}, "Thing has no column 'nome' for redact. It has"),
    "an unknown way": (
        {"redact": {"name": "md5"}},
        "redact has 'md5' for Thing.name. Give 'hash', 'mask', or a function",
    ),
    "a list": ({"redact": ["name"]}, r"Give a dict: redact={\"iban\": \"hash\"}"),
    "a function of texts": ({"redact": {"name": lambda column: "-"}}, "returns '-'. Let it return an SQL expression"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_redacted_is_refused_when_the_model_is_decorated(base, options, message):
    class Thing(base):
        __tablename__ = "redact_things"
        id: Mapped[int] = mapped_column(primary_key=True)
        other_id: Mapped[str | None] = mapped_column(sa.ForeignKey("redact_others.id"))
        name: Mapped[str]
        size: Mapped[int]
        kind: Mapped[str] = mapped_column(sa.Enum("a", "b"))
        shout: Mapped[str] = mapped_column(Upper)

    with pytest.raises(TrackingError, match=message):
        track_table(**options)(Thing)


def test_versions_have_texts_of_their_own_length(base):
    @track_table(redact={"pin": "hash"})
    class Card(base):
        __tablename__ = "redact_cards"
        id: Mapped[int] = mapped_column(primary_key=True)
        pin: Mapped[str] = mapped_column(sa.String(4))

    assert Card.History.__table__.c.pin.type.length == 64
    assert Card.__table__.c.pin.type.length == 4
