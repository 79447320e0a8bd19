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
from simulator.engine.state import HERE, RESERVED, Clock, Limits, Ranks, Requests
from simulator.results.tables import ADMISSION_LIMITS

_MAX_SEQUENCES, _KV_CACHE = (ADMISSION_LIMITS.index(name) for name in ("max_sequences", "kv_cache"))


@jit_inner
def stand_in_line(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Queue request ``r`` for blocks of rank ``d``, behind all others."""
    rank, rows = ranks.each[d], requests.each
    rows[r].following = -1
    if rank.last_in_line < 0:
        rank.first_in_line = r
    else:
        rows[rank.last_in_line].following = r
    rank.last_in_line = r
    rank.num_in_line += 1


@jit_inner
def reserve_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> None:
    """Reserve blocks of rank ``d`` for queued requests while there is room, by the rules of
    admission, and chain these requests from ``first_reserved`` on.
    """
    rank, rows, counts = ranks.each[d], requests.each, ranks.counts[0]
    pool = d % len(ranks.caches)
    while rank.num_in_line > 0:
        r = rank.first_in_line
        request = rows[r]
        if rank.num_waiting > rank.num_ready:
            return
        if rank.num_running >= limits.rules.max_sequences:
            rank.stopped_by = _MAX_SEQUENCES
            return
        known = request.num_input + request.generated
        output = request.num_output - request.generated
        reach = known + output + len(limits.accepted) if limits.rules.reserves_output else known
        room = reach
        if limits.rules.output_share > 0:
            room = known + clip_output(output) + count_coming(requests, ranks, d, limits)
        asked = blocks_for(room, limits)
        if rank.num_running + rank.num_reserved > 0:
            asked += limits.watermark_blocks
        if asked > count_available(ranks, pool, limits):
            rank.stopped_by = _KV_CACHE
            return
        _leave_line(requests, ranks, d, -1)
        need = blocks_for(reach, limits)
        allocate_blocks(ranks, pool, need, limits)
        request.blocks = need
        request.stage = RESERVED
        request.reserved_s = now_s
        rank.num_reserved += 1
        rank.reserved_output += clip_output(output)
        request.following = -1
        if counts.first_reserved < 0:
            counts.first_reserved = r
        else:
            rows[counts.last_reserved].following = r
        counts.last_reserved = r


@jit_inner
def _leave_line(requests: Requests, ranks: Ranks, d: int, before: int) -> None:
    """Remove from the queue of rank ``d`` the request behind ``before``, or the first if that is
    -1.
    """
    rank, rows = ranks.each[d], requests.each
    leaves = rank.first_in_line if before < 0 else rows[before].following
    if before < 0:
        rank.first_in_line = rows[leaves].following
    else:
        rows[before].following = rows[leaves].following
    if rank.last_in_line == leaves:
        rank.last_in_line = before
    rank.num_in_line -= 1


@jit_inner
def _count_out(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Remove request ``r`` from the replica's counts."""
    request, counts = requests.each[r], clock.counts[0]
    tokens = request.num_input + request.num_output
    request.stage = HERE
    ranks.each[request.dp_rank].tokens -= tokens
    counts.num_finished += 1
    counts.outstanding_tokens -= tokens


@jit_inner
def expects_caches(ranks: Ranks) -> bool:
    """Whether caches are to arrive, which blocks are reserved for."""
    return bool(ranks.each.num_reserved.any())


@jit_inner
def take_in(requests: Requests, ranks: Ranks, r: int) -> None:
    """Queue request ``r``, whose cache has arrived, behind others with caches and before all
    requests without blocks.
    """
    request, d = requests.each[r], requests.each[r].dp_rank
    rank = ranks.each[d]
    request.stage = HERE
    rank.num_reserved -= 1
    queue_after_ready(requests, ranks, d, r)
    rank.last_ready = r
    rank.num_ready += 1


@jit_inner
def give_up_line(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Cancel the wait of request ``r`` for blocks, which is queued or about to be: its cache will
    not arrive.
    """
    rows, d = requests.each, requests.each[r].dp_rank
    before, other = -1, ranks.each[d].first_in_line
    while other >= 0 and other != r:
        before, other = other, rows[other].following
    if other == r:
        _leave_line(requests, ranks, d, before)
        _count_out(requests, ranks, clock, r)


@jit_inner
def give_up_blocks(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Cancel the reserved blocks of request ``r``: its cache will not arrive."""
    request, d = requests.each[r], requests.each[r].dp_rank
    rank = ranks.each[d]
    release(requests, ranks, d % len(ranks.caches), r)
    rank.is_full = False
    rank.num_reserved -= 1
    rank.reserved_output -= clip_output(request.num_output - request.generated)
    _count_out(requests, ranks, clock, r)
