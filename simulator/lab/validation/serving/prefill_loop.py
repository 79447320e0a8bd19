"""Prefill pool under a closed loop, simulated step by step: waiting and computing times of prompts.

Decoding is one given time for each request here, so that only steps of prompts are left: thousands
of requests in flight take seconds, where simulating both pools would take minutes.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.jit import jit

_COMES, _ENDS = 0, 1
"""Kinds of events: a request arrives, a worker's step ends."""


class Prompts(NamedTuple):
    """Durations of a prefill worker's steps with prompts of one length."""

    num_ranks: int
    """Data-parallel ranks of a worker, which step together."""
    most: int
    """Most prompts of a rank in one step."""
    busy_B: Floats
    """Grid of numbers of ranks that have prompts, ascending, ``[B]``."""
    each_N: Floats
    """Grid of prompts that each of these ranks has, ascending, ``[N]``."""
    seconds_BN: Floats
    """Seconds of a step at each grid point, ``[B, N]``."""

    def most_per_s(self) -> float:
        """Prompts per second of one worker that always has enough of them."""
        return float(np.max(self.busy_B[-1] * self.each_N / self.seconds_BN[-1]))


def first_tokens(
    prompts: Prompts, workers: int, concurrency: int, count: int, decode_s: Floats
) -> Floats:
    """Seconds from each request's arrival at the pool to the end of its prompt, ``[count]``.

    All of ``concurrency`` arrive at once, each further one when another has decoded for its time. A
    request goes to the worker, and there to the rank, with the fewest prompts.

    Args:
        decode_s: seconds between the end of a prompt and the end of its request, ``[count]``.
    """
    return _serve(*prompts, workers, concurrency, count, decode_s)


@jit
def _serve(
    num_ranks: int,
    most: int,
    busy_B: Floats,
    each_N: Floats,
    seconds_BN: Floats,
    workers: int,
    concurrency: int,
    count: int,
    decode_s: Floats,
) -> Floats:
    came_s, took_s = np.zeros(count), np.zeros(count)
    behind = np.full(count, -1, dtype=np.int64)  # the next request in a rank's queue
    first = np.full((workers, num_ranks), -1, dtype=np.int64)
    last = np.full((workers, num_ranks), -1, dtype=np.int64)
    waiting = np.zeros((workers, num_ranks), dtype=np.int64)
    computed = np.full((workers, num_ranks * most), -1, dtype=np.int64)
    num_computed = np.zeros(workers, dtype=np.int64)
    is_touched = np.zeros(workers, dtype=np.bool_)
    started = min(concurrency, count)
    events: list[tuple[float, int, int]] = [(0.0, _COMES, request) for request in range(started)]
    while len(events) > 0:
        now_s = events[0][0]
        while (
            len(events) > 0 and events[0][0] <= now_s
        ):  # what happens at one time may share a step
            _, what, which = heapq.heappop(events)
            if what == _COMES:
                came_s[which] = now_s
                worker = int(np.argmin(waiting.sum(axis=1) + num_computed))
                rank = int(np.argmin(waiting[worker]))
                if first[worker, rank] < 0:
                    first[worker, rank] = which
                else:
                    behind[last[worker, rank]] = which
                last[worker, rank] = which
                waiting[worker, rank] += 1
                is_touched[worker] = True
            else:
                for place in range(num_computed[which]):
                    request = computed[which, place]
                    took_s[request] = now_s - came_s[request]
                    if started < count:
                        heapq.heappush(events, (float(now_s + decode_s[request]), _COMES, started))
                        started += 1
                num_computed[which] = 0
                is_touched[which] = True
        for worker in range(workers):
            if not is_touched[worker] or num_computed[worker] > 0:
                continue
            is_touched[worker] = False
            fullest = 0
            for rank in range(num_ranks):
                taken = 0
                while taken < most and first[worker, rank] >= 0:
                    request = first[worker, rank]
                    first[worker, rank] = behind[request]
                    waiting[worker, rank] -= 1
                    computed[worker, num_computed[worker]] = request
                    num_computed[worker] += 1
                    taken += 1
                fullest = max(fullest, taken)
            if fullest > 0:
                seconds = _step_s(
                    busy_B, each_N, seconds_BN, num_computed[worker] / fullest, fullest
                )
                heapq.heappush(events, (now_s + seconds, _ENDS, worker))
    return took_s


@jit
def _step_s(busy_B: Floats, each_N: Floats, seconds_BN: Floats, busy: float, each: float) -> float:
    """Seconds of a step, linear between grid points."""
    b, busy_share = _locate(busy_B, busy)
    n, each_share = _locate(each_N, each)
    next_b, next_n = min(b + 1, len(busy_B) - 1), min(n + 1, len(each_N) - 1)
    few = seconds_BN[b, n] * (1 - each_share) + seconds_BN[b, next_n] * each_share
    many = seconds_BN[next_b, n] * (1 - each_share) + seconds_BN[next_b, next_n] * each_share
    return float(few * (1 - busy_share) + many * busy_share)


@jit
def _locate(grid: Floats, value: float) -> tuple[int, float]:
    """Find the grid point below a value, and the value's relative distance to the next."""
    below = 0
    while below < len(grid) - 2 and grid[below + 1] <= value:
        below += 1
    if len(grid) == 1:
        return 0, 0.0
    return below, min(1.0, max(0.0, (value - grid[below]) / (grid[below + 1] - grid[below])))
