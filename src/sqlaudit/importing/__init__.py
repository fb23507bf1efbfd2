"""How does the history of another library become history of sqlaudit?"""

from sqlaudit.importing.changelog import ChangeLogReport, import_change_log
from sqlaudit.importing.continuum import ImportReport, import_continuum

__all__ = ["ChangeLogReport", "ImportReport", "import_change_log", "import_continuum"]
