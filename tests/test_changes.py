"""What differs between two snapshots."""

import math
from decimal import Decimal

import pytest

from sqlaudit import Operation
from sqlaudit.changes import diff, differ

NAN = float("nan")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, False),
        (None, 0),
        (None, ""),
        (0, False),
        (1, True),
        ("a", "A"),
        (NAN, 1.0),
        ([1], [True]),
        ([1], [1, 1]),
        ({"a": 1}, {"a": True}),
        ({"a": {"b": [0]}}, {"a": {"b": [False]}}),
        ({"a": None}, {}),
        ([], {}),
        ((1,), [1]),
    ],
    ids=repr,
)
def test_different_values_differ_both_ways(old, new):
    assert differ(old, new)
    assert differ(new, old)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NAN, float("nan")),
        (Decimal("NaN"), Decimal("NaN")),
        (Decimal("1.0"), Decimal("1.00")),
        (1, 1.0),
        ([math.nan], [float("nan")]),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        (b"x", bytes([120])),
    ],
    ids=repr,
)
def test_equal_values_do_not_differ(old, new):
    assert not differ(old, new)


@pytest.mark.parametrize(
    ("operation", "old", "expected"),
    [
        (Operation.INSERT, None, [("a", None, 1)]),
        (Operation.INSERT, [5, 5], [("a", None, 1)]),
        (Operation.DELETE, [5, 5], [("a", 1, None)]),
        (Operation.UPDATE, [1, 5], [("b", 5, None)]),
        (Operation.UPDATE, [1, None], []),
        (Operation.UPDATE, None, []),
        (Operation.BASELINE, [5, 5], []),
    ],
    ids=repr,
)
def test_an_operation_tells_what_it_changed(operation, old, expected):
    assert list(diff(["a", "b"], operation, old, [1, None])) == expected
