"""A read of rows by their keys takes few steps on SQLite, also where ANALYZE has told it how long the history is."""

import pytest

from clock import at
from long_history import Base, Item, load, steps_counted
from sqlaudit import as_of

__all__ = ["Base"]
pytestmark = pytest.mark.requires("counts_of_steps")


def test_ten_rows_as_of_an_instant_take_few_steps(engine, sessions, tables):
    load(engine, Item, (1_000, 100))
    with sessions() as session, steps_counted(session) as steps:
        assert len(session.scalars(as_of(Item, at(12_000)).where(Item.id.in_(range(7, 17)))).all()) == 10
    assert 100 < steps[0] < 20_000  # some for each entry of their keys in the index, none for the 99,000 others
