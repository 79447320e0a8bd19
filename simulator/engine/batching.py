"""Continuous batching: the contents of each step and their consequences, with KV admission and
preemption. Compiled.

All fidelities call these same functions, so that they differ only in the duration of a step.

Arrays that a loop uses are named before it: numba counts references at each access to a tuple,
which costs twenty times the arithmetic of a sequence.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.base.jit import jit_inline, jit_inner
from simulator.engine.admission import (
    admit,
    admit_prefills,
    count_emitted,
    count_out,
    reserve_blocks,
)
from simulator.engine.cache import (
    allocate_blocks,
    count_available,
    count_missing,
    evict_blocks,
    keep_order,
    reclaim_blocks,
    release,
    release_known,
    share_prompt,
    touch_blocks,
)
from simulator.engine.queue import join, join_again, pop, remove
from simulator.engine.state import IN_LINE, NEVER, Limits, Ranks, Requests
from simulator.results.tables import (
    ADMISSION_LIMITS,
    GAP_BINS_PER_DECADE,
    NUM_GAP_BINS,
    SHORTEST_GAP_S,
)

# Preemption: requests that lose their KV blocks when these run out. Compiled.
#
# vLLM preempts the request that was admitted last, which then waits first in the queue; those of
# its blocks that no request has taken by then are found again. By priority it preempts the last of
# those that run, by the order in which they wait. SGLang retracts the requests with the fewest
# output tokens, until the next decode step has room, and they wait last in the queue.


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
    has_all, ahead = gets_last(requests, r), request.ahead
    is_out = rank.in_flight and request.joined == rank.ticks
    known = request.computed
    if limits.rules.output_share > 0:  # SGLang's tree has prompts of those that run
        known = min(known, request.prompt)
        if is_out:
            _drop_token(requests, ranks, d, r)
            has_all = False
    elif is_out and request.generated > 1 and ahead < 2:
        known -= abs(ahead)  # what a block holds is known when the token behind it is out
    if limits.rules.finds_full and not has_all:
        keep_order(requests, ranks, pool, r, known, limits)
    release_known(requests, ranks, pool, r, known, limits)
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
    if has_all:
        return
    if limits.rules.output_share > 0:
        join(rank.waiting, requests.each, r)
    else:
        join_again(rank.waiting, requests.each, r)


@jit_inner
def gets_last(requests: Requests, r: int) -> bool:
    """Whether it is known that a request gets its last token from the step in flight: where its
    end is known, whatever becomes of its draft.
    """
    request = requests.each[r]
    return bool(request.generated == request.known_end and request.ahead >= -1)


@jit_inner
def _drop_token(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Drop the tokens of a request of rank ``d`` that are on the way; they are computed again."""
    requests.each[r].generated -= max(1, -requests.each[r].ahead)
    rank = ranks.each[d]
    for k in range(rank.num_emitting):
        if ranks.emitting[d, k] == r:
            rank.num_emitting -= 1
            ranks.emitting[d, k] = ranks.emitting[d, rank.num_emitting]
            break


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
                request.generated == best.generated and request.num_input >= best.num_input
            ):
                victim = i
        preempt(requests, ranks, d, victim, limits)
        tokens = rank.num_running * limits.rules.retract_steps
        if ranks.caches[pool].free_blocks * limits.block_tokens < tokens:
            evict_blocks(ranks, pool, -(-tokens // limits.block_tokens), limits)
        retracted = True
    if not retracted:
        share = rank.output_share - limits.rules.output_share_decay
        rank.output_share = max(limits.rules.least_output_share, share)
        return
    used, asked = 0, 1
    for i in range(rank.num_running):
        request = rows[running[d, i]]
        used += count_emitted(requests, ranks, d, running[d, i]) + limits.rules.retract_steps
        asked += request.max_output
    rank.output_share = min(1.0, used / asked)


@jit_inner
def _next_blocks(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> int:
    """Count the KV blocks that the next token of each running request takes, with its
    draft tokens.
    """
    count, new = 0, 1 + len(limits.accepted)
    for i in range(ranks.each[d].num_running):
        r = ranks.running[d, i]
        if not gets_last(requests, r):
            request = requests.each[r]
            count += max(0, count_missing(request, request.computed + new, limits))
    return count


# Acceptance of draft tokens in speculative decoding. Compiled.
#
# Each draw depends only on the seed, the request and the token's position in the output, so that a
# request keeps the same tokens whichever batches it is in, at every fidelity.


_STEP, _FIRST, _SECOND = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_27, _30, _31, _11 = (np.uint64(bits) for bits in (27, 30, 31, 11))
_UNIT = 2.0**-53
"""Distance of neighbouring doubles of 53 random bits."""


@jit_inner
def draw_uniform(seed: int, request: int, place: int) -> float:
    """Draw a number from 0 to 1 for one output token: SplitMix64 (Steele, Lea and Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014), seeded for the request.
    """
    state = _mix(np.uint64(seed) + _STEP * np.uint64(request + 1))
    return float(_mix(state + _STEP * np.uint64(place + 1)) >> _11) * _UNIT


@jit_inner
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@jit_inner
def count_kept_tokens(requests: Requests, limits: Limits, r: int, new: int) -> int:
    """Count the output tokens that the request in row ``r`` gets from a step that computes ``new``
    of its tokens: one, and its draft tokens up to the first that is not accepted, at most the
    request's remaining output.
    """
    request = requests.each[r]
    left = request.num_output - request.generated
    kept, number = 1, request.number
    while (
        kept < min(new, left)
        and draw_uniform(limits.draft_seed, number, request.generated + kept)
        < limits.accepted[kept - 1]
    ):
        kept += 1
    return kept


# Decodes of a data-parallel rank as sums: their number, total context and next end. Compiled.
#
# Decoding requests do the same in every step, so they are not visited one by one: their rank counts
# its steps, and a request's state is its state when it joined plus the steps since. Summed decodes
# come first among the running requests, in order of admission; others (prompts, and decodes behind
# an unfinished prompt) follow and are visited each. A request that loses its blocks leaves the
# sums; where a step has fewer tokens than there are decodes, the sums are dissolved and every
# request has its own state again.
#
# Sums are of whole numbers, so a step costs the same to the last bit as if each request were
# visited.


@jit_inner
def find_gap_bin(gap_s: float) -> int:
    """Histogram bin of a gap between output tokens."""
    decades = math.log10(max(gap_s, SHORTEST_GAP_S) / SHORTEST_GAP_S)
    return min(int(decades * GAP_BINS_PER_DECADE), NUM_GAP_BINS - 1)


@jit_inner
def count_ended(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> tuple[int, int]:
    """Count the summed decodes of rank ``d`` that get their last token from the step in flight, and
    those of them that the ring of blocks counts for the next step.
    """
    rank, ended, due = ranks.each[d], 0, 0
    if rank.in_flight and rank.num_decodes > 0 and rank.ticks == rank.next_end:
        for i in range(rank.num_decodes):
            if ranks.ends[d, i] == rank.ticks:
                request = requests.each[ranks.running[d, i]]
                spare = _count_spare_tokens(requests, ranks.running[d, i], limits)
                steps = rank.ticks - request.joined
                ended += 1
                due += spare < steps and (steps - spare) % limits.block_tokens == 0
    return ended, due


@jit_inner
def take_blocks(requests: Requests, ranks: Ranks, limits: Limits, d: int) -> int:
    """Allocate the KV blocks that the next tokens of the summed decodes of rank ``d`` need; the
    latest admitted requests of the rank lose theirs when blocks run out. Returns how many decode.
    """
    rank, turn = ranks.each[d], ranks.each[d].ticks % limits.block_tokens
    ended, due = count_ended(requests, ranks, limits, d)
    while ranks.ring[d, turn] - due > count_available(ranks, d, limits):
        if rank.num_running == rank.num_decodes:
            _leave_sums_last(requests, ranks, limits, d)
        preempt(requests, ranks, d, rank.num_running - 1, limits)
        ended, due = count_ended(requests, ranks, limits, d)
    allocate_blocks(ranks, d, ranks.ring[d, turn] - due, limits)
    return int(rank.num_decodes - ended)


@jit_inner
def _count_spare_tokens(requests: Requests, r: int, limits: Limits) -> int:
    """Tokens that a request's blocks can hold beyond those it had when it joined the sums."""
    request = requests.each[r]
    return int((request.blocks - limits.sequence_blocks) * limits.block_tokens - request.computed)


@jit_inner
def sum_decodes(requests: Requests, ranks: Ranks, limits: Limits) -> None:
    """Add to the summed decodes of every rank, whose tokens have just been counted, the requests
    behind them that got a token from the latest step and want another.
    """
    for d in range(len(ranks.each) if limits.sums_decodes else 0):
        rank = ranks.each[d]
        while rank.num_decodes < rank.num_running:
            r = ranks.running[d, rank.num_decodes]
            request = requests.each[r]
            if (
                not is_decode(request.num_input, request.generated, request.computed)
                or request.joined != rank.ticks
                or request.generated == request.known_end
            ):
                break
            left = request.num_output - request.generated
            fitting = _count_spare_tokens(requests, r, limits)
            if fitting < left:
                if fitting >= limits.block_tokens:
                    break
                ranks.ring[d, (rank.ticks + fitting) % limits.block_tokens] += 1
            if rank.num_decodes == 0:
                rank.next_end = NEVER
            ranks.ends[d, rank.num_decodes] = rank.ticks + left
            ranks.starts[d, rank.num_decodes] = request.computed - rank.ticks
            rank.num_decodes += 1
            ranks.profiles[d, request.profile] += 1
            rank.contexts += request.computed
            rank.longest = max(rank.longest, request.computed)
            rank.next_end = min(rank.next_end, rank.ticks + left)


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
    r = ranks.running[d, rank.num_decodes - 1]
    _leave_sums(requests, ranks, limits, d, r)
    rank.contexts -= requests.each[r].computed
    _count_sums(ranks, d, rank.num_decodes - 1)


@jit_inner
def _count_sums(ranks: Ranks, d: int, count: int) -> None:
    """Note that the first ``count`` running requests of rank ``d`` are its summed decodes."""
    rank, ends, starts = ranks.each[d], ranks.ends[d], ranks.starts[d]
    longest, next_end = -rank.ticks, NEVER
    for i in range(count):
        longest, next_end = max(longest, starts[i]), min(next_end, ends[i])
    rank.num_decodes, rank.longest, rank.next_end = count, longest + rank.ticks, next_end


@jit_inner
def _leave_sums(requests: Requests, ranks: Ranks, limits: Limits, d: int, r: int) -> None:
    """Write the state of a request that leaves the sums."""
    request, rank = requests.each[r], ranks.each[d]
    ranks.profiles[d, request.profile] -= 1
    steps = rank.ticks - request.joined
    fitting = _count_spare_tokens(requests, r, limits)
    if fitting < request.num_output - request.generated:
        ranks.ring[d, (request.joined + fitting) % limits.block_tokens] -= 1
        if steps > fitting:
            request.blocks += (steps - 1 - fitting) // limits.block_tokens + 1
    if steps == 0:
        return
    request.computed += steps
    request.generated += steps
    request.joined = rank.ticks
    request.last_s = rank.emitted_s
    if rank.num_summed > 0:  # its latest token is not out yet
        request.ahead = 1
        rank.num_summed -= 1
        ranks.emitting[d, rank.num_emitting] = r
        rank.num_emitting += 1


@jit_inner
def end_decodes(requests: Requests, ranks: Ranks, limits: Limits, d: int, now_s: float) -> int:
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
        release(requests, ranks, d, running[i], limits)
        count_out(requests, ranks, running[i])
    # Apart from the above: one loop for both spills its counters, and takes up to twice as long.
    kept = first
    for i in range(first, count):
        to, at = np.uintp(kept), np.uintp(i)  # unsigned: no code looks for negative ones
        end = ends[at]
        running[to], ends[to], starts[to] = running[at], end, starts[at]
        kept += end > ticks
    _count_sums(ranks, d, int(kept))
    return int(kept)


_KV_CACHE, _HELD_BACK = (ADMISSION_LIMITS.index(name) for name in ("kv_cache", "held_back"))


@jit_inner
def queue_request(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Queue request ``r`` at rank ``d``."""
    request = requests.each[r]
    tokens = request.num_input + request.num_output
    request.dp_rank = d
    queue = ranks.each[d].line if request.stage == IN_LINE else ranks.each[d].waiting
    join(queue, requests.each, r)
    ranks.each[d].tokens += tokens
    ranks.each[d].prompt_tokens += request.num_input
    ranks.counts[0].num_pushed += 1
    ranks.counts[0].num_turns += 1
    ranks.counts[0].outstanding_tokens += tokens


@jit_inner
def is_decode(num_input: int, generated: int, computed: int) -> bool:
    """Whether a request's next token is its newest output token (with draft tokens behind it, if
    any), as opposed to a chunk of a prompt or of a preempted context.
    """
    return generated > 0 and computed + 1 == num_input + generated


@jit_inline
def form_step(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` for the next step, and reserve blocks for caches that are to arrive.
    Returns whether there is anything to compute.
    """
    while True:
        has_work = _fill(requests, ranks, limits, now_s)
        # Who ran may have lost its blocks, to other lanes or to caches that are to come.
        if not ranks.caches.ran_out.any():
            return bool(has_work)
        if _computes_any(requests, ranks, limits):
            return True
        if ranks.each[0].in_flight:
            return False


@jit_inner
def _computes_any(requests: Requests, ranks: Ranks, limits: Limits) -> bool:
    """Whether any request is in the step that is formed."""
    for d in range(len(ranks.each)):
        rank = ranks.each[d]
        ended, _ = count_ended(requests, ranks, limits, d)
        if rank.num_decodes > ended or computes(ranks, d, d + 1):
            return True
    return False


@jit_inner
def computes(ranks: Ranks, first: int, end: int) -> bool:
    """Whether any request of ranks ``first`` to ``end`` but summed decodes is in the step."""
    for d in range(first, end):
        if ranks.chunk[d, ranks.each[d].num_decodes : ranks.each[d].num_running].any():
            return True
    return False


@jit_inline
def _fill(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` once. Returns whether any rank scheduled tokens, which another lane's
    preemption may have taken back since.
    """
    chunk, each, caches = ranks.chunk, ranks.each, ranks.caches
    has_work = False
    holds = limits.rules.balance_steps > 0 and _holds_prompts(ranks, limits)
    holds = holds or (limits.rules.wait_steps > 0 and _waits_for_more(requests, ranks, limits))
    caches.ran_out[:] = False
    for d in range(len(each)):
        rank, budget = each[d], limits.rules.token_budget
        ended, _ = count_ended(requests, ranks, limits, d)
        if rank.num_decodes - ended > budget or (
            rank.num_decodes > 0 and rank.waiting.is_ordered and _may_run_out(ranks, d, limits)
        ):
            dissolve_sums(requests, ranks, limits, d)
        if rank.num_decodes > 0:
            budget -= take_blocks(requests, ranks, limits, d)
        chunk[d, rank.num_decodes : rank.num_running] = 0
        if limits.fills_apart:
            has_work = _fill_apart(requests, ranks, d, limits, now_s) or has_work
            continue
        if limits.rules.output_share > 0 and limits.rules.mixes_phases:
            retract(requests, ranks, d, limits)
        if rank.num_running > rank.num_decodes:
            budget = _schedule_running(
                requests, ranks, d, budget, limits, True, limits.rules.mixes_phases, now_s
            )
        rank.stopped_by = _HELD_BACK if holds else _KV_CACHE
        if (
            rank.waiting.count + rank.ready.count > 0
            and not caches[d % len(caches)].ran_out
            and not holds
        ):
            budget = admit(requests, ranks, d, budget, limits, now_s)
        if not limits.rules.mixes_phases and budget == limits.rules.token_budget:
            if limits.rules.output_share > 0:
                retract(requests, ranks, d, limits)
            budget = _schedule_running(requests, ranks, d, budget, limits, False, True, now_s)
        if rank.line.count > 0:
            reserve_blocks(requests, ranks, d, limits, now_s)
        has_work = has_work or budget < limits.rules.token_budget
    return has_work


@jit_inner
def _fill_apart(requests: Requests, ranks: Ranks, d: int, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` of rank ``d`` with prompts, or where there are none with decodes, as
    SGLang does (``get_next_batch_to_run``). Returns whether there is anything.
    """
    rank = ranks.each[d]
    if admit_prefills(requests, ranks, d, limits, now_s) > 0:
        return True
    num_ending = 0
    for i in range(rank.num_running):
        num_ending += gets_last(requests, ranks.running[d, i])
    if rank.num_running == num_ending:
        rank.is_full = False
        return False
    if num_ending > 0:
        needed = _next_blocks(requests, ranks, d, limits)
        if needed > count_available(ranks, d % len(ranks.caches), limits):
            rank.is_full = False  # what these free is waited for
            return False
    retract(requests, ranks, d, limits)
    budget = max(limits.rules.token_budget, rank.num_running)
    left = _schedule_running(requests, ranks, d, budget, limits, False, True, now_s)
    return bool(left < budget)


@jit_inner
def _may_run_out(ranks: Ranks, d: int, limits: Limits) -> bool:
    """Whether those that run may want more KV blocks in a step than are free: prompts, which are
    not among the summed decodes, at most one each and those of all tokens.
    """
    rank = ranks.each[d]
    most = ranks.ring[d, rank.ticks % limits.block_tokens]
    if rank.num_running > rank.num_decodes:
        most += rank.num_running - rank.num_decodes
        most += limits.rules.token_budget // limits.block_tokens
    return bool(most > count_available(ranks, d % len(ranks.caches), limits))


@jit_inner
def _holds_prompts(ranks: Ranks, limits: Limits) -> bool:
    """Whether waiting prompts are held back until each rank has one, so that all compute prompts in
    the same step; for ``balance_steps`` steps at most.
    """
    each, counts = ranks.each, ranks.counts[0]
    waiting = running = lost = 0
    for d in range(len(each)):
        waiting += each[d].waiting.count + each[d].ready.count > 0
        running += each[d].num_running
        lost += each[d].is_lost
    if (
        waiting == 0
        or waiting == len(each) - lost
        or running == 0
        or counts.held >= limits.rules.balance_steps
    ):
        counts.held = 0
        return False
    counts.held += 1
    return True


@jit_inner
def _waits_for_more(requests: Requests, ranks: Ranks, limits: Limits) -> bool:
    """Whether prompts of the only rank are held back because they and its decodes do not fill a
    step yet; for ``wait_steps`` steps at most.
    """
    rows, counts = requests.each, ranks.counts[0]
    rank = ranks.each[0]
    running = rank.num_running
    if rank.waiting.count == 0:
        return False
    tokens, taken = running, -1
    while rank.waiting.count > 0:
        r = rank.waiting.first
        if tokens + rows[r].num_input > limits.rules.token_budget:
            break
        tokens += rows[r].num_input
        pop(rank.waiting, rows)
        rows[r].before = taken  # who is out of all queues follows nobody
        taken = r
    while taken >= 0:
        r, taken = taken, rows[taken].before
        join_again(rank.waiting, rows, r)
    if running == 0 or tokens >= limits.wait_tokens or counts.held >= limits.rules.wait_steps:
        counts.held = 0
        return False
    counts.held += 1
    return True


@jit_inner
def _schedule_running(
    requests: Requests,
    ranks: Ranks,
    d: int,
    budget: int,
    limits: Limits,
    prompts: bool,
    decodes: bool,
    now_s: float,
) -> int:
    """Schedule the tokens of running requests in order of admission; the last ones lose their
    blocks when blocks run out.
    """
    running, chunk, rows = ranks.running, ranks.chunk, requests.each
    rank, pool = ranks.each[d], d % len(ranks.caches)
    i = rank.num_decodes
    while i < rank.num_running and budget > 0:
        r = running[d, i]
        request = rows[r]
        remaining = request.num_input + request.generated - request.computed
        decodes_next = is_decode(request.num_input, request.generated, request.computed)
        if gets_last(requests, r) or not (decodes if decodes_next else prompts):
            i += 1
            continue
        if decodes_next:
            remaining += len(limits.accepted)
        new = min(remaining, budget)
        need = count_missing(request, request.computed + new, limits)
        if need > 0:
            while need > count_available(ranks, pool, limits):
                lane, last = find_last(requests, ranks, d)
                if lane == d and last < i:  # others get its tokens
                    budget += chunk[d, last]
                    i -= 1
                preempt(requests, ranks, lane, last, limits)
                if running[d, i] != r or i == rank.num_running:
                    return budget
            allocate_blocks(ranks, pool, need, limits)
            request.blocks += need
        share_prompt(requests, ranks, pool, r, request.computed + new, limits, now_s)
        chunk[d, i] = new
        budget -= new
        i += 1
    return budget


@jit_inner
def complete_step(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> int:
    """Complete a step with which no other is in flight: count its tokens, emit outputs, finish
    requests. Returns how many requests finished.
    """
    count_tokens(requests, ranks, limits)
    finished = emit_tokens(requests, ranks, limits, now_s)
    sum_decodes(requests, ranks, limits)
    return int(finished)


@jit_inner
def count_tokens(requests: Requests, ranks: Ranks, limits: Limits) -> None:
    """Count the tokens of a step, as computed and as emitted, though they may not be out yet."""
    running, chunk, rows, out = ranks.running, ranks.chunk, requests.each, ranks.emitting
    for d in range(len(ranks.each)):
        rank = ranks.each[d]
        summed, count = rank.num_decodes, 0
        rank.num_summed, rank.in_flight = summed, True
        rank.ticks += 1
        if summed > 0:
            rank.contexts += summed
            rank.longest += 1
        kept = summed
        for i in range(summed, rank.num_running):
            r = running[d, i]
            new = chunk[d, i]
            if not math.isnan(rows[r].finish_s):
                continue  # nobody knew that it would end with the step before
            running[d, kept] = r
            kept += 1
            # Not one record for all of this: where it is kept, the loop takes a seventh longer.
            rows[r].ahead = new
            if new == 0:
                continue
            if new > 1 and is_decode(rows[r].num_input, rows[r].generated, rows[r].computed):
                new = count_kept_tokens(requests, limits, r, new)
                rows[r].generated += new - 1
                rows[r].ahead = -new
            rows[r].computed += new
            if rows[r].computed == rows[r].num_input + rows[r].generated:
                rows[r].generated += 1
                rows[r].joined = rank.ticks
                out[d, count] = r
                count += 1
        rank.num_emitting, rank.num_running = count, kept


@jit_inner
def emit_tokens(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> int:
    """Emit the tokens of the step that has ended, and finish requests. Returns how many."""
    running, chunk, rows, out = ranks.running, ranks.chunk, requests.each, ranks.emitting
    gap_counts, before, streams = ranks.gap_counts, ranks.counts[0].num_finished, 0
    last_gap, last_bin = -1.0, 0
    for d in range(len(ranks.each)):
        streams += ranks.each[d].num_running
    for d in range(len(ranks.each)):
        rank, pool = ranks.each[d], d % len(ranks.caches)
        kept = summed = rank.num_decodes
        if rank.num_summed > 0:
            gap = now_s - rank.emitted_s
            if gap != last_gap:
                last_gap, last_bin = gap, find_gap_bin(gap)
            gap_counts[last_bin] += rank.num_summed
        rank.emitted_s = now_s
        rank.in_flight, rank.num_summed = False, 0
        if summed > 0 and rank.ticks == rank.next_end:
            kept = end_decodes(requests, ranks, limits, d, now_s)
        has_ended = kept < summed
        for k in range(rank.num_emitting):
            request = rows[out[d, k]]
            if request.generated == 1:
                request.first_s, request.streams = now_s, streams
            else:
                gap = now_s - request.last_s
                if gap != last_gap:
                    last_gap, last_bin = gap, find_gap_bin(gap)
                gap_counts[last_bin] += 1
            request.last_s = now_s
            if request.generated == request.num_output:
                request.finish_s = now_s
                # Preempted meanwhile, it waits to be computed again.
                if request.computed == 0 and remove(rank.waiting, rows, out[d, k]):
                    reclaim_blocks(requests, ranks, out[d, k], pool, 0)
                if ranks.tiers.shape[1] > 0:
                    touch_blocks(requests, ranks, pool, out[d, k])
                if not limits.hands_over:
                    release(requests, ranks, pool, out[d, k], limits)
                count_out(requests, ranks, out[d, k])
                has_ended = True
        if has_ended:
            rank.is_full = False
            for i in range(summed, rank.num_running):
                # Where nobody knew that it would end, it is in the next step, too.
                is_formed = limits.rules.steps_ahead > 0 and chunk[d, i] > 0
                if is_formed or math.isnan(rows[running[d, i]].finish_s):
                    running[d, kept], chunk[d, kept] = running[d, i], chunk[d, i]
                    kept += 1
            rank.num_running = kept
        if rank.num_running == 0 and rank.waiting.count + rank.ready.count == 0:
            rank.output_share = limits.rules.output_share
    return int(ranks.counts[0].num_finished - before)
