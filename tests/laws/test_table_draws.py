"""What chance does to a step table: nothing from entry to entry, and little within one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.streams import open_stream
from simulator.engine.experts_table import _choose_layers, _pass_through, spread_tokens
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


@pytest.mark.parametrize("num_layers", [1, 4, 27, 58])
@pytest.mark.parametrize("count", [1, 14, 58, 96])
def test_layers_that_stand_for_all_are_as_unevenly_loaded_as_all(num_layers, count):
    imbalance_L = 1 + open_stream(count, "imbalance", num_layers).lognormal(0.0, 0.5, num_layers)
    chosen = _choose_layers(tuple(imbalance_L.tolist()), count)
    assert len(chosen) == count
    uses = np.bincount(chosen, minlength=num_layers)
    assert uses.max() - uses.min() <= 1
    spread = np.ptp(imbalance_L) * num_layers / max(count, num_layers)
    assert (
        abs(imbalance_L[chosen].mean() - imbalance_L.mean())
        <= spread / min(count, num_layers) / 2 + 1e-12
        or count == 1
    )


@cases(200)
@given(st.integers(1, 100), st.integers(1, 100))
def test_draws_pass_as_layers_of_one_step_do_each_as_often_as_the_others(num_layers, num_draws):
    """In passes about as long as the model: it is within a third of what is longer."""
    passes = _pass_through(num_layers, num_draws)
    uses = np.bincount(np.concatenate(passes), minlength=num_draws)
    assert np.ptp(uses) == 0
    for drawn in passes:
        assert abs(len(drawn) - num_layers) <= max(len(drawn), num_layers) / 3 + 1


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
