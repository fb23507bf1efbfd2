"""Which views are there? Each module has those of one question."""

from __future__ import annotations

from typing import Final

from sqlaudit.web.view import View
from sqlaudit.web.views import restoring, undoing
from sqlaudit.web.views.activity import ACTIVITY, SEARCH
from sqlaudit.web.views.blaming import BLAME
from sqlaudit.web.views.changesets import CHANGESET, CHANGESETS, SQL
from sqlaudit.web.views.comparing import COMPARE
from sqlaudit.web.views.diffing import DIFF, DIFF_JSON, DIFF_SQL
from sqlaudit.web.views.overview import CHECK, OVERVIEW
from sqlaudit.web.views.rows import ROW
from sqlaudit.web.views.runs import RUN
from sqlaudit.web.views.tables import HOME, TABLE

VIEWS: Final[list[View]] = [
    *(HOME, ROW, BLAME, DIFF, DIFF_JSON, DIFF_SQL),
    *(ACTIVITY, SEARCH, CHANGESETS, CHANGESET, RUN, SQL, OVERVIEW, CHECK, COMPARE),
    *(*undoing.CHANGESET, *undoing.RUN, restoring.ASK, restoring.DO),
    TABLE,  # the last one: the name of a table may have a slash
]
