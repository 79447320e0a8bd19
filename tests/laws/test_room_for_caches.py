"""Caches between pools: sent where there is room for them, kept where they were computed until they
are there, and prompts held back where neither pool has room.
"""

import dataclasses

import numpy as np

from tests.cases import seeds
from tests.laws.deployments import draw_deployment, shrink_cache

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
