"""Window on the trace: rows for the requests that are in the system, and for the next to arrive.

Requests are numbered, and arrive, in order of arrival time. When those of the window have arrived,
its first rows are stored, as far as their requests are settled; the others move to the front, and
the next of the trace follow. Every place that refers to a request by its row is moved as far, so
nothing else changes: the order of events at one instant is that of rows, which stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    GOES_ON,
    KIND_BITS,
    LEAVES,
    SENDS,
    Events,
    number_of,
    start_events,
)
from simulator.engine.pool import PoolState
from simulator.engine.queue import list_requests
from simulator.engine.state import Floats, Ints, Requests

ROWS = 1 << 17
"""New rows of a window, unless four times as many stay, so that few are moved often."""
_OF_REQUESTS = (LEAVES, GOES_ON, SENDS, ARRIVES, COMES_LATER)
"""Kinds of events that refer to a request."""


def move_window(pool: PoolState, count: int, arrival_s: Floats) -> None:
    """Drop the first ``count`` rows of a pool, and add one for each of the trace's next requests,
    whose arrivals are given.
    """
    old = pool.requests
    begin = old.first + len(old.each)
    requests = pool.begin_requests(begin, begin + len(arrival_s))
    requests.each.arrival_s[:] = arrival_s
    if count < len(old.each):
        requests = Requests(
            np.concatenate([old.each[count:], requests.each]).view(np.recarray),
            np.concatenate([old.prefix_starts[count:-1], requests.prefix_starts]),
            requests.prefix_ids,
            old.first + count,
        )
    nowhere = np.full(len(arrival_s), -1, dtype=np.int64)
    pool.hold_rows(requests, np.concatenate([pool.replica_of[count:], nowhere]))
    for link in ("following", "child", "before"):
        requests.each[link] = _shift_rows(requests.each[link], count)
    pool.ranks.running[:] = _shift_rows(pool.ranks.running, count)
    for records in (pool.ranks.each, pool.ranks.counts, pool.clock.counts):
        for name, (kind, _) in records.dtype.fields.items():
            if kind.names is not None:  # a queue
                for end in ("first", "last"):
                    records[name][end] = _shift_rows(records[name][end], count)


def _shift_rows(rows: Ints, count: int) -> Ints:
    """Renumber references to requests after ``count`` rows were dropped; leftover references to
    dropped ones become -1.
    """
    return np.maximum(rows - count, -1)


def move_events(events: Events, count: int, most: int) -> Events:
    """Renumber events after the first ``count`` rows were dropped, with space for ``most``."""
    moved, num_left = start_events(most), int(events.num_left[0])
    codes = events.code[:num_left]
    moved.at_s[:num_left] = events.at_s[:num_left]
    moved.code[:num_left] = codes - count * _name_requests(codes)
    moved.num_left[0] = num_left
    return moved


def _name_requests(codes: Ints) -> NDArray[np.bool_]:
    """Whether each event is of a request, not of a replica."""
    return np.isin(codes >> KIND_BITS, _OF_REQUESTS)


def count_settled(
    requests: pd.DataFrame, pools: Sequence[PoolState], events: Events, again: Iterable[int]
) -> int:
    """Count the first rows whose requests have finished or are lost, and that nothing refers to any
    more.

    Args:
        requests: the rows (:func:`simulator.engine.request_rows.read_requests`).
        again: rows of requests that are about to be sent again.
    """
    outcome = requests["outcome"]
    is_settled = (outcome != "unfinished").to_numpy()
    count = len(is_settled) if is_settled.all() else int(np.argmin(is_settled))
    codes = events.code[: int(events.num_left[0])]
    named = [*again, *(number_of(int(code)) for code in codes[_name_requests(codes)])]
    if (outcome[:count] == "lost").any():  # else nobody queues, or runs, that is settled
        named += [row for pool in pools for row in list_named(pool)]
    return min(count, *named) if named else count


def list_named(pool: PoolState) -> Iterator[int]:
    """List the rows of the requests that run at a pool's ranks, wait there or are about to."""
    rows = pool.requests.each
    for replica in range(pool.num_replicas):
        ranks = pool.ranks_of(replica)
        for d in range(len(ranks.each)):
            rank = ranks.each[d]
            yield from ranks.running[d, : rank.num_running].tolist()
            for queue in (rank.waiting, rank.ready, rank.line):
                yield from list_requests(queue, rows).tolist()
        (clock,) = pool.clock_of(replica).counts
        yield from list_requests(clock.coming, rows).tolist()
