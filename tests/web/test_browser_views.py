"""A visitor sees what happened, what was then, and takes it back, on each database."""

import asyncio
import html
import re
from inspect import isawaitable
from typing import Any
from urllib.parse import urlencode, urljoin

import httpx2
import pytest
import sqlalchemy as sa
from desk import (
    CLEANED,
    NAME,
    PAID,
    RAISED,
    SCOPE,
    TAGGED,
    TERMS,
    TOUCHED,
    Base,
    Comment,
    Person,
    Setting,
    Tag,
    Ticket,
    happen,
    links_of,
    plan_of,
    token_of,
    visitor,
    words_of,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import await_only
from starlette.testclient import TestClient

from clock import at
from counting import counted
from registering import recording
from sqlaudit import AuditContextManager, mark, register_hooks, undo, unregister_hooks, versions_of
from sqlaudit.maintenance import erase, prune
from sqlaudit.retrieval.changesets import known_tables
from sqlaudit.web import HistoryBrowser
from sqlaudit.web.limits import limited, was_stopped
from sqlaudit.web.problems import Problem
from sqlaudit.web.views import undoing

__all__ = ["Base", "happen"]

ROW = "/tables/tickets/row?key=1"


@pytest.fixture
def client(sessions: sessionmaker[Session], happened: list[str]) -> TestClient:
    return visitor(HistoryBrowser(sessions, Base, get_context=lambda request: {"user_id": "visitor"}))


def read(client: TestClient, url: str, status: int = 200) -> str:
    response = client.get(url)
    assert response.status_code == status, words_of(response.text)
    return words_of(response.text)


def seconds(number: int) -> str:
    """Return the instant of a transaction as a page has it."""
    return f"2024-01-01 00:00:{number:02} UTC"


# --- rows -------------------------------------------------------------------------------------------------------


def test_the_first_page_has_the_tables(client: TestClient) -> None:
    text = read(client, "/")
    assert [name for name in ("Comment", "Person", "Setting", "Tag", "Ticket", "ticket_tags") if name not in text] == []
    assert "Person" not in read(client, "/?q=tick")


def test_a_row_tells_its_history_in_sentences(client: TestClient) -> None:
    text = read(client, ROW)
    assert "ben changed price 10.00 → 12.00, status new → open" in text
    assert "ticket 13" in text
    assert "bot agent on behalf of ana added Tag 1 to tags" in text
    assert "created Comment 1" in text
    assert "ana (really root) changed title" in text
    assert "seed system created this row" in text
    assert text.index("deleted Comment 1") < text.index("ben changed price")
    assert "The history begins here." in text
    assert seconds(TAGGED) in text


def test_filters_choose_what_the_history_of_a_row_tells(client: TestClient) -> None:
    text = read(client, f"{ROW}&field=price")
    assert "price 10.00 → 12.00" in text
    assert "new → open" not in text.partition("History Only")[2]
    assert "all at once" in read(client, f"{ROW}&user=ben")
    assert "added Tag 1 to tags" not in read(client, f"{ROW}&user=ben")


def test_a_change_leads_to_what_else_its_user_did_and_to_its_diff(client: TestClient) -> None:
    links = links_of(client.get(ROW).text)
    [by] = [link for link in links if link.endswith("&user=bot")][:1]
    assert "all at once" not in read(client, f"/tables/tickets/{by}")
    elsewhere = links_of(client.get("/tables/tickets").text)
    assert "../search?q=who%3Aben" in elsewhere
    [diff] = [link for link in links if "diff?" in link and "a=2&b=3" in link]
    assert "details" in read(client, f"/tables/tickets/{diff}")


def test_json_is_shortened_around_the_difference(client: TestClient) -> None:
    assert 'details {"room": 78, "floor": "first"' in read(client, ROW)


def test_a_long_history_has_pages(client: TestClient, sessions: sessionmaker[Session], happened: list[str]) -> None:
    small, found, url = visitor(HistoryBrowser(sessions, Base, page_size=2)), 0, ROW
    pages = 0
    while url:
        page = small.get(url).text
        found, pages = found + page.count('<li class="story'), pages + 1
        following = re.findall(r'href="([^"]+)" rel="next"', page)
        url = f"/tables/tickets/{html.unescape(following[0])}" if following else ""
    assert pages > 2
    assert found == client.get(ROW).text.count('<li class="story')


@pytest.mark.spread
def test_a_page_shows_a_part_of_a_large_transaction(sessions: sessionmaker[Session], happened: list[str]) -> None:
    with sessions.begin() as session:
        session.add_all([Comment(id=number, ticket_id=1, text="x") for number in range(100, 500)])
    client = visitor(HistoryBrowser(sessions, Base))
    for url in ("/tables/comments", ROW):
        page = client.get(url).text
        assert "only a part of it is shown" in words_of(page)
        assert len(page) < 200_000
        [following] = re.findall(r'href="([^"]+)" rel="next"', page)
        assert "created Comment 1" in words_of(client.get(urljoin(url, html.unescape(following))).text)
    assert "only a part" not in read(client, "/tables/people")
    [url] = {
        urljoin("/tables/", link) for link in links_of(client.get("/tables/comments").text) if "changesets/" in link
    }
    told = 0
    while url:
        page = client.get(url).text
        told += words_of(page).count("created Comment")
        following = re.findall(r'href="([^"]+)" rel="next"', page)
        assert page.count("<dt>") == 500 or not following
        url = urljoin(url, html.unescape(following[0])) if following else ""
    assert 400 <= told <= 402  # a row may begin on one page and end on the next


@pytest.mark.spread
def test_a_page_before_the_marks_of_the_bar_leads_to_the_changes_beside_it(
    client: TestClient, sessions: sessionmaker[Session]
) -> None:
    for number in range(62):
        with sessions.begin() as session:
            session.get_one(Person, 1).salary = number
    with sessions() as session:
        begins = [each.valid_from.isoformat().replace("+00:00", "Z") for each in versions_of(session, Person, 1)]
    page = client.get(f"/tables/people/row?key=1&at={begins[2]}").text
    for name, instant in (("prev", begins[1]), ("next", begins[3])):
        [link] = re.findall(f'rel="{name}" href="([^"]+at=[^"]+)"', page)
        assert html.unescape(link) == f"row?{urlencode({'key': 1, 'at': instant})}"
    assert 'rel="prev"' not in client.get(f"/tables/people/row?key=1&at={begins[0]}").text


def test_a_row_is_shown_as_of_an_instant_with_what_belonged_to_it(client: TestClient) -> None:
    now, then = read(client, ROW), read(client, f"{ROW}&at={at(TAGGED).isoformat().replace('+00:00', 'Z')}")
    assert "status closed" in now.partition("What belongs")[0]
    assert "comments nothing" in now
    assert f"You see the state of {seconds(TAGGED)}" in then
    assert "status open" in then.partition("What belongs")[0]
    assert "comments Comment 1" in then
    assert "tags Tag 1" in then
    assert "all at once" not in then
    assert "The row did not exist then." in read(client, f"{ROW}&at=2023-12-31")


def test_an_instant_may_be_a_changeset_or_have_a_time_zone(client: TestClient, happened: list[str]) -> None:
    assert f"You see the state of {seconds(RAISED)}" in read(client, f"{ROW}&at={happened[RAISED]}")
    local = urlencode({"at": "2024-01-01 01:00:02", "zone": "Europe/Berlin"})
    assert f"You see the state of {seconds(TAGGED)}" in read(client, f"{ROW}&{local}")


def test_a_deleted_row_tells_who_deleted_it_and_leads_to_what_it_was(client: TestClient) -> None:
    page = client.get("/tables/comments/row?key=1")
    assert f"This row was deleted {seconds(CLEANED)} by ana." in words_of(page.text)
    [before] = [link for link in links_of(page.text) if "at=2024-01-01T00%3A00%3A04.999999Z" in link][:1]
    assert "text On it" in read(client, f"/tables/comments/{before}")
    [restore] = [link for link in links_of(page.text) if "/restore?" in link]
    assert "Comment 1 comes back" in read(client, urljoin("/tables/comments/row", restore))


def test_a_composite_key_may_have_any_characters(client: TestClient) -> None:
    query = urlencode({"key": [SCOPE, NAME]}, doseq=True)
    text = read(client, f"/tables/settings/row?{query}")
    assert f"Setting {SCOPE}, {NAME}" in text
    page = client.get("/tables/settings").text
    [link] = [link for link in links_of(page) if "row?" in link][:1]
    assert f"Setting {SCOPE}, {NAME}" in read(client, f"/tables/{link}")


def test_a_link_has_a_history_of_its_own(client: TestClient) -> None:
    assert "created" in read(client, "/tables/ticket_tags/row?key=1&key=1")


# --- blame and diff ---------------------------------------------------------------------------------------------


def test_blame_names_who_set_each_field(client: TestClient) -> None:
    text = read(client, "/tables/tickets/blame?key=1")
    assert f"price 12.00 ben ticket 13 {seconds(RAISED)}" in text
    assert f"status closed ben all at once {seconds(TOUCHED)}" in text
    links = links_of(client.get("/tables/tickets/blame?key=1").text)
    [before] = [link for link in links if "blame" in link and "03.999999Z" in link]
    assert f"status open ben ticket 13 {seconds(RAISED)}" in read(client, f"/tables/tickets/{before}")
    then = read(client, f"/tables/tickets/blame?key=1&at={happened_at(RAISED)}")
    assert f"status open ben ticket 13 {seconds(RAISED)}" in then


def happened_at(number: int) -> str:
    return at(number).isoformat().replace("+00:00", "Z")


def test_a_diff_shows_texts_word_by_word_and_documents_as_trees(client: TestClient) -> None:
    page = client.get("/tables/tickets/diff?key=1&a=3&b=4").text
    assert "<del>fourteen</del><ins>thirty</ins>" in page
    assert "price" not in words_of(page).partition("Difference")[2]
    assert "price 12.00" in read(client, "/tables/tickets/diff?key=1&a=3&b=4&all=1")
    tree = client.get("/tables/tickets/diff?key=1&a=2&b=3").text
    assert "<del>  &#34;room&#34;: 7</del>" in tree
    assert "<ins>  &#34;room&#34;: 8</ins>" in tree
    assert tree.count('<span class="cut">…</span>') == 1  # what is before the difference is left out
    assert f"Version 3: {seconds(TAGGED)}, by bot agent on behalf of ana." in words_of(tree)
    assert "status new → open" in read(client, "/tables/tickets/diff?key=1&a=2024-01-01T00:00:00Z&b=2")
    read(client, "/tables/tickets/diff?key=1&a=3&b=99", 404)


def file_in(client: TestClient, page: str, url: str) -> httpx2.Response:
    """Return the file that a page offers."""
    [link] = re.findall(r'href="([^"]+)" download', page)
    response = client.get(urljoin(url, html.unescape(link)))
    assert response.status_code == 200
    assert response.headers["content-disposition"].startswith("attachment; ")
    return response


def test_a_diff_is_copied_as_json_and_all_of_it_is_in_a_file(
    client: TestClient, sessions: sessionmaker[Session]
) -> None:
    hostile, long = "<b>\u202e\x1b\r\n\u2028", "long" * 15_000
    for text in (hostile, long):
        with sessions.begin() as session:
            ticket = session.get_one(Ticket, 1)
            ticket.title, ticket.details = text, [text]
    url = "/tables/tickets/diff?key=1&a=5&b=6"
    page = client.get(url).text
    assert "As JSON" in words_of(page)
    assert file_in(client, page, url).json()["fields"]["title"] == [TERMS.replace("fourteen", "thirty"), hostile]
    url = "/tables/tickets/diff?key=1&a=6&b=7"
    page = client.get(url).text
    assert "As JSON, it has 120," in words_of(page)
    assert page.count("long") < 40_000, "the values themselves, each cut"
    fields = file_in(client, page, url).json()["fields"]
    assert (fields["title"], fields["details"]) == ([hostile, long], [[hostile], [long]])
    assert "download" not in client.get("/tables/tickets/diff?key=1&a=3&b=3").text


def test_a_diff_is_shown_as_sql_that_makes_it(
    client: TestClient, engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    text = "100% it's \\ \u202e; " + "long" * 15_000
    with sessions.begin() as session:
        session.get_one(Ticket, 1).title = text
    with sessions() as session:
        titles = [version.title for version in versions_of(session, Ticket, 1)]
    text = read(client, "/tables/tickets/diff/sql?key=1&a=6&b=2")
    assert re.search(r"UPDATE tickets SET title = 'Printer on fire', .* WHERE id = 1;", text)
    for a, b in ((6, 2), (2, 6), (6, 1)):
        [link] = [
            link for link in links_of(client.get(f"/tables/tickets/diff?key=1&a={a}&b={b}").text) if "sql" in link
        ]
        url = urljoin("/tables/tickets/diff", link)
        page = client.get(url).text
        assert ("1 more statement is too long" in page) is (b == 6)
        with engine.begin() as connection:
            connection.connection.cursor().execute(file_in(client, page, url).text.removesuffix(";\n"))
        with sessions() as session:
            assert session.get_one(Ticket, 1).title == titles[b - 1]
    assert "Download" not in read(client, "/tables/tickets/diff/sql?key=1&a=3&b=3")


# --- tables and time --------------------------------------------------------------------------------------------


def test_two_instants_of_a_table_are_compared(client: TestClient) -> None:
    text = read(client, f"/tables/tickets/compare?a={happened_at(RAISED)}&b={happened_at(TOUCHED)}")
    assert "Ticket 2 was changed title Secret of others → Still a secret of others" in text
    assert "status open → closed" in text
    assert "Comment 1 was deleted" in read(client, f"/tables/comments/compare?a={happened_at(TAGGED)}")
    assert "Nothing differs." in read(client, f"/tables/tags/compare?a={happened_at(TAGGED)}")
    assert "Compare" in read(client, "/tables/tags/compare")


@pytest.mark.parametrize("table", ["settings", "ticket_tags", "tickets"])
def test_what_differs_between_two_instants_has_pages(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str], table: str
) -> None:
    with sessions.begin() as session:
        session.add_all([Setting(scope=f"{SCOPE}\u202e{at}", name=NAME, value="<b>") for at in "abc"])
        session.add_all([Tag(id=number, name="x") for number in range(10, 14)])
        session.get_one(Ticket, 1).tags = list(session.scalars(sa.select(Tag)))
        session.add_all([Ticket(id=at, tenant=1, title="x", status="new", price=1) for at in range(20, 23)])
    url = f"/tables/{table}/compare?a=2023-12-31"
    whole = client.get(url).text
    assert "On this page:" not in whole
    small, rows, pages = visitor(HistoryBrowser(sessions, Base, page_size=2)), [], 0
    following: list[str] = [url]
    while following:
        url = urljoin(url, html.unescape(following[0]))
        page = small.get(url).text
        rows += re.findall(r'<li class="story.*?</li>', page, re.DOTALL)
        pages += 1
        following = re.findall(r'href="([^"]+)" rel="next"', page)
        assert "On this page:" in page
        assert ('rel="first"' in page) is (pages > 1)
    assert rows == re.findall(r'<li class="story.*?</li>', whole, re.DOTALL)
    assert pages == (len(rows) + 1) // 2 > 1
    [first] = re.findall(r'href="([^"]+)" rel="first"', page)
    assert rows[0] in small.get(urljoin(url, html.unescape(first))).text
    response = small.get(url.replace("compare?a=2023-12-31", "compare?a=2023-12-30"))
    assert (response.status_code, "another query" in response.text) == (400, True)


def test_a_search_can_be_corrected(client: TestClient) -> None:
    page = client.get("/search?q=colour&edit=1")
    assert page.status_code == 200
    assert 'value="colour"' in page.text


def test_deleted_rows_are_found_and_recovered(client: TestClient, happened: list[str]) -> None:
    for page in ("/search?q=op:delete", "/tables/comments", f"/changesets/{happened[CLEANED]}"):
        [recovery] = [link for link in links_of(client.get(page).text) if "/restore?" in link]
        assert "Comment 1 comes back" in read(client, urljoin(page, recovery))


def test_a_search_explains_its_words_and_the_navigation_says_where_one_is(client: TestClient) -> None:
    page = client.get("/search").text
    assert "who who made the change: who:ben" in words_of(page)
    assert 'aria-current="page">Search</a>' in page


def test_sizes_are_shown_and_histories_checked(client: TestClient) -> None:
    assert "Person Versions 2" in read(client, "/overview")
    assert "All is sound: 7 versions were checked." in read(client, "/tables/tickets/check")


@pytest.mark.parametrize(
    ("url", "most"),
    [
        ("/tables/people/row?key=1", 2),
        ("/tables/people/row?key=1&at={at}", 3),
        ("/tables/people/blame?key=1", 1),
        ("/tables/people/diff?key=1&a=1&b=2", 3),
        ("/tables/people/restore?key=1&at={at}", 5),  # two plans, beside models of other tests, which it does not show
    ],
)
def test_a_page_of_a_row_costs_few_statements(
    client: TestClient, engine: sa.Engine, happened: list[str], url: str, most: int
) -> None:
    with counted(engine) as statements:
        read(client, url.format(at=happened_at(RAISED)))
    reads = [statement for statement in statements if "FROM people" in statement]
    assert len(reads) <= most, reads


def test_activity_counts_changes_by_day_table_and_user(client: TestClient) -> None:
    text = read(client, "/activity?at=2024-01-02")
    assert "14 changes, at most 14 a day" in text
    assert "Ticket 7" in text
    assert "ben 3" in text
    assert "r-7 bot" in text
    assert "0 changes" in read(client, "/activity")


def test_activity_reads_hundreds_of_tables_by_few_statements(
    client: TestClient, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read(client, "/activity?at=2024-01-02")
    monkeypatch.setattr("sqlaudit.retrieval.changesets._TABLES_PER_STATEMENT", 2)
    for at_day, busy in (("2024-01-02", 3), ("2024-06-01", 0)):
        with counted(engine) as statements:
            again = read(client, f"/activity?at={at_day}")
        with Session(engine) as session:  # also of models of other tests
            known = sum(len(place.tables) for place in known_tables(session))
        grouped = [each for each in statements if " GROUP BY " in each and "pg_catalog" not in each]
        assert len(grouped) == -(-known // 2) + busy, grouped
        assert (again == text) is bool(busy)


@pytest.mark.parametrize(
    ("search", "told", "not_told"),
    [
        ("who:ben field:price", "price 10.00 → 12.00", "all at once"),
        ("field:status from:new to:open table:tickets", "status new → open", "closed"),
        ('reason:"all at once"', "Still a secret of others", "ticket 13"),
        ("kind:agent for:ana run:r-7", "created Comment 1", "seed"),
        ("op:delete", "ana deleted Comment 1", "changed"),
        ("since:2024-01-01T00:00:04Z table:ticket", "all at once", "ticket 13"),
        ("until:2024-01-01T00:00:00Z table:Person", "seed system created Person 1", "4200"),
        ("who:nobody", "No changes are known.", "ben"),
    ],
)
@pytest.mark.spread
def test_a_search_finds_what_it_names(client: TestClient, search: str, told: str, not_told: str) -> None:
    found = read(client, f"/search?{urlencode({'q': search})}").partition("until:2026-04-01 ")[2]
    assert told in found
    assert not_told not in found


@pytest.mark.parametrize("query", ["op:insert", "who:seed until:2025-01-01"])
def test_the_pages_of_a_search_tell_every_change_once(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str], query: str
) -> None:
    """Also those of one instant, of which a page shows a part."""
    first = f"/search?{urlencode({'q': query})}"
    lines = re.compile(r"<dt><bdi>.*?</dd>", re.DOTALL)
    whole = lines.findall(client.get(first).text)
    small, found, url, pages = visitor(HistoryBrowser(sessions, Base, page_size=2)), [], first, 0
    while url:
        page = small.get(url).text
        found, pages = found + lines.findall(page), pages + 1
        following = re.findall(r'href="([^"]+)" rel="next"', page)
        url = f"/{html.unescape(following[0])}" if following else ""
    assert pages > 8
    assert len(whole) > 16
    assert sorted(found) == sorted(whole)
    assert "No changes" in read(client, f"{first}&skip=999999999")


def test_a_page_that_reads_too_long_says_so(sessions: sessionmaker[Session], happened: list[str]) -> None:
    client = visitor(HistoryBrowser(sessions, Base, seconds=0))
    assert "The page was stopped after 0 seconds." in read(client, ROW, 503)


# --- changesets, undo and restore -------------------------------------------------------------------------------


def test_a_changeset_shows_all_that_it_did(client: TestClient, happened: list[str]) -> None:
    listed = client.get("/changesets")
    assert "ben wrote Ticket" in words_of(listed.text)
    [by_ben] = {link for link in links_of(listed.text) if "user=ben" in link}
    assert "ana wrote" not in read(client, urljoin("/changesets", by_ben))
    assert any(happened[TOUCHED] in link for link in links_of(listed.text))
    text = read(client, f"/changesets/{happened[TAGGED]}")
    assert "bot agent on behalf of ana" in text
    assert "Run r-7" in text
    assert "Comment 1 row" in text
    assert "ticket_tags 1 row" in text
    assert "Secret of others → Still a secret of others" in read(client, f"/changesets/{happened[TOUCHED]}")


def test_what_a_changeset_did_can_be_copied_as_sql(client: TestClient, happened: list[str]) -> None:
    page = client.get(f"/changesets/{happened[PAID]}/sql").text
    assert "UPDATE people SET" in words_of(page)
    assert "4200" in page


def test_an_undo_shows_its_plan_and_is_carried_out_after_a_confirmation(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    url = f"/changesets/{happened[TOUCHED]}/undo"
    page = client.get(url).text
    assert "status closed → open" in words_of(page)
    with sessions() as session:
        assert session.get_one(Ticket, 1).status == "closed"
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page), "reason": "a mistake"}
    done = client.post(url, data=form)
    assert done.status_code == 200, words_of(done.text)
    assert "Done." in words_of(done.text)
    with sessions() as session:
        assert session.get_one(Ticket, 1).status == "open"
        [version] = versions_of(session, Ticket, 1, newest_first=True, limit=1)
        assert (version.changed_by, version.reason) == ("visitor", "a mistake")


@pytest.mark.spread
def test_an_undo_that_is_too_large_for_a_page_is_refused(
    client: TestClient, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "_MOST", 1)
    assert f"sqlaudit undo {happened[TOUCHED]}" in read(client, f"/changesets/{happened[TOUCHED]}/undo", 409)
    assert "More than 1 versions were written." in (text := read(client, "/run/undo?id=r-7", 409))
    assert "sqlaudit undo --run r-7" in text


def test_a_run_shows_what_it_did_transaction_by_transaction(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    run = "/run?id=r-7"
    for url in ("/activity?at=2024-01-02", "/changesets", ROW, f"/changesets/{happened[TAGGED]}"):
        assert urljoin(url, run) in [urljoin(url, link) for link in links_of(client.get(url).text)], url
    page = client.get(run).text
    assert "bot agent on behalf of ana wrote Comment, ticket_tags, Ticket" in words_of(page)
    assert [happened[TAGGED] in link for link in links_of(page)].count(True) == 1
    assert "./search?q=run%3Ar-7" in links_of(page)
    assert "No history has a change of the run r-7" in read(client, f"{run}&at=2024-01-01T00:00:00Z", 404)
    with AuditContextManager("bot", run_id="a/b ü&?"), sessions() as session:
        for number in range(31):
            session.get_one(Ticket, 1).price = 100 + number
            session.commit()
    run = f"/run?{urlencode({'id': 'a/b ü&?'})}"
    first = client.get(run).text
    [older] = re.findall('href="([^"]*)" rel="next"', first)
    last = client.get(html.unescape(older)).text
    assert [page.count('<li class="story') for page in (first, last)] == [30, 1]


@pytest.mark.spread
def test_a_changeset_of_two_runs_is_part_of_each(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    with sessions() as session:
        with AuditContextManager("bot", run_id="r-8"):
            session.get_one(Ticket, 1).price = 100
            session.flush()
        with AuditContextManager("job", run_id="r-9"):
            session.get_one(Person, 1).name = "Eva"
            session.commit()
    assert "bot wrote Ticket" in (text := read(client, "/run?id=r-8"))
    assert "job" not in text
    plan = read(client, "/run/undo?id=r-9")
    assert "name Eva → Ana" in plan
    assert "price" not in plan


def test_all_that_a_run_did_is_undone_after_a_confirmation(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    with AuditContextManager("bot", run_id="r-8"), sessions() as session:
        session.get_one(Ticket, 1).price = 100
        session.commit()
        session.get_one(Ticket, 1).status = "lost"
        session.add(Comment(id=5, ticket_id=1, text="?"))
        session.commit()
    url = "/run/undo?id=r-8"
    [link] = [link for link in links_of(client.get("/run?id=r-8").text) if "undo" in link]
    assert urljoin("/run?id=r-8", link) == url
    page = client.get(url).text
    assert "Undo run r-8" in words_of(page)
    assert "price 100.00 → 12.00" in words_of(page)
    assert "status lost → closed" in words_of(page)
    assert "Comment 5 is deleted" in words_of(page)
    done = client.post(url, data={"sqlaudit_token": token_of(page), "plan": plan_of(page), "reason": "a mistake"})
    assert "run?id=r-8&done=1" in str(done.url)
    assert "Done." in words_of(done.text)
    with sessions() as session:
        ticket = session.get_one(Ticket, 1)
        assert (ticket.price, ticket.status, session.get(Comment, 5)) == (12, "closed", None)
        [version] = versions_of(session, Ticket, 1, newest_first=True, limit=1)
        assert (version.changed_by, version.reason) == ("visitor", "a mistake")


def test_the_undo_of_a_run_names_the_later_changes_that_it_would_discard(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    page = client.get("/run/undo?id=r-7").text
    assert f"Ticket 1: title, changed by ana, {seconds(PAID)}" in words_of(page)
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page)}
    assert "Discard these later changes" in words_of(client.post("/run/undo?id=r-7", data=form).text)
    with sessions.begin() as session:
        session.get_one(Ticket, 1).details = None
    assert client.post("/run/undo?id=r-7", data={**form, "force": "1"}).status_code == 409
    with sessions() as session:
        assert "thirty" in session.get_one(Ticket, 1).title


@pytest.mark.spread
def test_very_long_values_are_shown_in_part(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        for letter in "ab":
            session.merge(Ticket(id=1, tenant=1, title="x\n" * 500_000 + letter, status="new", price=1))
            session.commit()
    client = visitor(HistoryBrowser(sessions, Base))
    for url in (ROW, "/tables/tickets/diff?key=1", "/tables/tickets/blame?key=1", "/tables/tickets"):
        assert len(client.get(url).text) < 200_000
    assert "\\na → …" in read(client, ROW)


@pytest.mark.spread
def test_values_are_shown_with_their_lines(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.merge(Ticket(id=1, tenant=1, title="one\ntwo", status="1\n" * 20, price=1))
        session.commit()
    page = visitor(HistoryBrowser(sessions, Base)).get(ROW).text
    assert "<bdi>one\ntwo</bdi>" in page
    assert "<summary><bdi>1 1 1" in page


def test_an_undo_names_the_later_changes_that_it_would_discard(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    url = f"/changesets/{happened[RAISED]}/undo"
    page = client.get(url).text
    assert f"Ticket 1: status, changed by ben, {seconds(TOUCHED)}" in words_of(page)
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page)}
    assert client.post(url, data=form).url.path == url  # it asks again
    assert "Done." in words_of(client.post(url, data={**form, "force": "1"}).text)
    with sessions() as session:
        assert (ticket := session.get_one(Ticket, 1)).status == "new"
        assert ticket.price == 10


def test_nothing_is_done_if_the_rows_have_changed_since_the_plan(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    url = f"/changesets/{happened[TOUCHED]}/undo"
    page = client.get(url).text
    with sessions.begin() as session:
        session.get_one(Ticket, 2).title = "Meanwhile"
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page), "force": "1"}
    answer = client.post(url, data=form)
    assert answer.status_code == 409
    assert "nothing was done" in words_of(answer.text)
    with sessions() as session:
        assert session.get_one(Ticket, 1).status == "closed"


@pytest.mark.requires("concurrent_writes")
def test_nothing_is_done_if_rows_are_deleted_at_the_same_time(
    client: TestClient, sessions: sessionmaker[Session], happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def undo_too_late(session: Session, **arguments: Any) -> Any:
        if not arguments["dry_run"]:
            with sessions.begin() as other:
                other.get_one(Ticket, 1).tags = []
        return undo(session, **arguments)

    page = client.get("/run/undo?id=r-7").text
    form = {"sqlaudit_token": token_of(page), "plan": plan_of(page), "force": "1"}
    monkeypatch.setattr(undoing, "undo", undo_too_late)
    answer = client.post("/run/undo?id=r-7", data=form)
    assert (answer.status_code, "nothing was done" in words_of(answer.text)) == (409, True)
    with sessions() as session:
        assert "thirty" in session.get_one(Ticket, 1).title


def test_nothing_is_done_where_a_part_of_it_could_not_be_rolled_back(
    engine: sa.Engine, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    url = f"/changesets/{happened[TOUCHED]}/undo"
    with recording(engine.execution_options(isolation_level="AUTOCOMMIT")) as committing:
        client = visitor(HistoryBrowser(committing, Base))
        page = client.get(url).text
        form = {"sqlaudit_token": token_of(page), "plan": "another"}
        assert "changed meanwhile" in words_of(client.post(url, data=form).text)
        assert "AUTOCOMMIT" in words_of(client.post(url, data={**form, "plan": plan_of(page)}).text)
    with sessions() as session:
        assert session.get_one(Ticket, 1).status == "closed"


def test_chosen_fields_of_a_row_are_restored(client: TestClient, sessions: sessionmaker[Session]) -> None:
    url = f"/tables/tickets/restore?key=1&at={happened_at(0)}&field=title"
    page = client.get(url).text
    assert "status" not in words_of(page).partition("Ticket 1 changes")[2].partition("Why")[0]
    done = client.post(url, data={"sqlaudit_token": token_of(page), "plan": plan_of(page)})
    assert done.status_code == 200, words_of(done.text)
    with sessions() as session:
        assert session.get_one(Ticket, 1).title == "Printer on fire"
        assert session.get_one(Ticket, 1).status == "closed"


# --- asynchronous engines ---------------------------------------------------------------------------------------


def test_an_asynchronous_engine_shows_and_undoes(async_engine: AsyncEngine, happened: list[str]) -> None:
    maker = async_sessionmaker(async_engine)
    register_hooks(maker)
    browser = HistoryBrowser(maker, Base)
    url = f"/changesets/{happened[PAID]}/undo"

    async def visit() -> list[str]:
        transport = httpx2.ASGITransport(app=browser, client=("127.0.0.1", 5))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            row = await client.get(f"{ROW}&at={happened_at(TAGGED)}")
            plan = await client.get(url)
            form = {"sqlaudit_token": token_of(plan.text), "plan": plan_of(plan.text)}
            done = await client.post(url, data=form, follow_redirects=True)
            return [words_of(each.text) for each in (row, plan, done)]

    try:
        row, plan, done = asyncio.run(visit())
    finally:
        unregister_hooks(maker)
    assert "comments Comment 1" in row
    assert "salary 4200 → 4100" in plan
    assert "Done." in done


# --- what cannot be shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "status", "told"),
    [
        ("/nothing", 404, "The address names no page"),
        ("/tables/orders", 404, "No table with a history is named orders"),
        ("/tables/tickets/row?key=99", 404, "Ticket has no history of the key 99"),
        ("/tables/tickets/row?key=x", 404, "x is not a key of tickets. Its key is id."),
        ("/tables/tickets/row", 404, "is not a key of tickets"),
        ("/tables/settings/row?key=1", 404, "Its key is scope, name."),
        (f"{ROW}&at=soon", 400, "soon is not an instant"),
        (f"{ROW}&at=9000-01-01", 400, "has not come yet"),
        (f"{ROW}&at=0001-01-01T00:00:00%2B05:00", 400, "is not an instant"),
        (f"{ROW}&at=00000000-0000-7000-8000-000000000000", 404, "No history has a changeset"),
        ("/activity?at=0001-01-01", 200, "0 changes"),
        ("/tables/tickets/restore?key=9223372036854775807&at=2024-01-01", 404, "has no history of the key"),
        (f"{ROW}&at=mark:release", 404, "No instant is marked release."),
        (f"{ROW}&field=colour", 400, "has no tracked field 'colour'"),
        (f"{ROW}&after=x", 400, "which is not a cursor"),
        ("/search?q=colour", 400, "colour does not say what it is. Write to:colour for a value"),
        ("/search?q=table:orders", 404, "No table with a history is named orders"),
        ("/search?q=op:fly", 400, "filter_operations has 'fly'"),
        ("/tables/tickets/compare?a=soon", 400, "soon is not an instant"),
        ("/changesets/7", 404, "No history has a changeset 7"),
        ("/changesets/00000000-0000-7000-8000-000000000000", 404, "No history has a changeset"),
        ("/changesets/00000000-0000-7000-8000-000000000000/undo", 404, "No history has a changeset"),
        ("/changesets/00000000-0000-7000-8000-000000000000/sql", 404, "No history has a changeset"),
        ("/run?id=r-1", 404, "No history has a change of the run r-1"),
        ("/run", 404, "No history has a change of the run"),
        ("/run/undo?id=r-1", 404, "No history has a change of the run r-1"),
        ("/tables/tickets/restore?key=1", 400, "does not say as of when the row is to be restored"),
        ("/tables/ticket_tags/blame?key=1&key=1", 404, "The address names no page"),
    ],
)
@pytest.mark.spread
def test_a_page_that_cannot_be_shown_says_why(client: TestClient, url: str, status: int, told: str) -> None:
    text = read(client, url, status)
    assert told in text
    assert status == 200 or "Go to the tables" in text


@pytest.mark.parametrize(
    ("url", "status", "link"),
    [
        (f"{ROW}&at=soon", 400, "row?key=1"),
        (f"{ROW}&at=9000-01-01&field=price", 400, "row?key=1&field=price"),
        ("/tables/tickets/row?key=77", 404, "../../tables/tickets"),
        ("/tables/tickets/diff?key=1&a=88&b=99", 404, "diff?key=1"),
        ("/search?q=colour", 400, "search?q=colour&edit=1"),
    ],
)
@pytest.mark.spread
def test_a_problem_offers_the_next_step(client: TestClient, url: str, status: int, link: str) -> None:
    response = client.get(url)
    assert response.status_code == status
    assert link in links_of(response.text)


def test_what_was_pruned_and_erased_is_told(
    client: TestClient, sessions: sessionmaker[Session], engine: sa.Engine, happened: list[str]
) -> None:
    with sessions.begin() as session:
        mark(session, "release")
    prune(engine, Ticket, keep_last=3)
    page = client.get(f"{ROW}&at={happened_at(0)}")
    assert page.status_code == 410
    assert "has been removed" in words_of(page.text)
    [later] = [link for link in links_of(page.text) if "at=" in link]
    assert "You see" in read(client, f"/tables/tickets/{later}")
    for name in ("diff?key=1&a={}&b=4", "compare?a={}", "compare?a={}&b={}", "restore?key=1&at={}"):
        page = client.get(f"/tables/tickets/{name.format(happened_at(0), happened_at(1))}")
        assert page.status_code == 410
        [later] = [link for link in links_of(page.text) if "=2024" in link]
        read(client, f"/tables/tickets/{later}")
    assert "Older versions have been removed; the first that is left is number 3" in read(client, ROW)
    assert "price 12.00 unknown" in read(client, "/tables/tickets/blame?key=1")
    assert "You see" in read(client, f"{ROW}&at=mark:release")
    with sessions.begin() as session:
        erase(session, Person, 1, fields=["name"], values={"name": "x"}, reason="asked for")
    assert "name erased" in read(client, "/tables/people/row?key=1&at=2024-01-02")
    plan = read(client, f"/tables/people/restore?key=1&at={happened_at(0)}")
    assert "salary 4200 → 4100" in plan
    assert "name" not in plan.partition("Only these fields")[2]
    assert "Ana" not in read(client, "/tables/people/row?key=1")


def test_a_page_cannot_be_asked_for_by_another_method(client: TestClient) -> None:
    assert client.post(ROW).status_code == 405


def test_a_database_that_is_away_is_told_without_a_traceback() -> None:
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing", connect_args={"connect_timeout": 1})
    browser = HistoryBrowser(sessionmaker(engine), Base)
    response = visitor(browser).get(ROW)
    assert response.status_code == 503
    assert "The database does not answer" in words_of(response.text)
    assert "127.0.0.1" not in response.text


_READ_ONLY = {
    "postgresql": "SET default_transaction_read_only = on",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only = ON",
}


def test_a_database_that_refuses_to_write_is_told(engine: sa.Engine, happened: list[str]) -> None:
    reader = sa.create_engine(engine.url)
    statement = _READ_ONLY[engine.dialect.name.replace("mysql", "mariadb")]

    @sa.event.listens_for(reader, "connect")
    def only_read(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    with recording(reader) as sessions:
        client, url = visitor(HistoryBrowser(sessions, Base)), f"/changesets/{happened[TOUCHED]}/undo"
        page = client.get(url).text
        answer = client.post(url, data={"sqlaudit_token": token_of(page), "plan": plan_of(page)})
    reader.dispose()
    assert answer.status_code == 500
    assert "The database refuses it" in words_of(answer.text)


@pytest.mark.no_tables
def test_a_database_without_history_tables_is_told(sessions: sessionmaker[Session]) -> None:
    text = read(visitor(HistoryBrowser(sessions, Base)), ROW, 500)
    assert "The database lacks a history table" in text


_SLOW = {
    "postgresql": "SELECT pg_sleep(5)",
    "mariadb": "SELECT sum(a.seq % 7) FROM seq_1_to_1000000 a, seq_1_to_100000 b",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
}


def test_a_value_in_an_error_does_not_say_that_a_statement_was_stopped() -> None:
    error = ValueError("Key (state)=(interrupted) already exists.")
    assert not was_stopped(sa.exc.IntegrityError("INSERT", {}, error))


@pytest.mark.no_tables
def test_the_limit_of_a_connection_that_was_closed_is_no_error(async_engine: AsyncEngine) -> None:
    def work(session: Session) -> None:
        with limited(session, 5):
            driver: Any = session.connection().connection.driver_connection
            if isawaitable(closing := driver.close()):  # as when the request is cancelled
                await_only(closing)

    async def run() -> None:
        async with AsyncSession(async_engine) as session:
            await session.run_sync(work)
            await session.invalidate()

    asyncio.run(run())


@pytest.mark.no_tables
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=["transaction", "autocommit"])
def test_a_statement_that_takes_too_long_is_stopped_and_the_next_user_of_the_connection_has_no_limit(
    engine: sa.Engine, sessions: sessionmaker[Session], options: dict[str, str]
) -> None:
    slow = sa.text(_SLOW[engine.dialect.name.replace("mysql", "mariadb")])
    with sessions(bind=engine.execution_options(**options)) as session, limited(session, 0.1):
        if not options:
            session.execute(sa.select(1))
            session.begin_nested().commit()  # a savepoint does not end the limit
        with pytest.raises(sa.exc.DBAPIError) as stopped:
            session.execute(slow)
        with pytest.raises(Problem):
            session.execute(sa.select(1))
    assert was_stopped(stopped.value)
    if engine.dialect.name != "sqlite":
        variable = (
            "current_setting('statement_timeout')" if engine.dialect.name == "postgresql" else "@@max_statement_time"
        )
        with sessions() as session:
            assert float(session.scalar(sa.select(sa.literal_column(variable)))) == 0
