"""Queues of requests: chains in which a request stands once at a time. Compiled."""

from __future__ import annotations

import numpy as np

from simulator.base.jit import jit_inner
from simulator.engine.state import Ints, Records


@jit_inner
def join(queue: Records, rows: Records, r: int) -> None:
    """Put request ``r`` behind all others."""
    rows[r].following = -1
    if queue.count == 0:
        queue.first = r
    else:
        rows[queue.last].following = r
    queue.last = r
    queue.count += 1


@jit_inner
def join_first(queue: Records, rows: Records, r: int) -> None:
    """Put request ``r`` before all others."""
    rows[r].following = queue.first if queue.count > 0 else -1
    if queue.count == 0:
        queue.last = r
    queue.first = r
    queue.count += 1


@jit_inner
def pop(queue: Records, rows: Records) -> int:
    """Take out the first request; there is one."""
    r = queue.first
    queue.first = rows[r].following
    queue.count -= 1
    return int(r)


@jit_inner
def remove(queue: Records, rows: Records, r: int) -> bool:
    """Take out request ``r``. Returns whether it was there."""
    before, other = -1, queue.first
    for _ in range(queue.count):
        if other == r:
            if before < 0:
                queue.first = rows[r].following
            else:
                rows[before].following = rows[r].following
            if queue.last == r:
                queue.last = before
            queue.count -= 1
            return True
        before, other = other, rows[other].following
    return False


def list_requests(queue: Records, rows: Records) -> Ints:
    """List the requests in order."""
    found: Ints = np.empty(int(queue.count), dtype=np.int64)
    other = int(queue.first)
    for place in range(len(found)):
        found[place], other = other, int(rows.following[other])
    return found
