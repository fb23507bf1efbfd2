"""Every mistake in tracking a model is an error that says what is wrong and how to mend it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column

from invariants import told
from registering import recording
from sqlaudit import AuditColumns, SQLAuditError, TrackingError, as_of, history_of, track_table


def customer(base: type[Any]) -> Any:
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column("customer_id", primary_key=True)
        name: Mapped[str] = mapped_column("full_name")
        kind: Mapped[str]
        upper: Mapped[str] = orm.column_property(sa.func.upper(name.column))
        friend_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customer.customer_id"))
        friend: Mapped[Any] = orm.relationship("Customer", remote_side="Customer.id")
        label = orm.synonym("name")
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "customer"}

    return Customer


KNOWN = "It has friend_id, id, kind, name, upper"


def test_a_column_that_tells_the_class_by_an_expression_cannot_be_excluded(base):
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[int] = mapped_column()
        __mapper_args__ = {
            "polymorphic_on": sa.case((code.column == 1, "first"), else_="customer"),
            "polymorphic_identity": "customer",
        }

    with pytest.raises(TrackingError, match=r"Customer\.code cannot be excluded, because it shows to which row"):
        track_table(exclude=["code"])(Customer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tracked_fields": ["nmae"]}, f"Customer has no column 'nmae' for tracked_fields. {KNOWN}"),
        ({"tracked_fields": ["b", "name", "a"]}, f"Customer has no column 'a', 'b' for tracked_fields. {KNOWN}"),
        ({"exclude": {"pasword"}}, f"Customer has no column 'pasword' for exclude. {KNOWN}"),
        ({"exclude": {"full_name"}}, f"Customer has no column 'full_name' for exclude. {KNOWN}"),
        ({"exclude": {"friend"}}, f"Customer has no column 'friend' for exclude. {KNOWN}"),
        ({"exclude": {"label"}}, f"Customer has no column 'label' for exclude. {KNOWN}"),
        ({"tracked_fields": [1]}, f"Customer has no column 1 for tracked_fields. {KNOWN}"),
        ({"resource_id_field": "ident"}, f"Customer has no column 'ident' for resource_id_field. {KNOWN}"),
        ({"user_id_field": "editor"}, f"Customer has no column 'editor' for user_id_field. {KNOWN}"),
        ({"tracked_fields": "name"}, "tracked_fields is 'name'. Give a list: tracked_fields=['name']."),
        ({"exclude": "name"}, "exclude is 'name'. Give a list: exclude=['name']."),
        ({"exclude": ["id"]}, "Customer.id cannot be excluded, because it shows to which row a version belongs."),
        ({"exclude": ["kind"]}, "Customer.kind cannot be excluded, because it shows to which row a version belongs."),
        (
            {"exclude": ["name"], "user_id_field": "name"},
            "Customer.name cannot be excluded, because it is the user_id_field, and versions need its value.",
        ),
        (
            {"exclude": ["name"], "resource_id_field": "name"},
            "Customer.name cannot be excluded, because it is the resource_id_field, and versions need its value.",
        ),
        ({"quiet": ["nmae"]}, f"Customer has no column 'nmae' for quiet. {KNOWN}"),
        ({"quiet": ["id"]}, "Customer.id cannot be quiet, because it shows to which row a version belongs."),
        (
            {"quiet": ["name"], "resource_id_field": "name"},
            "Customer.name cannot be quiet, because it is the resource_id_field, and versions need its value.",
        ),
        ({"quiet": ["name"], "exclude": ["name"]}, "Customer.name cannot be quiet, because it is excluded. Remove it"),
        ({"history_table_name": "customer"}, "The history table of 'customer' cannot be named 'customer'"),
        (
            {"audit_columns": AuditColumns(version="x", reason="x")},
            "gives two audit columns the same name. Give each its own name.",
        ),
        (
            {"audit_columns": AuditColumns(reason="full_name")},
            "'customer' has a column 'full_name', and its history table needs an audit column of that name. "
            "Rename the audit column: track_table(audit_columns=AuditColumns(reason='audit_reason')).",
        ),
        (
            {"audit_columns": AuditColumns(reason="name")},
            "track_table(audit_columns=AuditColumns(reason='audit_reason')).",
        ),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options, message, base):
    model = customer(base)
    with pytest.raises(TrackingError) as raised:
        track_table(**options)(model)
    assert message in str(raised.value)
    assert list(base.metadata.tables) == ["customer"]
    track_table()(model)
    assert history_of(model).__table__.name == "customer_history"


@pytest.mark.parametrize("name", ["valid_from", "valid_to", "audit_version", "audit_extra"])
def test_a_column_of_one_of_our_names_is_refused_with_the_option_that_renames_ours(name, base):
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "renamed": mapped_column(name, sa.Integer)}
    model = type("Price", (base,), {"__tablename__": "price", **columns})
    role = name.removeprefix("audit_")
    with pytest.raises(TrackingError, match=rf"'price' has a column '{name}'.*AuditColumns\({role}='audit_"):
        track_table()(model)


def test_an_attribute_of_one_of_our_names_is_refused_with_the_option_that_renames_ours(base):
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "valid_from": mapped_column("since", sa.Integer)}
    model = type("Price", (base,), {"__tablename__": "price", **columns})
    with pytest.raises(TrackingError, match=r"valid_from.*AuditColumns\(valid_from='audit_valid_from'"):
        track_table()(model)


def test_a_history_table_name_that_is_taken_is_refused(base):
    model = customer(base)
    sa.Table("customer_history", base.metadata, sa.Column("id", sa.Integer))
    with pytest.raises(
        TrackingError, match=r"because a table of this name exists already. Choose another name: track_table\(history"
    ):
        track_table()(model)
    track_table(history_table_name="customer_log")(model)
    assert "customer_log" in base.metadata.tables


def test_a_table_whose_info_is_no_dict_is_refused_and_does_no_harm_beside_tracked_tables(base):
    class Shop(base):
        __tablename__ = "shops"
        __table_args__ = {"info": "any text"}

        id: Mapped[int] = mapped_column(primary_key=True)

    class Sign(base):
        __tablename__ = "signs"

        id: Mapped[int] = mapped_column(primary_key=True)
        shop_id: Mapped[int] = mapped_column(sa.ForeignKey("shops.id", ondelete="CASCADE"))

    with pytest.raises(TrackingError, match="info of the table 'shops' is 'any text'"):
        track_table()(Shop)
    track_table()(Sign)
    engine = sa.create_engine("sqlite://")
    base.metadata.create_all(engine)
    with recording(engine) as sessions, sessions() as session:
        session.execute(sa.insert(Shop).values(id=1))
        session.add(Sign(id=1, shop_id=1))
        session.commit()
        session.execute(sa.insert(Shop).prefix_with("OR IGNORE").values(id=1))
        session.commit()
        assert told(session, Sign, "id") == [("insert", 1)]


def test_a_second_decoration_is_refused(base):
    model = track_table()(customer(base))
    with pytest.raises(TrackingError, match=r"Customer is already tracked. Decorate it once, with all options"):
        track_table(tracked_fields=["name"])(model)


def test_a_second_decoration_of_a_subclass_is_refused(base):
    model = track_table()(customer(base))
    special = track_table()(type("Special", (model,), {"__mapper_args__": {"polymorphic_identity": "special"}}))
    with pytest.raises(TrackingError, match="Special is already tracked"):
        track_table()(special)


def test_a_column_named_like_our_parameters_is_an_error_that_says_how_to_mend_it(base):
    class Reading(base):
        __tablename__ = "reading"
        id: Mapped[int] = mapped_column(primary_key=True)
        sqlaudit_at: Mapped[int]

    with pytest.raises(TrackingError, match=r"'reading' has a column 'sqlaudit_at'.*another key"):
        track_table()(Reading)
    assert "reading_history" not in base.metadata.tables


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ["name"]},
        {"quiet": ["name"]},
        {"history_table_name": "x"},
        {"audit_columns": AuditColumns(reason="why")},
    ],
)
def test_a_single_table_subclass_cannot_shape_the_table_of_its_base(options, base):
    model = track_table()(customer(base))
    special = type("Special", (model,), {"__mapper_args__": {"polymorphic_identity": "special"}})
    with pytest.raises(TrackingError, match=r"Special .* base class"):
        track_table(**options)(special)


def test_a_decorator_without_parentheses_is_told_so(base):
    with pytest.raises(
        TrackingError, match=r"track_table needs parentheses. Write @track_table\(\) above class Customer"
    ):
        track_table(customer(base))


class Plain:
    pass


def unmapped(base: type[Any]) -> Any:
    return Plain


def an_abstract_base(base: type[Any]) -> Any:
    return base


def an_instance(base: type[Any]) -> Any:
    return customer(base)()


def a_table(base: type[Any]) -> Any:
    return customer(base).__table__


@pytest.mark.parametrize("make", [unmapped, an_abstract_base, a_table, an_instance], ids=lambda make: make.__name__)
def test_what_is_no_mapped_class_cannot_be_tracked(make: Callable[[Any], Any], base):
    with pytest.raises(TrackingError, match=r"is not mapped to a table. Write @track_table\(\) above every other"):
        track_table()(make(base))


def test_a_model_of_a_select_or_join_cannot_be_tracked(base):
    table = customer(base).__table__

    class Named(base):
        __table__ = sa.select(table).where(table.c.full_name != "").subquery("named")

    with pytest.raises(TrackingError, match="Named is mapped to 'named', which is not a table"):
        track_table()(Named)


def test_a_table_without_a_primary_key_is_tracked_by_the_key_of_its_mapper(base):
    table = sa.Table("log", base.metadata, sa.Column("line", sa.Integer), sa.Column("text", sa.Text))

    class Log(base):
        __table__ = table
        __mapper_args__ = {"primary_key": [table.c.line]}

    track_table()(Log)
    assert [column.name for column in history_of(Log).__table__.primary_key] == ["line", "audit_version"]


@pytest.mark.parametrize(
    "read", [history_of, lambda model: as_of(model, datetime(2024, 1, 1, tzinfo=UTC))], ids=["history", "as_of"]
)
@pytest.mark.parametrize("make", [customer, unmapped, a_table], ids=lambda make: make.__name__)
def test_an_untracked_model_has_no_history_and_the_error_says_how_it_gets_one(read, make, base):
    with pytest.raises(TrackingError, match=r"is not a tracked (model. Decorate it with @track_table\(\)|table. Give)"):
        read(make(base))


def test_every_error_is_of_one_family_and_knows_what_it_is_about(base):
    with pytest.raises(SQLAuditError) as raised:
        history_of(Plain)
    assert raised.value.subject is Plain
