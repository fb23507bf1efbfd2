"""A key that is only spelt in another way is an update of its row: 'Ab' and 'aB' are one to many collations."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from clock import at
from differences import check_pages
from invariants import told
from registering import recording
from sqlaudit import QueryError, UndoConflictError, blame, changesets, get_resource_changes, restore, track_table, undo

CODE = (
    sa.String(20)
    .with_variant(sa.String(20, collation="NOCASE"), "sqlite")
    .with_variant(postgresql.CITEXT(), "postgresql")
    .with_variant(sa.String(20, collation="utf8mb4_general_ci"), "mariadb", "mysql")
)


class Base(DeclarativeBase):
    pass


country_tags = sa.Table(
    "rk_country_tags",
    Base.metadata,
    sa.Column("country", CODE, sa.ForeignKey("rk_countries.code", onupdate="CASCADE"), primary_key=True),
    sa.Column("tag", sa.ForeignKey("rk_tags.id"), primary_key=True),
)


@track_table()
class Country(Base):
    __tablename__ = "rk_countries"

    code: Mapped[str] = mapped_column(CODE, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    kind: Mapped[str] = mapped_column(sa.String(20), default="country")
    tags: Mapped[list["Tag"]] = relationship(secondary=country_tags)
    cities: Mapped[list["City"]] = relationship(back_populates="country", cascade="all, delete-orphan")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "country"}


class Island(Country):
    __tablename__ = "rk_islands"

    code: Mapped[str] = mapped_column(CODE, sa.ForeignKey("rk_countries.code", onupdate="CASCADE"), primary_key=True)
    sea: Mapped[str] = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_identity": "island"}


@track_table()
class City(Base):
    __tablename__ = "rk_cities"

    country_code: Mapped[str] = mapped_column(
        CODE, sa.ForeignKey("rk_countries.code", onupdate="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(CODE, primary_key=True)
    size: Mapped[int] = mapped_column(default=1)
    country: Mapped[Country] = relationship(back_populates="cities")


@track_table()
class Tag(Base):
    __tablename__ = "rk_tags"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def sessions(engine: sa.Engine, database: Any) -> Any:
    if database.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.DDL("CREATE EXTENSION IF NOT EXISTS citext"))
    with recording(engine, Base.metadata) as sessions:
        yield sessions


pytestmark = pytest.mark.no_tables


def last(session: Session, place: int = -1) -> Any:
    return changesets(session)[place].changeset_id


def respell(session: Session, way: str, **values: Any) -> None:
    if way == "object":
        country = session.get_one(Country, "Ab")
        for name, value in values.items():
            setattr(country, name, value)
    else:
        session.execute(sa.update(Country).where(Country.code == "AB").values(**values))


@pytest.fixture(params=["object", "statement"])
def respelt(request: pytest.FixtureRequest, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """A country Ab, with a tag and a city, that became aB."""
    with sessions.begin() as session:
        tag = Tag(id=1)
        session.add(Country(code="Ab", name="old", tags=[tag], cities=[City(name="Xy")]))
        session.add(Country(code="other", name="other", tags=[tag], cities=[City(name="xY")]))
    with sessions.begin() as session:
        respell(session, request.param, code="aB", name="new")
    return sessions


def countries(session: Session) -> list[tuple[str, str]]:
    return [tuple(row) for row in session.execute(sa.select(Country.code, Country.name).order_by(Country.code))]


def links(session: Session) -> set[tuple[str, int]]:
    return {(row[0].casefold(), row[1]) for row in session.execute(sa.select(country_tags))}


def test_a_respelt_key_is_told_as_an_update(respelt):
    with respelt() as session:
        assert told(session, Country, "code", "name")[:2] == [("insert", "Ab", "old"), ("update", "aB", "new")]
        changes = get_resource_changes(Country, session, "ab")
        assert [(c.field_name, c.old_value, c.new_value) for c in changes if c.operation == "update"] == [
            ("code", "Ab", "aB"),
            ("name", "old", "new"),
        ]
        assert blame(session, Country, "AB")["code"].version == 2
        assert {operation for operation, *_ in told(session, City)} <= {"insert", "update"}
        assert {operation for operation, *_ in told(session, country_tags)} <= {"insert", "update"}


@pytest.mark.parametrize("source", [Country, City, country_tags], ids=str)
def test_a_respelt_key_is_compared_as_one_row(respelt, source):
    with respelt() as session:
        first, second = (each.timestamp for each in changesets(session))
        assert len(check_pages(session, source, at(-1), second)) == 2
        rows = check_pages(session, source, first, second)
        assert {row.operation for row in rows} <= {"update"}
        if source is Country:
            assert [row.fields for row in rows] == [{"code": ("Ab", "aB"), "name": ("old", "new")}]


@pytest.mark.spread
@pytest.mark.parametrize("include", [(), ("tags",), ("cities",), ("tags", "cities")], ids=" ".join)
@pytest.mark.parametrize("key", ["Ab", "aB", "AB"])
def test_a_respelt_key_is_restored(respelt, key, include):
    with respelt.begin() as session:
        report = restore(session, Country, key, at=1, include=include)
        assert report.items[0].fields == {"code": ("aB", "Ab"), "name": ("new", "old")}
        assert report.items[0].operation == "update"
    with respelt() as session:
        assert countries(session) == [("Ab", "old"), ("other", "other")]
        assert links(session) == {("ab", 1), ("other", 1)}
        assert told(session, Country, "code", "name")[:3] == [
            ("insert", "Ab", "old"),
            ("update", "aB", "new"),
            ("update", "Ab", "old"),
        ]
        assert not restore(session, Country, key, at=1, include=include)


def test_a_respelt_key_is_undone_and_that_too(respelt):
    with respelt.begin() as session:
        undo(session, last(session))
    with respelt.begin() as session:
        assert countries(session) == [("Ab", "old"), ("other", "other")]
        undo(session, last(session))
    with respelt() as session:
        assert countries(session) == [("aB", "new"), ("other", "other")]
        assert links(session) == {("ab", 1), ("other", 1)}


def test_a_row_goes_with_the_transaction_that_made_it_though_its_key_was_respelt(respelt):
    with respelt() as session:
        with pytest.raises(UndoConflictError) as error:
            undo(session, last(session, 0))
        assert {conflict.key for conflict in error.value.conflicts if conflict.resource_type == "Country"} == {"aB"}
        undo(session, last(session, 0), force=True)
        session.commit()
        assert countries(session) == []
        assert links(session) == set()


def test_a_later_change_that_respelt_the_key_is_not_lost(respelt):
    with respelt.begin() as session:
        session.get_one(Country, "aB").name = "newer"
    with respelt.begin() as session:
        country = session.get_one(Country, "aB")
        country.code, country.name = "AB", "newest"
    with respelt() as session, pytest.raises(UndoConflictError, match="AB"):
        undo(session, last(session, 2))


@pytest.mark.parametrize("at", [1, 2])
def test_a_deleted_row_whose_key_was_respelt_comes_back(respelt, at):
    with respelt.begin() as session:
        session.delete(session.get_one(Country, "aB"))
    with respelt.begin() as session:
        report = restore(session, Country, "ab", at=at, include=["cities", "tags"])
        assert report.items[0].operation == "insert"
        assert report.items[0].key == ("Ab", "aB")[at - 1]
    with respelt() as session:
        assert countries(session)[0] == [("Ab", "old"), ("aB", "new")][at - 1]
        assert links(session) == {("ab", 1), ("other", 1)}
        assert {(city.country_code.casefold(), city.name) for city in session.scalars(sa.select(City))} == {
            ("ab", "Xy"),
            ("other", "xY"),
        }


def test_a_deletion_of_a_respelt_row_is_undone(respelt):
    with respelt.begin() as session:
        session.delete(session.get_one(Country, "aB"))
    with respelt.begin() as session:
        undo(session, last(session))
    with respelt() as session:
        assert countries(session) == [("aB", "new"), ("other", "other")]
        assert links(session) == {("ab", 1), ("other", 1)}
        assert len(session.scalars(sa.select(City)).all()) == 2


def test_a_part_of_a_key_is_restored(sessions):
    with sessions.begin() as session:
        session.add(Country(code="Ab", name="a", cities=[City(name="Xy"), City(name="Z")]))
    with sessions.begin() as session:
        session.get_one(City, ("Ab", "Xy")).name = "XY"
    with sessions.begin() as session:
        session.get_one(City, ("Ab", "XY")).size = 2
    with sessions.begin() as session:
        restore(session, City, ("AB", "xy"), at=1)
    with sessions.begin() as session:
        assert session.execute(sa.select(City.name, City.size).order_by(City.name)).all() == [("Xy", 1), ("Z", 1)]
        undo(session, last(session))
    with sessions() as session:
        assert session.execute(sa.select(City.name, City.size).order_by(City.name)).all() == [("XY", 2), ("Z", 1)]
        assert told(session, City, "name")[:4] == [
            ("insert", "Xy"),
            ("update", "XY"),
            ("update", "XY"),
            ("update", "Xy"),
        ]


ISLAND = sa.select(Country.__table__.c.code, Country.__table__.c.name, Island.__table__.c.sea).join_from(
    Country.__table__, Island.__table__
)


def test_a_row_of_two_tables_is_restored(sessions):
    with sessions.begin() as session:
        session.add(Island(code="Is", name="old", sea="north"))
    with sessions.begin() as session:
        island = session.get_one(Island, "Is")
        island.code, island.name, island.sea = "iS", "new", "south"
    with sessions.begin() as session:
        restore(session, Island, "IS", at=1)
    with sessions.begin() as session:
        assert session.execute(ISLAND).all() == [("Is", "old", "north")]
        undo(session, last(session))
    with sessions() as session:
        assert session.execute(ISLAND).all() == [("iS", "new", "south")]
        assert [operation for operation, *_ in told(session, Island)] == ["insert", "update", "update", "update"]


def test_a_reference_may_be_spelt_otherwise_than_the_key(sessions):
    with sessions.begin() as session:
        session.add(Country(code="Ab", name="a"))
    with sessions.begin() as session:
        session.add(City(country_code="AB", name="Xy"))
    with sessions.begin() as session:
        session.execute(sa.delete(City))
    with sessions.begin() as session:
        restore(session, City, ("ab", "XY"), at=1)
    with sessions() as session:
        assert session.execute(sa.select(City.country_code, City.name)).all() == [("AB", "Xy")]


@pytest.mark.parametrize("way", ["object", "statement"])
def test_a_row_without_history_is_respelt(engine, sessions, way):
    with engine.begin() as connection:
        connection.execute(sa.insert(Country.__table__).values(code="Ab", name="old", kind="country"))
    with sessions.begin() as session:
        respell(session, way, code="aB", name="new")
    with sessions.begin() as session:
        assert told(session, Country, "code", "name") == [("baseline", "Ab", "old"), ("update", "aB", "new")]
        undo(session, last(session))
    with sessions() as session:
        assert countries(session) == [("Ab", "old")]


def test_a_row_without_history_to_which_none_refers_is_respelt(engine, sessions):
    with engine.begin() as connection:
        connection.execute(sa.insert(Country.__table__).values(code="Ab", name="old", kind="country"))
        connection.execute(sa.insert(City.__table__).values(country_code="Ab", name="Xy", size=1))
    with sessions.begin() as session:
        session.get_one(City, ("Ab", "Xy")).name = "xY"
    with sessions() as session:
        assert told(session, City, "name") == [("baseline", "Xy"), ("update", "xY")]


def test_a_row_that_is_replaced_by_one_of_another_spelling_is_updated(sessions):
    with sessions.begin() as session:
        session.add(Country(code="Ab", name="old"))
    with sessions.begin() as session:
        session.delete(session.get_one(Country, "Ab"))
        session.flush()
        session.add(Country(code="aB", name="new"))
    with sessions() as session:
        assert told(session, Country, "code", "name") == [("insert", "Ab", "old"), ("update", "aB", "new")]
        assert not session.scalars(sa.select(City)).all()


@pytest.mark.parametrize("way", ["object", "statement", "list"])
def test_a_row_that_returns_in_another_spelling_after_its_deletion_is_recorded(sessions, way):
    for code, name in (("Ab", "old"), ("aB", "new"), ("ab", "newest")):
        with sessions.begin() as session:
            if way == "object":
                session.add(Country(code=code, name=name))
            else:
                values = {"code": code, "name": name, "kind": "country"}
                session.execute(sa.insert(Country), [values] if way == "list" else values)
        with sessions() as session:
            assert told(session, Country, "code", "name")[-1] == ("insert", code, name)
        with sessions.begin() as session:
            session.delete(session.scalars(sa.select(Country)).one())
    with sessions() as session:
        assert [operation for operation, _ in told(session, Country, "code")] == ["insert", "delete"] * 3


@track_table()
class River(Base):
    __tablename__ = "rk_rivers"

    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(CODE, sa.ForeignKey("rk_countries.code"))


def test_a_key_that_others_hold_is_restored_or_refused(respelt, database):
    with respelt.begin() as session:
        session.add(River(id=1, source="aB"))
    with respelt() as session:
        if "case_insensitive" in database.capabilities:  # that database would not let the key change
            with pytest.raises(QueryError, match=r"Country 'aB' cannot .* 'rk_rivers' refer to it"):
                restore(session, Country, "aB", at=1)
            assert not session.dirty
        else:
            restore(session, Country, "aB", at=1)
        session.commit()
        assert countries(session)[0][0] == ("aB" if "case_insensitive" in database.capabilities else "Ab")
