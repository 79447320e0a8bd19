"""Preemption: requests that lose their KV blocks when these run out. Compiled.

vLLM preempts the request that was admitted last, which then waits first in the queue; those of its
blocks that no request has taken by then are found again. By priority it preempts the last of those
that run, by the order in which they wait. SGLang retracts the requests with the
fewest output tokens, until the next decode step has room, and they wait last in the queue.
"""

from __future__ import annotations

from simulator.base.jit import jit_inner
from simulator.engine.blocks import blocks_for, count_available, keep_order, release
from simulator.engine.queue import join, join_again
from simulator.engine.state import Limits, Ranks, Requests


@jit_inner
def find_last(requests: Requests, ranks: Ranks, d: int) -> tuple[int, int]:
    """Find who is preempted of the requests that run in lanes which share blocks with lane ``d``:
    the latest admitted, so that the oldest never is; where requests wait in an order of their own
    the one that would be its last.

    Returns:
        Its lane, and its index there.
    """
    running, each, rows = ranks.running, ranks.each, requests.each
    num_pools = len(ranks.caches)
    lane, place, is_ordered = d, each[d].num_running - 1, each[d].waiting.is_ordered
    for other in range(d % num_pools, len(each), num_pools):
        last = each[other].num_running - 1
        for i in range(0 if is_ordered else max(0, last), last + 1):
            r, latest = running[other, i], running[lane, place]
            if is_ordered:
                is_later = (rows[r].key, r) > (rows[latest].key, latest)
            else:
                is_later = rows[r].admitted > rows[latest].admitted
            if is_later:
                lane, place = other, i
    return lane, place


@jit_inner
def preempt(requests: Requests, ranks: Ranks, d: int, i: int, limits: Limits) -> None:
    """Preempt the ``i``-th running request of rank ``d``, which is computed again later."""
    running, chunk, rank = ranks.running, ranks.chunk, ranks.each[d]
    r, pool = running[d, i], d % len(ranks.caches)
    request = requests.each[r]
    if limits.rules.finds_preempted:
        keep_order(requests, ranks, pool, r, limits)
    release(requests, ranks, pool, r)
    ranks.caches[pool].ran_out = True
    rank.is_full = False
    request.computed = 0
    request.transferred = 0
    request.preemptions += 1
    last = rank.num_running - 1
    for k in range(i, last):
        running[d, k], chunk[d, k] = running[d, k + 1], chunk[d, k + 1]
    chunk[d, last] = 0
    rank.num_running = last
    if limits.rules.output_share > 0:
        join(rank.waiting, requests.each, r)
    else:
        join_again(rank.waiting, requests.each, r)


@jit_inner
def retract(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> None:
    """Make room for the next decode step of rank ``d``: requests with the fewest output tokens, of
    equals those with the longest prompt, are retracted until it fits.

    The share of outputs that admission assumes is updated: to the share of their limits that the
    remaining requests have used so far, or after a step without retraction to a little less than
    before (SGLang's ``retract_decode`` and ``NewTokenRatioTracker``).
    """
    rank, running, rows = ranks.each[d], ranks.running, requests.each
    if rank.num_running == 0:
        return
    pool, retracted = d % len(ranks.caches), False
    while rank.num_running > 1 and _next_blocks(requests, ranks, d, limits) > count_available(
        ranks, pool, limits
    ):
        victim = 0
        for i in range(1, rank.num_running):
            request, best = rows[running[d, i]], rows[running[d, victim]]
            if request.generated < best.generated or (
                request.generated == best.generated and request.num_input > best.num_input
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
    for i in range(rank.num_running):
        request = rows[running[d, i]]
        used += request.generated + limits.rules.retract_steps
        asked += request.num_output
    ranks.output_share[d] = min(1.0, used / asked)


@jit_inner
def _next_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> int:
    """Count the KV blocks that the next token of each running request takes, with its
    draft tokens.
    """
    running, rows = ranks.running, requests.each
    count = 0
    for i in range(ranks.each[d].num_running):
        request = rows[running[d, i]]
        need = (
            blocks_for(request.computed + 1 + len(limits.accepted), limits)
            - request.blocks
            - request.shared * limits.prefix_blocks
        )
        count += max(0, need)
    return count
