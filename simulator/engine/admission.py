"""Admission of waiting requests to a step. Compiled.

Engines differ in what must fit in the KV cache before a request may start. The blocks allocated are
those of its first chunk, unless its whole output is reserved.
"""

from __future__ import annotations

import math

from simulator.base.jit import jit_inner
from simulator.engine.blocks import (
    allocate_blocks,
    blocks_for,
    count_available,
    count_hits,
    count_idle,
    count_kept,
    hold_block,
    reclaim_blocks,
    share_prompt,
)
from simulator.engine.state import (
    ADMITTED,
    ARRIVAL_S,
    BLOCKS,
    CACHED,
    COMPUTED,
    FIRST_S,
    FOLLOWING,
    GENERATED,
    HEAD,
    IS_FULL,
    LAST_S,
    NUM_ADMISSIONS,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_READY,
    NUM_RUNNING,
    NUM_WAITING,
    RESERVED_OUTPUT,
    SCHEDULED_S,
    SHARED,
    STOPPED_BY,
    TAIL,
    TRANSFERRED,
    Limits,
    Ranks,
    Requests,
)
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
    pool = d % len(ranks.pools)
    budget = _admit_ready(requests, ranks, d, budget, limits, now_s)
    if limits.rules.output_share > 0 and ranks.each[d, IS_FULL] and ranks.each[d, NUM_RUNNING] > 0:
        ranks.each[d, STOPPED_BY] = _KV_CACHE
        return budget
    coming = count_coming(requests, ranks, d, limits)
    while (
        # Those that have come wait for nothing but tokens and places, which nobody else gets.
        ranks.each[d, NUM_READY] == 0
        and ranks.each[d, HEAD] >= 0
        and budget > 0
        and ranks.each[d, NUM_RUNNING] < limits.rules.max_sequences
    ):
        r = ranks.each[d, HEAD]
        hits = count_hits(requests, ranks.prefixes, pool, r, limits)
        kept = count_kept(requests, ranks, r, pool, hits, limits)
        found = hits * limits.prefix_tokens + kept * limits.block_tokens
        computed = max(found, requests.ints[r, TRANSFERRED])
        known = requests.ints[r, NUM_INPUT] + requests.ints[r, GENERATED]
        remaining = known - computed
        new = remaining if not limits.rules.splits_prompts else min(remaining, budget)
        output = requests.ints[r, NUM_OUTPUT] - requests.ints[r, GENERATED]
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
        if ranks.each[d, NUM_RUNNING] > 0:
            asked += limits.watermark_blocks
        has_blocks = asked <= count_available(ranks, pool, limits)
        fits_budget = new <= budget or budget == limits.rules.token_budget
        if not has_blocks or not fits_budget:
            ranks.each[d, STOPPED_BY] = _TOKEN_BUDGET if has_blocks else _KV_CACHE
            ranks.each[d, IS_FULL] = not has_blocks
            return budget
        start = requests.prefix_starts[r]
        for i in range(start, start + hits):
            hold_block(ranks, pool, requests.prefix_ids[i])
        reclaim_blocks(requests, ranks, r, pool, kept)
        need = blocks_for(reach, limits) - hits * limits.prefix_blocks
        allocate_blocks(ranks, pool, need - kept, limits)
        requests.ints[r, BLOCKS] = need
        requests.ints[r, SHARED] = hits
        requests.ints[r, COMPUTED] = computed
        share_prompt(requests, ranks, pool, r, computed + new, limits)
        _run(requests, ranks, d, r, new, now_s)
        budget = max(0, budget - new)
        coming += clipped
    is_full = ranks.each[d, NUM_RUNNING] >= limits.rules.max_sequences
    ranks.each[d, STOPPED_BY] = _MAX_SEQUENCES if is_full else _TOKEN_BUDGET
    return budget


@jit_inner
def _admit_ready(
    requests: Requests, ranks: Ranks, d: int, budget: int, limits: Limits, now_s: float
) -> int:
    """Admit requests whose transferred caches have arrived in their reserved blocks. Returns the
    remaining token budget.
    """
    each, ints = ranks.each, requests.ints
    while each[d, NUM_READY] > 0 and each[d, NUM_RUNNING] < limits.rules.max_sequences:
        r = each[d, HEAD]
        new = ints[r, NUM_INPUT] + ints[r, GENERATED] - ints[r, TRANSFERRED]
        if new > budget:
            return budget
        ints[r, COMPUTED] = ints[r, TRANSFERRED]
        each[d, NUM_READY] -= 1
        each[d, RESERVED_OUTPUT] -= clip_output(ints[r, NUM_OUTPUT] - ints[r, GENERATED])
        _run(requests, ranks, d, r, new, now_s)
        budget -= new
    return budget


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
    running, ints = ranks.running, requests.ints
    tokens = float(ranks.each[d, RESERVED_OUTPUT])
    for i in range(ranks.each[d, NUM_RUNNING]):
        r = running[d, i]
        left = clip_output(ints[r, NUM_OUTPUT] - ints[r, GENERATED])
        tokens += left if ints[r, GENERATED] == 0 else left * ranks.output_share[d]
    return int(tokens)


@jit_inner
def _run(requests: Requests, ranks: Ranks, d: int, r: int, new: int, now_s: float) -> None:
    """Start the first waiting request of rank ``d`` with ``new`` tokens."""
    requests.ints[r, ADMITTED] = ranks.counts[0, NUM_ADMISSIONS]
    ranks.counts[0, NUM_ADMISSIONS] += 1
    if math.isnan(requests.times[r, SCHEDULED_S]):
        requests.times[r, SCHEDULED_S] = max(
            now_s, requests.times[r, ARRIVAL_S]
        )  # SimPy adds delays, which may round a hair early
        requests.ints[r, CACHED] = requests.ints[r, COMPUTED]
        if requests.ints[r, GENERATED] > 0:  # a token that came with a cache is shown now
            requests.times[r, FIRST_S] = requests.times[r, LAST_S] = requests.times[r, SCHEDULED_S]
    ranks.each[d, HEAD] = requests.ints[r, FOLLOWING]
    if ranks.each[d, HEAD] < 0:
        ranks.each[d, TAIL] = -1
    ranks.each[d, NUM_WAITING] -= 1
    i = ranks.each[d, NUM_RUNNING]
    ranks.running[d, i] = r
    ranks.chunk[d, i] = new
    ranks.each[d, NUM_RUNNING] += 1
