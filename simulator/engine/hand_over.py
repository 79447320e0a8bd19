"""Hand-over from a prefill pool to a decode pool: a cache is sent when it is computed and the
decode pool has room for it, and kept by the prefill pool until it has arrived. Compiled.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.base.jit import jit_inner
from simulator.engine.blocks import release
from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    FORMS,
    GOES_ON,
    LEAVES,
    SENDS,
    Events,
    code_of,
    pop_event,
    push_event,
)
from simulator.engine.queue import pop
from simulator.engine.reservations import give_up_blocks, give_up_line, take_in
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
from simulator.engine.state import HERE, IN_LINE, RESERVED
from simulator.engine.transfers import Transfers, find_arrival


class HandOver(NamedTuple):
    """Decode pool that requests go to once their prompts are computed, and the wires to it."""

    pool: Pool
    """The decode pool."""
    transfers: Transfers


@jit_inner
def asks_first(handing: HandOver, kind: int, request: int) -> bool:
    """Whether an arriving request asks the decode pool for room before its prompt is computed."""
    transfers = handing.transfers
    return kind != COMES_LATER and transfers.reserves_first and transfers.is_transferred[request]


@jit_inner
def expect_cache(handing: HandOver, request: int) -> None:
    """Queue a request for room in the decode pool, which is to receive its prompt's cache."""
    row, transfers = handing.pool.requests.each[request], handing.transfers
    row.stage = IN_LINE
    row.transferred = row.num_input - transfers.recomputes_last
    row.generated = 1 - transfers.recomputes_last


@jit_inner
def handle_hand_over(
    events: Events,
    feed: Feed,
    first: Pool,
    handing: HandOver,
    kind: int,
    request: int,
    now_s: float,
) -> bool:
    """Handle the event of a prompt that leaves, a request that arrives at the decode pool, or its
    cache that arrives there. Returns whether it was handled; a balancer in Python may have to be
    asked first.
    """
    pool, transfers = handing.pool, handing.transfers
    requests, num_first = pool.requests, len(first.clock.counts)
    row = requests.each[request]
    if kind == LEAVES:
        pop_event(events)
        first.clock.counts[first.balance.replica_of[request], 0].num_kept += 1
        if row.lost_s >= 0:
            release_sent(events, first, request, now_s)
        elif not transfers.is_transferred[request]:
            release_sent(events, first, request, now_s)
            release_next(feed, first.requests, 1, now_s)
        elif row.stage == RESERVED:
            send_cache(events, first, handing, request, now_s)
        elif row.stage == HERE:
            expect_cache(handing, request)
            push_event(events, now_s + transfers.handshake_s, code_of(GOES_ON, request))
        return True
    if kind == ARRIVES:
        pop_event(events)
        release_sent(events, first, request, now_s)
        replica = pool.balance.replica_of[request]
        take_in(requests, ranks_of(pool.ranks, replica), request)
        form_soon(events, pool.clock, replica, num_first + replica, now_s, FORMS)
        return True
    if pool.balance.is_asked and feed.chosen[0] < 0:
        feed.asks[0], feed.asks[1] = 1, request
        return False
    pop_event(events)
    if row.lost_s >= 0:
        feed.chosen[0] = -1
        return True
    replica = send_request(pool, request, feed, now_s)
    if replica < 0:
        row.lost_s = now_s
        if first.requests.each[request].first_s >= 0:  # else it leaves when it is computed
            release_sent(events, first, request, now_s)
        release_next(feed, first.requests, 1, now_s)
    else:
        form_soon(events, pool.clock, replica, num_first + replica, now_s, FORMS)
    return True


@jit_inner
def use_reserved(events: Events, first: Pool, handing: HandOver, replica: int) -> None:
    """Send the caches that a step of a decode replica has reserved blocks for; requests among them
    whose prompts are not computed yet go to the first pool.
    """
    counts, rows = handing.pool.ranks.counts[replica, 0], handing.pool.requests.each
    while counts.reserved.count > 0:
        request = pop(counts.reserved, rows)
        now_s = rows[request].reserved_s
        if first.requests.each[request].first_s >= 0:
            send_cache(events, first, handing, request, now_s)
        elif first.balance.replica_of[request] < 0:
            push_event(events, now_s, code_of(COMES_LATER, request))


@jit_inner
def send_cache(events: Events, first: Pool, handing: HandOver, request: int, now_s: float) -> None:
    """Send the cache of a computed prompt into the blocks reserved for it."""
    if handing.transfers.is_carried:
        push_event(events, now_s, code_of(SENDS, request))
        return
    replica = first.balance.replica_of[request]
    comes_s = find_arrival(handing.transfers, first.requests, replica, request, now_s)
    handing.pool.requests.each[request].arrival_s = comes_s
    push_event(events, max(now_s, comes_s), code_of(ARRIVES, request))


@jit_inner
def release_sent(events: Events, first: Pool, request: int, now_s: float) -> None:
    """Release the blocks of a prompt whose cache is no longer needed where it was computed."""
    row = first.requests.each[request]
    if row.blocks == 0 and row.shared == 0:
        return
    replica, d = first.balance.replica_of[request], row.dp_rank
    counts = first.clock.counts[replica, 0]
    ranks = ranks_of(first.ranks, replica)
    release(first.requests, ranks, d % len(ranks.caches), request)
    ranks.each[d].is_full = False
    counts.num_kept -= 1
    has_requests = counts.num_pushed > counts.num_finished or counts.coming.count > 0
    if has_requests or has_drained(first.clock, replica):
        form_soon(events, first.clock, replica, replica, now_s, FORMS)


@jit_inner
def drop_lost(events: Events, num_first: int, second: Pool, request: int, now_s: float) -> None:
    """Drop a lost request whose cache the decode pool was to receive."""
    second.requests.each[request].lost_s = now_s
    withdraw(events, num_first, second, request, now_s)


@jit_inner
def withdraw(events: Events, num_first: int, second: Pool, request: int, now_s: float) -> None:
    """Give up the place of a request in the decode pool, which was to receive its cache."""
    requests, replica = second.requests, second.balance.replica_of[request]
    if replica < 0:
        return
    ranks, clock = ranks_of(second.ranks, replica), clock_of(second.clock, replica)
    stage = requests.each[request].stage
    if stage == RESERVED:
        give_up_blocks(requests, ranks, clock, request)
        form_soon(events, second.clock, replica, num_first + replica, now_s, FORMS)
    elif stage == IN_LINE:
        give_up_line(requests, ranks, clock, request)
