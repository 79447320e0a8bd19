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
from simulator.engine.queue import join, pop, remove
from simulator.engine.state import HERE, RESERVED, Clock, Limits, Ranks, Requests
from simulator.results.tables import ADMISSION_LIMITS

_MAX_SEQUENCES, _KV_CACHE = (ADMISSION_LIMITS.index(name) for name in ("max_sequences", "kv_cache"))


@jit_inner
def reserve_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> None:
    """Reserve blocks of rank ``d`` for queued requests while there is room, by the rules of
    admission, and note these requests in ``reserved``.
    """
    rank, rows, counts = ranks.each[d], requests.each, ranks.counts[0]
    pool = d % len(ranks.caches)
    while rank.line.count > 0:
        r = rank.line.first
        request = rows[r]
        if rank.waiting.count > 0:
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
        pop(rank.line, rows)
        need = blocks_for(reach, limits)
        allocate_blocks(ranks, pool, need, limits)
        request.blocks = need
        request.stage = RESERVED
        request.reserved_s = now_s
        rank.num_reserved += 1
        rank.reserved_output += clip_output(output)
        join(counts.reserved, rows, r)


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
    """Queue request ``r``, whose cache has arrived, behind others with caches."""
    request, d = requests.each[r], requests.each[r].dp_rank
    rank = ranks.each[d]
    request.stage = HERE
    rank.num_reserved -= 1
    join(rank.ready, requests.each, r)


@jit_inner
def give_up_line(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Cancel the wait of request ``r`` for blocks, which is queued or about to be: its cache will
    not arrive.
    """
    request, counts = requests.each[r], clock.counts[0]
    if remove(ranks.each[request.dp_rank].line, requests.each, r):
        _count_out(requests, ranks, clock, r)
    elif remove(counts.coming, requests.each, r):
        request.stage = HERE
        counts.coming_tokens -= request.num_input + request.num_output


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
