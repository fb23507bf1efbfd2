"""The browser of history: pages on which people see who changed what, when and why. It needs the extra ``web``.

.. code-block:: python

    app.mount("/history", HistoryBrowser(engine, Base, authorize=authorize))
"""

from __future__ import annotations

from sqlaudit.exceptions import MissingPackageError

try:
    from sqlaudit.web.access import Access
    from sqlaudit.web.browser import HistoryBrowser
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "jinja2", "markupsafe"):
        raise
    raise MissingPackageError(__name__, "web", "starlette and jinja2") from error

__all__ = ["Access", "HistoryBrowser"]
