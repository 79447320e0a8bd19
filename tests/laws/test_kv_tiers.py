"""Tiers of the KV cache below the GPU: what they hold, and when it has been read."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from simulator.config.workload import WorkloadSpec
from simulator.engine.timeline import make_record
from simulator.policies.failures import Change
from simulator.policies.kv_tiers import Tier
from simulator.workload.requests import load_requests
from tests.cases import seeds
from tests.laws.deployments import check_same_events, serve_by_events
from tests.laws.failing import check_all_is_given_back, with_changes
from tests.laws.reference_cases import draw_case
from tests.laws.test_shards import serve_apart
from tests.laws.test_windows import check_same, make_small
from tests.parts import change_plan
from tests.shared import shared_file

MOONCAKE = "traces/requests/mooncake/conversation_trace_first20min.jsonl"
"""Requests of a conversation service, 20 minutes (Apache-2.0, arXiv:2407.00079)."""
PUBLISHED = {1000: 4.0, 3000: 6.1, 10_000: 20.4, 30_000: 30.1, 50_000: 31.7}
"""Percentage of the blocks that an LRU of so many blocks finds there, those of unfinished blocks
included."""


def load_mooncake():
    path = shared_file(MOONCAKE)
    return load_requests(WorkloadSpec(requests=str(path)), path.parent, 1)


def read_blocks_of(trace):
    """Prefix blocks of each request, whole ones, and how many of them it may find."""
    for n, num_input in enumerate(trace.num_input.tolist()):
        ids = trace.prefix_ids[trace.prefix_starts[n] : trace.prefix_starts[n + 1]].tolist()
        whole = ids[: num_input // trace.prefix_block_tokens]
        yield whole, min(len(ids), (num_input - 1) // trace.prefix_block_tokens)


def replay(trace, most):
    """Blocks that each request finds in an LRU of ``most`` blocks, in which its own blocks are the
    most recently used, the deepest of them least.
    """
    known = OrderedDict()
    for whole, usable in read_blocks_of(trace):
        hits = next((i for i, block in enumerate(whole[:usable]) if block not in known), usable)
        yield hits
        for block in reversed(whole):
            known[block] = None
            known.move_to_end(block)
        while len(known) > most:
            known.popitem(last=False)


def one_after_another(trace):
    """A trace of prompts, each long after the one before."""
    count = trace.num_requests
    return replace(
        trace, arrival_s=np.arange(count) * 1e4, num_output=np.ones(count, dtype=np.int64)
    )


def with_tiers(plan, trace, *blocks, rate=1e15, **keys):
    """The same plan with tiers of so many prefix blocks."""
    size = plan.serving.capacity.cache.bytes_per_token * trace.prefix_block_tokens
    tiers = tuple(Tier(size * (count + 0.5), rate, rate, **keys) for count in blocks)
    return change_plan(plan, tiers=tiers)


@pytest.mark.parametrize("most", PUBLISHED)
def test_hits_are_those_of_an_lru(tiny, most):
    trace = one_after_another(load_mooncake())
    plan = tiny.plan("dense", num_layers=2, scheduling={"kind": "chunked", "token_budget": 8192})
    capacity = plan.serving.capacity
    size = 300 * trace.prefix_block_tokens * capacity.block_bytes / capacity.block_tokens
    plan = change_plan(plan, capacity=replace(capacity, kv_bytes=size))
    served = tiny.serve(with_tiers(plan, trace, most), trace)
    table = served.requests_table()
    wanted = np.fromiter(replay(trace, most), dtype=np.int64)
    np.testing.assert_array_equal(table["num_cached"], wanted * trace.prefix_block_tokens)
    share = 100 * wanted.sum() / len(trace.prefix_ids)
    assert share == pytest.approx(PUBLISHED[most], abs=0.35)


BLOCK = 64
"""Tokens of a prefix block."""


def three_prompts(tiny, gaps_s=(1.0, 1.0), blocks=21, **keys):
    """A prompt of ten blocks, others that take all of the GPU's cache, and the first one again."""
    plan = tiny.plan("dense", num_layers=2, **keys)
    capacity = plan.serving.capacity
    size = blocks * BLOCK * capacity.block_bytes / capacity.block_tokens
    plan = change_plan(plan, capacity=replace(capacity, kv_bytes=size))
    ids = [*range(10), *range(100, 120), *range(10)]
    trace = replace(
        tiny.trace(3, 1.0),
        arrival_s=np.cumsum([0.0, *gaps_s]),
        num_input=np.array([10 * BLOCK + 1, 20 * BLOCK + 1, 10 * BLOCK + 1]),
        num_output=np.array([1, 1, 1]),
        prefix_block_tokens=BLOCK,
        prefix_starts=np.array([0, 10, 30, 40]),
        prefix_ids=np.array(ids),
    )
    return plan, trace


@pytest.mark.parametrize("keys", [{}, {"tp": 2}, {"pp": 2}])
def test_blocks_are_read_at_the_links_rate_behind_its_latency(tiny, keys):
    plan, trace = three_prompts(tiny, **keys)
    rate, latency_s = 1e6, 0.25
    plan = with_tiers(plan, trace, 100, rate=rate, latency_s=latency_s)
    table = tiny.serve(plan, trace, ingress_delay_s=0.0).requests_table()
    assert table["num_cached"].tolist() == table["num_read"].tolist() == [0, 0, 10 * BLOCK]
    waits_s = latency_s + 10 * BLOCK * plan.serving.capacity.cache.bytes_per_token / rate
    assert table["read_wait_s"][2] == pytest.approx(waits_s, rel=1e-9)
    assert table["scheduled_s"][2] == pytest.approx(trace.arrival_s[2] + waits_s, rel=1e-9)


def test_what_is_not_written_yet_is_not_found(tiny):
    """Ten blocks are written in ten seconds, one after another, from when they are computed on."""
    for gap_s, wanted in ((3.5, 3), (4.5, 4), (60.0, 10)):
        plan, trace = three_prompts(tiny, (gap_s / 2, gap_s / 2))
        size = plan.serving.capacity.cache.bytes_per_token * BLOCK
        plan = change_plan(plan, tiers=(Tier(100.5 * size, 1e15, size),))
        table = tiny.serve(plan, trace).requests_table()
        assert table["num_cached"][2] == wanted * BLOCK


def test_the_first_tier_that_has_a_block_is_read(tiny):
    """A small fast tier has the beginning only: the rest comes from a large slow one meanwhile."""
    plan, trace = three_prompts(tiny)
    size = plan.serving.capacity.cache.bytes_per_token * BLOCK
    fast, slow = Tier(26.5 * size, 100 * size, 1e15), Tier(100.5 * size, 10 * size, 1e15)
    for tiers, waits_s in (((fast,), 0.06), ((slow,), 1.0), ((fast, slow), 0.4), ((slow, fast), 1)):
        found = tiny.serve(change_plan(plan, tiers=tiers), trace).requests_table()
        assert found["read_wait_s"][2] == pytest.approx(waits_s)


def test_hits_by_tier_are_those_of_requests(tiny):
    plan, trace = three_prompts(tiny)
    table = {"name": "x", "kind": "host"}
    spec = plan.spec.model_copy(update={"kv_tiers": (table, table)})
    plan = replace(with_tiers(plan, trace, 26, 100), spec=spec)
    record = make_record(tiny.serve(plan, trace))
    assert [use.tier for use in record.tiers] == ["gpu", "host 1", "host 2"]
    assert [use.hit_tokens for use in record.tiers] == [0, 6 * BLOCK, 4 * BLOCK]
    assert [use.capacity_tokens for use in record.tiers[1:]] == [26 * BLOCK, 100 * BLOCK]
    shares = sum(use.hit_share for use in record.tiers)
    assert shares == record.requests["num_cached"].sum() / record.requests["num_input"].sum()


def test_a_block_twice_in_a_prompt_is_kept_once(tiny):
    plan, trace = three_prompts(tiny)
    ids = trace.prefix_ids.copy()
    ids[[1, 2, 31, 32]] = 0
    trace = replace(trace, prefix_ids=ids)
    served = tiny.serve(with_tiers(plan, trace, 40), trace)
    ranks = served.pools["both"].ranks_of(0)
    assert ranks.tiers.num_held[0, 0] == np.isfinite(ranks.prefixes.since_s[0, 1]).sum()


def repeat_first(trace, at_s):
    """A trace whose first prompt comes again at some times, behind all others."""
    count = trace.prefix_starts[1]
    return replace(
        trace,
        arrival_s=np.concatenate([trace.arrival_s, at_s]),
        num_input=np.concatenate([trace.num_input, np.full(len(at_s), trace.num_input[0])]),
        num_output=np.ones(len(trace.num_input) + len(at_s), dtype=np.int64),
        prefix_starts=np.concatenate(
            [trace.prefix_starts, trace.prefix_starts[-1] + count * np.arange(1, len(at_s) + 1)]
        ),
        prefix_ids=np.concatenate([trace.prefix_ids, np.tile(trace.prefix_ids[:count], len(at_s))]),
    )


def test_a_window_moves_on_while_a_request_reads(tiny, monkeypatch):
    plan, trace = three_prompts(tiny, blocks=61)
    size = plan.serving.capacity.cache.bytes_per_token * BLOCK
    plan = change_plan(plan, tiers=(Tier(100.5 * size, size, 1e15),))
    trace = replace(trace, num_input=trace.num_input * np.array([1, 3, 1]))
    trace = repeat_first(trace, 2.0 + 0.3 * np.arange(1, 30))
    whole = tiny.serve(plan, trace)
    make_small(monkeypatch, 4)
    check_same(tiny.serve(plan, trace), whole)
    assert (whole.requests_table()["read_wait_s"] > 3.0).any()


def test_hits_of_replicas_apart_are_those_of_all(tiny):
    """Two prompts are asked for in turn, and everything in between takes the GPU's cache."""
    plan, trace = three_prompts(tiny, replicas=2, balancing={"kind": "round_robin"})
    order = [0, 0, 1, 1, 2, 2]
    starts = trace.prefix_starts
    trace = replace(
        trace,
        arrival_s=np.arange(6.0),
        num_input=trace.num_input[order],
        num_output=np.ones(6, dtype=np.int64),
        prefix_starts=np.cumsum([0, *np.diff(starts)[order]]),
        prefix_ids=np.concatenate([trace.prefix_ids[starts[n] : starts[n + 1]] for n in order]),
    )
    plan = with_tiers(plan, trace, 100)
    apart, whole = serve_apart(tiny, plan, trace, 2), tiny.serve(plan, trace)
    hits = [one.pools["both"].ranks.tiers.num_hits.sum() for one in (apart, whole)]
    assert hits == [20, 20]


def test_a_read_that_a_failure_cuts_off_is_no_hit(tiny):
    plan, trace = three_prompts(tiny)
    size = plan.serving.capacity.cache.bytes_per_token * BLOCK
    plan = change_plan(plan, tiers=(Tier(100.5 * size, size, 1e15),))
    stops, starts = Change(3.0, "both", (0,), starts=False), Change(4.0, "both", (0,), starts=True)
    served = tiny.serve(with_changes(plan, stops, starts), repeat_first(trace, np.array([30.0])))
    table, record = served.requests_table(), make_record(served)
    assert table["num_read"].tolist() == table["read_wait_s"].tolist() == [0, 0, 0, 0]
    assert table["outcome"].tolist() == ["finished", "finished", "lost", "finished"]
    assert record.tiers[0].hit_tokens == table["num_cached"].sum()
    for pool in served.pools.values():
        check_all_is_given_back(pool)


def check_tiers(pool):
    """Each tier's ring has what it holds, once, and every block behind the one before it."""
    starts, ids = pool.requests.prefix_starts, pool.requests.prefix_ids
    before = {}
    for r in range(len(pool.requests.each)):
        chain = ids[starts[r] : starts[r + 1]].tolist()
        before |= zip(chain[1:], chain, strict=False)
    for replica in range(pool.num_replicas):
        ranks = pool.ranks_of(replica)
        for d, t in np.ndindex(ranks.tiers.shape):
            blocks, tier = ranks.prefixes[d, t + 1], ranks.tiers[d, t]
            order, block = [], int(blocks.newer[-1])
            while block != len(blocks) - 1:
                order.append(block)
                block = int(blocks.newer[block])
            place_of = {block: place for place, block in enumerate(order)}
            held = np.flatnonzero(np.isfinite(blocks.since_s))
            assert sorted(order) == held.tolist()
            assert len(order) == tier.num_held <= tier.capacity_blocks
            for block in order:
                if block in before:
                    assert place_of[before[block]] > place_of[block]


@seeds(6300, 12)
def test_all_blocks_are_given_back_and_tiers_hold_chains(tiny, seed):
    plan, trace = draw_tiered(tiny, seed)
    served = tiny.serve(plan, trace)
    for pool in served.pools.values():
        check_all_is_given_back(pool)
        check_tiers(pool)


@seeds(6320, 8)
def test_reads_happen_alike_where_steps_are_events(tiny, monkeypatch, seed):
    plan, trace = draw_tiered(tiny, seed)
    compiled = tiny.serve(plan, trace, ingress_delay_s=0.001)
    simpy = serve_by_events(monkeypatch, plan, trace, tiny.tables, 0.001)
    check_same_events(compiled, simpy)


def draw_tiered(tiny, seed):
    """Any deployment with tiers and prompts that begin alike."""
    while True:
        plan, trace, _ = draw_case(tiny, seed)
        if (plan.prefill or plan).serving.tiers and not plan.failures:
            return plan, trace
        seed += 10_000


@pytest.mark.parametrize("held", [False, True])
def test_a_prefix_in_a_tier_draws_requests_to_its_rank(tiny, held):
    """The third prompt is found below the GPU of the first replica, which has as much to do."""
    plan, trace = three_prompts(tiny, replicas=2, balancing={"kind": "prefix_aware"})
    order = [0, 1, 1, 2]  # the second prompt goes to both
    starts = trace.prefix_starts
    trace = replace(
        trace,
        arrival_s=np.array([0.0, 1.0, 1.0, 2.0]),
        num_input=trace.num_input[order],
        num_output=np.ones(4, dtype=np.int64),
        prefix_starts=np.array([0, 10, 30, 50, 60]),
        prefix_ids=np.concatenate([trace.prefix_ids[starts[n] : starts[n + 1]] for n in order]),
    )
    table = tiny.serve(with_tiers(plan, trace, *([100] * held)), trace).requests_table()
    assert table["replica"][1] != table["replica"][2]
    assert table["num_cached"][3] == 10 * BLOCK * held
