"""Queues of requests, in which a request stands once at a time. Compiled.

First come, first served is a chain. A queue with an order of its own is a pairing heap of keys, the
least first and of equal ones the request that comes first in the trace (Fredman, Sedgewick, Sleator
and Tarjan 1986, doi:10.1007/BF01840439): it needs three links of a request and no space by queue.
"""

from __future__ import annotations

import numpy as np

from simulator.base.jit import jit_apart, jit_inner
from simulator.engine.state import Ints, Records


@jit_inner
def join(queue: Records, rows: Records, r: int) -> None:
    """Put request ``r`` behind all others, or where its key belongs."""
    if queue.is_ordered:
        _push(queue, rows, r)
        return
    rows[r].following = -1
    if queue.count == 0:
        queue.first = r
    else:
        rows[queue.last].following = r
    queue.last = r
    queue.count += 1


@jit_inner
def join_again(queue: Records, rows: Records, r: int) -> None:
    """Put request ``r``, which has been in the queue, before all others, or where its key
    belongs.
    """
    if queue.is_ordered:
        _push(queue, rows, r)
        return
    rows[r].following = queue.first if queue.count > 0 else -1
    if queue.count == 0:
        queue.last = r
    queue.first = r
    queue.count += 1


@jit_inner
def pop(queue: Records, rows: Records) -> int:
    """Take out the first request; there is one."""
    r = queue.first
    queue.first = _meld_below(rows, r) if queue.is_ordered else rows[r].following
    queue.count -= 1
    return int(r)


@jit_inner
def remove(queue: Records, rows: Records, r: int) -> bool:
    """Take out request ``r``. Returns whether it was there."""
    if queue.is_ordered:
        return bool(_cut(queue, rows, r))
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


@jit_inner
def find_another(queue: Records, rows: Records, r: int) -> int:
    """The request behind ``r`` in a walk from the first over all, -1 after the last. The walk over
    a queue with an order of its own has none.
    """
    if queue.is_ordered and rows[r].child >= 0:
        return int(rows[r].child)
    if queue.is_ordered:
        while rows[r].following < 0 and rows[r].before >= 0:
            while rows[rows[r].before].child != r:
                r = rows[r].before
            r = rows[r].before
    return int(rows[r].following)


@jit_apart
def _push(queue: Records, rows: Records, r: int) -> None:
    """Put request ``r`` where its key belongs."""
    rows[r].child = rows[r].following = rows[r].before = -1
    queue.first = _meld(rows, queue.first if queue.count > 0 else -1, r)
    queue.count += 1


@jit_apart
def _meld(rows: Records, one: int, other: int) -> int:
    """Put one heap, by its first request, below that of another; -1 is an empty one."""
    if one < 0 or other < 0:
        return max(one, other)
    if (rows[other].key, other) < (rows[one].key, one):
        one, other = other, one
    child = rows[one].child
    if child >= 0:
        rows[child].before = other
    rows[other].following, rows[other].before = child, one
    rows[one].child = other
    return one


@jit_apart
def _meld_below(rows: Records, r: int) -> int:
    """Meld the heaps below request ``r``, which leaves them: two by two, then all from the last."""
    pairs, one = -1, rows[r].child
    rows[r].child = -1
    while one >= 0:
        other = rows[one].following
        rest = rows[other].following if other >= 0 else -1
        pair = _meld(rows, one, other)
        rows[pair].following = pairs
        pairs, one = pair, rest
    first = -1
    while pairs >= 0:
        pair, pairs = pairs, rows[pairs].following
        first = _meld(rows, first, pair)
    if first >= 0:
        rows[first].following = rows[first].before = -1
    return first


@jit_apart
def _cut(queue: Records, rows: Records, r: int) -> bool:
    """Take request ``r`` out of a heap. Returns whether it was there."""
    row = rows[r]
    if queue.count == 0 or (row.before < 0 and queue.first != r):
        return False
    queue.count -= 1
    if queue.first == r:
        queue.first = _meld_below(rows, r)
        return True
    if rows[row.before].child == r:
        rows[row.before].child = row.following
    else:
        rows[row.before].following = row.following
    if row.following >= 0:
        rows[row.following].before = row.before
    row.following = row.before = -1
    queue.first = _meld(rows, queue.first, _meld_below(rows, r))
    return True


def list_requests(queue: Records, rows: Records) -> Ints:
    """List the requests in order."""
    found: Ints = np.empty(int(queue.count), dtype=np.int64)
    other = int(queue.first)
    for place in range(len(found)):
        found[place] = other
        other = int(find_another(queue, rows, other))
    return found[np.lexsort((found, rows.key[found]))] if queue.is_ordered else found
