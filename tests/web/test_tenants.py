"""Each page of a tenant is the page of a database that has the rows of this tenant alone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from desk import crawled, visitor
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from starlette.testclient import TestClient

from clock import at
from registering import recording
from sqlaudit import AuditContextManager, SQLAuditConfig, changesets, set_config, track_table
from sqlaudit.web import Access, HistoryBrowser


class Base(DeclarativeBase):
    pass


jobs_labels = sa.Table(
    "jobs_labels",
    Base.metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("label_id", sa.ForeignKey("labels.id"), primary_key=True),
)


@track_table()
class Label(Base):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[int]
    name: Mapped[str] = mapped_column(sa.String(50))


@track_table()
class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[int]
    kind: Mapped[str] = mapped_column(sa.String(20))
    name: Mapped[str] = mapped_column(sa.String(50))
    salary: Mapped[int | None]
    labels: Mapped[list[Label]] = relationship(secondary=jobs_labels)
    notes: Mapped[list["Note"]] = relationship(back_populates="job")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "job"}


class Repair(Job):
    __tablename__ = "repairs"
    id: Mapped[int] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    machine: Mapped[str] = mapped_column(sa.String(50))
    __mapper_args__ = {"polymorphic_identity": "repair"}


@track_table()
class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[int] = mapped_column(sa.ForeignKey("jobs.id"))
    text: Mapped[str] = mapped_column(sa.String(50))
    job: Mapped[Job] = relationship(back_populates="notes")


def work(sessions: sessionmaker[Session], tenants: set[int], *, salary: int = 100) -> list[str]:
    """Let two tenants work, or one of them as if the other had never been.

    :param salary: what no visitor may see
    """
    with sessions() as session:

        @contextmanager
        def acting(tenant: int, second: int, reason: str) -> Iterator[None]:
            set_config(SQLAuditConfig(clock=lambda: at(second)))
            extra = {"of": tenant}
            with AuditContextManager(f"user of {tenant}", reason=reason, extra=extra, run_id=f"run of {tenant}"):
                yield

        jobs: dict[int, Repair] = {}
        for tenant in sorted(tenants):
            with acting(tenant, 100 * tenant, f"reason of {tenant}"):
                job = jobs[tenant] = Repair(id=tenant, tenant=tenant, name=f"job of {tenant}", salary=salary)
                job.machine, job.labels = "m", [Label(id=tenant, tenant=tenant, name=f"label of {tenant}")]
                job.notes = [Note(id=tenant, text=f"note of {tenant}")]
                session.add_all([job, Job(id=10 + tenant, tenant=tenant, name=f"other job of {tenant}")])
                session.commit()
        for tenant, job in jobs.items():  # in one transaction, under two contexts
            with acting(tenant, 300, "at once"):
                job.name, job.machine = f"done by {tenant}", f"machine of {tenant}"
                session.flush()
        session.commit()
        for tenant, job in jobs.items():
            with acting(tenant, 300 + 100 * tenant, f"own of {tenant}"):
                job.salary, job.labels, job.notes[0].text = salary + 1, [], f"changed by {tenant}"
                session.commit()
            with acting(tenant, 500 + 100 * tenant, f"end of {tenant}"):
                session.delete(job.notes[0])
                session.delete(session.get_one(Job, 10 + tenant))
                session.commit()
        set_config(SQLAuditConfig(clock=lambda: at(1000)))
        own = {entry.changeset_id for entry in changesets(session) if entry.run_id == "run of 1"}
        return [str(entry.changeset_id) for entry in changesets(session) if entry.changeset_id not in own]


def of_tenant_1(request: Any, action: str, model: Any, key: Any) -> Any:
    jobs = sa.select(Job.id).where(Job.tenant == 1)
    return {
        Job: Access(Job.tenant == 1, masked=["salary"]),
        Label: Label.tenant == 1,
        Note: Note.job_id.in_(jobs),
        jobs_labels: jobs_labels.c.job_id.in_(jobs),
    }[model]


def plain(page: str) -> str:
    """Return a page without what is random in it."""
    page = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}", "CHANGESET", page)
    page = re.sub(r'(name="plan" value|name="sqlaudit_token" value)="[^"]*"', r"\1", page)
    return re.sub(r"\bafter=[\w-]+", "after=", page)


OTHERS = [
    "tables/jobs/row?key=1&at=2024-01-01T00:06:00Z",
    "tables/jobs/row?key=1&field=salary",
    "tables/jobs/row?key=1&user=user of 2",
    "tables/jobs/row?key=2",
    "tables/jobs/row?key=12",
    "tables/jobs/blame?key=2",
    "tables/jobs/diff?key=2",
    "tables/jobs/diff?key=1&a=1&b=3&all=1",
    "tables/jobs/diff/json?key=2",
    "tables/jobs/diff/json?key=1&a=1&b=3",
    "tables/jobs/diff/sql?key=1&a=1&b=3&file=1",
    "tables/jobs/restore?key=2&at=2024-01-01T00:05:00Z",
    "tables/jobs/restore?key=1&at=2024-01-01T00:02:00Z&field=name",
    "tables/jobs/restore?key=1&at=2024-01-01T00:02:00Z",
    "tables/notes/row?key=2",
    "tables/labels/row?key=2",
    "tables/jobs_labels/row?key=2&key=2",
    "tables/jobs/compare?a=2024-01-01T00:00:00Z",
    "tables/notes/compare?a=2024-01-01T00:00:00Z&b=2024-01-01T00:08:00Z",
    "tables/jobs_labels/compare?a=2024-01-01T00:00:00Z",
    "tables/jobs/check",
    "activity?at=2024-01-01T00:16:00Z",
    "run?id=run of 1",
    "run?id=run of 2",
    "run/undo?id=run of 2",
    "changesets?reason=end of 2",
    "changesets?user=user of 2",
    "search?q=op:delete",
    "search?q=field:salary",
    'search?q=who:"user of 2"',
    "search?q=to:101",
    "search?q=from:7",
    'search?q=from:"job of 2"',
    "search?q=table:notes reason:at",
]


def seen(sessions: sessionmaker[Session]) -> tuple[TestClient, dict[str, str]]:
    client = visitor(HistoryBrowser(sessions, Base, authorize=of_tenant_1, page_size=5))
    pages = crawled(client, without="/undo|/restore")
    for other in OTHERS:
        response = client.get(other)
        pages[other] = f"{response.status_code} {response.text}"
    return client, {plain(url): plain(page) for url, page in pages.items()}


@pytest.mark.spread
def test_a_tenant_cannot_tell_whether_there_is_another(sessions: sessionmaker[Session]) -> None:
    of_others = work(sessions, {1, 2})
    client, pages = seen(sessions)
    twin = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False})
    with recording(twin, Base.metadata) as alone:
        work(alone, {1}, salary=7)
        _, expected = seen(alone)
    twin.dispose()
    assert sorted(pages) == sorted(expected)
    assert "machine of 1" in pages["tables/jobs/restore?key=1&at=2024-01-01T00:02:00Z"]
    for url, page in pages.items():
        assert page == expected[url], url
    unknown = "00000000-0000-7000-8000-000000000000"
    for other in of_others:
        for url in ("changesets/{}", "changesets/{}/undo", "?at={}", "activity?at={}", "tables/jobs/row?key=1&at={}"):
            answers = [client.get(url.format(given)) for given in (other, unknown)]
            assert answers[0].status_code == answers[1].status_code == 404
            assert answers[0].text.replace(other, unknown) == answers[1].text
