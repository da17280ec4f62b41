"""Counts to bars."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.inspect.histogram import Bar, histogram


def test_few_values_have_a_bar_each():
    assert histogram({1: 4, 3: 2}) == [Bar(1, 1, 4), Bar(2, 2, 0), Bar(3, 3, 2)]
    assert histogram({}) == []


def test_a_long_tail_goes_into_the_last_bar():
    found = histogram({1: 500, 2: 500, 10_000: 1})
    assert found[0] == Bar(1, 1, 500)
    assert found[-1] == Bar(2, 10_000, 501)


@given(st.dictionaries(st.integers(-500, 100_000), st.integers(1, 50), min_size=1, max_size=60))
def test_every_value_is_in_one_bar(counts):
    found = histogram(counts)
    assert len(found) <= 25
    assert sum(bar.count for bar in found) == sum(counts.values())
    assert all(a.high + 1 == b.low for a, b in pairwise(found))
    for bar in found:
        assert bar.count == sum(n for value, n in counts.items() if bar.low <= value <= bar.high)
