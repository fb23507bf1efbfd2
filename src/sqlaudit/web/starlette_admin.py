"""How does starlette-admin lead to the history of a row? By a link on each page and each line of a row.

.. code-block:: python

    class TicketView(HistoryTab, ModelView):
        history_browser = browser  # mounted at /history
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from starlette.requests import Request

from sqlaudit.exceptions import MissingPackageError
from sqlaudit.web.admins import without_versions
from sqlaudit.web.browser import HistoryBrowser

try:
    from starlette_admin.actions import link_row_action
    from starlette_admin.contrib.sqla.converters import ModelConverter
    from starlette_admin.tools import iterdecode
except ImportError as error:
    raise MissingPackageError(__name__, "web", "starlette-admin") from error

_CONVERTER: Final = 6
"""The place of the converter among the arguments of a ``ModelView``."""


class _Converter(ModelConverter):  # type: ignore[misc, unused-ignore]  # the package may be missing
    def convert_fields_list(self, **options: Any) -> Any:
        if not options.get("explicit_fields"):
            options["fields"] = without_versions(options["model"], options["fields"])
        return super().convert_fields_list(**options)


class HistoryTab:
    """Mixin for a ``ModelView`` of starlette-admin: a link ``History`` on the page and in the list of the rows.

    The view has no field for the attribute ``versions`` of the model, unless ``fields`` names it.

    :cvar history_browser: the browser, which the application has mounted beside the admin
    :cvar history_url: the path at which it is mounted, as people's browsers see it
    """

    history_browser: ClassVar[HistoryBrowser]
    history_url: ClassVar[str] = "/history"
    model: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if len(arguments) < _CONVERTER:
            options.setdefault("converter", _Converter())
        super().__init__(*arguments, **options)

    @link_row_action(name="history", text="History", icon_class="fa-solid fa-clock-rotate-left")  # type: ignore[untyped-decorator, unused-ignore]  # the package may be missing
    def history(self, request: Request, pk: Any) -> str:
        """Return the URL of the history of a row."""
        key = tuple(iterdecode(pk)) if len(self.model.__mapper__.primary_key) > 1 else (str(pk),)
        return f"{self.history_url}{self.history_browser.path_of(self.model, key)}"
