"""How does SQLAdmin lead to the history of a row? By an action on each page of a row, and for a row of each list.

.. code-block:: python

    class TicketAdmin(HistoryTab, ModelView, model=Ticket):
        history_browser = browser  # mounted at /history
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from sqlaudit.exceptions import MissingPackageError
from sqlaudit.web.admins import without_versions
from sqlaudit.web.browser import HistoryBrowser

try:
    from sqladmin import action
    from sqladmin.helpers import object_identifier_values
except ImportError as error:
    raise MissingPackageError(__name__, "web", "sqladmin") from error


class HistoryTab:
    """Mixin for a ``ModelView`` of SQLAdmin: an action ``History`` on the page and in the list of the rows.

    The pages have no field for the attribute ``versions`` of the model: they would load the whole history of each row.

    :cvar history_browser: the browser, which the application has mounted beside the admin
    :cvar history_url: the path at which it is mounted, as people's browsers see it
    """

    history_browser: ClassVar[HistoryBrowser]
    history_url: ClassVar[str] = "/history"
    model: Any

    def get_details_columns(self) -> list[str]:
        """Return the attributes that the page of a row shows."""
        return without_versions(self.model, super().get_details_columns())  # type: ignore[misc]  # of ModelView

    def get_form_columns(self) -> list[str]:
        """Return the attributes that a form has."""
        return without_versions(self.model, super().get_form_columns())  # type: ignore[misc]  # of ModelView

    @action(name="history", label="History")  # type: ignore[untyped-decorator, unused-ignore]  # the package may be missing
    async def history(self, request: Request) -> Response:
        """Redirect to the history of the row, or of the table if none is chosen; of several rows, of the first."""
        chosen = request.query_params.get("pks", "")
        key = None
        for text in (chosen.partition(",")[0], chosen):  # a key may have a comma
            with suppress(ValueError):
                key = object_identifier_values(text, self.model) if text else None
        return RedirectResponse(f"{self.history_url}{self.history_browser.path_of(self.model, key)}")
