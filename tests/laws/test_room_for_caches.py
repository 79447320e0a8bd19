"""Caches between pools: sent where there is room for them, kept where they were computed until they
are there, and prompts held back where neither pool has room.
"""

import dataclasses

import numpy as np
import pytest

from simulator.engine.timeline import serve
from simulator.policies.order.first_come import FirstCome
from simulator.workload.traces import RequestTrace
from tests.cases import seeds
from tests.laws.deployments import draw_deployment, shrink_cache
from tests.parts import change_plan

HAIR_S = 1e-9


def draw_pools(tiny, seed):
    """A deployment with a prefill pool, and caches that hold a few of the longest requests."""
    while True:
        plan, trace = draw_deployment(tiny, seed)
        if plan.prefill is not None:
            break
        seed += 10_000
    rng = np.random.default_rng([seed, 3])
    longest = int((trace.num_input + trace.num_output).max())
    plan = shrink_cache(plan, longest, float(rng.uniform(1.0, 4.0)))
    first = bool(rng.random() < 0.5)
    transfer = dataclasses.replace(plan.transfer, reserves_first=first or plan.transfer.layerwise)
    return dataclasses.replace(plan, transfer=transfer), trace


def most_at_once(blocks, begin_s, end_s):
    """Most blocks that intervals hold together; one that ends when another begins makes room."""
    at_s = np.concatenate([begin_s + HAIR_S, end_s])
    change = np.concatenate([blocks, -blocks])
    return np.cumsum(change[np.lexsort((change, at_s))]).max(initial=0)


def count_most(pool, blocks, begin_s, end_s, is_there):
    """Most blocks at once of each cache of a pool's replicas."""
    num_caches = pool.ranks.caches.shape[1]
    of_cache = pool.requests.each.replica * num_caches + pool.requests.each.dp_rank % num_caches
    found = []
    for cache in np.unique(of_cache[is_there]):
        own = is_there & (of_cache == cache)
        found.append(most_at_once(blocks[own], begin_s[own], end_s[own]))
    return found


@seeds(5000, 20)
def test_no_cache_holds_more_than_its_blocks_while_others_wait(tiny, seed):
    """Counted again from when requests had room, and from when their caches had left."""
    plan, trace = draw_pools(tiny, seed)
    served = tiny.serve(plan, trace)
    decode, prefill = served.pools["decode"], served.pools["prefill"]
    table = served.requests_table()
    assert (table["outcome"] == "finished").all()
    blocks = np.array([plan.serving.capacity.blocks_for(int(tokens)) for tokens in trace.num_input])
    prompts, decodes = prefill.requests.each, decode.requests.each
    moved = ~np.isnan(decodes.reserved_s)
    assert (moved == plan.transfer.is_transferred(trace.num_output)).all()
    kept = moved & (decodes.preemptions == 0)
    at_decode = count_most(decode, blocks, decodes.reserved_s, decodes.finish_s, kept)
    assert max(at_decode, default=0) <= decode.ranks.caches.capacity_blocks.max()
    computed_once = prompts.preemptions == 0
    left_s = np.where(moved, decodes.arrival_s, prompts.finish_s)
    began_s = prompts.first_s  # all of a prompt is there when it is computed
    at_prefill = count_most(prefill, blocks, began_s, left_s, computed_once)
    assert max(at_prefill, default=0) <= prefill.ranks.caches.capacity_blocks.max()


@seeds(5100, 10)
def test_a_cache_leaves_when_it_is_computed_and_there_is_room(tiny, seed):
    plan, trace = draw_pools(tiny, seed)
    plan = change_plan(
        plan, order=FirstCome(), prefill=change_plan(plan.prefill, order=FirstCome())
    )
    served = tiny.serve(plan, trace)
    transfer, table = plan.transfer, served.requests_table()
    decode, prefill = (served.pools[name].requests.each for name in ("decode", "prefill"))
    moved = transfer.is_transferred(trace.num_output)
    asked_s = table["arrival_s"].to_numpy() + served.ingress_delay_s
    if not transfer.reserves_first:
        asked_s = prefill.first_s + transfer.handshake_s
    leaves_s = np.maximum(prefill.first_s + transfer.handshake_s, decode.reserved_s)
    assert (decode.reserved_s >= asked_s - HAIR_S)[moved].all()
    assert (decode.arrival_s >= leaves_s + transfer.latency_s - HAIR_S)[moved].all()
    if transfer.reserves_first:
        assert (prefill.scheduled_s >= decode.reserved_s - HAIR_S)[moved].all()
    assert (decode.scheduled_s >= decode.arrival_s - HAIR_S)[moved].all()
    own = table[moved]
    before_s = 0.0 if transfer.reserves_first else prefill.first_s[moved] + transfer.handshake_s
    waits_s = decode.reserved_s[moved] - (asked_s[moved] if transfer.reserves_first else before_s)
    np.testing.assert_allclose(own["room_wait_s"], waits_s, atol=1e-9)
    # Those of one line get room in the order in which they came to it.
    line = decode.replica * 1000 + decode.dp_rank
    for number in np.unique(line[moved]):
        chosen = moved & (line == number)
        order = np.argsort(decode.reserved_s[chosen], kind="stable")
        assert (np.diff(asked_s[chosen][order]) >= -HAIR_S).all()


def five_at_once(num_output=40):
    return RequestTrace(
        np.zeros(5), np.full(5, 160), np.full(5, num_output), provenance="five at once"
    )


def pools_of(tiny, engine, decode_blocks, prefill_blocks):
    pool = {"parallel": {"tp": 2}, "handshake_s": 0.0}
    plan = tiny.plan("dense", tp=2, engine=engine, prefill=pool, kv_block_tokens=16)
    capacity = plan.serving.capacity

    def with_blocks(own, count):
        return dataclasses.replace(own, kv_bytes=count * capacity.block_bytes)

    prefill = change_plan(
        plan.prefill, capacity=with_blocks(plan.prefill.serving.capacity, prefill_blocks)
    )
    return change_plan(plan, capacity=with_blocks(capacity, decode_blocks), prefill=prefill)


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_prompts_that_find_no_room_stay_where_they_were_computed(tiny, fidelity):
    """Two sequences fit in the decode pool and three in the prefill pool: the third is computed
    and waits, the fourth takes its place when its cache has left.
    """
    blocks = -(-200 // 16)
    plan = pools_of(tiny, "trtllm", 2 * blocks, 3 * blocks)
    served = serve(plan, five_at_once(), fidelity)
    prompts, decodes = (served.pools[name].requests.each for name in ("prefill", "decode"))
    ends_s = np.sort(decodes.finish_s)
    assert decodes.reserved_s[2:4] == pytest.approx(ends_s[:2])
    assert prompts.scheduled_s[3] == pytest.approx(decodes.arrival_s[:2].min())
    assert (served.requests_table()["room_wait_s"] > 0).tolist()[2:] == [True] * 3
    assert np.diff(prompts.first_s).max() < decodes.finish_s[0] - prompts.first_s[0]
    # Where the prefill pool holds two, the third prompt begins when a cache has left; where it
    # holds one, each begins when the one before it has gone.
    narrow = serve(pools_of(tiny, "trtllm", 2 * blocks, blocks), five_at_once(), fidelity)
    began_s = narrow.pools["prefill"].requests.each.scheduled_s
    assert began_s[1:] == pytest.approx(narrow.pools["decode"].requests.each.arrival_s[:-1])


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_an_engine_that_asks_first_computes_no_prompt_without_room(tiny, fidelity):
    """Its prefill pool holds no caches that wait."""
    blocks = -(-200 // 16)
    plan = pools_of(tiny, "sglang", 2 * blocks, 5 * blocks)
    served = serve(plan, five_at_once(), fidelity)
    prompts, decodes = (served.pools[name].requests.each for name in ("prefill", "decode"))
    ends_s = np.sort(decodes.finish_s)
    assert decodes.reserved_s[2:4] == pytest.approx(ends_s[:2])
    assert prompts.scheduled_s[2] == pytest.approx(ends_s[0])
    assert (prompts.scheduled_s >= decodes.reserved_s).all()
    waits_s = served.requests_table()["room_wait_s"]
    assert waits_s[2:].to_numpy() == pytest.approx(decodes.reserved_s[2:] - served.ingress_delay_s)


def test_with_room_for_all_requests_wait_for_a_step_and_no_longer(tiny):
    plan = tiny.plan("dense", tp=2, engine="trtllm", prefill={"parallel": {"tp": 2}})
    trace = tiny.trace(60, 400.0)
    served = tiny.serve(plan, trace)
    longest_s = served.steps_of("decode")["duration_s"].max()
    waits_s = served.requests_table()["room_wait_s"]
    assert waits_s.max() <= longest_s
    assert waits_s.max() > 0
