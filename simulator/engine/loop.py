"""Compiled event loop over all replicas of all pools between two changes.

The loop takes the next event, lets it happen, and goes on until nothing is left to do before a
given time, or until it needs something that it cannot do itself: more space for the log, the
duration of a step where ranks are simulated, the choice of a balancer in Python. The caller
provides it and calls again.
"""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inline, jit_inner
from simulator.cost.transfer import seconds_left
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.admission import give_up_blocks, give_up_line, take_in
from simulator.engine.batching import (
    complete_step,
    count_tokens,
    emit_tokens,
    form_step,
    queue_request,
    sum_decodes,
)
from simulator.engine.cache import release
from simulator.engine.events import (
    ARRIVES,
    COMES,
    COMES_LATER,
    ENDS,
    FORMS,
    FORMS_LATE,
    GOES_ON,
    IS_READ,
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
from simulator.engine.pool import (
    Pool,
    Weights,
    choose_rank,
    count_unfinished,
    find_least_loaded,
    form_soon,
    has_drained,
    key_of,
    ranks_of,
    release_next,
    send_request,
)
from simulator.engine.queue import pop
from simulator.engine.state import (
    HERE,
    IN_LINE,
    RESERVED,
    Floats,
    Ints,
    Limits,
    Ranks,
    Records,
    Requests,
)
from simulator.engine.step_log import POOL, REPLICA, ROW_STEPS, find_row, observe
from simulator.engine.table import count_profiles, price_step

# Hand-over from a prefill pool to a decode pool: a cache is sent when it is computed and the decode
# pool has room for it, and kept by the prefill pool until it has arrived. Each sending rank sends
# one cache after another, and the receiving ranks share the arrivals. Compiled.


class KvTransfers(NamedTuple):
    """Decode pool that requests go to once their prompts are computed, and the links to it."""

    pool: Pool
    """The decode pool."""
    recomputes_last: bool
    """Whether the decode pool computes the last token of a prompt again."""
    reserves_first: bool
    """Whether a prompt is computed only once the decode pool has room for its cache."""
    sent_bytes: tuple[float, ...]
    """Bytes of a cache that each sending GPU puts on its link: of a token, and of all caches
    alike."""
    received_bytes: tuple[float, ...]
    """Bytes of it that each receiving GPU stores."""
    bytes_per_s: float
    """Bytes per second of one GPU."""
    handshake_s: float
    """Seconds of the pools' handshake about one cache."""
    latency_s: float
    """Seconds from the last byte sent to its arrival."""
    layers: int
    """Layers that are sent one by one while the prompt is computed; 0 where all are sent at its
    end."""
    stages: int
    """Pipeline stages that send."""
    receivers: int
    """Data-parallel ranks of all decode replicas."""
    free_s: Floats
    """``[M, dp]`` times at which each sending rank's link is free, seconds."""
    received_s: Floats
    """``[1]`` time at which the receiving links are free, seconds."""
    is_carried: bool
    """Whether links are simulated, so that nobody knows yet when a cache that leaves arrives."""
    ended: Ints
    """Scratch space for the prompts that end in one step."""


def start_transfers(plan: DeploymentPlan, first: Pool, pool: Pool, is_carried: bool) -> KvTransfers:
    """Make the hand-over from the first pool of a plan to its decode pool, with free links.

    Args:
        is_carried: whether links are simulated.
    """
    wires = plan.transfer
    assert wires is not None
    num_replicas, num_ranks = first.ranks.each.shape
    return KvTransfers(
        pool=pool,
        recomputes_last=wires.recomputes_last,
        reserves_first=wires.reserves_first,
        sent_bytes=tuple(map(float, astuple(wires.sent))),
        received_bytes=tuple(map(float, astuple(wires.received))),
        bytes_per_s=float(wires.bytes_per_s),
        handshake_s=wires.handshake_s,
        latency_s=wires.latency_s,
        layers=wires.layers,
        stages=wires.stages,
        receivers=plan.serving.replicas * wires.decode_dp,
        free_s=np.zeros((num_replicas, num_ranks // wires.stages)),
        received_s=np.zeros(1),
        is_carried=is_carried,
        ended=np.zeros(first.ranks.running[0].size, dtype=np.int64),
    )


@jit_inner
def _measure_left(
    transfers: KvTransfers, num_bytes: tuple[float, ...], num_tokens: int, computing_s: float
) -> float:
    """Measure the seconds that a cache still takes on links when its prompt is computed."""
    busy_s = (num_bytes[0] * num_tokens + num_bytes[1]) / transfers.bytes_per_s
    return float(seconds_left(busy_s, computing_s, transfers.layers, transfers.stages))


@jit_inner
def find_arrival(
    transfers: KvTransfers, requests: Requests, replica: int, request: int, now_s: float
) -> float:
    """Find the time at which a computed prompt's cache arrives at the decode pool, which has room
    for it from now on; called in order of time.
    """
    row, handshake_s = requests.each[request], transfers.handshake_s
    ended_s = row.first_s
    computing_s = ended_s - row.scheduled_s + handshake_s
    send_s = _measure_left(transfers, transfers.sent_bytes, row.num_input, computing_s)
    receive_s = _measure_left(transfers, transfers.received_bytes, row.num_input, computing_s)
    # The GPUs of a pipeline hold the caches of all batches in flight.
    sender = row.dp_rank % transfers.free_s.shape[1]
    start_s = max(max(ended_s + handshake_s, now_s), transfers.free_s[replica, sender])
    transfers.free_s[replica, sender] = start_s + send_s
    received_s = max(transfers.received_s[0], start_s) + receive_s / transfers.receivers
    transfers.received_s[0] = received_s
    return float(max(start_s + max(send_s, receive_s), received_s) + transfers.latency_s)


@jit_inner
def goes_on(transfers: KvTransfers, request: int) -> bool:
    """Whether a request decodes elsewhere once its prompt is computed
    (:meth:`simulator.cost.transfer.Transfer.is_transferred`).
    """
    return bool(transfers.recomputes_last or transfers.pool.requests.each[request].num_output > 1)


@jit_inner
def expect_cache(transfers: KvTransfers, request: int) -> None:
    """Queue a request for room in the decode pool, which is to receive its prompt's cache."""
    row = transfers.pool.requests.each[request]
    row.stage = IN_LINE
    row.transferred = row.num_input - transfers.recomputes_last
    row.generated = 1 - transfers.recomputes_last


@jit_inner
def handle_transfer(
    events: Events,
    feed: Records,
    first: Pool,
    transfers: KvTransfers,
    kind: int,
    request: int,
    now_s: float,
) -> bool:
    """Handle the event of a prompt that leaves, a request that arrives at the decode pool, or its
    cache that arrives there. Returns whether it was handled; a balancer in Python may have to be
    asked first.
    """
    pool, num_first = transfers.pool, len(first.ranks.counts)
    requests = pool.requests
    row = requests.each[request]
    if kind == LEAVES:
        pop_event(events)
        first.ranks.counts[first.requests.each[request].replica, 0].num_kept += 1
        if row.lost_s >= 0:
            release_sent(events, first, request, now_s)
        elif not goes_on(transfers, request):
            release_sent(events, first, request, now_s)
            release_next(feed, first.requests, 1, now_s)
        elif row.stage == RESERVED:
            send_cache(events, first, transfers, request, now_s)
        elif row.stage == HERE:
            expect_cache(transfers, request)
            push_event(events, now_s + transfers.handshake_s, code_of(GOES_ON, request))
        return True
    if kind == ARRIVES:
        pop_event(events)
        release_sent(events, first, request, now_s)
        replica = row.replica
        take_in(requests, ranks_of(pool.ranks, replica), request)
        form_soon(events, pool.ranks.counts, replica, num_first + replica, now_s, FORMS)
        return True
    if pool.balance.is_asked and feed.chosen < 0:
        feed.asks, feed.asks_for = 1, request
        return False
    pop_event(events)
    if row.lost_s >= 0:
        feed.chosen = -1
        return True
    replica = send_request(pool, request, feed, now_s)
    if replica < 0:
        row.lost_s = now_s
        if first.requests.each[request].first_s >= 0:  # else it leaves when it is computed
            release_sent(events, first, request, now_s)
        release_next(feed, first.requests, 1, now_s)
    else:
        form_soon(events, pool.ranks.counts, replica, num_first + replica, now_s, FORMS)
    return True


@jit_inner
def use_reserved(events: Events, first: Pool, transfers: KvTransfers, replica: int) -> None:
    """Send the caches that a step of a decode replica has reserved blocks for; requests among them
    whose prompts are not computed yet go to the first pool.
    """
    counts, rows = transfers.pool.ranks.counts[replica, 0], transfers.pool.requests.each
    while counts.reserved.count > 0:
        request = pop(counts.reserved, rows)
        now_s = rows[request].reserved_s
        if first.requests.each[request].first_s >= 0:
            send_cache(events, first, transfers, request, now_s)
        elif first.requests.each[request].replica < 0:
            push_event(events, now_s, code_of(COMES_LATER, request))


@jit_inner
def send_cache(
    events: Events, first: Pool, transfers: KvTransfers, request: int, now_s: float
) -> None:
    """Send the cache of a computed prompt into the blocks reserved for it."""
    if transfers.is_carried:
        push_event(events, now_s, code_of(SENDS, request))
        return
    replica = first.requests.each[request].replica
    comes_s = find_arrival(transfers, first.requests, replica, request, now_s)
    transfers.pool.requests.each[request].arrival_s = comes_s
    push_event(events, max(now_s, comes_s), code_of(ARRIVES, request))


@jit_inner
def release_sent(events: Events, first: Pool, request: int, now_s: float) -> None:
    """Release the blocks of a prompt whose cache is no longer needed where it was computed."""
    row = first.requests.each[request]
    if row.blocks == 0 and row.shared == 0:
        return
    replica, d = row.replica, row.dp_rank
    counts = first.ranks.counts[replica, 0]
    ranks = ranks_of(first.ranks, replica)
    release(first.requests, ranks, d % len(ranks.caches), request, first.limits)
    ranks.each[d].is_full = False
    counts.num_kept -= 1
    has_requests = counts.num_pushed > counts.num_finished or counts.coming.count > 0
    if has_requests or has_drained(first.ranks.counts, replica):
        form_soon(events, first.ranks.counts, replica, replica, now_s, FORMS)


@jit_inner
def drop_lost(events: Events, num_first: int, second: Pool, request: int, now_s: float) -> None:
    """Drop a lost request whose cache the decode pool was to receive."""
    second.requests.each[request].lost_s = now_s
    withdraw(events, num_first, second, request, now_s)


@jit_inner
def withdraw(events: Events, num_first: int, second: Pool, request: int, now_s: float) -> None:
    """Give up the place of a request in the decode pool, which was to receive its cache."""
    requests, replica = second.requests, second.requests.each[request].replica
    if replica < 0:
        return
    ranks = ranks_of(second.ranks, replica)
    stage = requests.each[request].stage
    if stage == RESERVED:
        give_up_blocks(requests, ranks, second.limits, request)
        form_soon(events, second.ranks.counts, replica, num_first + replica, now_s, FORMS)
    elif stage == IN_LINE:
        give_up_line(requests, ranks, request)


# Steps of one replica until an event elsewhere. Compiled.


PAUSE = 3_000_000
"""Work after which the loop returns, in sequences of steps plus :data:`_STEP` for each step: about
a tenth of a second."""
_STEP = 50
"""Work of one step beside its sequences, in the unit of :data:`PAUSE`."""


DONE, LOG_FULL, STEP_FORMED, ASKS, PAUSED, PRICE_WANTED, USED_UP, DRAINED, CACHE_LEAVES = range(9)
LOOKS, RANKS = 9, 10
"""Reasons why the loop returned: nothing happens until the given time, or every request is done;
the log is full; a step has been formed whose end is not known; a balancer in Python is asked; a
slice of time has passed; a step has been formed whose table entry is not filled; the window on the
trace has no request left; a draining replica has finished its last request; a cache leaves on
links that are simulated; a replica has taken as many steps as somebody waits for; requests that
wait at a replica want other keys."""
IDLE, FORMS_NEXT, IN_FLIGHT, FORMED, BEGUN = range(11, 16)
"""Next event of a replica where the loop goes on: none, a step to be formed, the end of a step, the
end of a step that is known already, or the end of a step besides one to be formed."""


class Span(NamedTuple):
    """Span of time in which a replica takes steps."""

    ends: bool
    """Whether a step of it ends at the beginning."""
    start_s: float
    next_s: float
    """Time of the next event elsewhere, seconds."""
    until_s: float
    """Time until which steps end, seconds; later ones stay in flight."""
    prices_steps: bool
    """Whether a table prices the steps."""
    pool: int
    """Place of the pool, for the log."""
    replica: int
    """Number of the replica in its pool, for the log."""


@jit_inline
def take_steps(
    pool: Pool,
    ranks: Ranks,
    span: Span,
    stops: bool,
    ended: Ints,
    log: NDArray[np.float64],
    rows: int,
) -> tuple[int, float, int, int, int]:
    """End a replica's step in flight, if there is one, and form and end others until an event
    elsewhere.

    Args:
        stops: whether a finished request causes an event elsewhere.
        ended: space for the requests that finish in a step, where they are wanted, which are
            prompts.
        log: rows for steps, of which ``rows`` are taken.

    Returns:
        Next event of the replica, and its time; number of finished requests; number of rows taken;
            and work done, in the unit of ``PAUSE``.
    """
    requests, limits, table, weights = pool.requests, pool.limits, pool.table, pool.balance.weights
    now_s, done, work = span.start_s, 0, 0
    counts, ends, then_s = ranks.counts[0], span.ends, math.nan
    while True:
        if ends:
            if limits.rules.steps_ahead > 0:
                finished = emit_tokens(requests, ranks, limits, now_s)
            else:
                finished = complete_step(requests, ranks, limits, now_s)
            count = 0
            for d in range(len(ranks.each) if len(ended) > 0 else 0):
                for k in range(ranks.each[d].num_emitting):
                    ended[count] = ranks.emitting[d, k]
                    count += 1
            counts.in_flight = False
            done += finished
            if finished > 0:
                counts.has_ended = True
            if span.next_s <= now_s or (finished > 0 and stops) or rows == len(log) or work > PAUSE:
                return FORMS_NEXT, now_s, done, rows, work
        ends = True
        if not counts.in_flight:
            if counts.num_steps >= counts.look_steps:
                return LOOKS, now_s, done, rows, work
            if counts.is_paused > 0:
                counts.is_busy = False
                return IDLE, now_s, done, rows, work
            if not counts.is_formed:
                state = _form_next(requests, ranks, limits, weights, now_s)
                if state != FORMED:
                    if state == IDLE:
                        counts.is_busy = False
                    return state, now_s, done, rows, work
            counts.is_formed = False
            place = rows
            if span.prices_steps:
                place, rows = find_row(ranks, log, rows)
            else:
                rows += 1
            log[place, POOL], log[place, REPLICA] = span.pool, span.replica
            log[place, ROW_STEPS] = 1
            log[place, 0] = now_s
            observe(requests, ranks, limits, log[place])
            row = log[place, :POOL]
            counts.num_steps += 1
            counts.in_flight = True
            if not span.prices_steps:
                row[1] = math.nan
                return IN_FLIGHT, now_s, done, rows, work
            row[1] = price_step(requests, ranks, table, counts.price_state, row)
            if math.isnan(row[1]):
                return PRICE_WANTED, now_s, done, rows, work
            count_profiles(table)
            work += _STEP + ranks.each.num_running.sum()
            then_s = now_s + row[1]
        if limits.rules.steps_ahead > 0:
            if limits.ranks_again and not math.isnan(then_s):
                return BEGUN, then_s, done, rows, work
            if not ranks.each[0].in_flight:
                count_tokens(requests, ranks, limits)
                sum_decodes(requests, ranks, limits)
            state = _form_next(requests, ranks, limits, weights, now_s)
            counts.is_formed = state == FORMED
            if state == RANKS or math.isnan(then_s):
                return state if state == RANKS else FORMED, now_s, done, rows, work
        now_s = then_s
        if now_s >= span.next_s or now_s > span.until_s or ranks.counts[0].reserved.count > 0:
            return IN_FLIGHT, now_s, done, rows, work


@jit_inner
def _form_next(
    requests: Requests, ranks: Ranks, limits: Limits, weights: Weights, now_s: float
) -> int:
    """Form a replica's next step: ``FORMED``, or ``IDLE`` with nothing to compute, or ``RANKS``.

    Raises:
        RuntimeError: if requests wait for blocks that nobody will give back.
    """
    counts = ranks.counts[0]
    is_idle = counts.num_pushed == counts.num_finished
    if counts.coming.count > 0 and (is_idle or counts.num_steps % limits.rules.poll_steps == 0):
        _take(requests, ranks, limits, weights, now_s)
        is_idle = False
    if is_idle:
        return IDLE
    if limits.ranks_again and not counts.is_ranked and _have_choice(ranks):
        return RANKS
    counts.is_ranked = False
    if form_step(requests, ranks, limits, now_s):
        return FORMED
    comes = ranks.each.num_reserved.any()  # a cache, into the blocks reserved for it
    waits = limits.hands_over or counts.num_pushed == counts.num_finished or comes
    if not (counts.in_flight or waits):
        raise RuntimeError(
            "requests wait, but none can run: the KV cache is smaller than one of them"
        )
    return IDLE


@jit_inner
def _have_choice(ranks: Ranks) -> bool:
    """Whether several requests wait at any rank."""
    most = 0
    for d in range(len(ranks.each)):
        most = max(most, ranks.each[d].waiting.count)
    return most > 1


@jit_inner
def _take(
    requests: Requests,
    ranks: Ranks,
    limits: Limits,
    weights: Weights,
    now_s: float,
) -> None:
    """Queue the requests that have arrived since the replica's last step."""
    counts, rows, each = ranks.counts[0], requests.each, ranks.each
    sees_prefixes, most = weights.per_new_token > 0, _share_out(each, counts.coming.count)
    while counts.coming.count > 0:
        r = pop(counts.coming, rows)
        if counts.coming.is_ordered:
            rows[r].key = key_of(rows[r], limits, now_s)
        if not rows[r].lost_s >= 0:
            if sees_prefixes:
                d, _ = find_least_loaded(requests, each, ranks.prefixes, r, weights, limits)
            else:
                d = choose_rank(ranks, limits, counts.num_turns, most)
            queue_request(requests, ranks, d, r)
    counts.coming_tokens = 0


@jit_inner
def _share_out(each: Records, num_coming: int) -> int:
    """Count the requests that a rank may have: its share of all, or as many as one has already."""
    total, living, most = num_coming, 0, 0
    for d in range(len(each)):
        living += 0 if each[d].is_lost else 1
        total += count_unfinished(each, d)
        most = max(most, count_unfinished(each, d))
    return max(most, (total + living - 1) // max(1, living))


@jit_inner
def _await_reads(events: Events, pool: Pool, replica: int) -> None:
    """Schedule the requests whose first blocks are read from tiers since the latest step."""
    counts, rows = pool.ranks.counts[replica, 0], pool.requests.each
    while counts.reserved.count > 0:
        request = pop(counts.reserved, rows)
        push_event(events, rows[request].read_s, code_of(IS_READ, request))


@jit_inner
def _lose(
    events: Events, feed: Records, first: Pool, transfers: KvTransfers | None, r: int, at_s: float
) -> None:
    """Lose a request that the first pool refuses, or that it has no replica for."""
    first.requests.each[r].lost_s = at_s
    if transfers is not None:
        drop_lost(events, len(first.ranks.counts), transfers.pool, r, at_s)
    release_next(feed, first.requests, 1, at_s)


@jit_inner
def next_event(events: Events, feed: Records, rows: Records) -> tuple[float, int]:
    """Find the time and code of the next event; infinity where there is none.

    Args:
        rows: of requests at the first pool.
    """
    at_s, code = math.inf, 0
    if events.num_left[0] > 0:
        at_s, code = events.at_s[0], events.code[0]
    request = feed.num_come
    if request < feed.num_released:
        comes_s = rows[request].arrival_s
        comes = code_of(
            RETURNS if feed.is_closed and feed.ingress_delay_s + feed.send_s == 0.0 else COMES,
            request,
        )
        if comes_s < at_s or (comes_s == at_s and comes < code):
            return comes_s, comes
    return at_s, code


@jit_inner
def run_ahead(
    events: Events,
    feed: Records,
    first: Pool,
    transfers: KvTransfers | None,
    until_s: float,
    log: NDArray[np.float64],
    rows: int,
    prices_steps: bool,
) -> tuple[int, int]:
    """Let everything happen up to ``until_s``, that instant included.

    Args:
        first: pool that requests arrive at.
        transfers: those to the pool that they go to once their prompts are computed, ``None`` where
            there is none: numba compiles the loop without it then.
        log: ``[steps, columns]`` rows for steps that are formed, of which ``rows`` are taken.
        prices_steps: whether tables price the steps; otherwise each step is reported, and the
            caller adds the event of its end.

    Returns:
        Reason for the return, and number of log rows taken.
    """
    requests, counts, balance = first.requests, first.ranks.counts, first.balance
    num_first, work = len(counts), 0
    ended = events.code[:0]
    if transfers is not None:
        ended = transfers.ended
    while True:
        if feed.num_come >= feed.used_up:
            return USED_UP, rows
        at_s, code = next_event(events, feed, requests.each)
        if at_s > until_s or at_s == math.inf or feed.num_done == feed.num_requests:
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
            if transfers is not None and number >= num_first:
                pool, place, replica, room = transfers.pool, 1, number - num_first, ended[:0]
            span = Span(kind == ENDS, at_s, next_s, until_s, prices_steps, place, replica)
            state, then_s, done, rows, size = take_steps(
                pool,
                ranks_of(pool.ranks, replica),
                span,
                feed.is_closed > 0 or len(room) > 0,
                room,
                log,
                rows,
            )
            reserves = pool.ranks.counts[replica, 0].reserved.count > 0
            if reserves and place == 0:
                _await_reads(events, first, replica)
            if transfers is not None and place == 1 and reserves:
                use_reserved(events, first, transfers, replica)
            if transfers is not None and place == 0:
                for i in range(done):
                    push_event(events, then_s, code_of(LEAVES, ended[i]))
            else:
                release_next(feed, requests, done, then_s)
            work += size
            feed.asks, feed.stopped_s = number, then_s
            if state == PRICE_WANTED:
                return state, rows
            if state in (IN_FLIGHT, BEGUN):
                if not prices_steps:
                    return STEP_FORMED, rows
                push_event(events, then_s, code_of(ENDS, number))
                if state == BEGUN:
                    push_event(events, at_s, code_of(FORMS, number))
            elif state in (FORMS_NEXT, LOOKS, RANKS):
                push_event(events, then_s, code_of(FORMS, number))
                if state != FORMS_NEXT:
                    return state, rows
            elif state == IDLE and has_drained(pool.ranks.counts, replica):
                return DRAINED, rows
            continue
        if kind == IS_READ:
            pop_event(events)
            replica = requests.each[number].replica
            take_in(requests, ranks_of(first.ranks, replica), number)
            form_soon(events, counts, replica, replica, at_s, FORMS)
            continue
        is_new = kind in (COMES, RETURNS)
        if is_new and requests.each[number].num_input > first.limits.longest_prompt:
            feed.num_come += 1
            _lose(events, feed, first, transfers, number, at_s)
            continue
        if transfers is not None:
            if kind == SENDS:
                pop_event(events)
                feed.asks = number
                return CACHE_LEAVES, rows
            if kind in (LEAVES, GOES_ON, ARRIVES):
                if not handle_transfer(events, feed, first, transfers, kind, number, at_s):
                    return ASKS, rows
                continue
            # Whether it asks the decode pool for room before its prompt is computed.
            if kind != COMES_LATER and transfers.reserves_first and goes_on(transfers, number):
                feed.num_come += 1
                expect_cache(transfers, number)
                push_event(events, at_s, code_of(GOES_ON, number))
                continue
        if balance.is_asked and feed.chosen < 0:
            feed.asks, feed.asks_for = 0, number
            return ASKS, rows
        if kind == COMES_LATER:
            pop_event(events)
        else:
            feed.num_come += 1
        if transfers is not None and transfers.pool.requests.each[number].lost_s >= 0:
            feed.chosen = -1
            continue
        replica = send_request(first, number, feed, at_s)
        if replica >= 0:
            forms = FORMS_LATE if kind == RETURNS else FORMS
            form_soon(events, counts, replica, replica, at_s, forms)
            continue
        _lose(events, feed, first, transfers, number, at_s)
