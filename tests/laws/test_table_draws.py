"""What chance does to a step table: nothing from entry to entry, and little within one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.streams import open_stream
from simulator.engine.experts_table import spread_tokens
from simulator.engine.table import make_table
from simulator.step.prices import Prices
from tests.cases import cases

pytestmark = pytest.mark.shipped_draws


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_an_entry_does_not_hang_on_the_others(tiny, overlap):
    """A table up to more tokens holds the same entries: each draws from a stream of its own."""
    plan = tiny.plan("moe", attention_dp=4, ep=4, overlap=overlap)
    small, large = (make_table(Prices(plan.placement, tokens)) for tokens in (40, 160))
    both = np.intersect1d(small.expert_tokens[0], large.expert_tokens[0])
    assert len(both) > 10
    for table_s in ("expert_s", "expert_alone_s"):
        found, wanted = (
            getattr(table, table_s)[0, np.searchsorted(table.expert_tokens[0], both)]
            for table in (small, large)
        )
        assert found.tobytes() == wanted.tobytes()


def test_a_table_hangs_on_no_rule_replica_pool_or_failure(tiny):
    """Or runs of tests could not share one (:mod:`tests.tables`)."""
    keys = {"attention_dp": 2, "ep": 2, "num_layers": 2, "cluster": "h100-sxm-16"}
    changes = [
        {"replicas": 3, "balancing": {"kind": "round_robin"}},
        {"scheduling": {"kind": "no_evict", "token_budget": 64, "max_sequences": 4}},
        {"failures": [{"kind": "kill", "at_s": 1.0, "gpu": 0}], "replicas": 2},
        {"prefill": {"parallel": {"tp": 2}, "replicas": 1}},
    ]
    known = make_table(Prices(tiny.plan("moe", **keys).placement, 48))
    for change in changes:
        found = make_table(Prices(tiny.plan("moe", **keys, **change).placement, 48))
        for name, wanted in known._asdict().items():
            np.testing.assert_array_equal(getattr(found, name), wanted, err_msg=f"{name}, {change}")


@pytest.mark.slow
def test_entries_scatter_little_between_streams(tiny):
    """DeepSeek-V3 over 32 ranks: 0.3 % at the median and 1 % at most over twelve streams, of which
    five are tried here, on the steps of few tokens, which scatter most.
    """
    plan = tiny.plan(
        "deepseek-v3", attention_dp=32, ep=32, cluster="h100-sxm-32", weight_dtype="fp8_block"
    )
    tables = [make_table(Prices(plan.placement, 128), f"try {number}") for number in range(5)]
    total_s = np.array([table.expert_s[..., :4].sum(axis=-1) for table in tables])
    scatter = total_s.std(axis=0, ddof=1) / total_s.mean(axis=0)
    assert np.median(scatter) < 0.005
    assert np.quantile(scatter, 0.9) < 0.01
    assert scatter.max() < 0.02


@cases(100)
@given(st.integers(1, 5000), st.integers(1, 16), st.data())
def test_tokens_are_spread_evenly_beside_the_rank_that_has_most(total, num_ranks, data):
    share = data.draw(st.floats(1, num_ranks))
    tokens_d = spread_tokens(total, share, num_ranks)
    assert (tokens_d.sum(), len(tokens_d)) == (total, num_ranks)
    assert tokens_d[0] == tokens_d.max()
    assert abs(tokens_d[0] - share * total / num_ranks) <= 1
    assert num_ranks == 1 or np.ptp(tokens_d[1:]) <= 1


def test_streams_of_other_purposes_and_numbers_are_other_streams():
    streams = [
        open_stream(1, "a"),
        open_stream(1, "b"),
        open_stream(2, "a"),
        open_stream(1, "a", 0),
        open_stream(1, "a", 0, 1),
    ]
    assert len({stream.integers(1 << 62) for stream in streams}) == len(streams)
    assert open_stream(1, "a", 3).integers(1 << 62) == open_stream(1, "a", 3).integers(1 << 62)
