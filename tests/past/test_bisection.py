"""A row that is read by its key is the same as among all rows: the number of its version is bisected."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, joinedload, mapped_column, relationship

from clock import at
from counting import counted
from effort import profile
from invariants import check_history
from sqlaudit import AuditContextManager, Operation, as_of, history_of, time_travel, track_table
from sqlaudit.past import bisection

pytestmark = pytest.mark.usefixtures("clock")

Sessions = orm.sessionmaker[Session]
TICK = timedelta(microseconds=1)
NAME = sa.String(20)


class Base(DeclarativeBase):
    pass


@track_table()
class Part(Base):
    __tablename__ = "parts"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    colour: Mapped[int] = mapped_column("color", primary_key=True, autoincrement=False)
    name: Mapped[int]


@track_table()
class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(NAME)
    name: Mapped[int]
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))
    boss: Mapped["Person | None"] = relationship(remote_side=id)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Clerk(Person):
    __tablename__ = "clerks"
    id: Mapped[int] = mapped_column("person_id", sa.ForeignKey("people.id"), primary_key=True)
    pay: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "clerk"}


class Guard(Person):
    __tablename__ = "guards"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    post: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "guard"}


@track_table()
class Word(Base):
    __tablename__ = "words"
    text: Mapped[str] = mapped_column(NAME, primary_key=True)
    count: Mapped[int]


MAKERS: list[tuple[type[Any], Callable[[int], Any]]] = [
    (Part, lambda value: Part(number=1, colour=2, name=value)),
    (Part, lambda value: Part(number=2, colour=1, name=value)),
    (Person, lambda value: Person(id=1, name=value)),
    (Person, lambda value: Clerk(id=1, name=value, pay=value)),
    (Person, lambda value: Guard(id=1, name=value, post=value)),
    (Person, lambda value: Guard(id=2, name=value, post=value)),
]
KEYS: dict[type[Any], list[Any]] = {Part: [(1, 2), (2, 1), (1, 1)], Person: [1, 2, 3]}


# --- random lives -----------------------------------------------------------------------------------------------


def values(obj: Any) -> tuple[Any, ...]:
    return (type(obj).__name__, *(getattr(obj, column.key) for column in sa.inspect(type(obj)).column_attrs))


def key_of(obj: Any) -> Any:
    identity = sa.inspect(obj).identity
    return identity if len(identity) > 1 else identity[0]


def write(session: Session, maker: int, value: int) -> None:
    """Make a row, change it, or put one of another class in its place."""
    model, make = MAKERS[maker]
    new = make(value)
    identity = sa.inspect(model).primary_key_from_instance(new)
    old = session.get(model, identity)
    if type(old) is type(new):
        old.name = value
        return
    if old is not None:
        session.delete(old)
        session.commit()
    session.add(new)


STEP = st.tuples(st.integers(0, len(MAKERS) - 1), st.sampled_from(["write", "again", "delete"]), st.integers(0, 2))


def live(sessions: Sessions, transactions: list[list[tuple[int, str, int]]]) -> None:
    for steps in transactions:
        with sessions() as session:
            for maker, what, value in steps:
                write(session, maker, value)
                session.flush()
                with AuditContextManager(user_id=f"user {value}"):  # a version of its own, with an empty period
                    if what == "again":
                        write(session, maker, value + 1)
                    elif what == "delete":
                        for obj in session.scalars(sa.select(MAKERS[maker][0])).all():
                            session.delete(obj)
                    session.flush()
            session.commit()


def instants(session: Session, model: type[Any]) -> list[datetime]:
    table = history_of(model)
    ends = {*session.scalars(sa.select(table.valid_from)), *session.scalars(sa.select(table.valid_to))}
    return sorted(when + tick for when in ends if when.year < 9999 for tick in (-TICK, 0 * TICK, TICK))


def test_a_row_by_its_key_is_the_same_as_among_all_rows(database, engine, sessions):
    @profile(database, few=3, many=6, report_multiple_bugs=False)
    @given(st.lists(st.lists(STEP, min_size=1, max_size=3), min_size=1, max_size=8))
    def agree(transactions: list[list[tuple[int, str, int]]]) -> None:
        with engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
        live(sessions, transactions)
        with sessions() as session:
            for model, keys in KEYS.items():
                check_history(session, model)
                for when in instants(session, model):
                    compare(session, model, keys, when)

    agree()


def compare(session: Session, model: type[Any], keys: list[Any], when: datetime) -> None:
    mapper = sa.inspect(model)
    primary = [getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key]
    with time_travel(session, when) as past:
        there = {key_of(obj): values(obj) for obj in past.scalars(sa.select(model))}
    for key in keys:
        identity = key if isinstance(key, tuple) else (key,)
        with time_travel(session, when) as past:
            found = past.get(model, key)
            assert (None if found is None else values(found)) == there.get(key), f"get {key} as of {when}"
        criteria = [column == value for column, value in zip(primary, identity, strict=True)]
        found = session.scalars(as_of(model, when).where(*criteria)).one_or_none()
        assert (None if found is None else values(found)) == there.get(key), f"select {key} as of {when}"
        session.expunge_all()


# --- statements -------------------------------------------------------------------------------------------------


@pytest.fixture
def people(sessions: Sessions) -> Sessions:
    """People 1 to 4 since second 0, each led by the one before; a clerk is 2, a guard 3. All change each second."""
    with sessions() as session:
        session.add_all(
            [Person(id=1, name=0), Clerk(id=2, name=0, pay=0), Guard(id=3, name=0, post=0), Person(id=4, name=0)]
        )
        session.flush()
        for id in (2, 3, 4):
            session.get_one(Person, id).boss_id = id - 1
        session.commit()
        for name in range(1, 6):
            for person in session.scalars(sa.select(Person)):
                person.name = 10 * name + person.id
                if isinstance(person, Clerk):
                    person.pay = name
            session.commit()
    return sessions


Equal = Callable[[Any, int], Any]
P, C, G = Person.__table__, Clerk.__table__, Guard.__table__


def of_an_alias(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(other.c.name).where(equal(other.c.id, 2))


def of_a_table_twice(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(P.c.name, other.c.name).join_from(P, other, other.c.boss_id == P.c.id).where(equal(P.c.id, 2))


def of_two_rows(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(P.c.name, other.c.name).where(equal(P.c.id, 2), equal(other.c.id, 3), P.c.kind != other.c.kind)


def of_an_outer_join(equal: Equal) -> Any:
    return sa.select(P.c.name, C.c.pay).outerjoin_from(P, C, P.c.id == C.c.person_id).where(equal(P.c.id, 2))


def of_the_inside_of_an_outer_join(equal: Equal) -> Any:
    return sa.select(P.c.name, C.c.pay).outerjoin_from(P, C, P.c.id == C.c.person_id).where(equal(C.c.person_id, 2))


def of_what_is_not_there(equal: Equal) -> Any:
    return sa.select(P.c.name, G.c.post).outerjoin_from(P, G, P.c.id == G.c.id).where(equal(P.c.id, 2))


def of_an_outer_join_whose_condition_names_the_left_alone(equal: Equal) -> Any:
    other = P.alias()
    pairs = P.join(other, sa.true())
    return (
        sa.select(P.c.name, other.c.name, C.c.pay)
        .outerjoin_from(pairs, C, sa.and_(P.c.id == other.c.id, C.c.person_id == other.c.id))
        .where(equal(P.c.id, 2))
    )


def of_a_nested_outer_join(equal: Equal) -> Any:
    other = P.alias()
    inner = C.join(other, C.c.person_id == other.c.id)
    return (
        sa.select(P.c.name, other.c.name, C.c.pay)
        .outerjoin_from(P, inner, P.c.id == C.c.person_id)
        .where(equal(P.c.id, 2))
    )


def of_a_join_in_where(equal: Equal) -> Any:
    return sa.select(P.c.name, C.c.pay).where(P.c.id == C.c.person_id, equal(C.c.person_id, 2))


def of_an_outer_row(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(P.c.name).where(sa.exists().where(other.c.boss_id == P.c.id, equal(P.c.id, 2)))


def of_an_inner_row(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(P.c.name).where(sa.exists().where(other.c.boss_id == P.c.id, equal(other.c.id, 3)))


def of_a_scalar_subquery(equal: Equal) -> Any:
    other = P.alias()
    return sa.select(P.c.id, sa.select(other.c.name).where(equal(other.c.id, 3)).scalar_subquery())


def of_a_union(equal: Equal) -> Any:
    one, two = (sa.select(P.c.name).where(equal(P.c.id, id)) for id in (2, 3))
    return sa.union_all(one, two)


def of_a_cte_that_is_used_twice(equal: Equal) -> Any:
    found = sa.select(P.c.id, P.c.name).where(equal(P.c.id, 2)).cte("people_then")
    other = found.alias()
    return sa.select(found.c.name, other.c.id).join_from(found, other, found.c.id == other.c.id)


def of_a_cte_with_the_name_of_its_table(equal: Equal) -> Any:
    found = sa.select(P.c.name).where(equal(P.c.id, 2)).cte("people")
    return sa.select(found.c.name)


def of_a_recursion(equal: Equal) -> Any:
    chain = sa.select(P.c.id, P.c.boss_id).where(equal(P.c.id, 3)).cte("chain", recursive=True)
    boss = P.alias()
    chain = chain.union_all(sa.select(boss.c.id, boss.c.boss_id).join(chain, chain.c.boss_id == boss.c.id))
    return sa.select(chain.c.id)


def of_a_nested_cte(equal: Equal) -> Any:
    inner = sa.select(P.c.id, P.c.name).where(equal(P.c.id, 2)).cte("inner_one", nesting=True)
    outer = sa.select(inner.c.name).cte("outer_one")
    return sa.select(outer.c.name)


def of_a_subclass(equal: Equal) -> Any:
    return sa.select(Clerk.name, Clerk.pay).where(equal(Clerk.id, 2))


def of_all_classes(equal: Equal) -> Any:
    anyone = orm.with_polymorphic(Person, "*")
    return sa.select(anyone.name, anyone.Clerk.pay, anyone.Guard.post).where(equal(anyone.id, 2))


def of_an_alias_of_a_subclass(equal: Equal) -> Any:
    clerk = aliased(Clerk, flat=True)
    return sa.select(Person.name, clerk.pay).join(clerk, Person.boss_id == clerk.id).where(equal(clerk.id, 2))


def of_either_row(equal: Equal) -> Any:
    return sa.select(P.c.name).where(sa.or_(equal(P.c.id, 2), equal(P.c.id, 3)))


def of_all_but_a_row(equal: Equal) -> Any:
    return sa.select(P.c.name).where(~equal(P.c.id, 2))


BISECTED = [
    of_an_alias,
    of_a_table_twice,
    of_two_rows,
    of_an_outer_join,
    of_the_inside_of_an_outer_join,
    of_what_is_not_there,
    of_an_outer_join_whose_condition_names_the_left_alone,
    of_a_nested_outer_join,
    of_a_join_in_where,
    of_an_inner_row,
    of_a_scalar_subquery,
    of_a_union,
    of_a_cte_that_is_used_twice,
    of_a_cte_with_the_name_of_its_table,
    of_a_recursion,
    of_a_nested_cte,
    of_a_subclass,
    of_all_classes,
    of_an_alias_of_a_subclass,
]
PLAIN = [of_an_outer_row, of_either_row, of_all_but_a_row]
WHEN = [at(-1), at(0) - TICK, at(0), at(2), at(3) - TICK, at(9)]


def equal(column: Any, value: int) -> Any:
    return column == value


def hidden(column: Any, value: int) -> Any:
    """Say the same in a way that is not recognised."""
    return column + 0 == value


def answer(session: Session, statement: Any) -> list[tuple[Any, ...]]:
    return sorted(map(tuple, session.execute(statement)), key=repr)


@pytest.mark.spread
@pytest.mark.parametrize("ask", [*BISECTED, *PLAIN], ids=lambda ask: ask.__name__)
def test_a_statement_that_gives_a_key_has_the_answer_of_one_that_does_not(ask, engine, people):
    with people() as session:
        answers = []
        for when in WHEN:
            with time_travel(session, when) as past, counted(engine) as statements:
                found = answer(past, ask(equal))
                assert found == answer(past, ask(hidden)), f"as of {when}"
            answers.append(found)
        bisected, plain = statements
        assert plain.count("max(") == 0
        assert (bisected.count("max(") > 0) == (ask in BISECTED)
        assert answers[3], "the question has an answer"


def of_several_rows(among: Equal) -> Any:
    return sa.select(P.c.id, P.c.name).where(among(P.c.id, [4, 2, 2, 9]), P.c.name >= 0)


def of_several_rows_of_an_alias(among: Equal) -> Any:
    other = P.alias()
    return (
        sa.select(P.c.name, other.c.name).outerjoin_from(P, other, P.c.boss_id == other.c.id).where(among(P.c.id, [3]))
    )


def of_several_subclass_rows(among: Equal) -> Any:
    return sa.select(Clerk.name, Clerk.pay).where(among(Clerk.id, [1, 2, 3]))


def of_several_rows_of_all_classes(among: Equal) -> Any:
    anyone = orm.with_polymorphic(Person, "*")
    return sa.select(anyone.name, anyone.Clerk.pay, anyone.Guard.post).where(among(anyone.id, [1, 2, 3]))


def of_no_rows(among: Equal) -> Any:
    return sa.select(P.c.name).where(among(P.c.id, []))


@pytest.mark.parametrize(
    "ask",
    [
        of_several_rows,
        of_several_rows_of_an_alias,
        of_several_subclass_rows,
        of_several_rows_of_all_classes,
        of_no_rows,
    ],
    ids=lambda ask: ask.__name__,
)
@pytest.mark.parametrize("short", ["16", "1"])
def test_a_statement_that_gives_several_keys_has_the_answer_of_one_that_does_not(
    ask, short, engine, people, monkeypatch
):
    monkeypatch.setattr(bisection, "_SHORT", sa.literal_column(short, sa.Integer()))
    compare_lists(engine, ask)


def test_several_keys_are_found_where_versions_are_missing(engine, people, monkeypatch):
    monkeypatch.setattr(bisection, "_SHORT", sa.literal_column("1", sa.Integer()))
    history = history_of(Person).__table__
    with engine.begin() as connection:
        connection.execute(sa.delete(history).where(history.c.audit_version.in_([1, 3, 4])))
    compare_lists(engine, of_several_rows)


def compare_lists(engine: sa.Engine, ask: Callable[[Equal], Any]) -> None:
    with orm.Session(engine.execution_options(compiled_cache={})) as session:
        for when in WHEN:
            with time_travel(session, when) as past:
                expected = answer(past, ask(lambda column, keys: (column + 0).in_(keys)))
                assert answer(past, ask(lambda column, keys: column.in_(keys))) == expected, f"as of {when}"


def test_statements_of_other_lists_of_keys_are_compiled_once(engine, people):
    cache: dict[Any, Any] = {}
    maker = orm.sessionmaker(engine.execution_options(compiled_cache=cache))
    found = []
    for second, keys in ((1, [1]), (2, [4, 1, 2]), (4, [])):
        with maker() as session, time_travel(session, at(second)) as past:
            found.append(past.scalars(sa.select(P.c.name).where(P.c.id.in_(keys)).order_by(P.c.id)).all())
    assert found == [[11], [21, 22, 24], []]
    assert len(cache) == 1


def test_the_tables_of_an_object_hand_its_key_on(engine, people):
    with people() as session, time_travel(session, at(2)) as past, counted(engine) as statements:
        clerk = past.get_one(Clerk, 2)
        assert (clerk.name, clerk.pay) == (22, 2)
        assert statements[-1].count("max(") == 2


def test_a_many_to_one_and_a_refresh_are_bisected(engine, people):
    with people() as session, time_travel(session, at(2)) as past, counted(engine) as statements:
        guard = past.scalars(sa.select(Guard)).one()
        assert "max(" not in statements[-1]
        assert guard.boss.name == 22
        assert "max(" in statements[-1]
        past.refresh(guard)
        assert "max(" in statements[-1]
        assert guard.name == 23


def test_a_joined_eager_load_of_one_row_is_right(people):
    with people() as session, time_travel(session, at(2)) as past:
        guard = past.get_one(Guard, 3, options=[joinedload(Guard.boss)])
        assert (guard.name, guard.boss.name, guard.boss.pay) == (23, 22, 2)


def test_a_key_given_at_execution_is_the_one_that_is_bisected(people):
    statement = as_of(Person, at(2)).where(Person.id == sa.bindparam("key"))
    with people() as session:
        assert [session.scalars(statement, {"key": key}).one().name for key in (2, 1, 4)] == [22, 21, 24]


def test_statements_of_other_keys_and_instants_are_compiled_once(engine, people):
    cache: dict[Any, Any] = {}
    maker = orm.sessionmaker(engine.execution_options(compiled_cache=cache))
    found = []
    for second, key in ((1, 1), (2, 4), (4, 1)):
        with maker() as session, time_travel(session, at(second)) as past:
            found.append(past.get_one(Person, key).name)
            found.append(past.scalar(sa.select(Person.name).where(Person.id == key)))
    assert found == [11, 11, 24, 24, 41, 41]
    assert len(cache) == 2


def test_a_printed_statement_holds_the_key_and_the_instant(engine, people):
    statement = as_of(Person, at(2)).with_only_columns(P.c.name).where(Person.id == 2)
    sql = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        assert connection.exec_driver_sql(sql.replace("%%", "%")).scalar_one() == 22


def test_a_cte_of_the_statement_does_not_become_recursive(engine):
    found = sa.select(P.c.name).where(P.c.id == 2).cte("people")
    sql = str(as_of(Person, at(2)).with_only_columns(found.c.name).compile(engine))
    assert sql.startswith("WITH people AS")
    assert "WITH RECURSIVE" in sql


def test_two_instants_and_the_present_in_one_statement_are_each_their_own(people):
    def name(when: float) -> Any:
        return as_of(Person, at(when)).with_only_columns(P.c.name).where(P.c.id == 2).scalar_subquery()

    now = sa.select(P.c.name).where(P.c.id == 2).scalar_subquery()
    with people() as session:
        assert tuple(session.execute(sa.select(name(1), name(3), now)).one()) == (12, 32, 52)


def test_a_key_is_bisected_in_the_schema_that_another_stands_for(database, engine, base):
    @track_table()
    class Thing(base):
        __tablename__ = "things"
        __table_args__ = {"schema": "given"}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[int]

    translated = engine.execution_options(schema_translate_map={"given": database.other_schema})
    base.metadata.create_all(translated)
    history = history_of(Thing).__table__
    rows = [
        {"id": 1, "name": second, "audit_version": second, "valid_from": at(second), "valid_to": at(second + 1)}
        | {"audit_operation": Operation.UPDATE, "audit_changeset_id": UUID(int=second)}
        for second in range(1, 4)
    ]
    with translated.begin() as connection:
        connection.execute(sa.insert(history), rows)
    with time_travel(translated, at(2)) as past:
        assert past.get_one(Thing, 1).name == 2


def test_a_number_given_for_a_text_finds_what_it_finds_in_the_present(sessions):
    with sessions() as session:
        session.add_all([Word(text="5", count=1), Word(text="05", count=2)])
        session.commit()
        for word in session.scalars(sa.select(Word).where(Word.text == "05")):
            word.count = 7
        session.commit()
        given = sa.literal(5, NAME)
        live = {word.count for word in session.scalars(sa.select(Word).where(Word.text == given))}
        assert {word.count for word in session.scalars(as_of(Word, at(5)).where(Word.text == given))} == live
