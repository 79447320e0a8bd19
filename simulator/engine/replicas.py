"""Compiled event loop over all replicas of all pools between two changes.

The loop takes the next event, lets it happen, and goes on until nothing is left to do before a
given time, or until it needs something that it cannot do itself: more space for the log, the
duration of a step where ranks are simulated, the choice of a balancer in Python. The caller
provides it and calls again.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inner
from simulator.engine.events import (
    ARRIVES,
    COMES,
    COMES_LATER,
    ENDS,
    FORMS,
    FORMS_LATE,
    GOES_ON,
    LEAVES,
    RETURNS,
    SENDS,
    Events,
    code_of,
    kind_of,
    number_of,
    pop_event,
    push_event,
)
from simulator.engine.hand_over import (
    HandOver,
    asks_first,
    drop_lost,
    expect_cache,
    handle_hand_over,
    use_reserved,
)
from simulator.engine.replica import (
    FORMS_NEXT,
    IDLE,
    IN_FLIGHT,
    LOOKED_AT,
    PAUSE,
    UNPRICED,
    Span,
    take_steps,
)
from simulator.engine.sending import (
    Feed,
    Pool,
    clock_of,
    form_soon,
    has_drained,
    ranks_of,
    release_next,
    send_request,
)
from simulator.engine.state import Records

DONE, LOG_FULL, STEP_FORMED, ASKS, PAUSED, PRICE_WANTED, USED_UP, DRAINED, CACHE_LEAVES, LOOKS = (
    range(10)
)
"""Reasons why the loop returned: nothing happens until the given time, or every request is done;
the log is full; a step has been formed whose end is not known; a balancer in Python is asked; a
slice of time has passed; a step has been formed whose table entry is not filled; the window on the
trace has no request left; a draining replica has finished its last request; a cache leaves on
wires that are simulated; a replica has taken as many steps as somebody waits for."""


@jit_inner
def next_event(events: Events, feed: Feed, rows: Records) -> tuple[float, int]:
    """Find the time and code of the next event; infinity where there is none.

    Args:
        rows: of requests at the first pool.
    """
    at_s, code = math.inf, 0
    if events.num_left[0] > 0:
        at_s, code = events.at_s[0], events.code[0]
    request = feed.num_come[0]
    if request < feed.num_released[0]:
        comes_s = rows[request].arrival_s
        comes = code_of(
            RETURNS if feed.is_closed and feed.ingress_delay_s == 0.0 else COMES, request
        )
        if comes_s < at_s or (comes_s == at_s and comes < code):
            return comes_s, comes
    return at_s, code


@jit_inner
def run_ahead(
    events: Events,
    feed: Feed,
    first: Pool,
    handing: HandOver | None,
    until_s: float,
    log: NDArray[np.float64],
    rows: int,
    prices_steps: bool,
) -> tuple[int, int]:
    """Let everything happen up to ``until_s``, that instant included.

    Args:
        first: pool that requests arrive at.
        handing: pool that they go to once their prompts are computed, ``None`` where there is none:
            numba compiles the loop without it then.
        log: ``[steps, columns]`` rows for steps that are formed, of which ``rows`` are taken.
        prices_steps: whether tables price the steps; otherwise each step is reported, and the
            caller adds the event of its end.

    Returns:
        Reason for the return, and number of log rows taken.
    """
    requests, clock, balance = first.requests, first.clock, first.balance
    num_first, work = len(clock.counts), 0
    ended = feed.chosen[:0]
    if handing is not None:
        ended = handing.transfers.ended
    while True:
        if feed.num_come[0] >= feed.used_up[0]:
            return USED_UP, rows
        at_s, code = next_event(events, feed, requests.each)
        if at_s > until_s or at_s == math.inf or feed.num_done[0] == feed.num_requests:
            return DONE, rows
        kind, number = kind_of(code), number_of(code)
        if kind in (ENDS, FORMS, FORMS_LATE):
            if rows == len(log):
                return LOG_FULL, rows
            if work > PAUSE:
                return PAUSED, rows
            pop_event(events)
            next_s, _ = next_event(events, feed, requests.each)
            pool, place, replica, room = first, 0, number, ended
            if handing is not None and number >= num_first:
                pool, place, replica, room = handing.pool, 1, number - num_first, ended[:0]
            span = Span(kind == ENDS, at_s, next_s, until_s, prices_steps, place, replica)
            state, then_s, done, rows, size = take_steps(
                pool.requests,
                ranks_of(pool.ranks, replica),
                pool.limits,
                clock_of(pool.clock, replica),
                pool.balance.weights,
                pool.table,
                span,
                feed.is_closed or len(room) > 0,
                room,
                log,
                rows,
            )
            reserves = pool.ranks.counts[replica, 0].reserved.count > 0
            if handing is not None and place == 1 and reserves:
                use_reserved(events, first, handing, replica)
            if handing is not None and place == 0:
                for i in range(done):
                    push_event(events, then_s, code_of(LEAVES, ended[i]))
            else:
                release_next(feed, requests, done, then_s)
            work += size
            if state == UNPRICED:
                feed.asks[0] = number
                return PRICE_WANTED, rows
            if state == IN_FLIGHT:
                if not prices_steps:
                    return STEP_FORMED, rows
                push_event(events, then_s, code_of(ENDS, number))
            elif state in (FORMS_NEXT, LOOKED_AT):
                push_event(events, then_s, code_of(FORMS, number))
                if state == LOOKED_AT:
                    feed.asks[0], feed.stopped_s[0] = place, then_s
                    return LOOKS, rows
            elif state == IDLE and has_drained(pool.clock, replica):
                feed.asks[0], feed.stopped_s[0] = number, then_s
                return DRAINED, rows
            continue
        if handing is not None:
            if kind == SENDS:
                pop_event(events)
                feed.asks[0] = number
                return CACHE_LEAVES, rows
            if kind in (LEAVES, GOES_ON, ARRIVES):
                if not handle_hand_over(events, feed, first, handing, kind, number, at_s):
                    return ASKS, rows
                continue
            if asks_first(handing, kind, number):
                feed.num_come[0] += 1
                expect_cache(handing, number)
                push_event(events, at_s, code_of(GOES_ON, number))
                continue
        if balance.is_asked and feed.chosen[0] < 0:
            feed.asks[0], feed.asks[1] = 0, number
            return ASKS, rows
        if kind == COMES_LATER:
            pop_event(events)
        else:
            feed.num_come[0] += 1
        if handing is not None and handing.pool.requests.each[number].lost_s >= 0:
            feed.chosen[0] = -1
            continue
        replica = send_request(first, number, feed, at_s)
        if replica >= 0:
            forms = FORMS_LATE if kind == RETURNS else FORMS
            form_soon(events, clock, replica, replica, at_s, forms)
            continue
        requests.each[number].lost_s = at_s
        if handing is not None:
            drop_lost(events, num_first, handing.pool, number, at_s)
        release_next(feed, requests, 1, at_s)
