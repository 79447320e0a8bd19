"""What chance alone does to the ranks' load, and what a run has above it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.deployment.uniform_routing import mean_uniform_imbalances, uniform_imbalance
from simulator.engine.timeline import run_plan
from simulator.step.prices import Prices
from simulator.work.uniform_load import draw_uniform_imbalance
from tests.cases import cases

SPLIT = {"attention_dp": 8, "ep": 8}
EVEN = {"kind": "uniform"}
CONCENTRATED = {"kind": "zipf", "exponent": 1.0}


def drawn(slots_per_rank, num_ranks, top_k, num_tokens, seed=0):
    rank_P = np.repeat(np.arange(num_ranks), slots_per_rank)
    return draw_uniform_imbalance(rank_P, top_k, num_tokens, np.random.default_rng(seed))


def expected_by_counting(num_ranks, num_tokens):
    """The expectation for tokens of one slot each, every outcome counted."""
    outcomes = np.indices((num_ranks,) * num_tokens).reshape(num_tokens, -1)
    fullest = [np.bincount(outcome).max() for outcome in outcomes.T]
    return np.mean(fullest) * num_ranks / num_tokens


@cases(20)
@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 4))
def test_the_expectation_is_that_of_all_outcomes(num_ranks, num_tokens, slots):
    found = drawn(slots, num_ranks, 1, num_tokens)
    assert found.mean == pytest.approx(expected_by_counting(num_ranks, num_tokens), rel=0.05)


@cases(40)
@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8), st.integers(1, 600), st.data())
def test_it_lies_between_even_and_all_on_one_rank(ranks, slots, top_k, num_tokens, data):
    top_k = min(top_k, ranks * slots)
    found = drawn(slots, ranks, top_k, num_tokens, data.draw(st.integers(0, 9)))
    assert 1 <= found.low <= found.high <= ranks
    assert found.low <= found.mean <= ranks
    if ranks == 1 or top_k == ranks * slots:
        assert found.mean == 1


@cases(20)
@given(st.integers(2, 32), st.integers(1, 8), st.integers(1, 8), st.integers(1, 300))
def test_it_falls_with_more_tokens(ranks, slots, top_k, num_tokens):
    top_k = min(top_k, ranks * slots - 1)
    few, many = (drawn(slots, ranks, top_k, count).mean for count in (num_tokens, 8 * num_tokens))
    assert many < few


def test_many_batches_are_read_between_few_drawn_ones(tiny):
    plan = tiny.plan("moe", **SPLIT)
    tokens_S = np.array([1.0, 17.0, 300.0, 4096.0, 9000.0])
    wanted = [uniform_imbalance(plan, int(tokens)).mean for tokens in tokens_S]
    assert mean_uniform_imbalances(plan, tokens_S) == pytest.approx(wanted, rel=0.02)
    assert wanted[-1] == wanted[-2], "a batch above the pool's is made of the pool's tokens"


def test_dense_models_have_none(tiny):
    plan = tiny.plan("dense")
    assert uniform_imbalance(plan, 10) is None
    assert math.isnan(run_plan(plan, tiny.trace(5)).uniform_imbalance)


def excess(plan, total, batches=64):
    """What batches of the plan's routing have above chance: its mean, and its standard error."""
    prices = Prices(plan.placement, total)
    offsets = np.random.default_rng(0).integers(4096, size=batches).tolist()
    tokens_d = np.full(
        plan.placement.layout.attention_dp, total // plan.placement.layout.attention_dp
    )
    steps = prices.experts.steps(tokens_d, [(0, offset) for offset in offsets])
    ratio = np.array([step.pairs_R.max() / step.pairs_R.mean() for step in steps])
    error = ratio.std(ddof=1) / math.sqrt(batches)
    return ratio.mean() - uniform_imbalance(plan, total).mean, error


@pytest.mark.parametrize("total", [8, 32, 128])
def test_uniform_routing_has_no_skew(tiny, total):
    plan = tiny.plan("moe", routing=EVEN, **SPLIT)
    found, error = excess(plan, total)
    assert abs(found) < 4 * error + 0.005 * uniform_imbalance(plan, total).mean


@pytest.mark.parametrize("total", [8, 128, 1024, 4096])
def test_a_concentrated_routing_has_one_that_stays_at_large_batches(tiny, total):
    plan = tiny.plan("moe", routing=CONCENTRATED, **SPLIT)
    found, error = excess(plan, total)
    assert found > 4 * error
    assert total < 1024 or found > 0.3


def test_a_batch_of_one_token_is_one_of_one_token(tiny):
    plan, trace = tiny.plan("moe", **SPLIT), tiny.trace(1, longest_input=1)
    alone = uniform_imbalance(plan, 1).mean
    assert alone > 1.2 * uniform_imbalance(plan, 2).mean
    assert run_plan(plan, trace).uniform_imbalance == pytest.approx(alone)


def test_a_run_sets_its_imbalance_against_that_of_its_own_batches(tiny):
    trace = tiny.trace(60, 2000.0)
    scheduling = {"kind": "chunked", "token_budget": 64, "max_sequences": 64}
    even, uneven = (
        run_plan(tiny.plan("moe", routing=routing, scheduling=scheduling, **SPLIT), trace)
        for routing in (EVEN, CONCENTRATED)
    )
    assert even.load_imbalance == pytest.approx(even.uniform_imbalance, rel=0.03)
    assert even.uniform_imbalance > 1.05, "small batches are uneven by chance"
    assert uneven.load_imbalance > 1.2 * uneven.uniform_imbalance
