"""Everything that README.md shows works, and the examples do what they say."""

import asyncio
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from blocks import ROOT, blocks, broken_links, run_blocks
from databases import Database

README = ROOT / "README.md"
QUICKSTART = ROOT / "examples" / "quickstart.py"
TIME_TRAVEL = ROOT / "examples" / "time_travel.py"


# --- the README -------------------------------------------------------------------------------------------------


def test_the_readme_runs_from_top_to_bottom_and_prints_what_it_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_blocks(blocks(README), README, capsys, monkeypatch)


def test_the_readme_names_the_two_commands() -> None:
    commands = "".join(text for language, text, _ in blocks(README) if language == "bash").splitlines()
    assert commands[0] == "pip install . && python examples/quickstart.py"
    assert commands[1] == 'pip install -e ".[test]" && pytest'


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_of_the_project_links_is_there(page: Path) -> None:
    assert broken_links(page) == []


# --- examples/quickstart.py -------------------------------------------------------------------------------------


def run(program: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", program, *arguments], check=True, capture_output=True, text=True
    )
    assert ran.stderr == ""
    return ran.stdout


def quickstart(*arguments: str) -> str:
    return run(QUICKSTART, *arguments)


def words_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def check_quickstart(output: str) -> None:
    lines = words_of(output)
    before, now, changes = (lines.index(title.split()) for title in ("Before the review", "Now", "All changes"))
    assert lines[before + 3 : now] == [
        ["1", "Ada", "London", "100.00"],
        ["2", "Bob", "Paris", "200.00"],
        ["3", "Eve", "-", "0.00"],
    ]
    assert lines[now + 3 : changes] == [["1", "Ada", "London", "150.00"], ["2", "Robert", "Lyon", "200.00"]]
    told = [words[1:] for words in lines[changes + 3 :]]
    assert len(told) == 13
    assert ["ana", "signed", "at", "the", "fair", "insert", "2", "name", "-", "Bob"] in told
    assert ["ben", "yearly", "review", "update", "1", "credit", "100.00", "150.00"] in told
    assert ["ben", "yearly", "review", "update", "2", "name", "Bob", "Robert"] in told
    assert told[-1] == ["ben", "closed", "the", "account", "delete", "3", "name", "Eve", "-"]


@pytest.mark.slow
def test_the_quickstart_runs_without_arguments() -> None:
    check_quickstart(quickstart())


@pytest.mark.slow
def test_the_quickstart_runs_twice_on_a_database_and_leaves_nothing(database: Database, engine: sa.Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    check_quickstart(quickstart(url))
    check_quickstart(quickstart(url))
    assert sa.inspect(engine).get_table_names() == []


@pytest.mark.slow
def test_the_quickstart_copes_with_the_tables_of_a_run_that_was_ended(engine: sa.Engine, database: Database) -> None:
    with engine.begin() as connection:
        for name in ("quickstart_customers", "quickstart_customers_history"):
            connection.execute(sa.schema.CreateTable(sa.Table(name, sa.MetaData(), sa.Column("id", sa.Integer))))
    check_quickstart(quickstart(database.url.render_as_string(hide_password=False)))


def test_the_quickstart_needs_nothing_but_the_core() -> None:
    source = QUICKSTART.read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported <= sys.stdlib_module_names | {"sqlalchemy", "sqlaudit"}


# --- examples/time_travel.py ------------------------------------------------------------------------------------

STORY = """\
What does order 1 look like?
  order 1 for Ada, 8 VIA APPIA, ROME
    3 x lamp at 4500
What did it look like when it was placed?
  order 1 for Ada, 1 Harbour Road, London
    2 x lamp at 40
    1 x chair at 90
What are the sales?
  Ada 13500
What would the report have said on 1 March?
  Ada 170
  Bob 540
What has the intern done?
  on 01 April, tidying up: 8 field changes
  Customer address: 8 Via Appia, Rome → 8 VIA APPIA, ROME
  Customer address: 5 Rue du Lac, Lyon → 5 RUE DU LAC, LYON
  Product price: 45 → 4500
  Product price: 100 → 10000
Take it back.
  update Customer 1
  update Customer 2
  update Product 1
  update Product 2
  insert Line (1, 2)
  order 1 for Ada, 8 Via Appia, Rome
    3 x lamp at 45
    1 x chair at 100
And Bob wants his order, after all.
  order 2 for Bob, 5 Rue du Lac, Lyon
    6 x chair at 100
What was the price of each line when it was ordered?
  order 1: lamp at 40
  order 1: chair at 90
  order 2: chair at 90
"""


@pytest.mark.slow
def test_an_invoice_application_runs_without_arguments() -> None:
    assert run(TIME_TRAVEL) == STORY


@pytest.mark.slow
def test_an_invoice_application_asks_its_past(database: Database, engine: sa.Engine) -> None:
    assert run(TIME_TRAVEL, database.url.render_as_string(hide_password=False)) == STORY
    assert sa.inspect(engine).get_table_names() == []


# --- examples/fastapi_app.py ------------------------------------------------------------------------------------


@pytest.fixture
def app(async_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABASE_URL", async_engine.url.render_as_string(hide_password=False))
    return runpy.run_path(str(ROOT / "examples" / "fastapi_app.py"), run_name="fastapi_app")["app"]


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app) as client:
        client.headers["X-User"] = "ana"
        yield client


def test_a_request_says_who_changed_what_and_why(client: TestClient) -> None:
    headers = {"X-User": "ben", "X-Reason": "moved", "X-Request-ID": "r-1"}
    created = client.post("/customers", json={"name": "Ada", "city": "London"})
    assert (created.status_code, created.json()) == (201, {"id": 1, "name": "Ada", "city": "London"})
    assert client.put("/customers/1", json={"name": "Ada", "city": "Rome"}, headers=headers).status_code == 200
    assert client.delete("/customers/1").status_code == 204
    history = client.get("/customers/1/history").json()
    assert [
        (change["operation"], change["field_name"], change["old_value"], change["new_value"], change["changed_by"])
        for change in history
    ] == [
        ("insert", "city", None, "London", "ana"),
        ("insert", "id", None, 1, "ana"),
        ("insert", "name", None, "Ada", "ana"),
        ("update", "city", "London", "Rome", "ben"),
        ("delete", "city", "Rome", None, "ana"),
        ("delete", "id", 1, None, "ana"),
        ("delete", "name", "Ada", None, "ana"),
    ]
    assert history[3]["reason"] == "moved"
    assert history[3]["extra"] == {"request_id": "r-1", "method": "PUT", "route": "/customers/{customer_id}"}
    assert history[0]["reason"] is None
    assert history[0]["extra"]["route"] == "/customers"


def test_a_customer_is_read_as_it_was(client: TestClient) -> None:
    client.post("/customers", json={"name": "Ada", "city": "London"})
    then = datetime.now(UTC).isoformat()
    client.put("/customers/1", json={"name": "Ada", "city": "Rome"})
    client.delete("/customers/1")
    assert client.get("/customers/1").status_code == 404
    assert client.get("/customers/1", params={"when": then}).json()["city"] == "London"
    assert client.get("/customers/1", params={"when": "2000-01-01T00:00:00Z"}).status_code == 404
    assert client.get("/customers/1", params={"when": "2000-01-01T00:00:00"}).status_code == 422


def test_a_request_without_a_user_changes_nothing(client: TestClient) -> None:
    del client.headers["X-User"]
    assert client.post("/customers", json={"name": "Ada"}).status_code == 422
    assert client.get("/customers/1", headers={"X-User": "ana"}).status_code == 404


def test_concurrent_requests_keep_their_users_apart(app: Any) -> None:
    users = [f"user-{n}" for n in range(12)]

    async def work(client: httpx2.AsyncClient, user: str) -> list[dict[str, Any]]:
        headers = {"X-User": user, "X-Reason": f"reason of {user}", "X-Request-ID": f"request of {user}"}
        created = await client.post("/customers", json={"name": user}, headers=headers)
        path = f"/customers/{created.json()['id']}"
        for city in ("Rome", "Bern", "Oslo"):
            await client.put(path, json={"name": user, "city": city}, headers=headers)
        return (await client.get(f"{path}/history", headers=headers)).json()

    async def all_at_once() -> list[list[dict[str, Any]]]:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return await asyncio.gather(*(work(client, user) for user in users))

    for user, history in zip(users, asyncio.run(all_at_once()), strict=True):
        assert [change["new_value"] for change in history if change["field_name"] == "city"] == ["Rome", "Bern", "Oslo"]
        assert {(change["changed_by"], change["reason"], change["extra"]["request_id"]) for change in history} == {
            (user, f"reason of {user}", f"request of {user}")
        }
