"""Admission of waiting requests to a step. Compiled.

Engines differ in what must fit in the KV cache before a request may start. The blocks allocated are
those of its first chunk, unless its whole output is reserved.
"""

from __future__ import annotations

import math

from simulator.base.jit import jit_apart, jit_inner
from simulator.engine.cache import (
    allocate_blocks,
    blocks_for,
    count_available,
    count_hits,
    count_idle,
    count_kept,
    count_missing,
    count_readable,
    hold_block,
    read_blocks,
    reclaim_blocks,
    release,
    share_prompt,
    write_blocks,
)
from simulator.engine.queue import join, pop, remove
from simulator.engine.state import HERE, READ, RESERVED, Limits, Ranks, Requests
from simulator.results.tables import ADMISSION_LIMITS

_MAX_SEQUENCES, _KV_CACHE, _TOKEN_BUDGET = (
    ADMISSION_LIMITS.index(name) for name in ("max_sequences", "kv_cache", "token_budget")
)
_CLIPPED_OUTPUT = 4096
"""Most output tokens of one request that SGLang's admission assumes
(``SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION`` in its ``environ.py``)."""


@jit_inner
def admit(
    requests: Requests, ranks: Ranks, d: int, budget: int, limits: Limits, now_s: float
) -> int:
    """Admit waiting requests in order while tokens, sequence slots and KV blocks last. Returns the
    remaining token budget.
    """
    rank, pool = ranks.each[d], d % len(ranks.caches)
    budget = _admit_ready(requests, ranks, d, budget, limits, now_s)
    if limits.rules.output_share > 0 and rank.is_full and rank.num_running > 0:
        rank.stopped_by = _KV_CACHE
        return budget
    coming, reads = count_coming(requests, ranks, d, limits), ranks.tiers.shape[1] > 0
    while rank.waiting.count > 0:
        # Those that have come wait for nothing but tokens and places, which nobody else gets.
        may_start = budget > 0 and rank.ready.count == 0
        places = limits.rules.max_sequences - rank.num_running
        if reads:  # who reads its first blocks has a place already
            places -= rank.num_reserved + rank.ready.count
        if places <= 0 or not (may_start or reads):
            break
        r = rank.waiting.first
        request = requests.each[r]
        hits = count_hits(requests, ranks.prefixes, pool, r, limits, 1)
        kept = count_kept(requests, ranks, r, pool, hits, limits)
        readable = 0
        if reads:
            readable = count_readable(requests, ranks, pool, r, hits, limits, now_s)
            if readable * limits.prefix_blocks > kept:
                kept = 0
            else:
                readable = 0
            if readable == 0 and not may_start:
                break
        found = (hits + readable) * limits.prefix_tokens + kept * limits.block_tokens
        computed = max(found, request.transferred)
        known = request.num_input + request.generated
        remaining = known - computed
        new = min(remaining, budget) if limits.rules.splits_prompts else remaining
        if readable > 0:  # it has its blocks then, whoever starts meanwhile
            new = remaining
        output = request.max_output - request.generated
        reach = (
            known + output + len(limits.accepted)
            if limits.rules.reserves_output
            else computed + new
        )
        room, clipped = reach, clip_output(output)
        if limits.rules.checks_known:
            room = max(reach, known)
        elif limits.rules.output_share > 0:
            room = known + clipped + coming
        in_use = hits - count_idle(requests, ranks, pool, r, hits)
        asked = blocks_for(room, limits) - in_use * limits.prefix_blocks
        if rank.num_running > 0:
            asked += limits.watermark_blocks
        has_blocks = asked <= count_available(ranks, pool, limits)
        fits_budget = readable > 0 or new <= budget or budget == limits.rules.token_budget
        if not has_blocks or not fits_budget:
            rank.stopped_by = _TOKEN_BUDGET if has_blocks else _KV_CACHE
            rank.is_full = not has_blocks
            return budget
        _take_blocks(requests, ranks, d, hits, kept, reach, limits)
        coming += clipped
        if readable > 0:
            _begin_reading(requests, ranks, d, r, readable, limits, now_s)
            continue
        request.computed = computed
        if reads:
            write_blocks(requests, ranks, pool, r, 0, hits, now_s)
        share_prompt(requests, ranks, pool, r, computed + new, limits, now_s)
        _run(requests, ranks, d, r, new, now_s)
        budget = max(0, budget - new)
    taken = rank.num_running
    if reads:
        taken += rank.num_reserved + rank.ready.count
    is_full = taken >= limits.rules.max_sequences
    rank.stopped_by = _MAX_SEQUENCES if is_full else _TOKEN_BUDGET
    return budget


@jit_apart
def _begin_reading(
    requests: Requests, ranks: Ranks, d: int, r: int, count: int, limits: Limits, now_s: float
) -> None:
    """Let request ``r`` of rank ``d``, which holds its blocks on the GPU and has others of its own,
    read ``count`` prefix blocks from tiers.
    """
    request, pool = requests.each[r], d % len(ranks.caches)
    end = request.shared + count
    read_blocks(requests, ranks, pool, r, request.shared, end, now_s)
    write_blocks(requests, ranks, pool, r, 0, request.shared, now_s)
    # To tiers that lack the others they are written once the GPU has them.
    write_blocks(requests, ranks, pool, r, request.shared, end, math.inf)
    request.transferred = end * limits.prefix_tokens
    request.stage = READ
    if math.isnan(request.scheduled_s):
        request.read, request.read_wait_s = count * limits.prefix_tokens, request.read_s - now_s
    _reserve(requests, ranks, d, r)


@jit_inner
def _admit_ready(
    requests: Requests, ranks: Ranks, d: int, budget: int, limits: Limits, now_s: float
) -> int:
    """Admit requests whose transferred caches have arrived in their reserved blocks. Returns the
    remaining token budget.
    """
    rank, whole = ranks.each[d], limits.rules.token_budget
    while rank.ready.count > 0 and budget > 0 and rank.num_running < limits.rules.max_sequences:
        r = rank.ready.first
        request = requests.each[r]
        new = request.num_input + request.generated - request.transferred
        if limits.rules.splits_prompts:
            new = min(new, budget)
        elif new > budget and budget < whole:
            return budget
        request.computed = request.transferred
        share_prompt(
            requests, ranks, d % len(ranks.caches), r, request.computed + new, limits, now_s
        )
        pop(rank.ready, requests.each)
        rank.reserved_output -= clip_output(request.num_output - request.generated)
        _run(requests, ranks, d, r, new, now_s)
        budget = max(0, budget - new)
    return budget


@jit_inner
def admit_prefills(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> int:
    """Form a step of prompts of rank ``d`` as SGLang does (``_get_new_batch_prefill_raw`` in its
    ``scheduler.py``, ``PrefillAdder`` in ``schedule_policy.py``). Returns the tokens of the step.
    """
    rank, rows, pool = ranks.each[d], requests.each, d % len(ranks.caches)
    page, budget, tokens = limits.block_tokens, limits.rules.token_budget, 0
    fixed = limits.sequence_blocks * page
    open_chunk, num_decodes, assumed = _survey_running(requests, ranks, d, limits)
    if open_chunk >= 0 or num_decodes == 0:
        rank.is_full = False
    rank.stopped_by = _KV_CACHE
    if open_chunk < 0 and (rank.is_full or rank.waiting.count == 0):
        return 0
    room = count_available(ranks, pool, limits) * page - assumed
    if open_chunk >= 0:
        r = ranks.running[d, open_chunk]
        request = rows[r]
        left = request.num_input + request.generated - request.computed
        new = min(left, min(budget, int(room)) if room >= 1 else budget)
        need = max(0, count_missing(request, request.computed + new, limits))
        if need > count_available(ranks, pool, limits):
            return 0
        allocate_blocks(ranks, pool, need, limits)
        request.blocks += need
        share_prompt(requests, ranks, pool, r, request.computed + new, limits, now_s)
        ranks.chunk[d, open_chunk] = new
        room -= _round_up(new, page) + page
        if new == left:
            room -= clip_output(request.max_output)
        budget -= _round_up(new, page)
        tokens += new
    while rank.waiting.count > 0:
        if room > 0 and budget <= 0:
            rank.stopped_by = _TOKEN_BUDGET
            break
        if rank.num_running >= limits.rules.max_sequences:
            rank.is_full, rank.stopped_by = True, _MAX_SEQUENCES
            break
        r = rank.waiting.first
        request = rows[r]
        hits = count_hits(requests, ranks.prefixes, pool, r, limits, 1)
        kept = count_kept(requests, ranks, r, pool, hits, limits)
        idle = count_idle(requests, ranks, pool, r, hits) * limits.prefix_blocks + kept
        found = hits * limits.prefix_tokens + kept * page
        new = request.num_input + request.generated - found
        output = clip_output(request.max_output - request.generated)
        # Alone it has room: then its limit on outputs is cut to that.
        asked = blocks_for(new, limits) + idle
        is_alone = rank.num_running == 0 and asked <= count_available(ranks, pool, limits)
        if new + output + page + fixed >= room - idle * page and not is_alone:
            rank.is_full = tokens > 0 or num_decodes > 0
            break
        output, size = clip_output(request.max_output), _round_up(new, page)
        if size > budget and limits.rules.splits_prompts:
            new = (found + budget // page * page) // page * page - found
            output, size = 0, new
        if new <= 0 or (size > budget and tokens > 0):
            rank.stopped_by = _TOKEN_BUDGET
            break
        _take_blocks(requests, ranks, d, hits, kept, found + new, limits)
        request.computed = found
        share_prompt(requests, ranks, pool, r, found + new, limits, now_s)
        _run(requests, ranks, d, r, new, now_s)
        room -= idle * page + size + page + fixed + output
        budget -= size
        tokens += new
        if room <= 0:
            rank.is_full = True
            break
    if num_decodes == 0:
        rank.is_full = False  # the batch becomes the running one, with a flag of its own
    return tokens


@jit_inner
def _take_blocks(
    requests: Requests, ranks: Ranks, d: int, hits: int, kept: int, reach: int, limits: Limits
) -> None:
    """Take the first waiting request of rank ``d`` out of its queue, with blocks for its first
    ``reach`` tokens: ``hits`` prefix blocks, and ``kept`` blocks that it lost.
    """
    pool, r = d % len(ranks.caches), ranks.each[d].waiting.first
    request, start = requests.each[r], requests.prefix_starts[r]
    for i in range(start, start + hits):
        hold_block(requests, ranks, pool, requests.prefix_ids[i], limits)
    reclaim_blocks(requests, ranks, r, pool, kept)
    request.shared, request.blocks = hits, blocks_for(reach, limits) - hits * limits.prefix_blocks
    allocate_blocks(ranks, pool, request.blocks - kept, limits)
    pop(ranks.each[d].waiting, requests.each)


@jit_inner
def _round_up(tokens: int, page: int) -> int:
    return (tokens + page - 1) // page * page


@jit_inner
def count_emitted(requests: Requests, ranks: Ranks, d: int, r: int) -> int:
    """Count the output tokens of a request of rank ``d`` that are out, those of the step in flight
    not among them.
    """
    request, rank = requests.each[r], ranks.each[d]
    is_out = rank.in_flight and request.joined == rank.ticks
    return int(request.generated - (max(1, -request.ahead) if is_out else 0))


@jit_inner
def _survey_running(
    requests: Requests, ranks: Ranks, d: int, limits: Limits
) -> tuple[int, int, float]:
    """Survey the running requests of rank ``d``: index of the one whose prompt is not computed, -1
    for none; number of the others; and their output tokens that SGLang's admission assumes, of
    which a token in flight is still to come.
    """
    rank, open_chunk, count, tokens = ranks.each[d], -1, 0, 0.0
    share = 1.0 if limits.rules.ignores_share else rank.output_share
    for i in range(rank.num_running):
        request = requests.each[ranks.running[d, i]]
        if request.computed < request.prompt:
            open_chunk = i
            continue
        emitted = count_emitted(requests, ranks, d, ranks.running[d, i])
        tokens += clip_output(request.max_output - emitted) * share
        count += 1
    return open_chunk, count, tokens


@jit_inner
def clip_output(output: int) -> int:
    """Output tokens of a request that SGLang's admission assumes."""
    return min(output, _CLIPPED_OUTPUT)


@jit_inner
def count_coming(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> int:
    """Count the output tokens that SGLang's admission assumes for the requests of rank ``d`` that
    run or have reserved blocks: of decoding ones only a share, which follows how many were
    retracted lately (``PrefillAdder``).
    """
    if limits.rules.output_share == 0:
        return 0
    rank, running, rows = ranks.each[d], ranks.running, requests.each
    tokens = float(rank.reserved_output)
    for i in range(rank.num_running):
        request = rows[running[d, i]]
        left = clip_output(request.num_output - request.generated)
        tokens += left if request.generated == 0 else left * rank.output_share
    return int(tokens)


@jit_inner
def _run(requests: Requests, ranks: Ranks, d: int, r: int, new: int, now_s: float) -> None:
    """Start request ``r`` of rank ``d``, which has left its queue, with ``new`` tokens."""
    request, rank = requests.each[r], ranks.each[d]
    request.admitted, request.ahead = ranks.counts[0].num_admissions, 0
    ranks.counts[0].num_admissions += 1
    if math.isnan(request.scheduled_s):
        # SimPy adds delays, which may round a hair early.
        request.scheduled_s = max(now_s, request.arrival_s)
        request.cached = request.computed
        if request.generated > 0:  # a token that came with a cache is shown now
            request.first_s = request.last_s = request.scheduled_s
    request.prompt = request.num_input + request.generated
    i = rank.num_running
    ranks.running[d, i] = r
    ranks.chunk[d, i] = new
    rank.num_running += 1


# Reserved KV blocks of a decode pool for caches that are computed elsewhere. Compiled.
#
# A cache is sent when it is computed and a rank of the decode pool has blocks for it, which it
# reserves from then on; until the cache has arrived the prefill pool keeps its own copy. Where no
# rank has room, prompts so stay where they were computed, and fill that pool too. Requests without
# blocks queue first come, first served, behind requests of the rank that have been preempted.
#
# vLLM and TensorRT-LLM ask for blocks when the prompt is computed, SGLang before (see the life
# cycles at the head of ``disaggregation/decode.py`` and ``prefill.py`` in its source).


@jit_inner
def reserve_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> None:
    """Reserve blocks of rank ``d`` for queued requests while there is room, by the rules of
    admission, and note these requests in ``reserved``.
    """
    rank, rows = ranks.each[d], requests.each
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
        output = request.max_output - request.generated
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
        request.blocks = blocks_for(reach, limits)
        allocate_blocks(ranks, pool, request.blocks, limits)
        request.stage, request.reserved_s = RESERVED, now_s
        _reserve(requests, ranks, d, r)


@jit_inner
def _reserve(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Note a request of rank ``d`` that has blocks for a cache that is to come."""
    request, rank = requests.each[r], ranks.each[d]
    rank.num_reserved += 1
    rank.reserved_output += clip_output(request.num_output - request.generated)
    join(ranks.counts[0].reserved, requests.each, r)


@jit_inner
def count_out(requests: Requests, ranks: Ranks, r: int) -> None:
    """Remove request ``r`` from the counts of its rank and replica."""
    request, counts = requests.each[r], ranks.counts[0]
    rank, tokens = ranks.each[request.dp_rank], request.num_input + request.num_output
    request.stage = HERE
    rank.tokens -= tokens
    rank.prompt_tokens -= request.num_input
    counts.num_finished += 1
    counts.outstanding_tokens -= tokens


@jit_inner
def take_in(requests: Requests, ranks: Ranks, r: int) -> None:
    """Queue request ``r``, whose cache has arrived, behind others with caches."""
    request, d = requests.each[r], requests.each[r].dp_rank
    rank = ranks.each[d]
    request.stage = HERE
    rank.num_reserved -= 1
    join(rank.ready, requests.each, r)


@jit_inner
def give_up_line(requests: Requests, ranks: Ranks, r: int) -> None:
    """Cancel the wait of request ``r`` for blocks, which is queued or about to be: its cache will
    not arrive.
    """
    request, counts = requests.each[r], ranks.counts[0]
    if remove(ranks.each[request.dp_rank].line, requests.each, r):
        count_out(requests, ranks, r)
    elif remove(counts.coming, requests.each, r):
        request.stage = HERE
        counts.coming_tokens -= request.num_input + request.num_output


@jit_inner
def give_up_blocks(requests: Requests, ranks: Ranks, limits: Limits, r: int) -> None:
    """Cancel the reserved blocks of request ``r``: its cache will not arrive."""
    request, d = requests.each[r], requests.each[r].dp_rank
    rank = ranks.each[d]
    release(requests, ranks, d % len(ranks.caches), r, limits)
    rank.is_full = False
    rank.num_reserved -= 1
    rank.reserved_output -= clip_output(request.num_output - request.generated)
    count_out(requests, ranks, r)
