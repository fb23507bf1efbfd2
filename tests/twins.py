"""Mappings in two copies, one of them tracked, and random statements that are the same on both.

What sqlaudit reports instead of recording it is not drawn: executemany by the keys of objects, and UPDATE of two
tables, on a connection. Neither are keys that the database makes, which ``test_made_keys`` tests.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from types import SimpleNamespace as Models
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, composite, mapped_column, with_loader_criteria

from sqlaudit import track_table

INTEGERS, TEXTS = [0, 1, 1, 2, 2, 3, 4, 5, 7], ["a", "b", "c", "a1", "ab", "B", "x%y", "o'k", ""]

Level = enum.Enum("Level", {f"L{number}": number for number in range(100)})


@dataclass
class Size:
    price: int | None
    stock: int


class Code(sa.TypeDecorator[int]):
    """A number that is stored as a text."""

    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else f"code {value}"

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value.removeprefix("code "))


TYPED = (Code, sa.Uuid, sa.Date, sa.Enum)


class Base(DeclarativeBase):
    pass


class TwinBase(DeclarativeBase):
    metadata = Base.metadata


def define(base: Any, prefix: str, track: Callable[[Any], Any]) -> Models:
    """Map each kind of table to classes, which are equal but for the tables' names and the tracking."""

    @track
    class Item(base):
        __tablename__ = f"{prefix}item"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str | None] = mapped_column("title", sa.String(60))
        price: Mapped[int | None] = mapped_column("the price", default=3)
        stock: Mapped[int] = mapped_column(server_default="5")
        note: Mapped[str | None] = mapped_column(sa.String(60), onupdate=lambda: "touched")
        size: Mapped[Size] = composite("price", "stock")

    @track
    class Part(base):
        __tablename__ = f"{prefix}part"
        tenant: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        qty: Mapped[int | None]
        item_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Item.id, ondelete="CASCADE"))
        label: Mapped[str | None] = mapped_column(sa.String(60))

    @track
    class Car(base):
        __tablename__ = f"{prefix}car"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "car"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(20))
        speed: Mapped[int | None]
        plate: Mapped[str | None] = mapped_column(sa.String(60))
        item_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Item.id, ondelete="SET NULL"))

    class Truck(Car):
        __mapper_args__ = {"polymorphic_identity": "truck"}
        load: Mapped[int | None]

    @track
    class Person(base):
        __tablename__ = f"{prefix}person"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(20))
        age: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(sa.String(60))

    class Worker(Person):
        __tablename__ = f"{prefix}worker"
        __mapper_args__ = {"polymorphic_identity": "worker"}
        id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"), primary_key=True)
        wage: Mapped[int | None]
        skill: Mapped[str | None] = mapped_column(sa.String(60))

    @track
    class Node(base):
        __tablename__ = f"{prefix}node"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        up_id: Mapped[int | None] = mapped_column(sa.ForeignKey(f"{prefix}node.id", ondelete="SET NULL"))
        pos: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(sa.String(60))

    @track
    class Task(base):
        __tablename__ = f"{prefix}task"
        code: Mapped[int] = mapped_column(Code, primary_key=True)
        up_id: Mapped[int | None] = mapped_column(sa.ForeignKey(f"{prefix}task.code", ondelete="CASCADE"))
        pos: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(sa.String(60))

    @track
    class Stay(base):
        __tablename__ = f"{prefix}stay"
        guest: Mapped[UUID] = mapped_column(primary_key=True)
        day: Mapped[date] = mapped_column(primary_key=True)
        nights: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(sa.String(60))

    @track
    class Grade(base):
        __tablename__ = f"{prefix}grade"
        level: Mapped[Level] = mapped_column(sa.Enum(Level, name="twin_level"), primary_key=True)
        rank: Mapped[int | None] = mapped_column(unique=True)
        points: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(sa.String(60))

    return Models(
        Item=Item,
        Part=Part,
        Car=Car,
        Truck=Truck,
        Person=Person,
        Worker=Worker,
        Node=Node,
        Task=Task,
        Stay=Stay,
        Grade=Grade,
    )


TRACKED, TWINS = define(Base, "", track_table()), define(TwinBase, "twin_", lambda model: model)


def tables_of(models: Models) -> dict[str, Any]:
    """Return a class for each table by the table's name without the prefix."""
    return {name.lower(): model for name, model in vars(models).items() if name != "Truck"}


def value_of(type_: Any, number: int) -> Any:
    """Return the value of a type that stands for a number; a key has another value for each number."""
    if isinstance(type_, sa.Enum):
        return Level(number)
    if isinstance(type_, sa.Uuid):
        return UUID(int=number)
    if isinstance(type_, sa.Date):
        return date(2020, 1, 1) + timedelta(number)
    return "abc"[number % 3] if isinstance(type_, sa.String) else number


@dataclass(frozen=True, slots=True)
class Source:
    """A class, a table or an alias of one."""

    model: Any
    target: Any
    is_core: bool

    def named(self) -> list[tuple[str, Any, sa.Column[Any]]]:
        """Return the name, the expression and the column of each value."""
        mapper = sa.inspect(self.model)
        if self.is_core:
            return [(column.key, self.target.c[column.key], column) for column in mapper.local_table.c]
        return [(each.key, getattr(self.target, each.key), each.columns[0]) for each in mapper.column_attrs]

    def columns(self, *kinds: Any, settable: bool = False, keys: bool = True) -> list[Any]:
        table = sa.inspect(self.model).local_table
        return [
            value
            for _, value, column in self.named()
            if isinstance(column.type, kinds) and column.key != "kind"
            if sa.Enum in kinds or not isinstance(column.type, sa.Enum)  # which is a String
            if (column.table is table or not settable) and (keys or not column.primary_key)
        ]

    def row(self, number: int) -> dict[str, Any]:
        """Return the values of a row of this number, which is its key."""
        values: dict[str, Any] = {}
        for name, _, column in self.named():
            if column.key == "kind":
                mapper = sa.inspect(self.model).base_mapper if self.is_core else sa.inspect(self.model)
                kinds = [each.polymorphic_identity for each in mapper.self_and_descendants]
                values[name] = kinds[number % len(kinds)]
            elif column.primary_key and column.key == "tenant":
                values[name] = number % 2
            elif column.primary_key or column.unique:
                values[name] = value_of(column.type, number)
            elif column.foreign_keys:
                values[name] = number // 2 or None
            else:
                values[name] = value_of(column.type, number % 4)
        return values


def fill(session: Session, models: Models) -> None:
    for name, model in tables_of(models).items():
        rows = range(1, 8, 2 if name == "worker" else 1)
        session.execute(model.__table__.insert(), [Source(model, model.__table__, True).row(row) for row in rows])
    session.commit()


class Generator:
    """Draws statements; two with the same seed draw the same on equal models."""

    def __init__(self, seed: str, models: Models, insert: Callable[[Any], Any], database: Any) -> None:
        self.random, self.models, self.insert_of = Random(seed), models, insert
        self.capabilities, self.dialect = database.capabilities, database.name
        self.way = "execute"
        self.written: Source
        self.is_nested = "update_returning" not in self.capabilities  # a CTE: MariaDB knows none before UPDATE, DELETE
        self.pick, self.chance = self.random.choice, lambda share: self.random.random() < share

    def source(self, *, alias: float = 0.3, core: float = 0.4, changed: bool = False) -> Source:
        model = self.pick(list(vars(self.models).values()))
        is_core, is_alias = self.chance(core), self.chance(alias)
        target = sa.inspect(model).local_table if is_core else model
        if is_alias and (is_core or not changed or model is not self.models.Worker):  # SQLAlchemy changes no such alias
            target = target.alias() if is_core else aliased(target)
        source = Source(model, target, is_core)
        if changed:
            self.written = source
        return source

    def number(self, source: Source) -> Any:
        return self.pick(source.columns(sa.Integer))

    def select(self, source: Source, depth: int) -> Any:
        other = self.source()
        column = self.number(other)
        query = sa.select(column).where(self.condition(other, depth))
        return self.pick(
            [
                lambda: query,
                lambda: query.distinct(),
                lambda: query.where(self.number(other) == self.number(source)),  # correlated
                lambda: query.group_by(column).having(sa.func.count() > 1),
                lambda: sa.select(query.order_by(column).limit(2).subquery().c[0]),
                lambda: sa.select(query.cte(nesting=self.is_nested).c[0]),
                lambda: sa.union_all(query, sa.select(sa.literal(self.pick(INTEGERS)))),
            ]
        )()

    def condition(self, source: Source, depth: int) -> Any:
        number, text = self.number(source), self.pick(source.columns(sa.String))
        typed, value = source.columns(*TYPED), self.pick(INTEGERS)
        kinds: list[Callable[[], Any]] = [
            lambda: number == value,
            lambda: number > value,
            lambda: number.in_([value, self.pick(INTEGERS)]),
            lambda: number.is_(None),
            lambda: number <= self.number(source),
            lambda: text.like(f"%{self.pick(TEXTS)}%"),
            lambda: sa.func.length(text) >= 1,
        ]
        if typed:
            kinds += 2 * [lambda: self.typed_condition(self.pick(typed))]
        if source.model is self.models.Item and not source.is_core:
            kinds.append(lambda: source.target.size == Size(self.pick(INTEGERS), self.pick(INTEGERS)))
        if depth:
            kinds += [
                lambda: sa.and_(self.condition(source, depth - 1), self.condition(source, depth - 1)),
                lambda: sa.or_(self.condition(source, depth - 1), self.condition(source, depth - 1)),
                lambda: ~self.condition(source, depth - 1),
                lambda: number.in_(self.select(source, depth - 1)),
                lambda: number.not_in(self.select(source, depth - 1)),
                lambda: sa.exists(sa.select(sa.literal(1)).select_from(self.select(source, depth - 1).subquery())),
            ]
        return self.pick(kinds)()

    def typed_condition(self, column: Any) -> Any:
        values = [value_of(column.type, self.pick(INTEGERS)) for _ in range(3)]
        kinds = [lambda: column == values[0], lambda: column.in_(values), lambda: column != values[0]]
        return self.pick(kinds)()

    def value(self, source: Source, column: Any, depth: int) -> Any:
        if isinstance(column.type, TYPED):
            return value_of(column.type, self.pick([1, 2, 3]))
        if isinstance(column.type, sa.String):
            return self.pick([self.pick(TEXTS), sa.func.upper(column), sa.func.coalesce(column, self.pick(TEXTS))])
        if "id" in column.key:  # a foreign key, most of whose targets exist
            return self.pick([1, 2, 3])
        other = self.source()
        highest = sa.select(sa.func.max(self.number(other))).where(self.condition(other, depth))
        if self.chance(0.3):
            highest = highest.where(self.number(other) == self.number(source))
        choice = sa.case((self.condition(source, depth), self.pick(INTEGERS)), else_=column)
        number = self.pick(INTEGERS)
        return self.pick([number, column + 1, sa.func.coalesce(highest.scalar_subquery(), 1), choice])

    def finish(self, statement: Any, source: Source, depth: int) -> Any:
        """Add conditions, another table, loader criteria, what to do on conflicts, a limit and RETURNING."""
        for _ in range(self.pick([0, 1, 1, 2])):
            statement = statement.where(self.condition(source, depth))
        further = None
        if self.chance(0.15) and (statement.is_update or "concurrent_writes" in self.capabilities):  # not on SQLite
            further = self.source()
            statement = statement.where(self.number(further) == self.number(source), self.condition(further, depth))
        if self.chance(0.2):
            cte = self.select(source, 0).cte(nesting=self.is_nested)
            statement = statement.where(self.number(source).in_(sa.select(cte.c[0])))
        if self.chance(0.3):
            limited = self.source(alias=0, core=0)
            criteria = self.condition(limited, 0)
            statement = statement.options(
                with_loader_criteria(limited.model, criteria, include_aliases=self.chance(0.5))
            )
        if statement.is_update and self.chance(0.15):
            statement = self.on_conflict(statement)
        if further is None and self.chance(0.15) and "limited_updates" in self.capabilities:
            statement = statement.with_dialect_options(**{f"{self.dialect}_limit": self.pick([1, 2, 3])})
        return self.returning(statement, source)

    def on_conflict(self, statement: Any) -> Any:
        """Replace or ignore conflicting rows by a prefix."""
        if "replacing_inserts" in self.capabilities:
            return statement.prefix_with(self.pick(["OR REPLACE", "OR IGNORE"]))
        return statement.prefix_with("IGNORE") if "on_conflict" not in self.capabilities else statement

    def returning(self, statement: Any, source: Source) -> Any:
        able = "update_returning" in self.capabilities or not statement.is_update
        if not self.chance(0.3) or not able:
            return statement
        if statement.is_delete and self.is_nested and not _is_of_one_table(statement):
            return statement  # MariaDB's DELETE of two tables returns nothing
        number = self.number(source)
        return statement.returning(
            *self.pick(
                [
                    [value for _, value, _ in source.named()] if source.is_core else [source.target],
                    [number, number + 1],
                    [number, number, sa.literal(1).label("one")],
                    [sa.func.coalesce(number, 0).label("told"), *source.columns(*TYPED)],
                    [*source.columns(*TYPED), number] if source.is_core else [source.target, number],
                ]
            )
        )

    def update(self, depth: int) -> Any:
        source = self.source(alias=0.15, changed=True)
        kinds = (sa.Integer, sa.String, *TYPED)
        columns = source.columns(*kinds, settable=True, keys=self.chance(0.15))
        chosen = self.random.sample(columns, min(len(columns), self.pick([1, 2])))
        values = {column: self.value(source, column, depth) for column in chosen}
        if source.model is self.models.Item and source.target is source.model and self.chance(0.3):
            values = {source.model.size: Size(self.pick(INTEGERS), self.pick(INTEGERS))}
        return self.finish(sa.update(source.target).values(values), source, depth), None

    def delete(self, depth: int) -> Any:
        source = self.source(alias=0.15, changed=True)
        return self.finish(sa.delete(source.target), source, depth), None

    def insert(self, depth: int) -> Any:
        """Insert rows one by one, together, by executemany or from a query; on a conflict, update or do nothing."""
        source = self.source(alias=0, changed=True)
        is_upsert = self.chance(0.5)
        numbers = range(1, 20) if is_upsert else range(7, 90)
        rows = [source.row(number) for number in self.random.sample(numbers, self.pick([1, 2, 3, 5]))]
        statement = self.insert_of(source.target)
        if source.model is self.models.Worker and not source.is_core:
            return self.returning(statement, source), rows  # SQLAlchemy inserts into two tables only in this way
        way = self.pick(["one", "values", "many", "select"])
        if way == "one":
            statement = statement.values(rows[0])
        elif way == "values":
            statement = statement.values(rows)
        elif way == "select":
            names, values, columns = zip(*source.named(), strict=True)
            moved = list(map(self.moved, values, columns))
            statement = statement.from_select(names, sa.select(*moved).where(self.condition(source, depth)))
        if is_upsert and self.chance(0.3):
            statement = self.on_conflict(statement)
        elif is_upsert:
            column = self.pick(source.columns(sa.Integer, settable=True, keys=False))
            name, keys = column.name, [c.name for c in sa.inspect(source.model).local_table.primary_key]
            value = self.pick([lambda new: new[name], lambda new: self.pick(INTEGERS), lambda new: column + 1])
            if "on_conflict" not in self.capabilities:
                statement = statement.on_duplicate_key_update({name: value(statement.inserted)})
            elif self.chance(0.3):
                statement = statement.on_conflict_do_nothing()
            else:
                statement = statement.on_conflict_do_update(index_elements=keys, set_={name: value(statement.excluded)})
        return self.returning(statement, source), rows if way == "many" else None

    def moved(self, value: Any, column: sa.Column[Any]) -> Any:
        """Return the value of a new row that is selected from another."""
        if not (column.primary_key or column.unique) or column.key == "tenant":
            return value
        number = self.random.randrange(50, 90)
        return (
            value + 50
            if isinstance(column.type, sa.Integer)
            else sa.literal(value_of(column.type, number), column.type)
        )

    def many(self, depth: int) -> Any:
        """Update or delete by executemany, by conditions or by the keys of objects."""
        source = self.source(alias=0, changed=True)
        rows = [{"sought": self.pick(INTEGERS), "new": self.pick([1, 2, 3])} for _ in range(self.pick([1, 2, 3]))]
        column = self.pick(source.columns(sa.Integer, settable=True, keys=False))
        where = self.number(source) == sa.bindparam("sought")
        if typed := source.columns(*TYPED, keys=True) if self.chance(0.3) else []:
            sought = self.pick(typed)
            where = sought == sa.bindparam("sought", type_=sought.type)
            rows = [each | {"sought": value_of(sought.type, each["sought"])} for each in rows]
        if self.chance(0.3) and not source.is_core:
            self.way = "execute"
            return sa.update(source.target), [source.row(self.random.randrange(1, 8)) for _ in rows]
        self.way = "connection"
        if self.chance(0.3):
            return sa.delete(source.target).where(where), rows
        update = sa.update(source.target).where(where, self.number(source) <= self.pick(INTEGERS))
        return update.values({column: self.pick([sa.bindparam("new"), column + sa.bindparam("new")])}), rows

    def statement(self) -> tuple[Any, Any]:
        self.way = self.pick(["execute", "execute", "connection", "lambda", "query", "from_statement"])
        make = self.pick([self.update, self.update, self.delete, self.insert, self.many])
        return make(self.pick([0, 1, 2]))


def _is_of_one_table(statement: Any) -> bool:
    named = {each for criterion in statement._where_criteria for each in criterion._from_objects}
    return len(named) < 2
