"""Who loses its KV blocks when these run out. Compiled.

vLLM takes those of the request that was admitted last, which waits first in line afterwards; what
of its blocks nobody has taken by then is found again. SGLang takes those of the requests with the
fewest output tokens, until the next decode step has room, and they wait last in line.
"""

from __future__ import annotations

from simulator.base.compiled import compiled
from simulator.engine.blocks import available, blocks_for, keep_order, release
from simulator.engine.state import Limits, Ranks, Requests


@compiled
def queue_last(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Let request ``r`` wait behind all others of its rank."""
    requests.following[r] = -1
    if ranks.tail[d] < 0:
        ranks.head[d] = r
    else:
        requests.following[ranks.tail[d]] = r
    ranks.tail[d] = r
    ranks.num_waiting[d] += 1


@compiled
def _queue_first(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    requests.following[r] = ranks.head[d]
    ranks.head[d] = r
    if ranks.tail[d] < 0:
        ranks.tail[d] = r
    ranks.num_waiting[d] += 1


@compiled
def find_latest(requests: Requests, ranks: Ranks, d: int) -> int:
    """Where the latest admitted of the requests that share blocks with those of ``d`` runs: the
    oldest is never held up.
    """
    running, num_running, admitted = ranks.running, ranks.num_running, requests.admitted
    num_pools = len(ranks.free_blocks)
    best = d
    for other in range(d % num_pools, len(num_running), num_pools):
        if num_running[other] > 0:
            last, latest = (
                running[other, num_running[other] - 1],
                running[best, num_running[best] - 1],
            )
            if admitted[last] > admitted[latest]:
                best = other
    return best


@compiled
def preempt(requests: Requests, ranks: Ranks, d: int, i: int, limits: Limits) -> None:
    """Take the blocks of the ``i``-th running request of rank ``d``, which is computed again
    later.
    """
    running, chunk = ranks.running, ranks.chunk
    r, pool = running[d, i], d % len(ranks.free_blocks)
    if limits.finds_preempted:
        keep_order(requests, ranks, pool, r, limits)
    release(requests, ranks, pool, r)
    ranks.ran_out[pool] = True
    ranks.is_full[d] = False
    requests.computed[r] = 0
    requests.brought[r] = 0
    requests.preemptions[r] += 1
    last = ranks.num_running[d] - 1
    for k in range(i, last):
        running[d, k], chunk[d, k] = running[d, k + 1], chunk[d, k + 1]
    chunk[d, last] = 0
    ranks.num_running[d] = last
    if limits.output_share > 0:
        queue_last(requests, ranks, d, r)
    else:
        _queue_first(requests, ranks, d, r)


@compiled
def retract(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> None:
    """Make room for the next decode step of rank ``d``: requests with the fewest output tokens, of
    equals those with the longest prompt, lose their blocks until it has.

    The share of outputs that admission counts on follows: what those that are left have used of
    their limits so far, or after a step without retraction a little less than before
    (SGLang's ``retract_decode`` and ``NewTokenRatioTracker``).
    """
    running, generated, num_input = ranks.running, requests.generated, requests.num_input
    pool, retracted = d % len(ranks.free_blocks), False
    while ranks.num_running[d] > 1 and _next_blocks(requests, ranks, d, limits) > available(
        ranks, pool, limits
    ):
        victim = 0
        for i in range(1, ranks.num_running[d]):
            r, best = running[d, i], running[d, victim]
            if generated[r] < generated[best] or (
                generated[r] == generated[best] and num_input[r] > num_input[best]
            ):
                victim = i
        preempt(requests, ranks, d, victim, limits)
        retracted = True
    if not retracted:
        ranks.output_share[d] = max(
            limits.least_output_share, ranks.output_share[d] - limits.output_share_decay
        )
        return
    used, asked = 0, 1
    for i in range(ranks.num_running[d]):
        used += generated[running[d, i]] + limits.retract_steps
        asked += requests.num_output[running[d, i]]
    ranks.output_share[d] = min(1.0, used / asked)


@compiled
def _next_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> int:
    """KV blocks that one more token of each running request takes."""
    running, computed, blocks, shared = (
        ranks.running,
        requests.computed,
        requests.blocks,
        requests.shared,
    )
    count = 0
    for i in range(ranks.num_running[d]):
        r = running[d, i]
        need = blocks_for(computed[r] + 1, limits) - blocks[r] - shared[r] * limits.prefix_blocks
        count += max(0, need)
    return count
