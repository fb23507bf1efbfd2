"""Can the database use an index to find the rows with one of many ids?"""

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite

from sqlaudit.sql.lists import is_among


@pytest.mark.parametrize("dialect", [sqlite.dialect(), mysql.dialect()], ids=["sqlite", "mysql"])
def test_a_condition_of_many_values_is_not_compared_with_true(dialect):
    column = sa.column("id", sa.Integer())
    condition = is_among(column, sa.bindparam("ids", type_=sa.Integer(), expanding=True))
    text = str(sa.select(column).where(condition).compile(dialect=dialect))
    assert "id IN (" in text
    assert "= 1" not in text
