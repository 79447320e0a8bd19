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

import numpy as np

from simulator.base.jit import jit_inner
from simulator.engine.blocks import release
from simulator.engine.preemption import preempt
from simulator.engine.state import Clock, Limits, Ranks, Requests
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
    rank, cache, ring = ranks.each[d], ranks.caches[d], ranks.ring
    turn = rank.ticks % limits.block_tokens
    while ring[d, turn] > cache.free_blocks:
        if rank.num_running == rank.num_decodes:
            _leave_sums_last(requests, ranks, limits, d)
        preempt(requests, ranks, d, rank.num_running - 1, limits)
    cache.free_blocks -= ring[d, turn]
    cache.num_taken += ring[d, turn]


@jit_inner
def _count_spare_tokens(requests: Requests, r: int, limits: Limits) -> int:
    """Tokens that a request's blocks can hold beyond those it had when it joined the sums."""
    request = requests.each[r]
    return int((request.blocks - limits.sequence_blocks) * limits.block_tokens - request.computed)


@jit_inner
def join_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int, now_s: float) -> None:
    """Add to the summed decodes of rank ``d`` the requests behind them that got a token just now
    and want another.
    """
    rank, rows = ranks.each[d], requests.each
    while rank.num_decodes < rank.num_running:
        r = ranks.running[d, rank.num_decodes]
        request = rows[r]
        if (
            request.generated == 0
            or request.computed + 1 != request.num_input + request.generated
            or request.last_s != now_s
        ):
            return
        left = request.num_output - request.generated
        fitting = _count_spare_tokens(requests, r, limits)
        if fitting < left:
            if fitting >= limits.block_tokens:
                return
            ranks.ring[d, (rank.ticks + fitting) % limits.block_tokens] += 1
        if rank.num_decodes == 0:
            rank.next_end = _NEVER
        request.joined = rank.ticks
        ranks.ends[d, rank.num_decodes] = rank.ticks + left
        ranks.starts[d, rank.num_decodes] = request.computed - rank.ticks
        rank.num_decodes += 1
        ranks.profiles[d, request.profile] += 1
        rank.contexts += request.computed
        rank.longest = max(rank.longest, request.computed)
        rank.next_end = min(rank.next_end, rank.ticks + left)
        ranks.emitted_s[d] = now_s


@jit_inner
def dissolve_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Give every request of rank ``d`` its own state again."""
    rank = ranks.each[d]
    for i in range(rank.num_decodes):
        _leave_sums(requests, ranks, limits, d, ranks.running[d, i])
    rank.num_decodes = rank.contexts = rank.longest = 0


@jit_inner
def _leave_sums_last(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> None:
    """Give the latest admitted of the summed decodes of rank ``d`` its own state again."""
    rank = ranks.each[d]
    last, ticks = rank.num_decodes - 1, rank.ticks
    r = ranks.running[d, last]
    _leave_sums(requests, ranks, limits, d, r)
    longest, next_end = -ticks, _NEVER
    for i in range(last):
        longest = max(longest, ranks.starts[d, i])
        next_end = min(next_end, ranks.ends[d, i])
    rank.num_decodes = last
    rank.contexts -= requests.each[r].computed
    rank.longest, rank.next_end = longest + ticks, next_end


@jit_inner
def _leave_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int, r: int) -> None:
    """Write the state of a request that leaves the sums."""
    request = requests.each[r]
    ranks.profiles[d, request.profile] -= 1
    steps = ranks.each[d].ticks - request.joined
    fitting = _count_spare_tokens(requests, r, limits)
    if fitting < request.num_output - request.generated:
        ranks.ring[d, (request.joined + fitting) % limits.block_tokens] -= 1
        if steps > fitting:
            request.blocks += (steps - 1 - fitting) // limits.block_tokens + 1
    request.computed += steps
    request.generated += steps
    request.last_s = ranks.emitted_s[d]


@jit_inner
def end_decodes(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, d: int, now_s: float
) -> int:
    """Finish those summed decodes of rank ``d`` that have got their last token. Returns how many go
    on.
    """
    rank, rows = ranks.each[d], requests.each
    running, ends, starts = ranks.running[d], ranks.ends[d], ranks.starts[d]
    count, ticks = rank.num_decodes, rank.ticks
    first = count
    for i in range(count):
        if ends[i] > ticks:
            continue
        first = min(first, i)
        request = rows[running[i]]
        _leave_sums(requests, ranks, limits, d, running[i])
        rank.contexts -= request.computed
        request.finish_s = now_s
        rank.is_full = False
        release(requests, ranks, d, running[i])
        tokens = request.num_input + request.num_output
        rank.tokens -= tokens
        clock.counts[0].outstanding_tokens -= tokens
    # Apart from the above: where one loop does all, it takes three times as long.
    kept, longest, next_end = first, -ticks, _NEVER
    for i in range(first, count):
        to, at = np.uintp(kept), np.uintp(i)  # unsigned: no code looks for negative ones
        end = ends[at]
        running[to], ends[to], starts[to] = running[at], end, starts[at]
        kept += end > ticks
    for i in range(kept):
        longest, next_end = max(longest, starts[i]), min(next_end, ends[i])
    rank.num_decodes = kept
    rank.longest, rank.next_end = longest + ticks, next_end
    return int(kept)
