"""How does starlette-admin lead to the history of a row? By a link on each page and each line of a row.

.. code-block:: python

    class TicketView(HistoryTab, ModelView):
        history_browser = browser  # mounted at /history
"""

from __future__ import annotations

from typing import Any, ClassVar

from starlette.requests import Request

from sqlaudit.exceptions import MissingPackageError
from sqlaudit.web.browser import HistoryBrowser

try:
    from starlette_admin.actions import link_row_action
    from starlette_admin.tools import iterdecode
except ImportError as error:
    raise MissingPackageError(__name__, "web", "starlette-admin") from error


class HistoryTab:
    """Mixin for a ``ModelView`` of starlette-admin: a link ``History`` on the page and in the list of the rows.

    :cvar history_browser: the browser, which the application has mounted beside the admin
    :cvar history_url: the path at which it is mounted, as people's browsers see it
    """

    history_browser: ClassVar[HistoryBrowser]
    history_url: ClassVar[str] = "/history"
    model: Any

    @link_row_action(name="history", text="History", icon_class="fa-solid fa-clock-rotate-left")  # type: ignore[untyped-decorator, unused-ignore]  # the package may be missing
    def history(self, request: Request, pk: Any) -> str:
        """Return the URL of the history of a row."""
        key = tuple(iterdecode(pk)) if len(self.model.__mapper__.primary_key) > 1 else (str(pk),)
        return f"{self.history_url}{self.history_browser.path_of(self.model, key)}"
