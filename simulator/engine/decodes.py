"""Decodes of a data-parallel rank as sums: their number, total context and next end. Compiled.

Decoding requests do the same in every step, so they are not visited one by one: their rank counts
its steps, and a request's state is its state when it joined plus the steps since. Summed decodes
come first among the running requests, in order of admission; others (prompts, and decodes behind an
unfinished prompt) follow and are visited each. A request that loses its blocks leaves the sums;
where a step has fewer tokens than there are decodes, the sums are dissolved and every request has
its own state again.

Sums are of whole numbers, so a step costs the same to the last bit as if each request were visited.
"""

from __future__ import annotations

import math

from simulator.base.jit import jit_inner
from simulator.engine.blocks import release
from simulator.engine.preemption import preempt
from simulator.engine.state import (
    BLOCKS,
    COMPUTED,
    CONTEXTS,
    FINISH_S,
    FREE_BLOCKS,
    GENERATED,
    IS_FULL,
    JOINED,
    LAST_S,
    LONGEST,
    NEXT_END,
    NUM_DECODES,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_RUNNING,
    NUM_TAKEN,
    OUTSTANDING_TOKENS,
    PROFILE,
    TICKS,
    TOKENS,
    Clock,
    Limits,
    Ranks,
    Requests,
)
from simulator.results.tables import GAP_BINS_PER_DECADE, NUM_GAP_BINS, SHORTEST_GAP_S

_NEVER = 1 << 62
"""Step number beyond any run's, of decodes that do not end."""


@jit_inner
def find_gap_bin(gap_s: float) -> int:
    """Histogram bin of a gap between output tokens."""
    decades = math.log10(max(gap_s, SHORTEST_GAP_S) / SHORTEST_GAP_S)
    return min(int(decades * GAP_BINS_PER_DECADE), NUM_GAP_BINS - 1)


@jit_inner
def take_blocks(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Allocate the KV blocks that the next tokens of the summed decodes of rank ``d`` need; the
    latest admitted requests of the rank lose theirs when blocks run out.
    """
    each, pools, ring = ranks.each, ranks.pools, ranks.ring
    turn = each[d, TICKS] % limits.block_tokens
    while ring[d, turn] > pools[d, FREE_BLOCKS]:
        if each[d, NUM_RUNNING] == each[d, NUM_DECODES]:
            _leave_sums_last(requests, ranks, limits, d)
        preempt(requests, ranks, d, each[d, NUM_RUNNING] - 1, limits)
    pools[d, FREE_BLOCKS] -= ring[d, turn]
    pools[d, NUM_TAKEN] += ring[d, turn]


@jit_inner
def _count_spare_tokens(requests: Requests, r: int, limits: Limits) -> int:
    """Tokens that a request's blocks can hold beyond those it had when it joined the sums."""
    blocks = requests.ints[r, BLOCKS] - limits.sequence_blocks
    return int(blocks * limits.block_tokens - requests.ints[r, COMPUTED])


@jit_inner
def join_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int, now_s: float) -> None:
    """Add to the summed decodes of rank ``d`` the requests behind them that got a token just now
    and want another.
    """
    each, ints = ranks.each, requests.ints
    while each[d, NUM_DECODES] < each[d, NUM_RUNNING]:
        r = ranks.running[d, each[d, NUM_DECODES]]
        if (
            ints[r, GENERATED] == 0
            or ints[r, COMPUTED] + 1 != ints[r, NUM_INPUT] + ints[r, GENERATED]
            or requests.times[r, LAST_S] != now_s
        ):
            return
        left, fitting = (
            ints[r, NUM_OUTPUT] - ints[r, GENERATED],
            _count_spare_tokens(requests, r, limits),
        )
        if fitting < left:
            if fitting >= limits.block_tokens:
                return
            ranks.ring[d, (each[d, TICKS] + fitting) % limits.block_tokens] += 1
        if each[d, NUM_DECODES] == 0:
            each[d, NEXT_END] = _NEVER
        ints[r, JOINED] = each[d, TICKS]
        ranks.ends[d, each[d, NUM_DECODES]] = each[d, TICKS] + left
        ranks.starts[d, each[d, NUM_DECODES]] = ints[r, COMPUTED] - each[d, TICKS]
        each[d, NUM_DECODES] += 1
        ranks.profiles[d, ints[r, PROFILE]] += 1
        each[d, CONTEXTS] += ints[r, COMPUTED]
        each[d, LONGEST] = max(each[d, LONGEST], ints[r, COMPUTED])
        each[d, NEXT_END] = min(each[d, NEXT_END], each[d, TICKS] + left)
        ranks.emitted_s[d] = now_s


@jit_inner
def dissolve_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Give every request of rank ``d`` its own state again."""
    each = ranks.each
    for i in range(each[d, NUM_DECODES]):
        _leave_sums(requests, ranks, limits, d, ranks.running[d, i])
    each[d, NUM_DECODES] = each[d, CONTEXTS] = each[d, LONGEST] = 0


@jit_inner
def _leave_sums_last(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Give the latest admitted of the summed decodes of rank ``d`` its own state again."""
    each, ticks = ranks.each, ranks.each[d, TICKS]
    last = each[d, NUM_DECODES] - 1
    r = ranks.running[d, last]
    _leave_sums(requests, ranks, limits, d, r)
    longest, next_end = -ticks, _NEVER
    for i in range(last):
        longest = max(longest, ranks.starts[d, i])
        next_end = min(next_end, ranks.ends[d, i])
    each[d, NUM_DECODES] = last
    each[d, CONTEXTS] -= requests.ints[r, COMPUTED]
    each[d, LONGEST], each[d, NEXT_END] = longest + ticks, next_end


@jit_inner
def _leave_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int, r: int) -> None:
    """Write the state of a request that leaves the sums."""
    ints = requests.ints
    ranks.profiles[d, ints[r, PROFILE]] -= 1
    steps = ranks.each[d, TICKS] - ints[r, JOINED]
    fitting = _count_spare_tokens(requests, r, limits)
    if fitting < ints[r, NUM_OUTPUT] - ints[r, GENERATED]:
        ranks.ring[d, (ints[r, JOINED] + fitting) % limits.block_tokens] -= 1
        if steps > fitting:
            ints[r, BLOCKS] += (steps - 1 - fitting) // limits.block_tokens + 1
    ints[r, COMPUTED] += steps
    ints[r, GENERATED] += steps
    requests.times[r, LAST_S] = ranks.emitted_s[d]


@jit_inner
def end_decodes(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, d: int, now_s: float
) -> int:
    """Finish those summed decodes of rank ``d`` that have got their last token. Returns how many go
    on.
    """
    each, ints = ranks.each, requests.ints
    running, ends, starts = ranks.running[d], ranks.ends[d], ranks.starts[d]
    count, ticks = each[d, NUM_DECODES], each[d, TICKS]
    kept, longest, next_end = 0, -ticks, _NEVER
    for i in range(count):
        r = running[i]
        if ends[i] > ticks:
            longest, next_end = max(longest, starts[i]), min(next_end, ends[i])
            running[kept], ends[kept], starts[kept] = r, ends[i], starts[i]
            kept += 1
            continue
        _leave_sums(requests, ranks, limits, d, r)
        each[d, CONTEXTS] -= ints[r, COMPUTED]
        requests.times[r, FINISH_S] = now_s
        each[d, IS_FULL] = False
        release(requests, ranks, d, r)
        tokens = ints[r, NUM_INPUT] + ints[r, NUM_OUTPUT]
        each[d, TOKENS] -= tokens
        clock.counts[0, OUTSTANDING_TOKENS] -= tokens
    each[d, NUM_DECODES] = kept
    each[d, LONGEST], each[d, NEXT_END] = longest + ticks, next_end
    return kept
