"""What happens between a prefill pool and a decode pool: a cache is sent when it is computed and
the decode pool has room for it, and kept where it was computed until it is there. Compiled.
"""

from __future__ import annotations

from simulator.base.compiled import borrowing
from simulator.engine.blocks import release
from simulator.engine.events import ARRIVES, COMES_LATER, FORMS, Events, code_of, push_event
from simulator.engine.reservations import give_up_blocks, give_up_line
from simulator.engine.sending import Pool, clock_of, form_soon, ranks_of
from simulator.engine.state import (
    ARRIVAL_S,
    BLOCKS,
    BROUGHT,
    DP_RANK,
    FIRST_RESERVED,
    FIRST_S,
    FOLLOWING,
    GENERATED,
    IN_LINE,
    IS_FULL,
    LOST_S,
    NUM_COMING,
    NUM_FINISHED,
    NUM_INPUT,
    NUM_PUSHED,
    RESERVED,
    RESERVED_S,
    STAGE,
    Requests,
)
from simulator.engine.transfers import Transfers, find_arrival


@borrowing
def expect_cache(requests: Requests, transfers: Transfers, request: int) -> None:
    """A request asks the decode pool for room, which is to take in its prompt's cache."""
    ints = requests.ints
    ints[request, STAGE] = IN_LINE
    ints[request, BROUGHT] = ints[request, NUM_INPUT] - transfers.recomputes_last
    ints[request, GENERATED] = 1 - transfers.recomputes_last


@borrowing
def use_reserved(
    events: Events, first: Pool, second: Pool, transfers: Transfers, replica: int
) -> None:
    """Send the caches that a step of a decode replica has kept blocks for, and those requests whose
    prompts are to be computed to the first pool.
    """
    counts, requests = second.ranks.counts[replica], second.requests
    request = counts[0, FIRST_RESERVED]
    counts[0, FIRST_RESERVED] = -1
    while request >= 0:
        following, now_s = requests.ints[request, FOLLOWING], requests.times[request, RESERVED_S]
        if first.requests.times[request, FIRST_S] >= 0:
            send_cache(events, first, second, transfers, request, now_s)
        elif first.balance.replica_of[request] < 0:
            push_event(events, now_s, code_of(COMES_LATER, request))
        request = following


@borrowing
def send_cache(
    events: Events, first: Pool, second: Pool, transfers: Transfers, request: int, now_s: float
) -> None:
    """Send the cache of a prompt that is computed into the blocks that are kept for it."""
    replica = first.balance.replica_of[request]
    comes_s = find_arrival(transfers, first.requests, replica, request, now_s)
    second.requests.times[request, ARRIVAL_S] = comes_s
    push_event(events, max(now_s, comes_s), code_of(ARRIVES, request))


@borrowing
def let_go(events: Events, first: Pool, request: int, now_s: float) -> None:
    """A prompt's cache is no longer needed where it was computed; others may have its blocks."""
    if first.requests.ints[request, BLOCKS] == 0:
        return
    replica, d = first.balance.replica_of[request], first.requests.ints[request, DP_RANK]
    counts = first.clock.counts[replica]
    ranks = ranks_of(first.ranks, replica)
    release(first.requests, ranks, d % len(ranks.pools), request)
    ranks.each[d, IS_FULL] = False
    if counts[0, NUM_PUSHED] > counts[0, NUM_FINISHED] or counts[0, NUM_COMING] > 0:
        form_soon(events, first.clock, replica, replica, now_s, FORMS)


@borrowing
def give_up(events: Events, num_first: int, second: Pool, request: int, now_s: float) -> None:
    """A request is lost whose cache the decode pool was to take in."""
    requests, replica = second.requests, second.balance.replica_of[request]
    requests.times[request, LOST_S] = now_s
    if replica < 0:
        return
    ranks, clock = ranks_of(second.ranks, replica), clock_of(second.clock, replica)
    if requests.ints[request, STAGE] == RESERVED:
        give_up_blocks(requests, ranks, clock, request)
        form_soon(events, second.clock, replica, num_first + replica, now_s, FORMS)
    elif requests.ints[request, STAGE] == IN_LINE:
        give_up_line(requests, ranks, clock, request)
