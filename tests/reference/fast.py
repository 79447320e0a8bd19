"""The ``step`` fidelity's inner loop: form a step, price it from the table, complete it, until a
given time. Compiled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import compiled
from simulator.engine import start
from simulator.engine.batching import complete_step, form_step, push
from simulator.engine.state import (
    ARRIVAL_S,
    NUM_FINISHED,
    NUM_PUSHED,
    NUM_RUNNING,
    NUM_STEPS,
    OUTSTANDING_TOKENS,
    Column,
    Floats,
    Ints,
    Limits,
    Ranks,
    Requests,
)
from simulator.engine.step_log import observe
from simulator.engine.step_price import price_step
from simulator.engine.table import StepTable


class _ClockArrays(NamedTuple):
    now_s: Floats
    end_s: Floats
    counts: Ints
    gap_counts: Ints


class Clock(_ClockArrays):
    """Where a replica is in time; ``end_s`` of the step in flight is infinity when idle."""

    num_finished = Column("counts", NUM_FINISHED)
    num_pushed = Column("counts", NUM_PUSHED)
    num_steps = Column("counts", NUM_STEPS)
    outstanding_tokens = Column("counts", OUTSTANDING_TOKENS)


def start_clock() -> Clock:
    """Time zero, idle."""
    own = start.start_clock()
    return Clock(np.zeros(1), np.full(1, np.inf), own.counts, own.gap_counts)


@compiled
def advance(
    requests: Requests,
    ranks: Ranks,
    limits: Limits,
    clock: Clock,
    table: StepTable,
    queue: NDArray[np.int64],
    position: int,
    until_s: float,
    log: NDArray[np.float64],
    concurrency: int = 0,
    way_s: float = 0.0,
) -> tuple[int, int]:
    """Run steps until the clock reaches ``until_s``, taking requests from ``queue`` as they arrive.

    A step in flight at ``until_s`` stays in flight, so nothing is known before it has happened.

    Args:
        queue: requests in order of arrival; those before ``position`` have been taken.
        concurrency: above 0, a closed loop: the first so many requests have arrived, those behind
            them (at infinity so far) follow one by one as requests finish. Their step has been
            formed by then, so they join the one after it.
        way_s: from the end of one request to the next one's arrival.
        log: rows for steps; the loop stops early when it is full.

    Returns:
        The new position in the queue, and the rows written.
    """
    rows = 0
    while rows < len(log):
        if clock.end_s[0] < math.inf:
            if clock.end_s[0] > until_s:
                return position, rows
            clock.now_s[0] = clock.end_s[0]
            clock.end_s[0] = math.inf
            finished = complete_step(requests, ranks, limits, clock, clock.now_s[0])
            if concurrency > 0:
                released = concurrency + clock.counts[0, NUM_FINISHED]
                for i in range(released - finished, min(released, len(queue))):
                    requests.times[queue[i], ARRIVAL_S] = clock.now_s[0] + way_s
        is_idle = clock.counts[0, NUM_PUSHED] == clock.counts[0, NUM_FINISHED]
        looks = is_idle or clock.counts[0, NUM_STEPS] % limits.rules.poll_steps == 0
        while (
            looks
            and position < len(queue)
            and requests.times[queue[position], ARRIVAL_S] <= clock.now_s[0]
        ):
            if (
                concurrency > 0
                and not is_idle
                and requests.times[queue[position], ARRIVAL_S] == clock.now_s[0]
            ):
                break
            push(requests, ranks, clock, queue[position])
            position += 1
        if (
            clock.counts[0, NUM_PUSHED] == clock.counts[0, NUM_FINISHED]
        ):  # idle: jump to the next arrival
            if position == len(queue) or requests.times[queue[position], ARRIVAL_S] > until_s:
                clock.now_s[0] = (
                    max(clock.now_s[0], min(until_s, 1e300))
                    if until_s < math.inf
                    else clock.now_s[0]
                )
                return position, rows
            clock.now_s[0] = requests.times[queue[position], ARRIVAL_S]
            continue
        if clock.now_s[0] >= until_s:
            return position, rows
        if not form_step(requests, ranks, limits, clock.now_s[0]):
            raise RuntimeError(
                "requests wait, but none can run: the KV cache is smaller than one of them"
            )
        row = log[rows]
        row[0] = clock.now_s[0]
        observe(requests, ranks, limits, row)
        row[1] = price_step(requests, ranks, table, row)
        clock.end_s[0] = clock.now_s[0] + row[1]
        clock.counts[0, NUM_STEPS] += 1
        rows += 1
    return position, rows


@compiled
def leap(
    requests: Requests,
    ranks: Ranks,
    limits: Limits,
    clock: Clock,
    table: StepTable,
    until_s: float,
    log: NDArray[np.float64],
    before: NDArray[np.int64],
) -> tuple[int, int]:
    """Run whole steps that end before ``until_s``, until one finishes a request, for a replica that
    is sent nothing meanwhile.

    Args:
        log: rows for steps; the loop stops early when it is full.
        before: room for the requests that ran in the last step.

    Returns:
        The rows written; and how many requests ``before`` holds where the last step finished one, 0
        where the log is full, or -1 where the next step is formed and its row written behind the
        others, but ends later.
    """
    rows = 0
    while rows < len(log):
        if not form_step(requests, ranks, limits, clock.now_s[0]):
            raise RuntimeError(
                "requests wait, but none can run: the KV cache is smaller than one of them"
            )
        row = log[rows]
        row[0] = clock.now_s[0]
        observe(requests, ranks, limits, row)
        row[1] = price_step(requests, ranks, table, row)
        if row[0] + row[1] >= until_s:
            return rows, -1
        count = 0
        for d in range(len(ranks.each)):
            for i in range(ranks.each[d, NUM_RUNNING]):
                before[count] = ranks.running[d, i]
                count += 1
        clock.now_s[0] = row[0] + row[1]
        clock.counts[0, NUM_STEPS] += 1
        rows += 1
        if complete_step(requests, ranks, limits, clock, clock.now_s[0]) > 0:
            return rows, count
    return rows, 0
