"""Decodes of a rank as sums: how many there are, how long their contexts are together, who ends
next. Compiled.

Requests that decode do the same in every step, so they are not looked at one by one: their rank
counts its steps, and a request is what it was when it joined and the steps since. They stand first
among those that run, in order of admission; others (prompts, and decodes behind an unfinished
prompt) follow and are looked at. Where the next step would be otherwise, for want of blocks or of
tokens, the sums are dissolved and every request is itself again.

Sums are of whole numbers, so a step costs the same to the last bit as if each were looked at.
"""

from __future__ import annotations

import math

from simulator.base.compiled import borrowing
from simulator.engine.blocks import blocks_for, release
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
    OUTSTANDING_TOKENS,
    TICKS,
    Clock,
    Limits,
    Ranks,
    Requests,
)
from simulator.results.tables import GAP_BINS_PER_DECADE, NUM_GAP_BINS, SHORTEST_GAP_S

_NEVER = 1 << 62


@borrowing
def find_gap_bin(gap_s: float) -> int:
    """The bin of a gap between output tokens."""
    decades = math.log10(max(gap_s, SHORTEST_GAP_S) / SHORTEST_GAP_S)
    return min(int(decades * GAP_BINS_PER_DECADE), NUM_GAP_BINS - 1)


@borrowing
def has_room(requests: Requests, ranks: Ranks, d: int, need: int, limits: Limits) -> bool:
    """Whether the next step of rank ``d`` has tokens for all summed decodes, and free blocks for
    everyone that runs.

    Args:
        need: KV blocks that the summed decodes take.
    """
    each, ints = ranks.each, requests.ints
    count = each[d, NUM_DECODES]
    if count > limits.rules.token_budget:
        return False
    for i in range(count, each[d, NUM_RUNNING]):
        r = ranks.running[d, i]
        left = ints[r, NUM_INPUT] + ints[r, GENERATED] - ints[r, COMPUTED]
        new = min(left, limits.rules.token_budget)
        need += max(0, blocks_for(ints[r, COMPUTED] + new, limits) - ints[r, BLOCKS])
    return bool(need <= ranks.pools[d, FREE_BLOCKS])


@borrowing
def _fitting(requests: Requests, r: int, limits: Limits) -> int:
    """Tokens that the blocks of a request hold beyond those that it had when it joined."""
    blocks = requests.ints[r, BLOCKS] - limits.sequence_blocks
    return int(blocks * limits.block_tokens - requests.ints[r, COMPUTED])


@borrowing
def join(requests: Requests, ranks: Ranks, limits: Limits, d: int, now_s: float) -> None:
    """Add those that stand behind the summed decodes of rank ``d``, got a token just now and want
    another.
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
        left, fitting = ints[r, NUM_OUTPUT] - ints[r, GENERATED], _fitting(requests, r, limits)
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
        each[d, CONTEXTS] += ints[r, COMPUTED]
        each[d, LONGEST] = max(each[d, LONGEST], ints[r, COMPUTED])
        each[d, NEXT_END] = min(each[d, NEXT_END], each[d, TICKS] + left)
        ranks.emitted_s[d] = now_s


@borrowing
def dissolve(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Let every request of rank ``d`` be itself again."""
    each = ranks.each
    for i in range(each[d, NUM_DECODES]):
        _leave(requests, ranks, limits, d, ranks.running[d, i])
    each[d, NUM_DECODES] = each[d, CONTEXTS] = each[d, LONGEST] = 0


@borrowing
def _leave(requests: Requests, ranks: Ranks, limits: Limits, d: int, r: int) -> None:
    """Write down what has become of a request since it joined."""
    ints = requests.ints
    steps = ranks.each[d, TICKS] - ints[r, JOINED]
    fitting = _fitting(requests, r, limits)
    if fitting < ints[r, NUM_OUTPUT] - ints[r, GENERATED]:
        ranks.ring[d, (ints[r, JOINED] + fitting) % limits.block_tokens] -= 1
        if steps > fitting:
            ints[r, BLOCKS] += (steps - 1 - fitting) // limits.block_tokens + 1
    ints[r, COMPUTED] += steps
    ints[r, GENERATED] += steps
    requests.times[r, LAST_S] = ranks.emitted_s[d]


@borrowing
def end_decodes(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, d: int, now_s: float
) -> int:
    """Finish those of the summed decodes of rank ``d`` that have got their last token. Returns how
    many go on.
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
        _leave(requests, ranks, limits, d, r)
        each[d, CONTEXTS] -= ints[r, COMPUTED]
        requests.times[r, FINISH_S] = now_s
        each[d, IS_FULL] = False
        release(requests, ranks, d, r)
        clock.counts[0, OUTSTANDING_TOKENS] -= ints[r, NUM_INPUT] + ints[r, NUM_OUTPUT]
    each[d, NUM_DECODES] = kept
    each[d, LONGEST], each[d, NEXT_END] = longest + ticks, next_end
    return kept
