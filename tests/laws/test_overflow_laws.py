"""What experts without room drop: who is kept, and that prices, tables and runs agree on it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from simulator.config.workload import SLO
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.by_ranks import ByRanks
from simulator.engine.experts_table import spread_tokens
from simulator.engine.step_log import LOG_COLUMNS, NUM_COLUMNS, cut_row
from simulator.engine.timeline import run_plan, serve
from simulator.policies.contracts import find_overflow_fault as find_fault
from simulator.policies.overflow import RoutedTokens, take_choices
from simulator.policies.overflow.capacity import Capacity
from simulator.policies.overflow.top_k import FewerExperts
from simulator.results.metrics import summarise
from simulator.step.expert_prices import find_imbalance
from simulator.step.prices import Prices
from simulator.work.slots import SlotMap
from simulator.workload.traces import RequestTrace
from tests.admission_by_loops import admit_by_loops
from tests.cases import cases
from tests.laws.deployments import check_same_events, serve_by_events
from tests.parts import change_plan


@st.composite
def batches(draw, most_next=0):
    """Tokens with the next best experts of each, of experts that lie in blocks on ranks."""
    experts, tokens = draw(st.integers(1, 12)), draw(st.integers(0, 80))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = rng.random(experts) ** draw(st.sampled_from([1, 8]))
    key_TE = np.log(weights) + rng.gumbel(size=(tokens, experts))
    top_k, ranks = draw(st.integers(1, experts)), draw(st.integers(1, experts))
    num_choices = top_k + draw(st.integers(0, most_next))
    ids_TJ = key_TE.argsort(axis=1)[:, ::-1][:, :num_choices].astype(np.int16)
    source_T = np.sort(rng.integers(0, draw(st.integers(1, 5)), tokens))
    rank_TJ = ids_TJ.astype(np.int64) * ranks // experts
    return RoutedTokens(ids_TJ, rank_TJ, top_k, source_T, experts, ranks)


any_policy = st.one_of(
    st.builds(
        Capacity,
        factor=st.floats(0.01, 4.0),
        per=st.sampled_from(["expert", "rank"]),
        next_choices=st.just(1),  # what a policy is given is what counts
    ),
    st.builds(FewerExperts, top_k=st.integers(1, 6), above_tokens=st.integers(0, 40)),
)


@cases(100)
@given(batches(most_next=4), any_policy)
def test_admitted_pairs_are_those_of_a_direct_count(batch, policy):
    admitted_TK = policy.admit(batch)
    assert np.array_equal(admitted_TK, admit_by_loops(policy, batch))
    assert not find_fault(admitted_TK, batch)


LAYOUTS = [
    {"tp": 4, "ep": 4},
    {"attention_dp": 4, "ep": 4},
    {"tp": 2, "attention_dp": 2, "ep": 2},
    {"tp": 2, "attention_dp": 4, "ep": 8, "placement": {"kind": "eplb", "num_slots": 24}},
]


def capacity(factor):
    return {"kind": "capacity", "factor": factor}


FURTHER = [
    {"kind": "capacity", "factor": 0.9, "per": "rank"},
    {"kind": "capacity", "factor": 0.9, "next_choices": 2},
    {"kind": "capacity", "factor": 0.8, "per": "rank", "next_choices": 99},
    {"kind": "top_k", "top_k": 1, "above_tokens": 30},
]


TOTALS = [3, 500, POOL_TOKENS, POOL_TOKENS + 1, 9001]


def admit_directly(plan, layer, offset, tokens_d):
    """Choices of a step's tokens, the pool going round; which are admitted, token by token; and
    the pairs of each rank.
    """
    layout, experts = plan.placement.layout, plan.placement.experts
    own_R = [
        tokens // layout.tp + (part < tokens % layout.tp)
        for tokens in tokens_d.tolist()
        for part in range(layout.tp)
    ]
    source_T = np.repeat(np.arange(len(own_R)), own_R) if layout.travels else None
    place_T = (offset + np.arange(tokens_d.sum())) % POOL_TOKENS
    ids_TJ = take_choices(experts.topk_ids_LTK, experts.next_LTN, layer, place_T)
    slots = SlotMap(experts.placed, layer, plan.placement.model.moe.num_experts)
    admitted_TK = admit_by_loops(experts.overflow, slots.route_tokens(ids_TJ, 2, source_T))
    pairs_R = slots.rows(slots.slots(admitted_TK, source_T)).sum(axis=1)
    return ids_TJ, admitted_TK, np.repeat(pairs_R, layout.moe_tp)


@pytest.mark.parametrize(
    ("overflow", "total"),
    [*((capacity(0.8), total) for total in TOTALS), *((one, 500) for one in FURTHER)],
    ids=str,
)
@pytest.mark.parametrize("split", LAYOUTS, ids=str)
def test_pairs_of_a_step_are_those_admitted_by_a_direct_count(tiny, split, overflow, total):
    """Also beyond the pool, which goes round."""
    plan = tiny.plan("moe", overflow=overflow, **split)
    tokens_d = spread_tokens(total, 1.5, plan.placement.layout.attention_dp)
    prices = Prices(plan.placement, 16384)
    for layer, offset in ((0, 5), (2, 4000)):
        step = prices.expert_step(layer, tokens_d, offset)
        ids_TJ, admitted_TK, pairs_R = admit_directly(plan, layer, offset, tokens_d)
        assert total < 500 or (admitted_TK != ids_TJ[:, :2]).any()
        assert step.dropped_pairs == (admitted_TK < 0).sum()
        assert step.pairs_R.tolist() == pairs_R.tolist()


@pytest.mark.parametrize("split", LAYOUTS, ids=str)
def test_dropping_sends_computes_and_reads_no_more(tiny, split):
    steps = [
        Prices(tiny.plan("moe", overflow=overflow, **split).placement, 4096).expert_step(
            1, spread_tokens(700, 1.5, split.get("attention_dp", 1)), 17
        )
        for overflow in (None, capacity(1.5), capacity(1.0), capacity(0.3))
    ]
    assert 0 == steps[0].dropped_pairs < steps[2].dropped_pairs < steps[3].dropped_pairs
    for more, fewer in pairwise(steps):
        assert more.dropped_pairs <= fewer.dropped_pairs
        assert (more.pairs_R >= fewer.pairs_R).all()
        assert more.read_bytes >= fewer.read_bytes
        assert (more.dispatch.bytes_SR >= fewer.dispatch.bytes_SR).all()
        assert (more.combine.bytes_SR >= fewer.combine.bytes_SR).all()


class Nobody:
    """Room for no token at all."""

    def admit(self, tokens):
        return np.full((len(tokens.ids_TJ), tokens.top_k), -1)


@pytest.mark.parametrize("split", LAYOUTS, ids=str)
def test_a_step_that_drops_everything_computes_sends_and_reads_nothing(tiny, split):
    plan = tiny.plan("moe", dispatch={"kind": "per_rank"}, **split)
    plan = change_plan(plan, experts=replace(plan.placement.experts, overflow=Nobody()))
    tokens_d = spread_tokens(700, 1.5, plan.placement.layout.attention_dp)
    step = Prices(plan.placement, 4096).expert_step(1, tokens_d, 17)
    assert step.dropped_pairs == 700 * plan.placement.model.moe.top_k
    assert not step.pairs_R.any()
    assert not step.dispatch.bytes_SR.any()
    assert (step.read_bytes, find_imbalance(step.pairs_R)) == (0.0, 1.0)


SERVED = [
    {"attention_dp": 4, "ep": 4},
    {"tp": 2, "ep": 2},
    {"attention_dp": 4, "ep": 4, "overlap": "two_batch"},
    {"attention_dp": 2, "ep": 2, "pp": 2},
]


@pytest.mark.parametrize("split", SERVED, ids=str)
def test_a_run_with_room_for_all_is_the_run_without_a_capacity(tiny, split):
    trace = tiny.trace(12, 200.0, 300, 6)
    free, roomy = (
        run_plan(tiny.plan("moe", overflow=overflow, **split), trace, "step")
        for overflow in ({"kind": "none"}, capacity(8.0))
    )
    for table in ("requests", "steps", "ranks", "traffic", "spans"):
        pd.testing.assert_frame_equal(getattr(free, table), getattr(roomy, table), check_exact=True)
    assert (free.read_bytes, free.load_imbalance) == (roomy.read_bytes, roomy.load_imbalance)
    assert np.isnan(free.dropped_share)
    assert roomy.dropped_share == 0.0


@pytest.mark.parametrize("split", SERVED, ids=str)
def test_the_dropped_share_of_a_run_by_ranks_is_a_direct_count(tiny, monkeypatch, split):
    plan = tiny.plan("moe", overflow=capacity(0.9), **split)
    ran = []
    take_step = ByRanks.take_step

    def take_and_keep(self, *step):
        taken = yield from take_step(self, *step)
        ran.extend(zip(taken.batches, taken.offsets, strict=True))
        return taken

    monkeypatch.setattr(ByRanks, "take_step", take_and_keep)
    record = run_plan(plan, tiny.trace(12, 200.0, 300, 6), "rank")
    num_layers = plan.placement.model.num_moe_layers
    computed_L, chosen = np.zeros(num_layers), 0
    prices = Prices(plan.placement, 8192)
    for batch, offset in ran:
        for part in prices.parts(batch):
            total = int(part.tokens_d.sum())
            for layer in range(num_layers):
                admitted_TK = admit_directly(plan, layer, offset, part.tokens_d)[1]
                computed_L[layer] += (admitted_TK >= 0).sum()
            chosen += total * plan.placement.model.moe.top_k
            offset += total
    share_L = 1 - computed_L / chosen
    assert 0 < share_L.min() < share_L.max() < 1
    assert record.dropped_share == pytest.approx(share_L.mean(), rel=1e-12)
    assert record.overflow_by_layer.dropped == pytest.approx(share_L.tolist(), rel=1e-12)
    assert not any(record.overflow_by_layer.rerouted)
    assert record.overflow_by_layer.num_batches == len(ran)
    row = summarise([plan], [record], SLO()).iloc[0]
    assert row["dropped_share"] == record.dropped_share


@pytest.mark.parametrize("split", SERVED, ids=str)
def test_rows_of_many_steps_add_up_what_each_drops(tiny, monkeypatch, split):
    plan = tiny.plan("moe", overflow=capacity(0.3), **split)
    trace = tiny.trace(60, 2000.0, 100, 40)
    compiled, simpy = (
        serve(plan, trace, "step"),
        serve_by_events(monkeypatch, plan, trace, tiny.tables),
    )
    steps = compiled.steps_of("both")
    assert (steps["dropped_pairs"][steps["num_steps"] > 1] > 0).any()
    check_same_events(compiled, simpy)


def test_a_step_that_is_cut_off_drops_nothing():
    row = np.ones(NUM_COLUMNS)
    cut_row(row, 1.5)
    assert row[LOG_COLUMNS.index("dropped_pairs")] == 0.0


@pytest.mark.parametrize(
    ("split", "overflow"),
    [*((split, capacity(1.0)) for split in SERVED), *((SERVED[0], one) for one in FURTHER[:2])],
    ids=str,
)
def test_fidelities_drop_alike(tiny, split, overflow):
    """The table has the mean of draws, and ranks the draws themselves."""
    plan = tiny.plan("moe", overflow=overflow, **split)
    trace = tiny.trace(20, 100.0, 400, 12)
    records = [run_plan(plan, trace, name) for name in ("step", "rank", "message")]
    by_table, by_ranks, by_messages = (record.dropped_share for record in records)
    for record in records:
        layers = record.overflow_by_layer
        assert np.mean(layers.dropped) == pytest.approx(record.dropped_share, abs=1e-9)
        assert any(layers.rerouted) == ("next_choices" in overflow)
    assert by_table == pytest.approx(by_ranks, rel=0.08)
    assert by_messages == pytest.approx(by_ranks, rel=0.08)
    assert by_ranks > 0.05


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_what_is_dropped_at_each_number_of_tokens_is_what_a_binomial_says(tiny, factor):
    """Room is rounded up, so that the share is a sawtooth over the tokens of a rank: 4.5 % of 64
    tokens at 1.25.
    """
    plan = tiny.plan(
        "gpt-oss-20b",
        attention_dp=8,
        ep=8,
        overflow=capacity(factor),
        routing={"kind": "uniform"},
        scheduling={"kind": "chunked", "max_sequences": 512, "steps_ahead": 0},
    )
    found, by_hand = [], []
    for tokens in (7, 12, 13, 26, 40, 51, 52, 64, 77, 90, 103):
        count = 8 * tokens
        trace = RequestTrace(
            np.zeros(count), np.full(count, 1), np.full(count, 6), "as many in each step"
        )
        found.append(run_plan(plan, trace, "step").dropped_share)
        room = math.ceil(tokens * 4 / 32 * factor)
        pairs = np.arange(tokens + 1)
        left = np.maximum(pairs - room, 0) @ binom.pmf(pairs, tokens, 4 / 32)
        by_hand.append(left / (tokens * 4 / 32))
    assert max(by_hand) / min(by_hand) > 1.5
    np.testing.assert_allclose(found, by_hand, rtol=0.1)
