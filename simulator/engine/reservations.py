"""Reserved KV blocks of a decode pool for caches that are computed elsewhere. Compiled.

A cache is sent when it is computed and a rank of the decode pool has blocks for it, which it
reserves from then on; until the cache has arrived the prefill pool keeps its own copy. Where no
rank has room, prompts so stay where they were computed, and fill that pool too. Requests without
blocks queue first come, first served, behind requests of the rank that have been preempted.

vLLM and TensorRT-LLM ask for blocks when the prompt is computed, SGLang before (see the life cycles
at the head of ``disaggregation/decode.py`` and ``prefill.py`` in its source).
"""

from __future__ import annotations

from simulator.base.jit import jit_inner
from simulator.engine.admission import clip_output, count_coming
from simulator.engine.blocks import allocate_blocks, blocks_for, count_available, release
from simulator.engine.preemption import queue_after_ready
from simulator.engine.state import (
    BLOCKS,
    DP_RANK,
    FIRST_IN_LINE,
    FIRST_RESERVED,
    FOLLOWING,
    GENERATED,
    HERE,
    IS_FULL,
    LAST_IN_LINE,
    LAST_READY,
    LAST_RESERVED,
    NUM_FINISHED,
    NUM_IN_LINE,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_READY,
    NUM_RESERVED,
    NUM_RUNNING,
    NUM_WAITING,
    OUTSTANDING_TOKENS,
    RESERVED,
    RESERVED_OUTPUT,
    RESERVED_S,
    STAGE,
    STOPPED_BY,
    TOKENS,
    Clock,
    Limits,
    Ranks,
    Requests,
)
from simulator.results.tables import ADMISSION_LIMITS

_MAX_SEQUENCES, _KV_CACHE = (ADMISSION_LIMITS.index(name) for name in ("max_sequences", "kv_cache"))


@jit_inner
def stand_in_line(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Queue request ``r`` for blocks of rank ``d``, behind all others."""
    each = ranks.each
    requests.ints[r, FOLLOWING] = -1
    if each[d, LAST_IN_LINE] < 0:
        each[d, FIRST_IN_LINE] = r
    else:
        requests.ints[each[d, LAST_IN_LINE], FOLLOWING] = r
    each[d, LAST_IN_LINE] = r
    each[d, NUM_IN_LINE] += 1


@jit_inner
def reserve_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> None:
    """Reserve blocks of rank ``d`` for queued requests while there is room, by the rules of
    admission, and chain these requests from ``FIRST_RESERVED`` on.
    """
    each, ints = ranks.each, requests.ints
    pool = d % len(ranks.pools)
    while each[d, NUM_IN_LINE] > 0:
        r = each[d, FIRST_IN_LINE]
        if each[d, NUM_WAITING] > each[d, NUM_READY]:
            return
        if each[d, NUM_RUNNING] >= limits.rules.max_sequences:
            each[d, STOPPED_BY] = _MAX_SEQUENCES
            return
        known = ints[r, NUM_INPUT] + ints[r, GENERATED]
        output = ints[r, NUM_OUTPUT] - ints[r, GENERATED]
        reach = known + output + len(limits.accepted) if limits.rules.reserves_output else known
        room = reach
        if limits.rules.output_share > 0:
            room = known + clip_output(output) + count_coming(requests, ranks, d, limits)
        asked = blocks_for(room, limits)
        if each[d, NUM_RUNNING] + each[d, NUM_RESERVED] > 0:
            asked += limits.watermark_blocks
        if asked > count_available(ranks, pool, limits):
            each[d, STOPPED_BY] = _KV_CACHE
            return
        _leave_line(requests, ranks, d, -1)
        need = blocks_for(reach, limits)
        allocate_blocks(ranks, pool, need, limits)
        ints[r, BLOCKS] = need
        ints[r, STAGE] = RESERVED
        requests.times[r, RESERVED_S] = now_s
        each[d, NUM_RESERVED] += 1
        each[d, RESERVED_OUTPUT] += clip_output(output)
        ints[r, FOLLOWING] = -1
        if ranks.counts[0, FIRST_RESERVED] < 0:
            ranks.counts[0, FIRST_RESERVED] = r
        else:
            ints[ranks.counts[0, LAST_RESERVED], FOLLOWING] = r
        ranks.counts[0, LAST_RESERVED] = r


@jit_inner
def _leave_line(requests: Requests, ranks: Ranks, d: int, before: int) -> None:
    """Remove from the queue of rank ``d`` the request behind ``before``, or the first if that is
    -1.
    """
    each, ints = ranks.each, requests.ints
    leaves = each[d, FIRST_IN_LINE] if before < 0 else ints[before, FOLLOWING]
    if before < 0:
        each[d, FIRST_IN_LINE] = ints[leaves, FOLLOWING]
    else:
        ints[before, FOLLOWING] = ints[leaves, FOLLOWING]
    if each[d, LAST_IN_LINE] == leaves:
        each[d, LAST_IN_LINE] = before
    each[d, NUM_IN_LINE] -= 1


@jit_inner
def _count_out(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Remove request ``r`` from the replica's counts."""
    ints = requests.ints
    tokens = ints[r, NUM_INPUT] + ints[r, NUM_OUTPUT]
    ints[r, STAGE] = HERE
    ranks.each[ints[r, DP_RANK], TOKENS] -= tokens
    clock.counts[0, NUM_FINISHED] += 1
    clock.counts[0, OUTSTANDING_TOKENS] -= tokens


@jit_inner
def expects_caches(ranks: Ranks) -> bool:
    """Whether caches are to arrive, which blocks are reserved for."""
    return bool(ranks.each[:, NUM_RESERVED].any())


@jit_inner
def take_in(requests: Requests, ranks: Ranks, r: int) -> None:
    """Queue request ``r``, whose cache has arrived, behind others with caches and before all
    requests without blocks.
    """
    each, ints = ranks.each, requests.ints
    d = ints[r, DP_RANK]
    ints[r, STAGE] = HERE
    each[d, NUM_RESERVED] -= 1
    queue_after_ready(requests, ranks, d, r)
    each[d, LAST_READY] = r
    each[d, NUM_READY] += 1


@jit_inner
def give_up_line(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Cancel the wait of request ``r`` for blocks, which is queued or about to be: its cache will
    not arrive.
    """
    d = requests.ints[r, DP_RANK]
    before, other = -1, ranks.each[d, FIRST_IN_LINE]
    while other >= 0 and other != r:
        before, other = other, requests.ints[other, FOLLOWING]
    if other == r:
        _leave_line(requests, ranks, d, before)
        _count_out(requests, ranks, clock, r)


@jit_inner
def give_up_blocks(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Cancel the reserved blocks of request ``r``: its cache will not arrive."""
    each, d = ranks.each, requests.ints[r, DP_RANK]
    release(requests, ranks, d % len(ranks.pools), r)
    each[d, IS_FULL] = False
    each[d, NUM_RESERVED] -= 1
    each[d, RESERVED_OUTPUT] -= clip_output(
        requests.ints[r, NUM_OUTPUT] - requests.ints[r, GENERATED]
    )
    _count_out(requests, ranks, clock, r)
