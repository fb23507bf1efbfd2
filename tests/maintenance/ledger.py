"""Every kind of history that can be pruned, random lives of its rows, and every question about them."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from differences import check_pages
from sqlaudit import AuditColumns, AuditContextManager, SQLAuditConfig, Temporal, track_table
from sqlaudit.maintenance import maintenance_tables


class Base(orm.DeclarativeBase):
    pass


labels = sa.Table(
    "ledger_labels",
    Base.metadata,
    sa.Column("account_id", sa.ForeignKey("ledger_accounts.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("ledger_tags.id"), primary_key=True),
)


@track_table()
class Tag(Base):
    __tablename__ = "ledger_tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))


@track_table(exclude=["secret"], quiet=["hits"])
class Account(Temporal, Base):
    """A model with every relation, an excluded column and a quiet one."""

    __tablename__ = "ledger_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("title", sa.String(20))
    secret: Mapped[str | None] = mapped_column(sa.String(20))
    hits: Mapped[int] = mapped_column(default=0)
    entries: Mapped[list["Entry"]] = relationship(cascade="all, delete-orphan")
    tags: Mapped[list[Tag]] = relationship(secondary=labels)


@track_table(audit_columns=AuditColumns(version="v", valid_from="v_from", valid_to="v_to", operation="v_op"))
class Entry(Base):
    """A composite key, and audit columns of other names."""

    __tablename__ = "ledger_entries"
    account_id: Mapped[int] = mapped_column(sa.ForeignKey(Account.id), primary_key=True)
    number: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    amount: Mapped[int | None]


@track_table(as_of_index=True)
class Person(Base):
    """Joined inheritance, and indexes of periods."""

    __tablename__ = "ledger_people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Worker(Person):
    __tablename__ = "ledger_workers"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
    wage: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "worker"}


tables_of_maintenance = maintenance_tables(Base.metadata)
SOURCES: tuple[Any, ...] = (Tag, Account, Entry, Person, labels)
NAMES = ["a", "b", "c"]


# --- random lives -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def live(
    maker: sessionmaker[Session], clock: Clock, chance: random.Random, transactions: int, rows: int = 4
) -> list[datetime]:
    """Let rows come, change, go and come again; return the instants of the transactions."""
    instants = []
    for _ in range(transactions):
        clock.now += timedelta(seconds=chance.choice([1, 1, 2, 3600]))
        instants.append(clock.now)
        with AuditContextManager(user_id=chance.choice(NAMES)), maker() as session:
            for _ in range(chance.randint(1, 4)):
                chance.choice(EVENTS)(session, chance, rows)
                session.flush()
                if chance.random() < 0.2:
                    with AuditContextManager(reason="again"):  # a version with an empty period
                        chance.choice(EVENTS)(session, chance, rows)
                        session.flush()
            session.commit()
    return instants


def _account(session: Session, chance: random.Random, rows: int) -> None:
    id = chance.randint(1, rows)
    account = session.get(Account, id)
    if account is None:
        session.add(Account(id=id, name=chance.choice(NAMES), secret="s"))
    elif chance.random() < 0.2:
        session.delete(account)
    else:
        account.name, account.hits = chance.choice(NAMES), account.hits + 1


def _entry(session: Session, chance: random.Random, rows: int) -> None:
    account = session.get(Account, chance.randint(1, rows))
    if account is None:
        return
    entry = session.get(Entry, (account.id, number := chance.choice(NAMES)))
    if entry is None:
        account.entries.append(Entry(number=number, amount=chance.choice([None, 1, 2])))
    elif chance.random() < 0.3:
        account.entries.remove(entry)
    else:
        entry.amount = chance.choice([None, 1, 2])


def _label(session: Session, chance: random.Random, rows: int) -> None:
    account, tag = session.get(Account, chance.randint(1, rows)), session.get(Tag, 1)
    if tag is None:
        session.add(Tag(id=1, name="a"))
    elif account is not None:
        (account.tags.remove if tag in account.tags else account.tags.append)(tag)


def _rename(session: Session, chance: random.Random, rows: int) -> None:
    if (tag := session.get(Tag, 1)) is not None:
        tag.name = chance.choice(NAMES)


def _person(session: Session, chance: random.Random, rows: int) -> None:
    id = chance.randint(1, rows)
    person = session.get(Person, id)
    if person is None:
        kind = chance.choice([lambda **kw: Worker(wage=chance.randint(1, 9), **kw), Person])
        session.add(kind(id=id, name=chance.choice(NAMES)))
    elif chance.random() < 0.2:
        session.delete(person)
    elif isinstance(person, Worker) and chance.random() < 0.5:
        person.wage = chance.randint(1, 9)
    else:
        person.name = chance.choice(NAMES)


EVENTS: list[Callable[[Session, random.Random, int], None]] = [_account, _entry, _label, _rename, _person, _person]


# --- questions --------------------------------------------------------------------------------------------------


def states(session: Session, when: Any) -> dict[str, Any]:
    """Return what a session answers as of an instant."""
    session.expunge_all()
    found: dict[str, Any] = {}
    with sqlaudit.time_travel(session, when) as past:
        found["accounts"] = [_told(each) for each in past.scalars(sa.select(Account).order_by(Account.id))]
        found["got"] = [_told(each) for id in range(1, 5) if (each := past.get(Account, id)) is not None]
        found["people"] = [_person_told(each) for each in past.scalars(sa.select(Person).order_by(Person.id))]
        found["workers"] = [_person_told(each) for each in past.scalars(sa.select(Worker).order_by(Worker.id))]
        found["count"] = past.scalar(sa.select(sa.func.count()).select_from(Entry))
    found["as_of"] = [_told(each) for each in session.scalars(sqlaudit.as_of(Account, when).order_by(Account.id))]
    known = session.scalars(sqlaudit.as_of(Account, when, before_baseline="raise").order_by(Account.id))
    found["known"] = [each.name for each in known]
    session.rollback()
    for id in session.scalars(sqlaudit.as_of(Account, when).with_only_columns(Account.id).order_by(Account.id)).all():
        report = sqlaudit.restore(session, Account, id, at=when, include=["entries", "tags"], dry_run=True)
        found[f"restored {id}"] = sorted(repr((str(each.operation), each.key, each.fields)) for each in report)
        session.rollback()
    found["some"] = sorted(
        each.name for each in session.scalars(sqlaudit.as_of(Account, when).where(Account.id.in_([1, 2])))
    )
    session.expunge_all()
    return found


def _told(account: Account) -> Any:
    entries = sorted((each.number, each.amount) for each in account.entries)
    return account.id, account.name, entries, [each.name for each in account.tags]


def _person_told(person: Person) -> Any:
    return type(person).__name__, person.id, person.name, getattr(person, "wage", None)


def changes(session: Session, since: datetime) -> dict[str, Any]:
    """Return what a session says of all changes since an instant."""
    found: dict[str, Any] = {}
    for source in SOURCES:
        name = getattr(source, "__name__", str(source))
        found[f"changes of {name}"] = sqlaudit.get_resource_changes(source, session, filter_date_range=(since, None))
        versions = session.scalars(sqlaudit.between(source, since, datetime.max.replace(tzinfo=since.tzinfo)))
        names = ("version", "timestamp", "changed_by", "changeset_id")
        found[f"versions of {name}"] = [tuple(getattr(each, name) for name in names) for each in versions]
    for source in SOURCES[:-1]:
        rows = session.scalars(sa.select(source)).all()
        for row in rows:
            key = sa.inspect(row).identity
            found[f"versions of {type(row).__name__} {key}"] = [
                each.version for each in sqlaudit.versions_of(session, source, key, since=since)
            ]
    session.expunge_all()
    return found


def differences(session: Session, a: datetime, b: datetime) -> list[Any]:
    return [each for source in SOURCES for each in check_pages(session, source, a, b)]


def start(clock: Clock) -> None:
    sqlaudit.set_config(SQLAuditConfig(clock=clock))
