"""A prefill pool under a closed loop, step by step: how long prompts wait and are computed.

Decoding is one time for each request here, so that only prompts' steps are left, which thousands
of requests in flight take seconds for, where both pools would take minutes.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit

Floats = NDArray[np.float64]

_COMES, _ENDS = 0, 1
"""What happens: a request comes, a worker's step ends."""


class Prompts(NamedTuple):
    """What a prefill worker's steps take with prompts of one length."""

    num_ranks: int
    """Data-parallel ranks of a worker, which step together."""
    most: int
    """Prompts of a rank in one step, at most."""
    busy_B: Floats
    """Ranks that have prompts, ascending ..."""
    each_N: Floats
    """... and prompts that each of them has, ascending."""
    seconds_BN: Floats

    def most_per_s(self) -> float:
        """Prompts a second of one worker that always has enough of them."""
        return float(np.max(self.busy_B[-1] * self.each_N / self.seconds_BN[-1]))


def first_tokens(
    prompts: Prompts, workers: int, concurrency: int, count: int, away_s: Floats
) -> Floats:
    """``[count]`` seconds from each request's arrival at the pool to the end of its prompt.

    All of ``concurrency`` come at once, each further one when another has been away for its time
    (of decoding). A request goes to the worker, and there to the rank, with the fewest prompts.

    Args:
        away_s: ``[count]``.
    """
    found: Floats = _serve(*prompts, workers, concurrency, count, away_s)
    return found


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
    away_s: Floats,
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
                        heapq.heappush(events, (float(now_s + away_s[request]), _COMES, started))
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
    """Linear between entries."""
    b, busy_share = _between(busy_B, busy)
    n, each_share = _between(each_N, each)
    next_b, next_n = min(b + 1, len(busy_B) - 1), min(n + 1, len(each_N) - 1)
    few = seconds_BN[b, n] * (1 - each_share) + seconds_BN[b, next_n] * each_share
    many = seconds_BN[next_b, n] * (1 - each_share) + seconds_BN[next_b, next_n] * each_share
    return float(few * (1 - busy_share) + many * busy_share)


@jit
def _between(grid: Floats, value: float) -> tuple[int, float]:
    """The entry below, and how far the value lies to the next."""
    below = 0
    while below < len(grid) - 2 and grid[below + 1] <= value:
        below += 1
    if len(grid) == 1:
        return 0, 0.0
    return below, min(1.0, max(0.0, (value - grid[below]) / (grid[below + 1] - grid[below])))
