"""The ``step`` fidelity's inner loop: form a step, price it from the table, complete it, until a
given time. Compiled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.compiled import compiled
from simulator.engine.batching import complete_step, form_step, push
from simulator.engine.state import Floats, Ints, Limits, Ranks, Requests
from simulator.engine.step_log import observe
from simulator.engine.step_price import price_step
from simulator.engine.table import StepTable
from simulator.results.tables import NUM_GAP_BINS


class Clock(NamedTuple):
    """Where a replica is in time; arrays of one number, so that compiled code can move it."""

    now_s: Floats
    end_s: Floats
    """End of the step in flight; infinity when idle."""
    num_finished: Ints
    num_pushed: Ints
    num_steps: Ints
    outstanding_tokens: Ints
    gap_counts: Ints
    """``[NUM_GAP_BINS]`` gaps between output tokens."""


def start_clock() -> Clock:
    """Time zero, idle."""
    return Clock(
        now_s=np.zeros(1),
        end_s=np.full(1, np.inf),
        num_finished=np.zeros(1, dtype=np.int64),
        num_pushed=np.zeros(1, dtype=np.int64),
        num_steps=np.zeros(1, dtype=np.int64),
        outstanding_tokens=np.zeros(1, dtype=np.int64),
        gap_counts=np.zeros(NUM_GAP_BINS, dtype=np.int64),
    )


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
                released = concurrency + clock.num_finished[0]
                for i in range(released - finished, min(released, len(queue))):
                    requests.arrival_s[queue[i]] = clock.now_s[0] + way_s
        is_idle = clock.num_pushed[0] == clock.num_finished[0]
        looks = is_idle or clock.num_steps[0] % limits.poll_steps == 0
        while (
            looks
            and position < len(queue)
            and requests.arrival_s[queue[position]] <= clock.now_s[0]
        ):
            if (
                concurrency > 0
                and not is_idle
                and requests.arrival_s[queue[position]] == clock.now_s[0]
            ):
                break
            push(requests, ranks, clock, queue[position])
            position += 1
        if clock.num_pushed[0] == clock.num_finished[0]:  # idle: jump to the next arrival
            if position == len(queue) or requests.arrival_s[queue[position]] > until_s:
                clock.now_s[0] = (
                    max(clock.now_s[0], min(until_s, 1e300))
                    if until_s < math.inf
                    else clock.now_s[0]
                )
                return position, rows
            clock.now_s[0] = requests.arrival_s[queue[position]]
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
        clock.num_steps[0] += 1
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
        for d in range(len(ranks.num_running)):
            for i in range(ranks.num_running[d]):
                before[count] = ranks.running[d, i]
                count += 1
        clock.now_s[0] = row[0] + row[1]
        clock.num_steps[0] += 1
        rows += 1
        if complete_step(requests, ranks, limits, clock, clock.now_s[0]) > 0:
            return rows, count
    return rows, 0
