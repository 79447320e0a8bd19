"""Exact counts against brute force and published numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.work.context import NO_WINDOW, entries, pairs


@given(
    st.integers(0, 300),
    st.integers(0, 60),
    st.sampled_from([1, 7, 128, NO_WINDOW]),
    st.sampled_from([1, 4]),
)
def test_pairs_are_those_of_each_new_token(context, new, window, compression):
    seen = [
        t / compression if t <= window * compression else window
        for t in range(context + 1, context + new + 1)
    ]
    assert pairs(context, new, window, compression) == pytest.approx(sum(seen))


@given(st.integers(0, 300), st.integers(1, 60), st.sampled_from([1, 7, 128, NO_WINDOW]))
def test_entries_are_the_union_of_what_new_tokens_see(context, new, window):
    seen = {
        entry
        for t in range(context + 1, context + new + 1)
        for entry in range(max(0, t - window), t)
    }
    assert entries(context, new, window, 1) == len(seen)
