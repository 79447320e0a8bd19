"""Continuous batching: the contents of each step and their consequences, with KV admission and
preemption. Compiled.

All fidelities call these same functions, so that they differ only in the duration of a step.

Arrays that a loop uses are named before it: numba counts references at each access to a tuple,
which costs twenty times the arithmetic of a sequence.
"""

from __future__ import annotations

from simulator.base.jit import jit_inline, jit_inner
from simulator.engine.acceptance import count_kept_tokens
from simulator.engine.admission import admit
from simulator.engine.blocks import (
    allocate_blocks,
    blocks_for,
    count_available,
    release,
    share_prompt,
)
from simulator.engine.decodes import (
    dissolve_sums,
    end_decodes,
    find_gap_bin,
    join_sums,
    take_blocks,
)
from simulator.engine.preemption import find_latest, preempt, queue_last, retract
from simulator.engine.reservations import reserve_blocks, stand_in_line
from simulator.engine.state import (
    BLOCKS,
    COMPUTED,
    CONTEXTS,
    DP_RANK,
    FINISH_S,
    FIRST_S,
    FOLLOWING,
    GENERATED,
    HEAD,
    HELD,
    IN_LINE,
    IS_FULL,
    IS_LOST,
    LAST_S,
    LONGEST,
    NEXT_END,
    NUM_DECODES,
    NUM_FINISHED,
    NUM_IN_LINE,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_PUSHED,
    NUM_RUNNING,
    NUM_WAITING,
    OUTSTANDING_TOKENS,
    RAN_OUT,
    SHARED,
    STAGE,
    STOPPED_BY,
    TICKS,
    TOKENS,
    Clock,
    Limits,
    Ranks,
    Requests,
)
from simulator.results.tables import ADMISSION_LIMITS

_KV_CACHE, _HELD_BACK = (ADMISSION_LIMITS.index(name) for name in ("kv_cache", "held_back"))


@jit_inner
def queue_request(requests: Requests, ranks: Ranks, clock: Clock, d: int, r: int) -> None:
    """Queue request ``r`` at rank ``d``."""
    tokens = requests.ints[r, NUM_INPUT] + requests.ints[r, NUM_OUTPUT]
    requests.ints[r, DP_RANK] = d
    if requests.ints[r, STAGE] == IN_LINE:
        stand_in_line(requests, ranks, d, r)
    else:
        queue_last(requests, ranks, d, r)
    ranks.each[d, TOKENS] += tokens
    clock.counts[0, NUM_PUSHED] += 1
    clock.counts[0, OUTSTANDING_TOKENS] += tokens


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
        if not ranks.pools[:, RAN_OUT].any() or computes(ranks, 0, len(ranks.each)):
            return bool(has_work)


@jit_inner
def computes(ranks: Ranks, first: int, end: int) -> bool:
    """Whether any request of ranks ``first`` to ``end`` is in the step."""
    chunk, each = ranks.chunk, ranks.each
    for d in range(first, end):
        for i in range(each[d, NUM_RUNNING]):
            if chunk[d, i] > 0:
                return True
    return False


@jit_inline
def _fill(requests: Requests, ranks: Ranks, limits: Limits, now_s: float) -> bool:
    """Fill ``ranks.chunk`` once. Returns whether any rank scheduled tokens, which another lane's
    preemption may have taken back since.
    """
    chunk, each = ranks.chunk, ranks.each
    has_work = False
    holds = limits.rules.balance_steps > 0 and _holds_prompts(ranks, limits)
    holds = holds or (limits.rules.wait_steps > 0 and _waits_for_more(requests, ranks, limits))
    pools = ranks.pools
    pools[:, RAN_OUT] = False
    for d in range(len(each)):
        budget = limits.rules.token_budget
        if each[d, NUM_DECODES] > budget:
            dissolve_sums(requests, ranks, limits, d)
        if each[d, NUM_DECODES] > 0:
            take_blocks(requests, ranks, limits, d)
            budget -= each[d, NUM_DECODES]
        chunk[d, each[d, NUM_DECODES] : each[d, NUM_RUNNING]] = 0
        if limits.rules.output_share > 0 and limits.rules.mixes_phases:
            retract(requests, ranks, d, limits)
        if each[d, NUM_RUNNING] > each[d, NUM_DECODES]:
            budget = _schedule_running(
                requests, ranks, d, budget, limits, True, limits.rules.mixes_phases
            )
        each[d, STOPPED_BY] = _HELD_BACK if holds else _KV_CACHE
        if each[d, HEAD] >= 0 and not pools[d % len(pools), RAN_OUT] and not holds:
            budget = admit(requests, ranks, d, budget, limits, now_s)
        if not limits.rules.mixes_phases and budget == limits.rules.token_budget:
            if limits.rules.output_share > 0:
                retract(requests, ranks, d, limits)
            budget = _schedule_running(requests, ranks, d, budget, limits, False, True)
        if each[d, NUM_IN_LINE] > 0:
            reserve_blocks(requests, ranks, d, limits, now_s)
        has_work = has_work or budget < limits.rules.token_budget
    return has_work


@jit_inner
def _holds_prompts(ranks: Ranks, limits: Limits) -> bool:
    """Whether waiting prompts are held back until each rank has one, so that all compute prompts in
    the same step; for ``balance_steps`` steps at most.
    """
    waiting = running = lost = 0
    for d in range(len(ranks.each)):
        waiting += ranks.each[d, HEAD] >= 0
        running += ranks.each[d, NUM_RUNNING]
        lost += ranks.each[d, IS_LOST]
    if (
        waiting == 0
        or waiting == len(ranks.each) - lost
        or running == 0
        or ranks.counts[0, HELD] >= limits.rules.balance_steps
    ):
        ranks.counts[0, HELD] = 0
        return False
    ranks.counts[0, HELD] += 1
    return True


@jit_inner
def _waits_for_more(requests: Requests, ranks: Ranks, limits: Limits) -> bool:
    """Whether prompts of the only rank are held back because they and its decodes do not fill a
    step yet; for ``wait_steps`` steps at most.
    """
    running, r = ranks.each[0, NUM_RUNNING], ranks.each[0, HEAD]
    if r < 0:
        return False
    tokens = running
    while r >= 0 and tokens + requests.ints[r, NUM_INPUT] <= limits.rules.token_budget:
        tokens += requests.ints[r, NUM_INPUT]
        r = requests.ints[r, FOLLOWING]
    if (
        running == 0
        or tokens >= limits.wait_tokens
        or ranks.counts[0, HELD] >= limits.rules.wait_steps
    ):
        ranks.counts[0, HELD] = 0
        return False
    ranks.counts[0, HELD] += 1
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
) -> int:
    """Schedule the tokens of running requests in order of admission; the latest admitted lose their
    blocks when blocks run out.
    """
    running, chunk, each = ranks.running, ranks.chunk, ranks.each
    ints = requests.ints
    pool = d % len(ranks.pools)
    i = each[d, NUM_DECODES]
    while i < each[d, NUM_RUNNING] and budget > 0:
        r = running[d, i]
        remaining = ints[r, NUM_INPUT] + ints[r, GENERATED] - ints[r, COMPUTED]
        decodes_next = is_decode(ints[r, NUM_INPUT], ints[r, GENERATED], ints[r, COMPUTED])
        if not (decodes if decodes_next else prompts):
            i += 1
            continue
        if decodes_next:
            remaining += len(limits.accepted)
        new = min(remaining, budget)
        need = (
            blocks_for(ints[r, COMPUTED] + new, limits)
            - ints[r, BLOCKS]
            - ints[r, SHARED] * limits.prefix_blocks
        )
        if need > 0:
            while need > count_available(ranks, pool, limits):
                latest = find_latest(requests, ranks, d)
                last = each[latest, NUM_RUNNING] - 1
                preempt(requests, ranks, latest, last, limits)
                if latest == d and last == i:
                    return budget
            allocate_blocks(ranks, pool, need, limits)
            ints[r, BLOCKS] += need
        share_prompt(requests, ranks, pool, r, ints[r, COMPUTED] + new, limits)
        chunk[d, i] = new
        budget -= new
        i += 1
    return budget


@jit_inner
def complete_step(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, now_s: float
) -> int:
    """Complete a step: count its tokens, emit outputs, finish requests. Returns how many requests
    finished.
    """
    running, chunk, each = ranks.running, ranks.chunk, ranks.each
    ints = requests.ints
    times = requests.times
    gap_counts, emitted_s = clock.gap_counts, ranks.emitted_s
    finished = 0
    last_gap, last_bin = -1.0, 0
    for d in range(len(each)):
        pool, summed = d % len(ranks.pools), each[d, NUM_DECODES]
        kept = summed
        if summed > 0:
            gap = now_s - emitted_s[d]
            if gap != last_gap:
                last_gap, last_bin = gap, find_gap_bin(gap)
            gap_counts[last_bin] += summed
            emitted_s[d] = now_s
            each[d, TICKS] += 1
            each[d, CONTEXTS] += summed
            each[d, LONGEST] += 1
            if each[d, TICKS] == each[d, NEXT_END]:
                kept = end_decodes(requests, ranks, limits, clock, d, now_s)
                finished += summed - kept
        for i in range(summed, each[d, NUM_RUNNING]):
            r = running[d, i]
            new = chunk[d, i]
            if new > 1 and is_decode(ints[r, NUM_INPUT], ints[r, GENERATED], ints[r, COMPUTED]):
                new = count_kept_tokens(requests, limits, r, new)
                ints[r, GENERATED] += new - 1
            ints[r, COMPUTED] += new
            is_done = False
            if new > 0 and ints[r, COMPUTED] == ints[r, NUM_INPUT] + ints[r, GENERATED]:
                if ints[r, GENERATED] == 0:
                    times[r, FIRST_S] = now_s
                else:
                    gap = now_s - times[r, LAST_S]
                    if gap != last_gap:
                        last_gap, last_bin = gap, find_gap_bin(gap)
                    gap_counts[last_bin] += 1
                ints[r, GENERATED] += 1
                times[r, LAST_S] = now_s
                is_done = ints[r, GENERATED] == ints[r, NUM_OUTPUT]
            if is_done:
                times[r, FINISH_S] = now_s
                each[d, IS_FULL] = False
                if not limits.hands_over:
                    release(requests, ranks, pool, r)
                tokens = ints[r, NUM_INPUT] + ints[r, NUM_OUTPUT]
                each[d, TOKENS] -= tokens
                clock.counts[0, OUTSTANDING_TOKENS] -= tokens
                finished += 1
            else:
                running[d, kept] = r
                kept += 1
        each[d, NUM_RUNNING] = kept
        if limits.sums_decodes and each[d, NUM_DECODES] < kept:
            join_sums(requests, ranks, limits, d, now_s)
        if kept == 0 and each[d, NUM_WAITING] == 0:
            ranks.output_share[d] = limits.rules.output_share
    clock.counts[0, NUM_FINISHED] += finished
    return finished
