"""All replicas of all pools between two changes, in one compiled loop over what happens next.

The loop takes the next event, lets it happen, and goes on until nothing is left to do before a
given time, or until it needs something that it cannot do itself: more room for the log, what a step
takes where ranks are simulated, the choice of a balancer in Python. Who called it sees to that and
calls again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import borrowing
from simulator.engine.events import (
    ARRIVES,
    COMES,
    COMES_AGAIN,
    ENDS,
    FORMS,
    FORMS_LATE,
    LEAVES,
    RETURNS,
    Events,
    code_of,
    kind_of,
    number_of,
    pop_event,
    push_event,
)
from simulator.engine.replica import FORMS_NEXT, IN_FLIGHT, PAUSE, Span, take_steps
from simulator.engine.state import (
    ARRIVAL_S,
    BROUGHT,
    COMING_TOKENS,
    FIRST_COMING,
    FOLLOWING,
    GENERATED,
    IS_BUSY,
    IS_GONE,
    LAST_COMING,
    LOST_S,
    NUM_COMING,
    NUM_FINISHED,
    NUM_INPUT,
    NUM_OUTPUT,
    NUM_PUSHED,
    OUTSTANDING_TOKENS,
    Clock,
    Floats,
    Ints,
    Limits,
    Ranks,
    Requests,
)
from simulator.engine.table import StepTable
from simulator.engine.transfers import Transfers, find_arrival

DONE, LOG_FULL, STEP_FORMED, ASKS, PAUSED = range(5)
"""Why the loop returned: nothing happens until the given time; the log has no row left; a step has
been formed whose end is not known; a balancer in Python is asked; some time has passed."""


class Pool(NamedTuple):
    """Equal replicas behind one load balancer."""

    requests: Requests
    """The trace's, as far as they are served here: a prefill pool's have one output token."""
    ranks: Ranks
    """``[M, ...]`` of all replicas."""
    clock: Clock
    """``[M, ...]``."""
    limits: Limits
    table: StepTable
    balance: Balance


class Balance(NamedTuple):
    """Which replica of a pool gets a request, as numbers."""

    per_request: int
    """See :class:`simulator.policies.balancing.Rule`."""
    per_token: int
    turns: Ints
    """``[N]`` replica of each request by the order in which they come; empty where load decides."""
    is_asked: bool
    """Whether a balancer in Python chooses."""
    num_sent: Ints
    """``[1]`` requests so far."""
    replica_of: Ints
    """``[N]`` where each request went."""


class Feed(NamedTuple):
    """How requests come to the first pool."""

    num_come: Ints
    """``[1]``."""
    num_released: Ints
    """``[1]`` requests whose arrival is known: all of an open loop."""
    is_closed: bool
    """Whether a request is released by the end of another."""
    way_s: float
    """From the end of one request of a closed loop to the next one's arrival."""
    num_done: Ints
    """``[1]`` requests that need nothing more."""
    chosen: Ints
    """``[1]`` the replica that a balancer in Python has chosen, or -1."""
    asks: Ints
    """``[1]`` the pool whose balancer is asked."""


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
            if state == IN_FLIGHT:
                if not prices_steps:
                    return STEP_FORMED, rows
                push_event(events, then_s, code_of(ENDS, number))
            elif state == FORMS_NEXT:
                push_event(events, then_s, code_of(FORMS, number))
        elif kind == LEAVES:
            pop_event(events)
            if transfers.goes_on[number]:
                comes_s = find_arrival(transfers, requests, balance.replica_of[number], number)
                requests2.times[number, ARRIVAL_S] = comes_s
                requests2.ints[number, BROUGHT] = (
                    requests.ints[number, NUM_INPUT] - transfers.recomputes_last
                )
                requests2.ints[number, GENERATED] = 1 - transfers.recomputes_last
                push_event(events, max(at_s, comes_s), code_of(ARRIVES, number))
            else:
                _release(feed, requests, 1, at_s)
        elif kind == ARRIVES:
            if balance2.is_asked and feed.chosen[0] < 0:
                feed.asks[0] = 1
                return ASKS, rows
            pop_event(events)
            replica = _send(balance2, clock2, requests2, number, feed)
            if replica < 0:
                requests2.times[number, LOST_S] = at_s
                _release(feed, requests, 1, at_s)
            else:
                _form_soon(events, clock2, replica, num_first + replica, at_s, FORMS)
        else:
            if balance.is_asked and feed.chosen[0] < 0:
                feed.asks[0] = 0
                return ASKS, rows
            if kind == COMES_AGAIN:
                pop_event(events)
            else:
                feed.num_come[0] += 1
            replica = _send(balance, clock, requests, number, feed)
            if replica < 0:
                requests.times[number, LOST_S] = at_s
                _release(feed, requests, 1, at_s)
            else:
                forms = FORMS_LATE if kind == RETURNS else FORMS
                _form_soon(events, clock, replica, replica, at_s, forms)


@borrowing
def _release(feed: Feed, requests: Requests, count: int, now_s: float) -> None:
    """Requests are done, and clients of a closed loop send others instead."""
    feed.num_done[0] += count
    if feed.is_closed:
        for _ in range(min(count, len(requests.times) - feed.num_released[0])):
            requests.times[feed.num_released[0], ARRIVAL_S] = now_s + feed.way_s
            feed.num_released[0] += 1


@borrowing
def _send(balance: Balance, clock: Clock, requests: Requests, request: int, feed: Feed) -> int:
    """Give a request to the replica that the balancer chooses, which looks at it when it forms a
    step. Returns its number, -1 where none is left.
    """
    replica = _choose(balance, clock, feed)
    feed.chosen[0] = -1
    if replica < 0:
        return -1
    balance.num_sent[0] += 1
    balance.replica_of[request] = replica
    requests.ints[request, FOLLOWING] = -1
    if clock.counts[replica, 0, NUM_COMING] == 0:
        clock.counts[replica, 0, FIRST_COMING] = request
    else:
        requests.ints[clock.counts[replica, 0, LAST_COMING], FOLLOWING] = request
    clock.counts[replica, 0, LAST_COMING] = request
    clock.counts[replica, 0, NUM_COMING] += 1
    clock.counts[replica, 0, COMING_TOKENS] += (
        requests.ints[request, NUM_INPUT] + requests.ints[request, NUM_OUTPUT]
    )
    return replica


@borrowing
def _choose(balance: Balance, clock: Clock, feed: Feed) -> int:
    counts = clock.counts
    num_replicas = len(counts)
    if num_replicas == 1:
        return -1 if counts[0, 0, IS_GONE] else 0
    if feed.chosen[0] >= 0:
        return int(feed.chosen[0])
    if len(balance.turns) > 0:
        return int(balance.turns[balance.num_sent[0]])
    best, least = -1, 0
    for replica in range(num_replicas):
        if counts[replica, 0, IS_GONE]:
            continue
        load = balance.per_request * (
            counts[replica, 0, NUM_PUSHED]
            - counts[replica, 0, NUM_FINISHED]
            + counts[replica, 0, NUM_COMING]
        ) + balance.per_token * (
            counts[replica, 0, OUTSTANDING_TOKENS] + counts[replica, 0, COMING_TOKENS]
        )
        if best < 0 or load < least:
            best, least = replica, load
    return best


@borrowing
def _form_soon(
    events: Events, clock: Clock, replica: int, number: int, now_s: float, kind: int
) -> None:
    """Let a replica form a step at this instant, unless one is under way."""
    if not clock.counts[replica, 0, IS_BUSY]:
        clock.counts[replica, 0, IS_BUSY] = True
        push_event(events, now_s, code_of(kind, number))


@borrowing
def ranks_of(ranks: Ranks, replica: int) -> Ranks:
    """The ranks of one replica."""
    return Ranks(
        ranks.each[replica],
        ranks.running[replica],
        ranks.chunk[replica],
        ranks.pools[replica],
        ranks.prefixes[replica],
        ranks.counts[replica],
        ranks.output_share[replica],
        ranks.ring[replica],
        ranks.emitted_s[replica],
        ranks.ends[replica],
        ranks.starts[replica],
    )


@borrowing
def clock_of(clock: Clock, replica: int) -> Clock:
    """The clock of one replica."""
    return Clock(clock.counts[replica], clock.gap_counts[replica])
