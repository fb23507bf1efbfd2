"""Who may knock at all, and what may a page do in a browser?

Without an ``authorize`` there is nobody who could say who may see what. So the browser answers this machine alone: a
request from a loopback address, under a loopback name. A foreign name would be a page of the internet whose address
was changed to 127.0.0.1 (DNS rebinding); a header of a proxy says that somebody else is behind the loopback address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from hmac import compare_digest
from ipaddress import ip_address
from secrets import token_urlsafe
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from sqlaudit.web.problems import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HEADERS: Final = tuple((name.lower().encode(), value.encode()) for name, value in _HEADERS.items())
"""What every response says, unless it says something else."""
TOKEN: Final = "sqlaudit_token"
"""The name of the cookie, and of the field of a form, that have the token."""
_LARGEST_FORM: Final = 100_000
_LONGEST_QUERY: Final = 8_000
_MOST_PARAMETERS: Final = 200
_FORWARDED: Final = (b"forwarded", b"via", b"x-forwarded", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-")
"""How the names of headers begin that a proxy adds."""


def refuse_strangers(scope: Scope) -> None:
    """Raise unless a request comes from this machine, directly and under a name of its own.

    :raises Problem: it does not
    """
    client = (scope.get("client") or ("",))[0]
    if not _is_loopback(client):
        raise Problem(403, "not_local", client=client or "?")
    names = [name for name, _ in scope["headers"]]
    if any(name.startswith(_FORWARDED) for name in names):
        raise Problem(403, "forwarded")
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    host = hosts[0] if len(hosts) == 1 else ", ".join(hosts)
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name != "localhost" and not _is_loopback(name):
        raise Problem(421, "foreign_host", host=host)


def _is_loopback(address: str) -> bool:
    try:
        known = ip_address(address)
    except ValueError:
        return False
    return (getattr(known, "ipv4_mapped", None) or known).is_loopback  # ::ffff:127.0.0.1, of a server on both


def check_query(request: Request) -> None:
    """Raise if the query of a request is too large. A page repeats it in each of its links.

    :raises Problem: it is too large, or has what no database knows
    """
    query = request.query_params.multi_items()
    if len(request.url.query) > _LONGEST_QUERY or len(query) > _MOST_PARAMETERS:
        raise Problem(414, "long_query")
    if any("\0" in text for pair in query for text in pair):
        raise Problem(400, "bad_request")


# --- forms ------------------------------------------------------------------------------------------------------


def token_of(request: Request) -> str:
    """Return the token of the visitor's cookie, or a new one."""
    known = request.cookies.get(TOKEN, "")
    return known if len(known) == len(token_urlsafe(32)) else token_urlsafe(32)


def set_token(request: Request, response: Response, token: str) -> None:
    """Let the visitor keep a token until the browser is closed, for the pages below this one."""
    response.set_cookie(TOKEN, token, httponly=True, samesite="strict", secure=request.url.scheme == "https", path=None)


async def form_of(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form that a page of the browser has sent.

    :raises Problem: another site has sent it, or it is no form
    """
    if _is_foreign(request):
        raise Problem(403, "foreign_form")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Problem(415, "no_form")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            raise Problem(413, "no_form")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise Problem(400, "no_form") from None
    [token, *_], cookie = fields.pop(TOKEN, [""]), request.cookies.get(TOKEN, "")
    if not cookie or not compare_digest(token.encode(), cookie.encode()):
        raise Problem(403, "expired_form")
    return fields


def _is_foreign(request: Request) -> bool:
    """Return whether a page of another site has sent a request. Old browsers tell only the origin of the page."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")
