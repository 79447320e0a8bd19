"""Tiers of the KV cache below the GPU: what they hold, and when it has been read."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from simulator.config.workload import WorkloadSpec
from simulator.engine.timeline import make_record
from simulator.policies.kv_tiers import Tier
from simulator.workload.requests import load_requests
from tests.cases import seeds
from tests.laws.deployments import check_same_events, serve_by_events
from tests.laws.failing import check_all_is_given_back
from tests.laws.reference_cases import draw_case
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
