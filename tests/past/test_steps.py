"""A read of few rows takes few steps on SQLite, also where ANALYZE has told it how long the history is."""

import pytest

from clock import at
from long_history import Base, Item, load, steps_counted
from sqlaudit import as_of, compare, compare_page

__all__ = ["Base"]
pytestmark = pytest.mark.requires("counts_of_steps")


def test_ten_rows_as_of_an_instant_take_few_steps(engine, sessions, tables):
    load(engine, Item, (1_000, 100))
    with sessions() as session, steps_counted(session) as steps:
        assert len(session.scalars(as_of(Item, at(12_000)).where(Item.id.in_(range(7, 17)))).all()) == 10
    assert 100 < steps[0] < 20_000  # some for each entry of their keys in the index, none for the 99,000 others


def test_a_page_of_a_large_difference_takes_a_small_part_of_the_steps_of_all_of_it(engine, sessions, tables):
    end = load(engine, Item, (5_000, 10))
    with sessions() as session:
        rows = list(compare(session, Item, at(1), end))
        page = compare_page(session, Item, at(1), end, size=2_500)
        with steps_counted(session) as steps_of_all:
            list(compare(session, Item, at(1), end))
        with steps_counted(session) as steps:
            assert compare_page(session, Item, at(1), end, after=page.next).items == rows[2_500:2_550]
    assert steps[0] * 10 < steps_of_all[0]
