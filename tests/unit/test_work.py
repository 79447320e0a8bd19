"""Exact counts against brute force and published numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.model import load_model
from simulator.work.context import NO_WINDOW, entries, pairs
from simulator.work.layout import Layout
from simulator.work.memory import Precision, cache_size

BF16 = Precision("bf16", "bf16", "bf16", "bf16", "bf16")


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


@pytest.mark.parametrize(
    ("name", "num_bytes"), [("llama-3.1-70b", 327_680), ("deepseek-v3", 70_272)]
)
def test_cache_bytes_of_a_token_are_as_published(name, num_bytes):
    assert cache_size(load_model(name, "test"), Layout(1, 1, 1), BF16).bytes_per_token == num_bytes
