"""Preemption: requests that lose their KV blocks when these run out. Compiled.

vLLM preempts the request that was admitted last, which then waits first in the queue; those of its
blocks that no request has taken by then are found again. SGLang retracts the requests with the
fewest output tokens, until the next decode step has room, and they wait last in the queue.
"""

from __future__ import annotations

from simulator.base.jit import jit_inner
from simulator.engine.blocks import blocks_for, count_available, keep_order, release
from simulator.engine.state import (
    ADMITTED,
    BLOCKS,
    COMPUTED,
    FOLLOWING,
    GENERATED,
    HEAD,
    IS_FULL,
    LAST_READY,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_READY,
    NUM_RUNNING,
    NUM_WAITING,
    PREEMPTIONS,
    RAN_OUT,
    SHARED,
    TAIL,
    TRANSFERRED,
    Limits,
    Ranks,
    Requests,
)


@jit_inner
def queue_last(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Queue request ``r`` behind all others of its rank."""
    requests.ints[r, FOLLOWING] = -1
    if ranks.each[d, TAIL] < 0:
        ranks.each[d, HEAD] = r
    else:
        requests.ints[ranks.each[d, TAIL], FOLLOWING] = r
    ranks.each[d, TAIL] = r
    ranks.each[d, NUM_WAITING] += 1


@jit_inner
def queue_after_ready(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Queue request ``r`` before all others of rank ``d`` except those whose transferred caches
    have arrived.
    """
    each, ints = ranks.each, requests.ints
    if each[d, NUM_READY] == 0:
        ints[r, FOLLOWING] = each[d, HEAD]
        each[d, HEAD] = r
    else:
        ints[r, FOLLOWING] = ints[each[d, LAST_READY], FOLLOWING]
        ints[each[d, LAST_READY], FOLLOWING] = r
    if ints[r, FOLLOWING] < 0:
        each[d, TAIL] = r
    each[d, NUM_WAITING] += 1


@jit_inner
def find_latest(requests: Requests, ranks: Ranks, d: int) -> int:
    """Find the lane in which the latest admitted request runs, of those that share blocks with lane
    ``d``: the oldest is never preempted.
    """
    running, each, ints = ranks.running, ranks.each, requests.ints
    num_pools = len(ranks.pools)
    best = d
    for other in range(d % num_pools, len(each), num_pools):
        if each[other, NUM_RUNNING] > 0:
            last, latest = (
                running[other, each[other, NUM_RUNNING] - 1],
                running[best, each[best, NUM_RUNNING] - 1],
            )
            if ints[last, ADMITTED] > ints[latest, ADMITTED]:
                best = other
    return best


@jit_inner
def preempt(requests: Requests, ranks: Ranks, d: int, i: int, limits: Limits) -> None:
    """Preempt the ``i``-th running request of rank ``d``, which is computed again later."""
    running, chunk = ranks.running, ranks.chunk
    r, pool = running[d, i], d % len(ranks.pools)
    if limits.rules.finds_preempted:
        keep_order(requests, ranks, pool, r, limits)
    release(requests, ranks, pool, r)
    ranks.pools[pool, RAN_OUT] = True
    ranks.each[d, IS_FULL] = False
    requests.ints[r, COMPUTED] = 0
    requests.ints[r, TRANSFERRED] = 0
    requests.ints[r, PREEMPTIONS] += 1
    last = ranks.each[d, NUM_RUNNING] - 1
    for k in range(i, last):
        running[d, k], chunk[d, k] = running[d, k + 1], chunk[d, k + 1]
    chunk[d, last] = 0
    ranks.each[d, NUM_RUNNING] = last
    if limits.rules.output_share > 0:
        queue_last(requests, ranks, d, r)
    else:
        queue_after_ready(requests, ranks, d, r)


@jit_inner
def retract(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> None:
    """Make room for the next decode step of rank ``d``: requests with the fewest output tokens, of
    equals those with the longest prompt, are retracted until it fits.

    The share of outputs that admission assumes is updated: to the share of their limits that the
    remaining requests have used so far, or after a step without retraction to a little less than
    before (SGLang's ``retract_decode`` and ``NewTokenRatioTracker``).
    """
    if ranks.each[d, NUM_RUNNING] == 0:
        return
    running, ints = ranks.running, requests.ints
    pool, retracted = d % len(ranks.pools), False
    while ranks.each[d, NUM_RUNNING] > 1 and _next_blocks(
        requests, ranks, d, limits
    ) > count_available(ranks, pool, limits):
        victim = 0
        for i in range(1, ranks.each[d, NUM_RUNNING]):
            r, best = running[d, i], running[d, victim]
            if ints[r, GENERATED] < ints[best, GENERATED] or (
                ints[r, GENERATED] == ints[best, GENERATED]
                and ints[r, NUM_INPUT] > ints[best, NUM_INPUT]
            ):
                victim = i
        preempt(requests, ranks, d, victim, limits)
        retracted = True
    if not retracted:
        ranks.output_share[d] = max(
            limits.rules.least_output_share, ranks.output_share[d] - limits.rules.output_share_decay
        )
        return
    used, asked = 0, 1
    for i in range(ranks.each[d, NUM_RUNNING]):
        used += ints[running[d, i], GENERATED] + limits.rules.retract_steps
        asked += ints[running[d, i], NUM_OUTPUT]
    ranks.output_share[d] = min(1.0, used / asked)


@jit_inner
def _next_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> int:
    """Count the KV blocks that the next token of each running request takes, with its
    draft tokens.
    """
    running, ints = ranks.running, requests.ints
    count = 0
    for i in range(ranks.each[d, NUM_RUNNING]):
        r = running[d, i]
        need = (
            blocks_for(ints[r, COMPUTED] + 1 + len(limits.accepted), limits)
            - ints[r, BLOCKS]
            - ints[r, SHARED] * limits.prefix_blocks
        )
        count += max(0, need)
    return count
