"""Steps of one replica until an event elsewhere. Compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inline, jit_inner
from simulator.engine.batching import complete_step, form_step, queue_request
from simulator.engine.queue import pop
from simulator.engine.reservations import expects_caches
from simulator.engine.sending import Weights, choose_rank
from simulator.engine.state import Clock, Ints, Limits, Ranks, Requests
from simulator.engine.step_log import POOL, REPLICA, ROW_STEPS, find_row, observe
from simulator.engine.step_price import count_profiles, price_step
from simulator.engine.table import StepTable

PAUSE = 3_000_000
"""Work after which the loop returns, in sequences of steps plus :data:`_STEP` for each step: about
a tenth of a second."""
_STEP = 50
"""Work of one step beside its sequences, in the unit of :data:`PAUSE`."""


IDLE, FORMS_NEXT, IN_FLIGHT, UNPRICED, LOOKED_AT = range(5)
"""Next event of a replica: none, a step to be formed, the end of a step, a step to be priced, or a
look at it before it forms a step."""


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
    requests: Requests,
    ranks: Ranks,
    limits: Limits,
    clock: Clock,
    weights: Weights,
    table: StepTable,
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
        ended: space for the requests that finish in a step, where they are wanted.
        log: rows for steps, of which ``rows`` are taken.

    Returns:
        Next event of the replica, and its time; number of finished requests; number of rows taken;
            and work done, in the unit of ``PAUSE``.
    """
    now_s, done, work = span.start_s, 0, 0
    counts, ends = clock.counts[0], span.ends
    while True:
        if ends:
            finished = _end_step(requests, ranks, limits, clock, now_s, ended)
            done += finished
            if finished > 0:
                counts.has_ended = True
            if span.next_s <= now_s or (finished > 0 and stops) or rows == len(log) or work > PAUSE:
                return FORMS_NEXT, now_s, done, rows, work
        ends = True
        if counts.num_steps >= counts.look_steps:
            return LOOKED_AT, now_s, done, rows, work
        if counts.is_paused > 0:
            counts.is_busy = False
            return IDLE, now_s, done, rows, work
        is_idle = counts.num_pushed == counts.num_finished
        if counts.coming.count > 0 and (is_idle or counts.num_steps % limits.rules.poll_steps == 0):
            _take(requests, ranks, limits, clock, weights)
            is_idle = False
        if is_idle:
            counts.is_busy = False
            return IDLE, now_s, done, rows, work
        if not form_step(requests, ranks, limits, now_s):
            if not _waits(ranks, limits, clock):
                raise RuntimeError(
                    "requests wait, but none can run: the KV cache is smaller than one of them"
                )
            counts.is_busy = False
            return IDLE, now_s, done, rows, work
        place = rows
        if span.prices_steps:
            place, rows = find_row(clock, log, rows)
        else:
            rows += 1
        log[place, POOL], log[place, REPLICA], log[place, ROW_STEPS] = span.pool, span.replica, 1
        log[place, 0] = now_s
        observe(requests, ranks, limits, log[place])
        row = log[place, :POOL]
        counts.num_steps += 1
        if not span.prices_steps:
            row[1] = math.nan
            return IN_FLIGHT, now_s, done, rows, work
        row[1] = price_step(requests, ranks, table, counts.price_state, row)
        if math.isnan(row[1]):
            return UNPRICED, now_s, done, rows, work
        count_profiles(table)
        work += _STEP + ranks.each.num_running.sum()
        now_s += row[1]
        if now_s >= span.next_s or now_s > span.until_s or ranks.counts[0].reserved.count > 0:
            return IN_FLIGHT, now_s, done, rows, work


@jit_inner
def _waits(ranks: Ranks, limits: Limits, clock: Clock) -> bool:
    """Whether a replica with nothing to compute waits for caches that arrive or leave."""
    counts = clock.counts[0]
    has_all = counts.num_pushed == counts.num_finished
    return bool(limits.hands_over or has_all or expects_caches(ranks))


@jit_inner
def _take(requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, weights: Weights) -> None:
    """Queue the requests that have arrived since the replica's last step."""
    counts, rows = clock.counts[0], requests.each
    while counts.coming.count > 0:
        request = pop(counts.coming, rows)
        if not rows[request].lost_s >= 0:
            d = choose_rank(requests, ranks.each, ranks.prefixes, request, weights, limits)
            queue_request(requests, ranks, clock, d, request)
    counts.coming_tokens = 0


@jit_inner
def _end_step(
    requests: Requests, ranks: Ranks, limits: Limits, clock: Clock, now_s: float, ended: Ints
) -> int:
    """Complete the step of a replica. Returns how many requests finished.

    Args:
        ended: space for these, where they are wanted.
    """
    if len(ended) == 0:
        return int(complete_step(requests, ranks, limits, clock, now_s))
    count = 0
    for d in range(len(ranks.each)):
        for i in range(ranks.each[d].num_running):
            ended[count] = ranks.running[d, i]
            count += 1
    complete_step(requests, ranks, limits, clock, now_s)
    finished = 0
    for i in range(count):
        if not math.isnan(requests.each[ended[i]].finish_s):
            ended[finished] = ended[i]
            finished += 1
    return finished
