"""What is a view given? The request, what the visitor may see, and a session that reads no more than that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from markupsafe import Markup, escape
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from sqlaudit.display import safe
from sqlaudit.exceptions import QueryError, SQLAuditError
from sqlaudit.retrieval.key_texts import key_texts
from sqlaudit.retrieval.restricting import Restriction
from sqlaudit.tracking.links import LinkModel, model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.web.access import Permissions, root_source
from sqlaudit.web.instants import instant_of, instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.rendering import ENVIRONMENT, Renderer, text_of
from sqlaudit.web.security import TOKEN, set_token, token_of
from sqlaudit.web.sources import path_part
from sqlaudit.web.texts import Texts

if TYPE_CHECKING:
    from sqlaudit.web.browser import HistoryBrowser

_MOST: Final = 500
PATHS = {
    "home": "",
    "table": "tables/{table}",
    "compare": "tables/{table}/compare",
    "check": "tables/{table}/check",
    "row": "tables/{table}/row",
    "blame": "tables/{table}/blame",
    "diff": "tables/{table}/diff",
    "diff_json": "tables/{table}/diff/json",
    "diff_sql": "tables/{table}/diff/sql",
    "restore": "tables/{table}/restore",
    "activity": "activity",
    "search": "search",
    "overview": "overview",
    "changesets": "changesets",
    "changeset": "changesets/{changeset}",
    "sql": "changesets/{changeset}/sql",
    "undo": "changesets/{changeset}/undo",
    "run": "run",
    "undo_run": "run/undo",
}
"""The paths of the pages, by their names."""


class Page:
    """A page, also one that says what is wrong: its request, its texts, and its links to other pages."""

    def __init__(self, browser: HistoryBrowser, request: Request) -> None:
        self.browser = browser
        self.request = request
        self.texts: Texts = browser.texts
        self.show = Renderer(self.texts)
        self.depth = _route_path(request).count("/") - 1

    @cached_property
    def base(self) -> str:
        """The relative path of the first page: a browser may be mounted anywhere, and need not know where."""
        return "../" * self.depth or "./"

    def url(self, page: str, query: Mapping[str, Any] | None = None, **parts: str) -> str:
        """Return the relative URL of a page.

        :param query: the parameters; those that are ``None`` are left out, and a list gives several of one name
        """
        if "table" in parts:
            parts["table"] = path_part(parts["table"])
        path = PATHS[page].format(**{name: quote(part, errors="replace") for name, part in parts.items()})
        text = _query_text(query or {})
        return f"{self.base}{path}?{text}" if text else f"{self.base}{path}"

    def here(self, **query: Any) -> str:
        """Return the relative URL of this page, with some parameters replaced. ``None`` removes one."""
        return f"{self._own_name}?{_query_text({**self._own_query, **query})}"

    @cached_property
    def _own_name(self) -> str:
        return quote(_route_path(self.request).rpartition("/")[2], errors="replace") or "./"

    @cached_property
    def _own_query(self) -> Mapping[str, list[str]]:
        query = self.request.query_params
        return {name: query.getlist(name) for name in query if name != "zone"}

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return the response that a template gives."""
        text = ENVIRONMENT.get_template(template).render(
            page=self, t=self.texts, show=self.show, title=safe(self.browser.title or self.texts("title")), **values
        )
        return HTMLResponse(text, status)


@dataclass(frozen=True, slots=True)
class Place:
    """What the path and the query of a page name, before anything is read.

    :ivar source: the class or association table, if the page is about one
    :ivar key: the key of its row, if the page is about one
    """

    source: Any = None
    key: Any = None


class Visit(Page):
    """A visit of a page.

    :ivar session: a session; within :meth:`reading`, it reads what the visitor may see
    :ivar form: the fields of the form that was sent
    """

    def __init__(
        self,
        browser: HistoryBrowser,
        request: Request,
        session: Session,
        permissions: Permissions,
        place: Place,
        form: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__(browser, request)
        self.session = session
        self.permissions = permissions
        self.source, self.key = place.source, place.key
        self.form = form
        self._is_reading = False

    # --- what is read -------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the session read what the visitor may see, and nothing else; it cannot write within the block."""
        if self.permissions.are_whole or self._is_reading:
            yield
            return
        with self._restriction.on(self.session):
            self._is_reading = True
            try:
                yield
            finally:
                self._is_reading = False

    @cached_property
    def _restriction(self) -> Restriction:
        criteria = {**dict.fromkeys(self.browser.sources.roots, True), **self.permissions.criteria}
        try:
            return Restriction(criteria, self.permissions.masks)
        except QueryError as error:
            raise SQLAuditError(f"authorize has given what no query can get. {error}", error) from error

    @cached_property
    def at(self) -> datetime | None:
        """The instant that the page shows; ``None`` for the present."""
        text = self.parameter("at")
        if text is None:
            return None
        with self.reading():
            return instant_of(self.session, text, self.parameter("zone") or "")

    @property
    def model(self) -> TrackedModel:
        """The model of the page."""
        return model_of(self.source)

    @property
    def name(self) -> str:
        """The full name of the table of the page."""
        return self.browser.sources.name_of(self.source)

    @property
    def title(self) -> str:
        """The name of the table of the page for people."""
        return self.browser.sources.title_of(self.source)

    def unknown_row(self) -> Problem:
        """Return the problem that the row of the page has no history that the visitor may see."""
        return Problem(404, "unknown_row", table=self.title, key=text_of(self.key))

    @property
    def has_links(self) -> bool:
        """Whether the page is about an association table."""
        return isinstance(self.model, LinkModel)

    def parameter(self, name: str) -> str | None:
        """Return the value of a parameter in the query; ``None`` if it is not given, or empty."""
        return self.request.query_params.get(name) or None

    def number(self, name: str) -> int:
        """Return a parameter in the query as a number from 0; 0 if it is none."""
        text = self.parameter(name) or ""
        return int(text) if text.isdecimal() and len(text) < 10 else 0

    def parameters(self, name: str) -> list[str]:
        """Return all values of a parameter in the query."""
        return [value for value in self.request.query_params.getlist(name) if value]

    def may(self, source: Any) -> bool:
        """Return whether the visitor may see some rows of a source."""
        return self.permissions.allow(source)

    def sees_all(self, source: Any) -> bool:
        """Return whether the visitor may see all rows of a source, with all their values."""
        root = root_source(source)
        return root not in self.permissions.criteria and root not in self.permissions.masks

    @property
    def sees_all_tables(self) -> bool:
        """Whether the visitor may see all rows of the tables that the browser shows, with all their values."""
        return all(map(self.sees_all, self.browser.sources.roots))

    def is_hidden(self, source: Any, field_name: str) -> bool:
        """Return whether the visitor may not see the values of a field."""
        return field_name in self.permissions.masked_in(source)

    @property
    def most(self) -> int:
        """The number of changes that a page shows at most. A transaction may have written a million rows."""
        return max(_MOST, self.browser.page_size)

    def is_cut(self, changes: Sized) -> bool:
        """Return whether a page of changes may lack some of its last transaction."""
        return len(changes) >= self.most

    # --- links --------------------------------------------------------------------------------------------------

    def kept(self) -> list[tuple[str, str]]:
        """Return the parameters of this page that it keeps at another instant."""
        query = self.request.query_params.multi_items()
        return [(name, value) for name, value in query if name not in ("at", "zone", "after", "skip")]

    def at_text(self) -> str | None:
        return None if self.at is None else instant_text(self.at)

    def row_url(self, page: str, source: Any, key: Any, **query: Any) -> str:
        """Return the relative URL of a page about a row, as of the instant of this page unless ``at`` is given."""
        given = {"key": key_texts(key), "at": self.at_text(), **query}
        return self.url(page, given, table=self.browser.sources.name_of(source))

    def table_url(self, source: Any, **query: Any) -> str:
        return self.url("table", {"at": self.at_text(), **query}, table=self.browser.sources.name_of(source))

    def row_name(self, label: str, key: Any) -> Markup:
        """Return the name of a row as people call it, such as ``Ticket 7``."""
        return escape(f"{safe(label)} {text_of(key)}")

    def row_link(self, label: str, key: Any) -> Markup:
        """Return a link to the row of a change; only its name if the label or the key does not say which row it is."""
        source = self.browser.sources.labelled(label)
        name = markup("<bdi>{}</bdi>", self.row_name(label, key))
        if source is None or not self.may(source):
            return name
        return markup('<a href="{}">{}</a>', self.row_url("row", source, key), name)

    # --- responses ----------------------------------------------------------------------------------------------

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        return super().render(template, status, visit=self, **values)

    def render_form(self, template: str, **values: Any) -> Response:
        """Return a page with a form, whose token the visitor's browser keeps."""
        token = token_of(self.request)
        response = self.render(template, token_name=TOKEN, token=token, **values)
        set_token(self.request, response, token)
        return response

    def redirect(self, url: str) -> Response:
        """Send the browser to another page of this history."""
        return RedirectResponse(url, 303)


def _query_text(query: Mapping[str, Any]) -> str:
    """Return parameters as a URL has them; a list is several of one name, and none are empty."""
    return "&".join(
        f"{_quoted(name)}={_quoted(str(each))}"
        for name, value in query.items()
        for each in (value if isinstance(value, list) else (value,))
        if each not in (None, "")
    )


@lru_cache
def _quoted(text: str) -> str:
    return quote_plus(text, errors="replace")  # a page repeats its names and instants in all its links


def _route_path(request: Request) -> str:
    """Return the path of a request within the browser."""
    path: str = request.scope["path"]
    root = request.scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
