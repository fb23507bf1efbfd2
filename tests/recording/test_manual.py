"""The statements that the manual of the package shows are those that it makes."""

import re

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column

from sqlaudit import Operation, recording, track_table
from sqlaudit.recording.clauses import NO_USER_FIELDS
from sqlaudit.recording.statements import LiveRows, OpenVersions, Statements
from sqlaudit.tracking.models import tracked_model_of

SHOWN = dict(re.findall(r"``(\w+)``[^`]*?\n\n\.\. code-block:: sql\n\n((?: {4}.*\n|\n)+)", recording.__doc__ or ""))
STEPS = {
    "close": lambda statements: statements.close(OpenVersions.CHANGED, guarded=True),
    "snapshot": lambda statements: statements.snapshot(Operation.UPDATE, LiveRows.ALL),
    "close_and_snapshot": lambda statements: statements.close_and_snapshot(),
    "tombstone": lambda statements: statements.tombstone(OpenVersions.DELETED, guarded=True),
    "baseline": lambda statements: statements.snapshot(Operation.BASELINE, LiveRows.ABSENT),
    "last": lambda statements: statements.last(),
}


def bare(sql: str) -> str:
    """Return a statement without what only its execution needs: types, names of columns that nobody reads, spaces."""
    sql = re.sub(r"::[A-Z]+( WITH TIME ZONE)?| AS anon_+\d+", "", sql)
    return re.sub(r"\s+", "", sql.replace("sqlaudit_", "")).replace("((", "(").replace("))", ")")


@pytest.mark.parametrize("name", STEPS)
def test_the_manual_shows_the_statements_that_are_sent(base, name):
    @track_table()
    class Customer(base):
        __tablename__ = "customers"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    dialect = postgresql.dialect(paramstyle="named")
    statements = Statements(tracked_model_of(Customer).chain, NO_USER_FIELDS, False, dialect)
    (prepared,) = STEPS[name](statements)
    sent: sa.ClauseElement = prepared.statement
    assert bare(SHOWN[name]) == bare(str(sent.compile(dialect=dialect)))


def test_the_manual_shows_no_other_statements():
    assert SHOWN.keys() == STEPS.keys()
