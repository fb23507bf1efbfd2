"""What type checkers know of the reads."""

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import (
    ActorType,
    AuditContext,
    AuditContextManager,
    BackfillReport,
    Blame,
    Changeset,
    FieldChange,
    Mark,
    Operation,
    Page,
    RowDiff,
    SQLAuditConfig,
    Version,
    as_of,
    backfill,
    blame,
    changes_page,
    changesets,
    changesets_page,
    compare,
    compare_page,
    diff,
    get_audit_context,
    get_config,
    get_resource_changes,
    has_config,
    history_of,
    mark,
    marks,
    marks_table,
    set_audit_context,
    set_config,
    stream_resource_changes,
    track_table,
    versions_of,
)


class Base(DeclarativeBase):
    pass


@track_table(exclude=["name"])
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def a_tracked_class_keeps_its_type() -> None:
    assert_type(Customer, type[Customer])
    assert_type(Customer(id=1).name, str)


def field_changes(session: Session) -> None:
    assert_type(get_resource_changes(Customer), list[FieldChange])
    assert_type(
        get_resource_changes(
            Customer,
            session,
            filter_resource_ids=[1, "2"],
            filter_fields={"name"},
            filter_user_ids=UUID(int=1),
            filter_date_range=(WHEN, None),
            limit=5,
            offset=5,
            newest_first=True,
            filter_actor_types=ActorType.AGENT,
            filter_run_ids=["r-1"],
        ),
        list[FieldChange],
    )
    assert_type(stream_resource_changes(Customer, session, limit=1), Generator[FieldChange, None, None])
    change = get_resource_changes(Customer)[0]
    assert_type(change.operation, Operation)
    assert_type(change.changed_by, str | None)
    assert_type(change.actor_type, ActorType | None)
    assert_type(change.run_id, str | None)
    assert_type(change.timestamp, datetime)
    assert_type(change.changeset_id, UUID)
    assert_type(change.version, int)


def pages(session: Session) -> None:
    page = changes_page(session, Customer, 7, filter_operations=["update"], filter_new_values="x", include="orders")
    assert_type(page, Page[FieldChange])
    assert_type(page.items, list[FieldChange])
    assert_type(page.next, str | None)
    assert_type(page.total, int | None)
    assert_type(changesets_page(session, model=Customer, key=7, extra={"a": 1}, size=5), Page[Changeset])
    changes_page(session, Customer, filter_colour="red")  # type: ignore[call-overload]  # there is no such filter


def states(session: Session) -> None:
    before = mark(session, "before")
    assert_type(before, Mark)
    assert_type(marks(session), list[Mark])
    assert_type(marks_table(Base.metadata), Table)
    assert_type(diff(session, Customer, 7, 2, before), RowDiff)
    assert_type(list(compare(session, [Customer], before, WHEN)), list[RowDiff])
    assert_type(compare_page(session, [Customer], before, WHEN, size=5, after="x"), Page[RowDiff])
    assert_type(session.scalars(as_of(Customer, before)).one(), Customer)
    changesets(session, since=before, until=WHEN)


def versions(session: Session) -> None:
    versions = versions_of(session, Customer, 42)
    assert_type(versions, list[Version[Customer]])
    assert_type(versions_of(session, Table("links", Customer.metadata), 42), list[Version[Any]])
    version = versions[0]
    assert_type(version.version, int)
    assert_type(version.timestamp, datetime)
    assert_type(version.valid_from, datetime)
    assert_type(version.valid_to, datetime)
    assert_type(version.operation, Operation)
    assert_type(version.audit_operation, Operation)
    assert_type(version.changeset_id, UUID)
    assert_type(version.changed_by, str | None)
    assert_type(version.reason, str | None)
    assert_type(version.actor_type, ActorType | None)
    assert_type(version.changes, list[FieldChange])
    assert_type(version.previous, Version[Customer] | None)
    assert_type(version.next, Version[Customer] | None)
    assert_type(version.name, Any)
    assert_type(blame(session, Customer, 42), dict[str, Blame])
    history = history_of(Customer)
    assert_type(history, type[Version[Customer]])
    late = select(history).where(history.operation == "update", history.valid_from > WHEN, history.name == "Ada")
    assert_type(session.scalars(late).one(), Version[Customer])


def any_version(version: Version) -> None:
    assert_type(version, Version[Any])


async def asynchronous(session: AsyncSession, engine: AsyncEngine) -> None:
    assert_type(await versions_of(session, Customer, 42), list[Version[Customer]])
    assert_type(await versions_of(session, Table("links", Customer.metadata), 42), list[Version[Any]])
    assert_type(await session.run_sync(blame, Customer, 42), dict[str, Blame])
    assert_type(await get_resource_changes(Customer, session, limit=1), list[FieldChange])
    assert_type(await changes_page(session=session, model_class=Customer, size=5), Page[FieldChange])
    assert_type([row async for row in compare(session, Customer, WHEN, WHEN)], list[RowDiff])
    assert_type(await compare_page(session, Customer, WHEN, WHEN), Page[RowDiff])
    assert_type([change async for change in stream_resource_changes(Customer, session)], list[FieldChange])
    assert_type(await backfill(engine, Customer, chunk_size=5), BackfillReport)
    diff(session, Customer)  # type: ignore[call-overload]  # there are no states


def the_past(session: Session) -> None:
    same = select(Customer)
    same = as_of(Customer, WHEN).where(Customer.id == 1)
    assert_type(session.scalars(same).one(), Customer)
    assert_type(session.scalars(as_of(Customer, WHEN, untracked="live", before_baseline="raise")).all()[0].name, str)


@AuditContextManager(reason="typing")
def context(number: int) -> str:
    set_audit_context(user_id=number, impersonated_by=UUID(int=1), extra={"a": 1})
    with AuditContextManager("ada", actor_type="agent", on_behalf_of=7, run_id=UUID(int=1)) as inner:
        assert_type(inner, AuditContext)
    assert_type(get_audit_context().user_id, str | None)
    return str(number)


def a_decorated_function_keeps_its_type() -> None:
    assert_type(context(1), str)


def configuration(maker: sessionmaker[Session]) -> None:
    set_config(SQLAuditConfig(maker, get_user_id_callback=lambda: 5))
    assert_type(get_config(), SQLAuditConfig)
    assert_type(has_config(), bool)
