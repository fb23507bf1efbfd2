"""How does a history that another library has recorded become a history of sqlaudit?

``continuum``
    Version tables of SQLAlchemy-Continuum and sqlalchemy-history, by ``INSERT … SELECT``.
``changelog``
    The change log of sqlaudit 0.5 to 0.7, from whose texts (``values``) the versions are computed backwards.

Both leave rows alone that have a history already, and write in the caller's transaction. They end by comparing with
the live rows (``targets``): what the other library missed becomes a version of now.
"""

from sqlaudit.importing.changelog import ChangeLogReport, import_change_log
from sqlaudit.importing.continuum import ImportReport, import_continuum

__all__ = ["ChangeLogReport", "ImportReport", "import_change_log", "import_continuum"]
