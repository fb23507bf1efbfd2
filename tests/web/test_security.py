"""Nobody sees or does more than the application allows, whatever a request, a row or another site says."""

import re
from typing import Any

import pytest
import sqlalchemy as sa
from desk import (
    PAID,
    RAISED,
    TAGGED,
    TOUCHED,
    Base,
    Comment,
    Person,
    Tag,
    Ticket,
    crawled,
    happen,
    plan_of,
    ticket_tags,
    token_of,
    visitor,
    words_of,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker
from starlette.exceptions import HTTPException
from starlette.requests import Request

from registering import recording
from sqlaudit import AuditContextManager, QueryError, TrackingError, changesets, track_table
from sqlaudit.maintenance import prune
from sqlaudit.web import Access, HistoryBrowser
from sqlaudit.web.views import undoing

__all__ = ["Base", "happen"]

ROW = "/tables/tickets/row?key=1"
OTHER_ROW = "/tables/tickets/row?key=2"


# --- this machine alone -----------------------------------------------------------------------------------------


@pytest.fixture
def browser(sessions: sessionmaker[Session], happened: list[str]) -> HistoryBrowser:
    return HistoryBrowser(sessions, Base)


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {"Host": "[::1]:8400"}, 200),
        ("127.0.0.1", {"Host": "localhost:8400"}, 200),
        ("10.0.0.5", {}, 403),
        ("10.0.0.5", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.5"}, 403),
        ("127.0.0.1", {"Via": "1.1 gate"}, 403),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, 403),
        ("::ffff:127.0.0.1", {}, 200),
        ("::ffff:10.0.0.5", {}, 403),
        ("127.0.0.1", {"Host": "evil.example"}, 421),
        ("127.0.0.1", {"Host": "127.0.0.1.evil.example"}, 421),
        ("127.0.0.1", {"Host": "[evil"}, 421),
        ("testclient", {}, 403),
    ],
)
@pytest.mark.spread
def test_without_authorize_only_this_machine_is_answered(
    browser: HistoryBrowser, client: str, headers: dict[str, str], status: int
) -> None:
    response = visitor(browser, client=(client, 50_000)).get(ROW, headers=headers)
    assert response.status_code == status
    assert ("authorize" in words_of(response.text)) == (status != 200)
    assert ("Printer" in response.text) == (status == 200)


@pytest.mark.spread
def test_a_request_for_two_hosts_is_refused(browser: HistoryBrowser) -> None:
    client = visitor(browser)
    headers = [("Host", "evil.example"), ("Host", "127.0.0.1")]
    assert client.send(client.build_request("GET", f"http://127.0.0.1{ROW}", headers=headers)).status_code == 421


@pytest.mark.spread
def test_with_authorize_others_are_answered(sessions: sessionmaker[Session], happened: list[str]) -> None:
    browser = HistoryBrowser(sessions, Base, authorize=lambda request, action, model, key: True)
    client = visitor(browser, base_url="https://history.example", client=("10.0.0.5", 50_000))
    assert client.get(ROW).status_code == 200


# --- what a browser may do --------------------------------------------------------------------------------------


@pytest.mark.spread
def test_every_response_forbids_what_no_page_needs(browser: HistoryBrowser) -> None:
    client = visitor(browser)
    for url in ("/", ROW, "/nothing", "/static/history.css", "/static/nothing.css"):
        headers = client.get(url).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == ("no-cache" if url == "/static/history.css" else "no-store")


@pytest.mark.spread
def test_no_link_is_broken_or_changes_something_and_no_page_has_script_or_style_of_its_own(
    browser: HistoryBrowser, engine: sa.Engine
) -> None:
    written = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if re.match(r"\s*(INSERT|UPDATE|DELETE|CREATE|DROP)", statement):
            written.append(statement)

    sa.event.listen(engine, "before_cursor_execute", listen)
    pages = crawled(visitor(browser))
    sa.event.remove(engine, "before_cursor_execute", listen)
    assert written == []
    assert len(pages) > 30
    for url, page in pages.items():
        assert re.findall(r"<script(?! src=)|<style|\bstyle=|\bon\w+=|javascript:", page) == [], url


@pytest.mark.spread
def test_a_form_is_refused_without_its_token_or_from_another_site(
    browser: HistoryBrowser, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    url, client = f"/changesets/{happened[PAID]}/undo", visitor(browser)
    response = client.get(url)
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    form = {"sqlaudit_token": token_of(response.text), "plan": plan_of(response.text)}
    statuses = [
        client.post(url, data={**form, "sqlaudit_token": "x" * 43}).status_code,
        client.post(url, data={"plan": form["plan"]}).status_code,
        client.post(url, data=form, headers={"Origin": "https://evil.example"}).status_code,
        client.post(url, data=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code,
        client.post(url, json=form).status_code,
        client.post(url, data={**form, "reason": "x" * 200_000}).status_code,
        visitor(browser).post(url, data=form).status_code,
    ]
    assert statuses == [403, 403, 403, 403, 415, 413, 403]
    with sessions() as session:
        assert session.get_one(Person, 1).salary == 4200
    assert client.post(url, data=form, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("&".join(f"user=u{number}" for number in range(5_000)), 414),
        ("&".join("a=" for _ in range(201)), 414),
        (f"x={'y' * 8_000}", 414),
        ("user=%00", 400),
        ("field=%00&at=%00", 400),
        ("user=%ED%A0%80", 200),
    ],
)
@pytest.mark.spread
def test_a_query_that_no_page_links_to_is_refused(browser: HistoryBrowser, query: str, status: int) -> None:
    assert visitor(browser).get(f"{ROW}&{query}").status_code == status


@pytest.mark.spread
def test_a_page_shows_the_beginning_of_large_values(browser: HistoryBrowser, sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        ticket = session.get_one(Ticket, 1)
        for number in range(3):
            ticket.title = f"\u202e{'x' * 50_000}{number}\u202e"
            ticket.details = {"lines": ["y" * 50] * 2_000, "number": number}
            session.commit()
    for url in (ROW, "/tables/tickets", "/tables/tickets/blame?key=1"):
        assert len(visitor(browser).get(url).text) < 200_000


def test_a_visitor_restores_what_is_not_hidden(sessions: sessionmaker[Session], happened: list[str]) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=of_tenant))
    with sessions.begin() as session:
        session.get_one(Person, 1).name = "Eva"
    url = f"/tables/people/restore?key=1&at={happened[RAISED]}"
    for chosen in ("", "&field=name"):
        page = client.get(url + chosen).text
        assert "name Eva → Ana" in words_of(page)
        assert "salary" not in page
    assert client.get(f"{url}&field=salary").status_code == 403
    assert client.post(url, data={"sqlaudit_token": token_of(page), "plan": plan_of(page)}).status_code == 200
    with sessions() as session:
        assert (session.get_one(Person, 1).name, session.get_one(Person, 1).salary) == ("Ana", 4200)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}{0}%s\u202e\x1b[31m\r\n&lt;b&gt;"


@pytest.mark.spread
def test_hostile_values_are_shown_as_text_wherever_they_are(sessions: sessionmaker[Session]) -> None:
    extra = {"actor_type": "agent", "on_behalf_of": HOSTILE, "run_id": HOSTILE * 5, HOSTILE: {HOSTILE: HOSTILE}}
    with sessions() as session:
        for text in (HOSTILE, f"{HOSTILE} again"):
            with AuditContextManager(HOSTILE, reason=HOSTILE * 5, impersonated_by=HOSTILE, extra=extra):
                ticket = Ticket(id=1, tenant=1, title=text, status=text, price=1, details={text: [text]})
                session.merge(Person(id=1, name=text))
                session.merge(Tag(id=1, name=text))
                session.merge(ticket)
                session.flush()
                session.merge(Comment(id=1, ticket_id=1, text=text))
                session.commit()
    pages = crawled(visitor(HistoryBrowser(sessions, Base, title=HOSTILE)))
    assert sum("&lt;script&gt;" in page for page in pages.values()) == len(pages)
    for page in pages.values():
        assert "<script>" not in page
        assert "<img" not in page
        assert re.search(r"<(p|a|h\d)\b[^>]*>(?:(?!</\1>).)*<details", page, re.DOTALL) is None
        page = re.sub(r'\bvalue="[^"]*"', "", page)  # a field has what was asked for
        assert "\u202e" not in page
        assert "\x1b" not in page
        assert "49{0}" not in page


@pytest.mark.spread
def test_hostile_names_are_shown_as_text_and_lead_to_their_tables(engine: sa.Engine, base: type[Any]) -> None:
    name = "a\"b<i>\u202e{x}&'"

    @track_table(table_label=HOSTILE)
    class Hostile(base):  # type: ignore[misc]
        __tablename__ = name
        id: Mapped[int] = mapped_column("i d<", primary_key=True, autoincrement=False)
        value: Mapped[str] = mapped_column(f"{name} 2", sa.String(20))

    @track_table()
    class Slashed(base):  # type: ignore[misc]
        __tablename__ = "a/row/of"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Hostile(id=1, value="x"), Slashed(id=1)])
        pages = crawled(visitor(HistoryBrowser(sessions, base)))
    assert any("a~2Frow~2Fof/blame" in url for url in pages)
    for page in pages.values():
        assert "<i>" not in page
        assert "<script>" not in page
        assert "\u202e" not in page


# --- tenants ----------------------------------------------------------------------------------------------------


def of_tenant(request: Request, action: str, model: Any, key: Any) -> Any:
    """Allow the rows of tenant 1, without salaries."""
    return {Ticket: Ticket.tenant == 1, Person: {"salary"}}.get(model, True)


async def of_tenant_later(request: Request, action: str, model: Any, key: Any) -> Any:
    return of_tenant(request, action, model, key)


@pytest.mark.parametrize("authorize", [of_tenant, of_tenant_later])
def test_a_tenant_sees_no_row_of_another_on_any_page(
    sessions: sessionmaker[Session], happened: list[str], authorize: Any
) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize))
    assert client.get(OTHER_ROW).status_code == 404
    assert client.get(f"{OTHER_ROW}&at={happened[TOUCHED]}").status_code == 404
    for url in ("/tables/tickets", "/changesets", f"/changesets/{happened[TOUCHED]}"):
        page = client.get(url).text
        assert "ben" in page
        assert "ecret of others" not in page
        assert "Ticket 2" not in page
    for url in (
        "/tables/tickets/diff?key=2",
        "/tables/tickets/blame?key=2",
        "/tables/tickets/restore?key=2&at=2025-01-01",
    ):
        assert client.get(url).status_code in (404, 409)


def test_masked_values_are_on_no_page(sessions: sessionmaker[Session], happened: list[str]) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=of_tenant))
    row = "/tables/people/row?key=1"
    for url in (row, f"{row}&at=2024-01-01", "/tables/people/blame?key=1", "/tables/people/diff?key=1&a=1&b=2&all=1"):
        text = words_of(client.get(url).text)
        assert "salary hidden" in text
        assert "4100" not in text
        assert "4200" not in text
    assert "Ana" in words_of(client.get(row).text)
    assert "4200" not in client.get(f"/changesets/{happened[PAID]}").text
    assert "4200" not in client.get("/tables/people").text
    assert "ana" not in words_of(client.get("/search?q=field:salary to:4200").text).partition("until:. ")[2]


def test_a_tenant_undoes_what_concerns_the_own_visible_values_alone(
    sessions: sessionmaker[Session], happened: list[str]
) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=of_tenant))
    for number in (PAID, TOUCHED):  # a salary; a ticket of another tenant
        refused = client.get(f"/changesets/{happened[number]}/undo")
        assert refused.status_code == 403
        assert "cannot be undone as a whole" in words_of(refused.text)
        token = token_of(client.get(f"/changesets/{happened[RAISED]}/undo").text)
        form = {"sqlaudit_token": token, "plan": "", "force": "1"}
        headers = {"Cookie": f"sqlaudit_token={token}"}
        assert client.post(f"/changesets/{happened[number]}/undo", data=form, headers=headers).status_code == 403
    url = f"/changesets/{happened[RAISED]}/undo"
    page = client.get(url).text
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page), "force": "1"}
    assert client.post(url, data=form).status_code == 200
    with sessions() as session:
        assert session.get_one(Ticket, 1).price == 10
        assert session.get_one(Person, 1).salary == 4200


def test_a_tenant_undoes_a_run_that_wrote_the_own_visible_values_alone(
    sessions: sessionmaker[Session], happened: list[str]
) -> None:
    with sessions() as session:
        for run_id, change in {
            "own": lambda: setattr(session.get_one(Ticket, 1), "price", 100),
            "shared": lambda: setattr(session.get_one(Ticket, 1), "status", "lost"),
            "hidden": lambda: setattr(session.get_one(Person, 1), "salary", 1),
            "foreign": lambda: None,
        }.items():
            with AuditContextManager("bot", run_id=run_id):
                change()
                session.commit()
                if run_id in ("shared", "foreign"):
                    session.get_one(Ticket, 2).title = f"Secret of run {run_id}"
                    session.commit()
    client = visitor(HistoryBrowser(sessions, Base, authorize=of_tenant))
    assert client.get("/run?id=shared").text.count('<li class="story') == 1
    assert "salary" not in client.get("/run?id=hidden").text
    page = client.get("/run/undo?id=own").text
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page)}
    for run_id in ("shared", "hidden"):
        url = f"/run/undo?id={run_id}"
        assert client.get(url).status_code == client.post(url, data=form).status_code == 403
    for url in ("/run?id={}", "/run/undo?id={}"):
        foreign, unknown = (client.get(url.format(run_id)) for run_id in ("foreign", "unknown"))
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.text.replace("foreign", "unknown") == unknown.text
    assert visitor(HistoryBrowser(sessions, Base)).post("/run/undo?id=own", data=form).status_code == 403
    assert client.post("/run/undo?id=own", data=form).status_code == 200
    with sessions() as session:
        ticket = session.get_one(Ticket, 1)
        assert (ticket.price, ticket.status, session.get_one(Person, 1).salary) == (12, "lost", 1)


def test_a_refused_undo_does_not_tell_why_to_those_who_see_a_part(
    sessions: sessionmaker[Session], engine: sa.Engine, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def authorize(request: Request, action: str, model: Any, key: Any) -> Any:
        return {Ticket: Ticket.tenant == 1, Comment: False, Person: {"salary"}}.get(model, True)

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize))

    def refusal(changeset_id: str) -> str:
        response = client.get(f"/changesets/{changeset_id}/undo")
        assert response.status_code == 403, words_of(response.text)
        return response.text.replace(changeset_id, "")

    told = refusal(happened[TOUCHED])  # a row of another tenant
    assert refusal(happened[PAID]) == told  # a hidden value
    assert refusal(happened[TAGGED]) == told  # a table that the tenant may not see
    monkeypatch.setattr(undoing, "_MOST", 1)
    assert refusal(happened[TOUCHED]) == told  # too large, with what the tenant may not see
    monkeypatch.undo()
    with sessions() as session:
        comments = [Comment(id=number, ticket_id=1, text="?") for number in (8, 9)]
        session.add_all(comments)
        session.get_one(Ticket, 1).price = 100
        session.commit()
        [*_, entry] = changesets(session)
        comments[0].text = "!"
        session.commit()
    prune(engine, Comment, keep_last=1)
    assert refusal(str(entry.changeset_id)) == told  # a table that was pruned
    everybody = visitor(HistoryBrowser(sessions, Base))
    assert everybody.get(f"/changesets/{entry.changeset_id}/undo").status_code == 410
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM tickets_history WHERE id = 1 AND audit_version = 1")
    assert refusal(happened[RAISED]) == told  # an own row whose earlier state is no longer known


@pytest.mark.spread
def test_what_is_allowed_depends_on_the_action_and_the_key(
    sessions: sessionmaker[Session], happened: list[str]
) -> None:
    asked = []

    def authorize(request: Request, action: str, model: Any, key: Any) -> Any:
        asked.append((action, model, key))
        if model is Ticket and key is not None:
            return key == 1
        return model is not Ticket and action != "undo"

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize))
    assert client.get(ROW).status_code == 200
    assert ("view", Ticket, 1) in asked
    assert "Printer" in client.get(ROW).text
    assert "Ticket 2" not in client.get(ROW).text
    assert client.get(OTHER_ROW).status_code == 403
    assert client.get("/tables/tickets").status_code == 403
    assert "tickets" not in client.get("/").text
    assert client.get(f"/changesets/{happened[RAISED]}").status_code == 404
    assert client.get(f"/changesets/{happened[RAISED]}/undo").status_code == 403
    assert client.get(f"/changesets/{happened[TAGGED]}").status_code == 200
    assert "thirty" not in client.get(f"/changesets/{happened[TAGGED]}").text


@pytest.mark.spread
def test_an_application_may_ask_to_log_in_first(sessions: sessionmaker[Session], happened: list[str]) -> None:
    def authorize(request: Request, action: str, model: Any, key: Any) -> Any:
        if "X-User" not in request.headers:
            raise HTTPException(303, headers={"Location": "/login"})
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize), follow_redirects=False)
    asked = client.get(ROW)
    assert (asked.status_code, asked.headers["location"]) == (303, "/login")
    refused = client.get(ROW, headers={"X-User": "x"})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
    assert "Printer" not in asked.text + refused.text


@pytest.mark.spread
def test_who_undoes_has_to_be_allowed_to_view(sessions: sessionmaker[Session], happened: list[str]) -> None:
    def authorize(request: Request, action: str, model: Any, key: Any) -> Any:
        return True if action in ("undo", "restore") else of_tenant(request, action, model, key)

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize))
    assert client.get(f"/changesets/{happened[TOUCHED]}/undo").status_code == 403
    assert client.get(f"/tables/tickets/restore?key=2&at={happened[RAISED]}").status_code == 404


@pytest.mark.spread
def test_a_criterion_of_another_model_shows_nothing(sessions: sessionmaker[Session], happened: list[str]) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=lambda *_: Ticket.tenant == 1))
    assert client.get("/tables/people").status_code == 500


@pytest.mark.spread
def test_a_criterion_and_a_mask_are_given_together(sessions: sessionmaker[Session], happened: list[str]) -> None:
    def authorize(request: Request, action: str, model: Any, key: Any) -> Any:
        if model is Ticket:
            return Access(Ticket.tenant == 2, masked=["price"])
        return model is not ticket_tags

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize))
    text = words_of(client.get(OTHER_ROW).text)
    assert "title Still a secret of others" in text
    assert "price hidden" in text
    assert client.get(ROW).status_code == 404


@pytest.mark.parametrize(
    "answer", [None, "salary", 7, {"colour"}, {"id"}, {"tenant": 1}, Access("salary"), Access(None)]
)
@pytest.mark.spread
def test_an_answer_that_says_nothing_shows_nothing(
    sessions: sessionmaker[Session], happened: list[str], answer: Any
) -> None:
    client = visitor(HistoryBrowser(sessions, Base, authorize=lambda *_: answer))
    response = client.get(ROW)
    assert response.status_code == 500
    assert "Printer" not in response.text


@pytest.mark.spread
def test_models_that_were_not_given_are_not_shown(sessions: sessionmaker[Session], happened: list[str]) -> None:
    client = visitor(HistoryBrowser(sessions, [Ticket, ticket_tags]))
    assert client.get("/tables/people").status_code == 404
    assert "Person" not in client.get(f"/changesets/{happened[PAID]}").text
    assert client.get(f"/changesets/{happened[PAID]}/undo").status_code == 403


@pytest.mark.spread
def test_of_a_hierarchy_the_given_subclasses_alone_are_shown(engine: sa.Engine, base: type[Any]) -> None:
    @track_table()
    class Worker(base):  # type: ignore[misc]
        __tablename__ = "workers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "worker"}

    class Boss(Worker):
        __mapper_args__ = {"polymorphic_identity": "boss"}

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Worker(id=1, name="Ada"), Boss(id=2, name="Bob")])
        client = visitor(HistoryBrowser(sessions, [Boss], authorize=lambda *_: True))
        assert client.get("/tables/workers/row?key=1").status_code == 404
        pages = {**crawled(client, without="undo"), "search": client.get("/search?q=op:insert").text}
    assert all("Ada" not in page and "Worker 1" not in page for page in pages.values())
    assert "Bob" in pages["search"]


@pytest.mark.spread
def test_what_the_application_lacks_is_told_on_this_machine_alone(engine: sa.Engine, happened: list[str]) -> None:
    for authorize, told in ((None, "register_hooks"), (lambda *_: True, "the log of the application")):
        client = visitor(HistoryBrowser(sessionmaker(engine), Base, authorize=authorize))
        response = client.get(f"/changesets/{happened[TOUCHED]}/undo")
        assert response.status_code == 500
        assert told in words_of(response.text)


@pytest.mark.spread
def test_who_looked_is_told(sessions: sessionmaker[Session], happened: list[str]) -> None:
    looked = []
    browser = HistoryBrowser(sessions, Base, on_view=lambda request, *what: looked.append(what))
    client = visitor(browser)
    for url in (ROW, "/tables/tickets/row?key=99", "/"):
        client.get(url)
    assert looked == [("view", Ticket, 1), ("list", None, None)]


def test_arguments_are_checked(base: type[Any]) -> None:
    engine = sa.create_engine("sqlite://")
    for sessions, options, told in (
        ("sqlite://", {}, "Give an Engine"),
        (sessionmaker(engine), {"authorize": True}, "authorize is True"),
        (sessionmaker(engine), {"page_size": 0}, "size is 0"),
        (sessionmaker(engine), {"texts": {"titel": "Verlauf"}}, "'titel'"),
    ):
        with pytest.raises(QueryError, match=told):
            HistoryBrowser(sessions, Base, **options)
    with pytest.raises(TrackingError, match="no tracked model"):
        _ = HistoryBrowser(sessionmaker(engine), base).sources.by_name
