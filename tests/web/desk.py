"""The tables of a small help desk with two tenants, what happened to them, and a visitor who looks at it."""

import html
import re
from collections import Counter, deque
from decimal import Decimal
from typing import Any
from urllib.parse import urljoin

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from starlette.testclient import TestClient

from sqlaudit import AuditContextManager, changesets, marks_table, track_table
from sqlaudit.maintenance import maintenance_tables

TERMS = "Invoices are paid within fourteen days after they have come, less two percent discount, whoever sent them."


class Base(DeclarativeBase):
    pass


ticket_tags = sa.Table(
    "ticket_tags",
    Base.metadata,
    sa.Column("ticket_id", sa.ForeignKey("tickets.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(200))
    salary: Mapped[int | None]


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(200))


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[int]
    title: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.String(200))
    price: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2))
    details: Mapped[Any | None] = mapped_column(sa.JSON)
    assignee_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))
    tags: Mapped[list[Tag]] = relationship(secondary=ticket_tags)
    comments: Mapped[list["Comment"]] = relationship()


@track_table()
class Comment(Base):
    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ticket_id: Mapped[int] = mapped_column(sa.ForeignKey("tickets.id"))
    text: Mapped[str] = mapped_column(sa.Text)


@track_table()
class Setting(Base):
    __tablename__ = "settings"
    scope: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50), primary_key=True)
    value: Mapped[str] = mapped_column(sa.String(50))


marks_table(Base.metadata)
maintenance_tables(Base.metadata)

SCOPE, NAME = "a/b, c", "x?&=#ü"
"""The key of a setting."""
SEEDED, RAISED, TAGGED, PAID, TOUCHED, CLEANED = range(6)
"""The transactions, in the order of time."""


def happen(sessions: sessionmaker[Session]) -> list[str]:
    """Let six transactions happen; return the ids of their changesets."""
    with sessions() as session:
        with AuditContextManager("seed", actor_type="system"):
            person, tag = Person(id=1, name="Ana", salary=4100), Tag(id=1, name="fire")
            session.add_all([person, tag, Setting(scope=SCOPE, name=NAME, value="on")])
            session.flush()
            ticket = Ticket(id=1, tenant=1, title="Printer on fire", status="new", price=Decimal(10), assignee_id=1)
            ticket.details = {"room": 7, "floor": "first", "keys": [1, 2, 3]}
            other = Ticket(id=2, tenant=2, title="Secret of others", status="new", price=Decimal(99))
            session.add_all([ticket, other])
            session.commit()
        with AuditContextManager("ben", reason="ticket 13"):
            ticket.price, ticket.status = Decimal(12), "open"
            session.commit()
        with AuditContextManager("bot", actor_type="agent", on_behalf_of="ana", run_id="r-7"):
            ticket.tags.append(tag)
            ticket.title = TERMS
            ticket.details = {"room": 8, "floor": "first", "keys": [1, 2, 3]}
            session.add(Comment(id=1, ticket_id=1, text="On it"))
            session.commit()
        with AuditContextManager("ana", impersonated_by="root"):
            person.salary = 4200
            ticket.title = TERMS.replace("fourteen", "thirty")
            session.commit()
        with AuditContextManager("ben", reason="all at once"):
            ticket.status, other.title = "closed", "Still a secret of others"
            session.commit()
        with AuditContextManager("ana", reason="cleaned"):
            session.delete(session.get_one(Comment, 1))
            session.commit()
        return [str(each.changeset_id) for each in changesets(session)]


# --- a visitor --------------------------------------------------------------------------------------------------


def visitor(app: Any, **options: Any) -> TestClient:
    """Return a client of this machine."""
    options = {"base_url": "http://127.0.0.1", "client": ("127.0.0.1", 50_000), **options}
    return TestClient(app, **options)


def words_of(text: str) -> str:
    """Return what a person reads on a page, in one line."""
    text = re.sub(r"<(script|style|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"</?(bdi|ins|del|b|a|span|time|summary)\b[^>]*>", "", text)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def links_of(text: str) -> list[str]:
    """Return the links of a page."""
    return [html.unescape(link) for link in re.findall(r'<a\b[^>]* href="([^"]*)"', text)]


def token_of(text: str) -> str:
    """Return the token of the form on a page."""
    return re.findall(r'name="sqlaudit_token" value="([^"]+)"', text)[0]


def plan_of(text: str) -> str:
    """Return the plan that the form on a page names."""
    return re.findall(r'name="plan" value="([^"]+)"', text)[0]


def crawled(
    client: TestClient, start: str = "http://127.0.0.1/", *, of_a_kind: int = 1, most: int = 100, without: str = "$^"
) -> dict[str, str]:
    """Return the pages to which links lead, by their URLs: some of each path with the same parameters.

    What other rows refer to, or what may be seen in part alone, cannot be undone or restored.

    :param without: a pattern of URLs that are left out
    """
    pages: dict[str, str] = {}
    counts = Counter[str]()
    waiting = deque([start])
    while waiting and len(pages) < most:
        url = waiting.popleft().partition("#")[0]
        kind = re.sub(r"=[^&]*|[0-9a-f-]{36}", "", url)
        if url in pages or counts[kind] >= of_a_kind or re.search(without, url):
            continue
        counts[kind] += 1
        response = client.get(url)
        may_conflict = url.partition("?")[0].endswith(("/undo", "/restore"))
        assert response.status_code in ((200, 403, 409) if may_conflict else (200,)), (url, words_of(response.text))
        if "Content-Disposition" in response.headers:  # a file
            continue
        pages[url] = response.text
        assert all("://" not in link and not link.startswith("//") for link in links_of(response.text))
        waiting.extend(urljoin(url, link) for link in links_of(response.text))
    return pages
