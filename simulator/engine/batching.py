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
from simulator.engine.preemption import find_last, preempt, retract
from simulator.engine.queue import join, join_again, pop
from simulator.engine.reservations import reserve_blocks
from simulator.engine.state import IN_LINE, Clock, Limits, Ranks, Requests
from simulator.results.tables import ADMISSION_LIMITS

_KV_CACHE, _HELD_BACK = (ADMISSION_LIMITS.index(name) for name in ("kv_cache", "held_back"))


@jit_inner
def queue_request(requests: Requests, ranks: Ranks, clock: Clock, d: int, r: int) -> None:
    """Queue request ``r`` at rank ``d``."""
    request = requests.each[r]
    tokens = request.num_input + request.num_output
    request.dp_rank = d
    if request.stage == IN_LINE:
        join(ranks.each[d].line, requests.each, r)
    else:
        join(ranks.each[d].waiting, requests.each, r)
    ranks.each[d].tokens += tokens
    clock.counts[0].num_pushed += 1
    clock.counts[0].outstanding_tokens += tokens


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
        if not ranks.caches.ran_out.any() or computes(ranks, 0, len(ranks.each)):
            return bool(has_work)


@jit_inner
def computes(ranks: Ranks, first: int, end: int) -> bool:
    """Whether any request of ranks ``first`` to ``end`` is in the step."""
    chunk, each = ranks.chunk, ranks.each
    for d in range(first, end):
        for i in range(each[d].num_running):
            if chunk[d, i] > 0:
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
        if rank.num_decodes > budget or (
            rank.waiting.is_ordered and _may_run_out(ranks, d, limits)
        ):
            dissolve_sums(requests, ranks, limits, d)
        if rank.num_decodes > 0:
            take_blocks(requests, ranks, limits, d)
            budget -= rank.num_decodes
        chunk[d, rank.num_decodes : rank.num_running] = 0
        if limits.rules.output_share > 0 and limits.rules.mixes_phases:
            retract(requests, ranks, d, limits)
        if rank.num_running > rank.num_decodes:
            budget = _schedule_running(
                requests, ranks, d, budget, limits, True, limits.rules.mixes_phases
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
            budget = _schedule_running(requests, ranks, d, budget, limits, False, True)
        if rank.line.count > 0:
            reserve_blocks(requests, ranks, d, limits, now_s)
        has_work = has_work or budget < limits.rules.token_budget
    return has_work


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
    return bool(most > ranks.caches[d % len(ranks.caches)].free_blocks)


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
        rows[r].before = taken
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
        if not (decodes if decodes_next else prompts):
            i += 1
            continue
        if decodes_next:
            remaining += len(limits.accepted)
        new = min(remaining, budget)
        need = (
            blocks_for(request.computed + new, limits)
            - request.blocks
            - request.shared * limits.prefix_blocks
        )
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
        share_prompt(requests, ranks, pool, r, request.computed + new, limits)
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
    running, chunk, rows = ranks.running, ranks.chunk, requests.each
    gap_counts, emitted_s = clock.gap_counts, ranks.emitted_s
    finished = 0
    last_gap, last_bin = -1.0, 0
    for d in range(len(ranks.each)):
        rank, pool = ranks.each[d], d % len(ranks.caches)
        kept = summed = rank.num_decodes
        if summed > 0:
            gap = now_s - emitted_s[d]
            if gap != last_gap:
                last_gap, last_bin = gap, find_gap_bin(gap)
            gap_counts[last_bin] += summed
            emitted_s[d] = now_s
            rank.ticks += 1
            rank.contexts += summed
            rank.longest += 1
            if rank.ticks == rank.next_end:
                kept = end_decodes(requests, ranks, limits, clock, d, now_s)
                finished += summed - kept
        for i in range(summed, rank.num_running):
            r = running[d, i]
            new = chunk[d, i]
            # Not one record for all of this: where it is kept, the loop takes a seventh longer.
            if new > 1 and is_decode(rows[r].num_input, rows[r].generated, rows[r].computed):
                new = count_kept_tokens(requests, limits, r, new)
                rows[r].generated += new - 1
            rows[r].computed += new
            is_done = False
            if new > 0 and rows[r].computed == rows[r].num_input + rows[r].generated:
                if rows[r].generated == 0:
                    rows[r].first_s = now_s
                else:
                    gap = now_s - rows[r].last_s
                    if gap != last_gap:
                        last_gap, last_bin = gap, find_gap_bin(gap)
                    gap_counts[last_bin] += 1
                rows[r].generated += 1
                rows[r].last_s = now_s
                is_done = rows[r].generated == rows[r].num_output
            if is_done:
                request = rows[r]
                request.finish_s = now_s
                rank.is_full = False
                if not limits.hands_over:
                    release(requests, ranks, pool, r)
                tokens = request.num_input + request.num_output
                rank.tokens -= tokens
                clock.counts[0].outstanding_tokens -= tokens
                finished += 1
            else:
                running[d, kept] = r
                kept += 1
        rank.num_running = kept
        if limits.sums_decodes and rank.num_decodes < kept:
            join_sums(requests, ranks, limits, d, now_s)
        if kept == 0 and rank.waiting.count + rank.ready.count == 0:
            ranks.output_share[d] = limits.rules.output_share
    clock.counts[0].num_finished += finished
    return finished
