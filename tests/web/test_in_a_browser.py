"""A person reads, clicks and undoes in a real browser, on a screen and on a phone, by day and by night.

Screenshots of all pages are kept in build/screenshots, or in the directory ``SQLAUDIT_SCREENSHOTS``.
``SQLAUDIT_DRAW=1`` keeps the pictures of the documentation. They are drawn on SQLite.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk import RAISED, TAGGED, TOUCHED, Base, Ticket, happen
from sqlalchemy.orm import Session, sessionmaker

from blocks import ROOT
from sqlaudit.web import HistoryBrowser
from sqlaudit.web.visit import PATHS

__all__ = ["Base", "happen"]

pytestmark = [pytest.mark.slow, pytest.mark.spread]
PICTURES = ROOT / "docs" / "pictures" / "web"
SCREENSHOTS = Path(os.environ.get("SQLAUDIT_SCREENSHOTS") or ROOT / "build" / "screenshots").absolute()
ROW = "tables/tickets/row?key=1"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, if there is one."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium; install the package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(sessions: sessionmaker[Session], happened: list[str]) -> Iterator[str]:
    """The URL of a server that shows the history of the help desk."""
    uvicorn = pytest.importorskip("uvicorn")
    app = HistoryBrowser(sessions, Base, title="Help desk", get_context=lambda request: {"user_id": "visitor"})
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    [port] = [each.getsockname()[1] for each in server.servers[0].sockets]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """A page of a browser, which is closed before the server; what it logs as an error fails the test."""
    context = chromium.new_context(timezone_id="Europe/Berlin", locale="en-GB")
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def test_instants_are_in_the_zone_of_the_reader_and_keys_go_from_change_to_change(page: Any, address: str) -> None:
    page.goto(address + ROW)
    assert "1 Jan 2024, 01:00:00" in page.inner_text("main")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("[...document.querySelectorAll('.story')].indexOf(document.activeElement)") == 0
    page.fill("#at", "2024-01-01 01:00:01")
    page.press("#at", "Enter")
    assert "price 12.00" in page.inner_text(".values").replace("\t", " ")


def test_a_slider_goes_through_the_changes_of_a_row_by_keys(page: Any, address: str) -> None:
    page.goto(address + ROW)
    slider = page.locator(".slider")
    slider.focus()
    assert "1 Jan 2024, 01:00:04" in slider.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**at=2024-01-01T00%3A00%3A02Z*")
    assert "You see" in page.inner_text("main")
    assert page.evaluate("document.activeElement.className") == "slider"
    page.keyboard.press("Home")
    page.wait_for_url("**at=2024-01-01T00%3A00%3A00Z*")
    assert page.locator(".slider").input_value() == "1"


def test_a_changeset_is_found_and_undone_by_clicks(
    page: Any, address: str, sessions: sessionmaker[Session], happened: list[str]
) -> None:
    page.goto(address)
    page.click('text="Ticket"')
    page.click('text="Ticket 1" >> nth=0')
    page.click(f"a[href*='{happened[TOUCHED]}'] >> nth=0")
    page.click("text=Undo")
    assert "closed" in page.inner_text(".plan")
    page.fill("#why", "clicked by mistake")
    page.click("button.danger")
    assert "Done." in page.inner_text("main")
    with sessions() as session:
        assert session.get_one(Ticket, 1).status == "open"


def test_sql_is_copied_by_a_click(page: Any, address: str, happened: list[str]) -> None:
    page.goto(f"{address}changesets/{happened[RAISED]}/sql")
    page.click("text=Copy")
    assert page.inner_text(".copier") == "Copied"
    page.goto(f"{address}search")
    page.focus("#q")
    page.keyboard.press("ControlOrMeta+v")
    assert page.input_value("#q").startswith("UPDATE tickets")


def pages(happened: list[str]) -> dict[str, str]:
    """Return the URLs of the pages of the documentation, by the names of their pictures."""
    return {
        "row": ROW,
        "as-of": f"{ROW}&at={happened[TAGGED]}",
        "blame": "tables/tickets/blame?key=1",
        "diff": "tables/tickets/diff?key=1&a=2&b=4",
        "changeset": f"changesets/{happened[TAGGED]}",
        "undo": f"changesets/{happened[RAISED]}/undo",
        "activity": "activity?at=2024-01-03",
        "compare": "tables/tickets/compare?a=2024-01-01T00:00:00Z&b=2024-01-01T00:00:09Z",
    }


def all_pages(happened: list[str]) -> dict[str, str]:
    return {
        **pages(happened),
        "overview": "overview",
        "changesets": "changesets",
        "tables": "",
        "search": "search?q=who:ben",
        "table": "tables/tickets",
        "check": "tables/tickets/check",
        "run": "run?id=r-7",
        "undo-run": "run/undo?id=r-7",
        "restore": f"tables/tickets/restore?key=1&at={happened[RAISED]}",
        "sql": f"changesets/{happened[RAISED]}/sql",
        "diff-sql": "tables/tickets/diff/sql?key=1&a=2&b=4",
    }


def test_each_view_is_among_the_pages() -> None:
    paths = {url.partition("?")[0] for url in all_pages(["019ca000"] * 6).values()}
    for name, path in PATHS.items():
        if name == "diff_json":  # a file
            continue
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        assert any(re.fullmatch(pattern, each) for each in paths), name


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_page_fits_its_screen(
    page: Any,
    address: str,
    happened: list[str],
    width: int,
    scheme: str,
    record_property: Callable[[str, object], None],
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    record_property("kept", str(SCREENSHOTS))
    for name, url in all_pages(happened).items():
        page.goto(address + url)
        page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.inner_text("h1")
        if os.environ.get("SQLAUDIT_DRAW") and (width, scheme) == (1280, "light") and name in pages(happened):
            page.screenshot(path=PICTURES / f"{name}.png", scale="css")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_and_a_keyboard_are_enough(page: Any, address: str, happened: list[str], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    for name, url in all_pages(happened).items():
        page.goto(address + url)
        found = axe.run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], name
