"""All replicas of all pools between two changes, in one compiled loop over what happens next.

The loop takes the next event, lets it happen, and goes on until nothing is left to do before a
given time, or until it needs something that it cannot do itself: more room for the log, what a step
takes where ranks are simulated, the choice of a balancer in Python. Who called it sees to that and
calls again.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import borrowing
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
    Events,
    code_of,
    kind_of,
    number_of,
    pop_event,
    push_event,
)
from simulator.engine.hand_over import expect_cache, give_up, let_go, send_cache, use_reserved
from simulator.engine.replica import FORMS_NEXT, IN_FLIGHT, PAUSE, Span, take_steps
from simulator.engine.reservations import take_in
from simulator.engine.sending import Feed, Pool, clock_of, form_soon, ranks_of, send_request
from simulator.engine.state import (
    ARRIVAL_S,
    FIRST_RESERVED,
    HERE,
    LOST_S,
    RESERVED,
    STAGE,
    Floats,
    Requests,
)
from simulator.engine.transfers import Transfers

DONE, LOG_FULL, STEP_FORMED, ASKS, PAUSED = range(5)
"""Why the loop returned: nothing happens until the given time; the log has no row left; a step has
been formed whose end is not known; a balancer in Python is asked; some time has passed."""


@borrowing
def next_event(events: Events, feed: Feed, times: Floats) -> tuple[float, int]:
    """When something happens next, and its code; infinity where nothing does.

    Args:
        times: of requests at the first pool.
    """
    at_s, code = math.inf, 0
    if events.num_left[0] > 0:
        at_s, code = events.at_s[0], events.code[0]
    request = feed.num_come[0]
    if request < feed.num_released[0]:
        comes_s = times[request, ARRIVAL_S]
        comes = code_of(RETURNS if feed.is_closed and feed.way_s == 0.0 else COMES, request)
        if comes_s < at_s or (comes_s == at_s and comes < code):
            return comes_s, comes
    return at_s, code


@borrowing
def run_ahead(
    events: Events,
    feed: Feed,
    first: Pool,
    second: Pool,
    transfers: Transfers,
    until_s: float,
    log: NDArray[np.float64],
    rows: int,
    prices_steps: bool,
) -> tuple[int, int]:
    """Let everything happen up to ``until_s``, that instant included.

    Args:
        first: the pool that requests come to.
        second: the pool that they go on to when their prompts are computed; without replicas where
            there is none.
        log: ``[steps, columns]`` rows for steps that are formed, of which ``rows`` are taken.
        prices_steps: whether tables say what steps take; else each is reported, and whoever called
            adds the event of its end.

    Returns:
        Why it returned, and how many rows of the log are taken.
    """
    requests, ranks, clock, limits, table, balance = first
    requests2, ranks2, clock2, limits2, table2, balance2 = second
    num_first, goes_on = len(clock.counts), len(clock2.counts) > 0
    stops, work = goes_on or feed.is_closed, 0
    while True:
        at_s, code = next_event(events, feed, requests.times)
        if at_s > until_s or at_s == math.inf:
            return DONE, rows
        kind, number = kind_of(code), number_of(code)
        if kind in (ENDS, FORMS, FORMS_LATE):
            if rows == len(log):
                return LOG_FULL, rows
            if work > PAUSE:
                return PAUSED, rows
            pop_event(events)
            next_s, _ = next_event(events, feed, requests.times)
            ends = kind == ENDS
            if number < num_first:
                state, then_s, done, rows, size = take_steps(
                    requests,
                    ranks_of(ranks, number),
                    limits,
                    clock_of(clock, number),
                    table,
                    Span(ends, at_s, next_s, until_s, prices_steps, 0, number),
                    stops,
                    transfers.ended,
                    log,
                    rows,
                )
            else:
                state, then_s, done, rows, size = take_steps(
                    requests2,
                    ranks_of(ranks2, number - num_first),
                    limits2,
                    clock_of(clock2, number - num_first),
                    table2,
                    Span(ends, at_s, next_s, until_s, prices_steps, 1, number - num_first),
                    feed.is_closed,
                    transfers.ended[:0],
                    log,
                    rows,
                )
            work += size
            if goes_on and number < num_first:
                for i in range(done):
                    push_event(events, then_s, code_of(LEAVES, transfers.ended[i]))
            else:
                _release(feed, requests, done, then_s)
            if number >= num_first and ranks2.counts[number - num_first, 0, FIRST_RESERVED] >= 0:
                use_reserved(events, first, second, transfers, number - num_first)
            if state == IN_FLIGHT:
                if not prices_steps:
                    return STEP_FORMED, rows
                push_event(events, then_s, code_of(ENDS, number))
            elif state == FORMS_NEXT:
                push_event(events, then_s, code_of(FORMS, number))
        elif kind == LEAVES:
            pop_event(events)
            if requests2.times[number, LOST_S] >= 0:
                let_go(events, first, number, at_s)
            elif not transfers.goes_on[number]:
                let_go(events, first, number, at_s)
                _release(feed, requests, 1, at_s)
            elif requests2.ints[number, STAGE] == RESERVED:
                send_cache(events, first, second, transfers, number, at_s)
            elif requests2.ints[number, STAGE] == HERE:
                expect_cache(requests2, transfers, number)
                push_event(events, at_s + transfers.handshake_s, code_of(GOES_ON, number))
        elif kind == GOES_ON:
            if balance2.is_asked and feed.chosen[0] < 0:
                feed.asks[0] = 1
                return ASKS, rows
            pop_event(events)
            if requests2.times[number, LOST_S] >= 0:
                feed.chosen[0] = -1
                continue
            replica = send_request(balance2, clock2, requests2, number, feed)
            if replica < 0:
                requests2.times[number, LOST_S] = at_s
                let_go(events, first, number, at_s)
                _release(feed, requests, 1, at_s)
            else:
                form_soon(events, clock2, replica, num_first + replica, at_s, FORMS)
        elif kind == ARRIVES:
            pop_event(events)
            let_go(events, first, number, at_s)
            replica = balance2.replica_of[number]
            take_in(requests2, ranks_of(ranks2, replica), number)
            form_soon(events, clock2, replica, num_first + replica, at_s, FORMS)
        elif kind != COMES_LATER and transfers.reserves_first and transfers.goes_on[number]:
            feed.num_come[0] += 1
            expect_cache(requests2, transfers, number)
            push_event(events, at_s, code_of(GOES_ON, number))
        else:
            if balance.is_asked and feed.chosen[0] < 0:
                feed.asks[0] = 0
                return ASKS, rows
            if kind == COMES_LATER:
                pop_event(events)
                if goes_on and requests2.times[number, LOST_S] >= 0:
                    feed.chosen[0] = -1
                    continue
            else:
                feed.num_come[0] += 1
            replica = send_request(balance, clock, requests, number, feed)
            if replica < 0:
                requests.times[number, LOST_S] = at_s
                if goes_on:
                    give_up(events, num_first, second, number, at_s)
                _release(feed, requests, 1, at_s)
            else:
                forms = FORMS_LATE if kind == RETURNS else FORMS
                form_soon(events, clock, replica, replica, at_s, forms)


@borrowing
def _release(feed: Feed, requests: Requests, count: int, now_s: float) -> None:
    """Requests are done, and clients of a closed loop send others instead."""
    feed.num_done[0] += count
    if feed.is_closed:
        for _ in range(min(count, len(requests.times) - feed.num_released[0])):
            requests.times[feed.num_released[0], ARRIVAL_S] = now_s + feed.way_s
            feed.num_released[0] += 1
