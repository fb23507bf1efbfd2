"""Is a version what the database holds? Exactness, changes that are none, and rows older than their tracking."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, deferred, mapped_column, sessionmaker
from sqlalchemy.orm.attributes import flag_modified

from invariants import check_history, told
from registering import recording
from sqlaudit import AuditContextManager, get_resource_changes, history_of, track_table, tracking_disabled, versions_of

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


@track_table(exclude=["secret"])
class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    price: Mapped[int] = mapped_column(default=1)
    stock: Mapped[int] = mapped_column(server_default=sa.text("7"))
    total: Mapped[int] = mapped_column(sa.Computed("price * stock"))
    touched: Mapped[int] = mapped_column(default=0, onupdate=sa.text("touched + 1"))
    notes: Mapped[str | None] = deferred(mapped_column(sa.String(50)))
    settings: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON))
    seen: Mapped[datetime | None]
    secret: Mapped[str | None] = mapped_column(sa.String(50))


@track_table()
class Plain(Base):
    __tablename__ = "plains"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    size: Mapped[int | None]
    notes: Mapped[str | None] = deferred(mapped_column(sa.String(50)))
    settings: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON))
    secret: Mapped[str | None] = mapped_column(sa.String(50))


# --- exact ------------------------------------------------------------------------------------------------------


def test_server_defaults_and_computed_columns_are_in_the_first_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Product(price=3))
    with sessions() as session:
        check_history(session, Product)
        assert told(session, Product, "id", "price", "stock", "total", "touched") == [("insert", 1, 3, 7, 21, 0)]


def test_a_sql_expression_is_recorded_as_its_result(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Product(price=sa.literal(2) + 3))
    with sessions.begin() as session:
        product = session.get_one(Product, 1)
        product.price = Product.price + 10  # type: ignore[assignment]
    with sessions() as session:
        check_history(session, Product)
        assert told(session, Product, "price", "total") == [("insert", 5, 35), ("update", 15, 105)]


@pytest.mark.parametrize("rows", [1, 3])
def test_onupdate_columns_change_with_the_row(sessions: Sessions, rows: int) -> None:
    with sessions.begin() as session:
        session.add_all([Product(name="a") for _ in range(rows)])
    with sessions.begin() as session:
        for product in session.scalars(sa.select(Product)):
            product.name = "b"
    with sessions() as session:
        check_history(session, Product)
        assert told(session, Product, "name", "touched") == [("insert", "a", 0), ("update", "b", 1)] * rows


def test_an_sql_expression_that_keeps_the_value_makes_no_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, size=1))
    with sessions.begin() as session:
        session.get_one(Plain, 1).size = Plain.size + 0  # type: ignore[assignment]
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "size") == [("insert", 1)]


TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER plains_i AFTER INSERT ON plains BEGIN UPDATE plains SET size = 100 WHERE id = NEW.id; END",
        "CREATE TRIGGER plains_u AFTER UPDATE OF name ON plains BEGIN "
        "UPDATE plains SET size = OLD.size + 1 WHERE id = NEW.id; END",
    ],
    "mariadb": [
        "CREATE TRIGGER plains_i BEFORE INSERT ON plains FOR EACH ROW SET NEW.size = 100",
        "CREATE TRIGGER plains_u BEFORE UPDATE ON plains FOR EACH ROW SET NEW.size = OLD.size + 1",
    ],
    "postgresql": [
        "CREATE FUNCTION plains_i() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.size := coalesce(OLD.size + 1, 100); RETURN NEW; END'",
        "CREATE TRIGGER plains_i BEFORE INSERT OR UPDATE ON plains FOR EACH ROW EXECUTE FUNCTION plains_i()",
    ],
}


def test_the_work_of_triggers_is_recorded(engine: sa.Engine, sessions: Sessions, database: Any) -> None:
    with engine.begin() as connection:
        for statement in TRIGGERS[database.name]:
            connection.exec_driver_sql(statement)
    with sessions.begin() as session:
        session.add_all([Plain(id=number, name="a", size=1) for number in (1, 2)])
    with sessions.begin() as session:
        session.get_one(Plain, 1).name = "b"
    with sessions.begin() as session:
        session.delete(session.get_one(Plain, 1))
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "id", "name", "size") == [
            ("insert", 1, "a", 100),
            ("update", 1, "b", 101),
            ("delete", 1, "b", 101),
            ("insert", 2, "a", 100),
        ]


@pytest.mark.parametrize("how", ["deferred", "expired", "unloaded", "loaded"])
def test_a_change_to_an_attribute_that_was_not_loaded_is_exact(sessions: Sessions, how: str) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, name="a", notes="one", size=5))
    with sessions.begin() as session:
        options = {"unloaded": [sa.orm.load_only(Plain.name)], "loaded": [sa.orm.undefer(Plain.notes)]}
        plain = session.get_one(Plain, 1, options=options.get(how, []))
        if how == "expired":
            session.expire(plain)
        plain.notes = "two"
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "name", "notes", "size") == [("insert", "a", "one", 5), ("update", "a", "two", 5)]


@pytest.mark.parametrize("how", ["deferred", "expired", "unloaded"])
def test_the_tombstone_of_an_object_that_was_not_loaded_is_whole(sessions: Sessions, how: str) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, name="a", notes="one", size=5))
    with sessions.begin() as session:
        options = [sa.orm.load_only(Plain.name)] if how == "unloaded" else []
        plain = session.get_one(Plain, 1, options=options)
        if how == "expired":
            session.expire(plain)
        session.delete(plain)
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "name", "notes", "size")[-1] == ("delete", "a", "one", 5)


def test_edits_in_place_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, settings={"a": 1}))
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1)
        plain.settings["b"] = [2]  # type: ignore[index]
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "settings") == [("insert", {"a": 1}), ("update", {"a": 1, "b": [2]})]
        [change] = get_resource_changes(Plain, session)[2:]
        assert (change.old_value, change.new_value) == ({"a": 1}, {"a": 1, "b": [2]})


# --- changes that are none --------------------------------------------------------------------------------------


def assign_same(plain: Plain) -> None:
    plain.name = "a"


def there_and_back(plain: Plain) -> None:
    plain.name = "b"
    plain.name = "a"


def equal_dict(plain: Plain) -> None:
    plain.settings = MutableDict({"a": 1})


def edit_back(plain: Plain) -> None:
    plain.settings["a"] = 2  # type: ignore[index]
    plain.settings["a"] = 1  # type: ignore[index]


def flag(plain: Plain) -> None:
    flag_modified(plain, "settings")
    flag_modified(plain, "name")


def blind_same(plain: Plain) -> None:
    sa.orm.object_session(plain).expire(plain)  # type: ignore[union-attr]
    plain.name = "a"


def deferred_same(plain: Plain) -> None:
    plain.notes = "one"


NO_CHANGES = pytest.mark.parametrize(
    "change", [assign_same, there_and_back, equal_dict, edit_back, flag, blind_same, deferred_same]
)


@NO_CHANGES
@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_a_write_that_changes_nothing_makes_no_version(
    sessions: Sessions, change: Callable[[Plain], None], older: bool
) -> None:
    with sessions() as session:
        with tracking_disabled(session) if older else nullcontext():
            session.add(Plain(id=1, name="a", notes="one", settings={"a": 1}))
        session.commit()
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1)
        change(plain)
    with sessions() as session:
        check_history(session, Plain, all_recorded=not older)
        assert told(session, Plain, "id") == [("insert", 1)] * (not older)


@NO_CHANGES
def test_a_write_that_changes_nothing_beside_one_that_does_makes_no_version(
    sessions: Sessions, change: Callable[[Plain], None]
) -> None:
    with sessions.begin() as session:
        session.add_all([Plain(id=number, name="a", notes="one", settings={"a": 1}) for number in (1, 2, 3)])
    with sessions.begin() as session:
        plains = session.scalars(sa.select(Plain).order_by(Plain.id)).all()
        change(plains[0])
        change(plains[2])
        plains[1].name = "changed"
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "id") == [("insert", 1), ("insert", 2), ("update", 2), ("insert", 3)]


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_an_excluded_column_causes_no_version(sessions: Sessions, older: bool) -> None:
    class Other(DeclarativeBase):
        pass

    @track_table(exclude=["secret"])
    class Hidden(Other):
        __tablename__ = "hidden"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        secret: Mapped[str | None] = mapped_column(sa.String(50))

    Other.metadata.create_all(sessions.kw["bind"])
    with sessions() as session:
        with tracking_disabled(session) if older else nullcontext():
            session.add(Hidden(id=1, name="a", secret="x"))
        session.commit()
        session.get_one(Hidden, 1).secret = "y"
        session.commit()
        check_history(session, Hidden, all_recorded=not older)
        assert told(session, Hidden, "name") == [("insert", "a")] * (not older)
        session.get_one(Hidden, 1).name = "b"
        session.commit()
        check_history(session, Hidden)
        assert told(session, Hidden, "name") == [("baseline" if older else "insert", "a"), ("update", "b")]
    assert "secret" not in history_of(Hidden).__table__.c


def test_a_change_of_case_alone_is_a_change(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, name="a"))
    for name in ("A", "A ", "á", "", None):
        with sessions.begin() as session:
            session.get_one(Plain, 1).name = name
    with sessions() as session:
        check_history(session, Plain)
        assert [name for _, name in told(session, Plain, "name")] == ["a", "A", "A ", "á", "", None]


# --- rows older than their tracking -----------------------------------------------------------------------------


@pytest.fixture
def older(engine: sa.Engine, sessions: Sessions) -> None:
    """Rows that were there before they were tracked."""
    with engine.begin() as connection:
        connection.execute(
            sa.insert(Plain.__table__),
            [{"id": n, "name": "a", "notes": "one", "size": 5, "settings": {"a": 1}} for n in (1, 2)],
        )
        connection.execute(sa.insert(Product.__table__), [{"name": "a", "touched": 3, "notes": "one"}])


def loaded(session: Session) -> None:
    plain = session.get_one(Plain, 1)
    assert plain.notes == "one"
    plain.name, plain.notes, plain.size = "b", "two", 6


def blind(session: Session) -> None:
    plain = session.get_one(Plain, 1)
    session.expire(plain)
    plain.name, plain.notes, plain.size = "b", "two", 6


def never_loaded(session: Session) -> None:
    plain = session.get_one(Plain, 1, options=[sa.orm.load_only(Plain.id)])
    plain.name, plain.notes, plain.size = "b", "two", 6


def merged(session: Session) -> None:
    session.merge(Plain(id=1, name="b", notes="two", size=6))


def several_flushes(session: Session) -> None:
    plain = session.get_one(Plain, 1)
    for attribute, value in (("name", "b"), ("notes", "two"), ("size", 6)):
        setattr(plain, attribute, value)
        session.flush()


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("change", [loaded, blind, never_loaded, merged, several_flushes])
def test_the_first_update_of_an_older_row_keeps_what_was_before(
    sessions: Sessions, change: Callable[[Session], None]
) -> None:
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        change(session)
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "id", "name", "notes", "size", "settings", "audit_changed_by") == [
            ("baseline", 1, "a", "one", 5, {"a": 1}, None),
            ("update", 1, "b", "two", 6, {"a": 1}, "ann"),
        ]
        baseline, update = versions_of(session, Plain, 1)
        assert baseline.valid_from == baseline.valid_to == update.valid_from
        assert baseline.audit_changeset_id == update.audit_changeset_id
        changes = get_resource_changes(Plain, session)
        assert [(each.field_name, each.old_value) for each in changes] == [("name", "a"), ("notes", "one"), ("size", 5)]


@pytest.mark.usefixtures("older")
def test_the_baseline_of_an_edit_in_place_has_the_old_content(sessions: Sessions) -> None:
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1)
        plain.settings["b"] = 2  # type: ignore[index]
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "settings") == [("baseline", {"a": 1}), ("update", {"a": 1, "b": 2})]


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("state", ["loaded", "expired", "set"])
def test_the_baseline_has_the_old_values_of_automatic_columns(sessions: Sessions, state: str) -> None:
    with sessions.begin() as session:
        product = session.get_one(Product, 1)
        if state == "expired":
            session.expire(product)
        if state == "set":
            product.touched = 4
        product.price = 2
    with sessions() as session:
        check_history(session, Product)
        assert told(session, Product, "price", "stock", "total", "touched", "notes") == [
            ("baseline", 1, 7, 7, 3, "one"),
            ("update", 2, 7, 14, 4, "one"),
        ]


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("state", ["loaded", "expired", "set"])
def test_the_baseline_of_a_row_that_gets_another_key_has_the_old_values_of_automatic_columns(
    sessions: Sessions, state: str
) -> None:
    with sessions.begin() as session:
        product = session.get_one(Product, 1)
        assert product.notes == "one"
        if state == "expired":
            session.expire(product)
        if state == "set":
            product.touched = 4
        product.id = 9
    with sessions() as session:
        check_history(session, Product)
        assert told(session, Product, "id", "stock", "total", "touched", "notes") == [
            ("baseline", 1, 7, 7, 3, "one"),
            ("delete", 1, 7, 7, 3, "one"),
            ("insert", 9, 7, 7, 4, "one"),
        ]


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("state", ["loaded", "expired", "unloaded", "changed"])
def test_the_deletion_of_an_older_row_keeps_what_was_before(sessions: Sessions, state: str) -> None:
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1, options=[sa.orm.load_only(Plain.id)] if state == "unloaded" else [])
        if state == "expired":
            session.expire(plain)
        if state == "changed":
            plain.name, plain.notes = "never written", "neither"
        session.delete(plain)
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        values = (1, "a", "one", 5, {"a": 1})
        assert told(session, Plain, "id", "name", "notes", "size", "settings") == [
            ("baseline", *values),
            ("delete", *values),
        ]


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("state", ["loaded", "unloaded"])
def test_the_key_change_of_an_older_row_keeps_what_was_before(sessions: Sessions, state: str) -> None:
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1, options=[sa.orm.load_only(Plain.id)] if state == "unloaded" else [])
        plain.id = 3
        plain.name = "b"
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "id", "name", "notes", "size") == [
            ("baseline", 1, "a", "one", 5),
            ("delete", 1, "a", "one", 5),
            ("insert", 3, "b", "one", 5),
        ]


@pytest.mark.usefixtures("older")
def test_an_older_row_that_is_replaced_in_one_flush_keeps_what_was_before(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.delete(session.get_one(Plain, 1))
        session.add(Plain(id=1, name="new"))
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "name", "notes", "size") == [
            ("baseline", "a", "one", 5),
            ("update", "new", "one", 5),
        ]


@pytest.mark.parametrize("moves", [False, True])
def test_a_row_that_takes_the_key_of_a_row_of_another_concrete_table_is_inserted(
    engine: sa.Engine, base: Any, moves: bool
) -> None:
    class Person(base):
        __tablename__ = "persons"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Worker(Person):
        __tablename__ = "workers"
        __mapper_args__ = {"concrete": True}

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    for model in (Person, Worker):
        track_table()(model)
    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Person(id=1))
        with sessions.begin() as session:
            session.delete(session.get_one(Person, 1))
            worker = Worker(id=1)
            session.add(worker)
            session.flush()
            worker.id = 2 if moves else 1
        with sessions() as session:
            for model in (Person, Worker):
                check_history(session, model)
            assert told(session, Person, "id") == [("insert", 1), ("delete", 1)]
            assert told(session, Worker, "id") == [("insert", 2 if moves else 1)]


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("name", ["a", "b"])
def test_an_older_row_that_is_replaced_over_two_flushes_keeps_what_was_before(sessions: Sessions, name: str) -> None:
    with sessions.begin() as session:
        session.delete(session.get_one(Plain, 1))
        session.flush()
        session.add(Plain(id=1, name=name, notes="one", size=5, settings={"a": 1}))
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "name") == ([] if name == "a" else [("baseline", "a"), ("update", "b")])


@pytest.mark.usefixtures("older")
def test_some_older_rows_among_others_get_their_baselines(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=3, name="a"))
    with sessions.begin() as session:
        for plain in session.scalars(sa.select(Plain)):
            plain.name = f"b{plain.id}"
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "id", "name") == [
            ("baseline", 1, "a"),
            ("update", 1, "b1"),
            ("baseline", 2, "a"),
            ("update", 2, "b2"),
            ("insert", 3, "a"),
            ("update", 3, "b3"),
        ]


@pytest.mark.usefixtures("older")
def test_an_older_row_has_one_baseline_only(sessions: Sessions) -> None:
    for name in ("b", "c"):
        with sessions.begin() as session:
            session.get_one(Plain, 1).name = name
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "name") == [("baseline", "a"), ("update", "b"), ("update", "c")]


@pytest.mark.usefixtures("older")
def test_a_row_that_changed_past_us_is_recorded_from_what_is_known(engine: sa.Engine, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.get_one(Plain, 1).name = "b"
    with engine.begin() as connection:
        connection.execute(sa.update(Plain.__table__).values(size=99))
    with sessions.begin() as session:
        session.get_one(Plain, 1).name = "c"
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        assert told(session, Plain, "name", "size")[-1] == ("update", "c", 99)


def test_a_row_that_vanished_past_us_and_returned_goes_on(engine: sa.Engine, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Plain(id=1, name="a"))
    with engine.begin() as connection:
        connection.execute(sa.delete(Plain.__table__))
    with sessions.begin() as session:
        session.add(Plain(id=1, name="b"))
    with sessions() as session:
        check_history(session, Plain)
        assert told(session, Plain, "name") == [("insert", "a"), ("update", "b")]


@pytest.mark.parametrize("null", [sa.null(), sa.JSON.NULL], ids=["NULL", "null of JSON"])
@pytest.mark.parametrize("change", ["settings", "name", "an equal value", "key", "delete", "replaced"])
def test_the_baseline_of_an_older_row_tells_null_from_the_null_of_json(
    sessions: Sessions, null: Any, change: str
) -> None:
    with sessions.begin() as session, tracking_disabled(session):
        session.execute(sa.insert(Plain).values(id=1, name="a", settings=null))
    with sessions.begin() as session:
        plain = session.get_one(Plain, 1)
        assert plain.settings is None
        if change in ("delete", "replaced"):
            session.delete(plain)
            session.add_all([Plain(id=1, name="b")] if change == "replaced" else [])
        elif change == "an equal value":
            session.merge(Plain(id=1, name="b", settings=None))
        else:
            name = {"key": "id"}.get(change, change)
            setattr(plain, name, {"settings": {"a": 1}, "name": "b", "key": 2}[change])
    with sessions() as session:
        check_history(session, Plain, all_recorded=False)
        history = history_of(Plain)
        is_null = sa.select(history.settings.is_(None)).where(history.audit_operation == "baseline")
        assert session.scalars(is_null).all() == [not isinstance(null, type(sa.JSON.NULL))]
