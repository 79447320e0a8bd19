"""What is in a step, and what follows from it: continuous batching with KV admission and
preemption. Compiled.

All fidelities call these same functions, so that they differ in how long a step takes and in
nothing else.

Arrays that a loop uses are named before it: numba counts references at each look into a tuple,
which costs twenty times the arithmetic of a sequence.
"""

from __future__ import annotations

import math

from simulator.base.compiled import compiled
from simulator.engine.admission import admit
from simulator.engine.blocks import available, blocks_for, release, share_prompt, take
from simulator.engine.preemption import find_latest, preempt, queue_last, retract
from simulator.engine.state import Clock, Limits, Ranks, Requests
from simulator.results.tables import (
    ADMISSION_LIMITS,
    GAP_BINS_PER_DECADE,
    NUM_GAP_BINS,
    SHORTEST_GAP_S,
)

_KV_CACHE, _HELD_BACK = (ADMISSION_LIMITS.index(name) for name in ("kv_cache", "held_back"))


@compiled
def push(requests: Requests, ranks: Ranks, clock: Clock, r: int) -> None:
    """Queue request ``r`` at the data-parallel rank with the fewest unfinished requests."""
    best = 0
    for d in range(1, len(ranks.head)):
        if (
            ranks.num_waiting[d] + ranks.num_running[d]
            < ranks.num_waiting[best] + ranks.num_running[best]
        ):
            best = d
    requests.dp_rank[r] = best
    queue_last(requests, ranks, best, r)
    clock.num_pushed[0] += 1
    clock.outstanding_tokens[0] += requests.num_input[r] + requests.num_output[r]


@compiled
def is_decode(new: int, num_input: int, generated: int, computed: int) -> bool:
    """Whether ``new`` tokens of a request are one more output token's, and not a chunk of a prompt
    or of what was preempted.
    """
    return new == 1 and generated > 0 and computed + 1 == num_input + generated


@compiled
def form_step(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` for the next step. Returns whether there is anything to compute."""
    has_work = _fill(requests, ranks, limits, now_s)
    if len(ranks.head) > len(
        ranks.ran_out
    ):  # lanes that take each other's blocks may all end up without
        while ranks.ran_out.any() and not computes(ranks, 0, len(ranks.head)):
            has_work = _fill(requests, ranks, limits, now_s)
    return bool(has_work)


@compiled
def computes(ranks: Ranks, first: int, end: int) -> bool:
    """Whether any request of ranks ``first`` to ``end`` is in the step."""
    chunk, num_running = ranks.chunk, ranks.num_running
    for d in range(first, end):
        for i in range(num_running[d]):
            if chunk[d, i] > 0:
                return True
    return False


@compiled
def _fill(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` once. Returns whether any rank gave tokens away, which another lane may
    have taken back.
    """
    head, chunk, num_running = ranks.head, ranks.chunk, ranks.num_running
    has_work = False
    holds = limits.balance_steps > 0 and _holds_prompts(ranks, limits)
    holds = holds or (limits.wait_steps > 0 and _waits_for_more(requests, ranks, limits))
    ran_out = ranks.ran_out
    ran_out[:] = False
    for d in range(len(head)):
        chunk[d, : num_running[d]] = 0
        budget = limits.token_budget
        if limits.output_share > 0 and limits.mixes_phases:
            retract(requests, ranks, d, limits)
        if num_running[d] > 0:
            budget = _schedule_running(
                requests, ranks, d, budget, limits, True, limits.mixes_phases
            )
        ranks.stopped_by[d] = _HELD_BACK if holds else _KV_CACHE
        if head[d] >= 0 and not ran_out[d % len(ran_out)] and not holds:
            budget = admit(requests, ranks, d, budget, limits, now_s)
        if not limits.mixes_phases and budget == limits.token_budget:
            if limits.output_share > 0:
                retract(requests, ranks, d, limits)
            budget = _schedule_running(requests, ranks, d, budget, limits, False, True)
        has_work = has_work or budget < limits.token_budget
    return has_work


@compiled
def _holds_prompts(ranks: Ranks, limits: Limits) -> bool:
    """Whether waiting prompts wait on, so that ranks compute them in the same step: until each has
    one, but not for ever.
    """
    waiting = running = 0
    for d in range(len(ranks.head)):
        waiting += ranks.head[d] >= 0
        running += ranks.num_running[d]
    if (
        waiting == 0
        or waiting == len(ranks.head)
        or running == 0
        or ranks.held[0] >= limits.balance_steps
    ):
        ranks.held[0] = 0
        return False
    ranks.held[0] += 1
    return True


@compiled
def _waits_for_more(requests: Requests, ranks: Ranks, limits: Limits) -> bool:
    """Whether the prompts of the only rank wait on, since they and its decodes do not fill a step
    yet, but not for ever.
    """
    running, r = ranks.num_running[0], ranks.head[0]
    if r < 0:
        return False
    tokens = running
    while r >= 0 and tokens + requests.num_input[r] <= limits.token_budget:
        tokens += requests.num_input[r]
        r = requests.following[r]
    if running == 0 or tokens >= limits.wait_tokens or ranks.held[0] >= limits.wait_steps:
        ranks.held[0] = 0
        return False
    ranks.held[0] += 1
    return True


@compiled
def _schedule_running(
    requests: Requests,
    ranks: Ranks,
    d: int,
    budget: int,
    limits: Limits,
    prompts: bool,
    decodes: bool,
) -> int:
    """Give running requests their tokens in order of admission; the latest admitted lose their
    blocks when these run out.
    """
    running, chunk, num_running = ranks.running, ranks.chunk, ranks.num_running
    num_input, generated, computed = requests.num_input, requests.generated, requests.computed
    blocks, shared = requests.blocks, requests.shared
    pool = d % len(ranks.free_blocks)
    i = 0
    while i < num_running[d] and budget > 0:
        r = running[d, i]
        remaining = num_input[r] + generated[r] - computed[r]
        wanted = (
            decodes if is_decode(remaining, num_input[r], generated[r], computed[r]) else prompts
        )
        if not wanted:
            i += 1
            continue
        new = min(remaining, budget)
        need = blocks_for(computed[r] + new, limits) - blocks[r] - shared[r] * limits.prefix_blocks
        if need > 0:
            while need > available(ranks, pool, limits):
                latest = find_latest(requests, ranks, d)
                last = num_running[latest] - 1
                preempt(requests, ranks, latest, last, limits)
                if latest == d and last == i:
                    return budget
            take(ranks, pool, need, limits)
            blocks[r] += need
        share_prompt(requests, ranks, pool, r, computed[r] + new, limits)
        chunk[d, i] = new
        budget -= new
        i += 1
    return budget


@compiled
def complete_step(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, now_s: float
) -> int:
    """The step has run: count its tokens, emit, finish. Returns how many requests finished."""
    running, chunk, num_running = ranks.running, ranks.chunk, ranks.num_running
    num_input, num_output = requests.num_input, requests.num_output
    computed, generated, last_s = requests.computed, requests.generated, requests.last_s
    gap_counts = clock.gap_counts
    finished = 0
    last_gap, last_bin = -1.0, 0
    for d in range(len(num_running)):
        pool = d % len(ranks.free_blocks)
        kept = 0
        for i in range(num_running[d]):
            r = running[d, i]
            computed[r] += chunk[d, i]
            is_done = False
            if chunk[d, i] > 0 and computed[r] == num_input[r] + generated[r]:
                if generated[r] == 0:
                    requests.first_s[r] = now_s
                else:
                    gap = now_s - last_s[r]
                    if gap != last_gap:
                        last_gap = gap
                        decades = math.log10(max(gap, SHORTEST_GAP_S) / SHORTEST_GAP_S)
                        last_bin = min(int(decades * GAP_BINS_PER_DECADE), NUM_GAP_BINS - 1)
                    gap_counts[last_bin] += 1
                generated[r] += 1
                last_s[r] = now_s
                is_done = generated[r] == num_output[r]
            if is_done:
                requests.finish_s[r] = now_s
                ranks.is_full[d] = False
                release(requests, ranks, pool, r)
                clock.outstanding_tokens[0] -= num_input[r] + num_output[r]
                finished += 1
            else:
                running[d, kept] = r
                kept += 1
        num_running[d] = kept
        if kept == 0 and ranks.num_waiting[d] == 0:
            ranks.output_share[d] = limits.output_share
    clock.num_finished[0] += finished
    return finished
