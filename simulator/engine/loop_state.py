"""State that the compiled loop works on: the pools with their window on the trace, the arrival of
requests, and the events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray
from simpy.events import Event, EventPriority

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    GOES_ON,
    IS_READ,
    KIND_BITS,
    LEAVES,
    SENDS,
    Events,
    number_of,
    start_events,
)
from simulator.engine.loop import KvTransfers, start_transfers
from simulator.engine.pool import Pool, PoolState
from simulator.engine.queue import list_requests
from simulator.engine.state import NEVER, Feed, Floats, Ints, Records, Requests, make_records
from simulator.results.tables import TURNED_AWAY
from simulator.workload.traces import RequestTrace

# Window on the trace: rows for the requests that are in the system, and for the next to arrive.
#
# Requests are numbered, and arrive, in order of arrival time. When those of the window have
# arrived, its first rows are stored, as far as their requests are settled; the others move to the
# front, and the next of the trace follow. Every place that refers to a request by its row is moved
# as far, so nothing else changes: the order of events at one instant is that of rows, which stays.


ROWS = 1 << 17
"""New rows of a window, unless four times as many stay, so that few are moved often."""
_OF_REQUESTS = (LEAVES, GOES_ON, SENDS, ARRIVES, IS_READ, COMES_LATER)
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
    pool.requests = requests
    for link in ("following", "child", "before"):
        requests.each[link] = _shift_rows(requests.each[link], count)
    for rows in (pool.ranks.running, pool.ranks.emitting):
        rows[:] = _shift_rows(rows, count)
    for records in (pool.ranks.each, pool.ranks.counts):
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
        requests: the rows (:func:`simulator.engine.result_rows.read_requests`).
        again: rows of requests that are about to be sent again.
    """
    outcome = requests["outcome"]
    is_settled = (outcome != "unfinished").to_numpy()
    count = len(is_settled) if is_settled.all() else int(np.argmin(is_settled))
    codes = events.code[: int(events.num_left[0])]
    named = [*again, *(number_of(int(code)) for code in codes[_name_requests(codes)])]
    if outcome[:count].isin(TURNED_AWAY).any():  # else nobody queues, or runs, that is settled
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
        yield from list_requests(ranks.counts[0].coming, rows).tolist()


# Instants at which SimPy resumes the run, and their order.


LAST, CHANGE, AGAIN = EventPriority(2), EventPriority(3), EventPriority(4)
"""Priorities after SimPy's own events of an instant, so that all steps that end then have ended:
for looking at the loop, for changes, and for what follows once all of that instant has changed."""


class Instants:
    """Virtual time, and the instants at which the compiled loop is to run."""

    def __init__(self) -> None:
        # As a float, for compiled code would be compiled once more for whole numbers.
        self.env = simpy.Environment(initial_time=0.0)
        self._looks_s: set[float] = set()

    def wait_until(self, at_s: float, priority: EventPriority) -> Event:
        """Make an event at an instant, or at the present one if that has passed; its value is the
        instant.
        """
        event = Event(self.env)
        event._ok, event._value = True, at_s
        self.env.schedule(event, priority=priority, delay=max(0.0, at_s - self.env.now))
        return event

    def call_at(self, at_s: float, priority: EventPriority, call: Callable[[], None]) -> None:
        """Schedule a call at an instant."""
        self.wait_until(at_s, priority).callbacks = [lambda _: call()]

    def look_at(self, at_s: float, look: Callable[[float], None]) -> None:
        """Schedule a look at the loop after everything else at an instant; once, however often it
        is requested.
        """
        if at_s in self._looks_s:
            return
        self._looks_s.add(at_s)

        def look_once() -> None:
            self._looks_s.discard(at_s)
            look(at_s)

        self.call_at(at_s, LAST, look_once)


POOLS: tuple[str, ...] = ("both", "prefill", "decode")
"""Names of pools; requests arrive at the earlier ones first."""


class LoopState:
    """Arguments of :func:`simulator.engine.loop.run_ahead`."""

    def __init__(
        self,
        plan: DeploymentPlan,
        trace: RequestTrace,
        pools: Mapping[str, PoolState],
        ingress_delay_s: float,
        carries_caches: bool,
    ) -> None:
        """Give the first requests of the trace rows; none has arrived.

        Args:
            ingress_delay_s: seconds from the client to the scheduler.
            carries_caches: whether links between pools are simulated.
        """
        self.plan, self.trace, self.ingress_delay_s = plan, trace, ingress_delay_s
        self.names = [name for name in POOLS if name in pools]
        self.pools = [pools[name] for name in self.names]
        self.num_read = 0
        """Requests of the trace that have, or had, a row."""
        self.events = start_events(0)
        self.feed = _start_feed(trace, ingress_delay_s)
        self._transfers: KvTransfers | None = None
        if len(self.pools) > 1:
            first, decode = (pool.compiled for pool in self.pools)
            self._transfers = start_transfers(plan, first, decode, carries_caches)
        self.move_window(0)

    @property
    def first(self) -> Pool:
        """Pool that requests arrive at, as compiled code sees it."""
        return self.pools[0].compiled

    @property
    def transfers(self) -> KvTransfers | None:
        """Pool that they go to once their prompts are computed, and the links to it."""
        return self._transfers and self._transfers._replace(pool=self.pools[1].compiled)

    @property
    def num_rows(self) -> int:
        """Number of requests in the window."""
        return len(self.pools[0].requests.each)

    @property
    def is_done(self) -> bool:
        """Whether every request is finished or lost."""
        return bool(self.feed.num_done == self.trace.num_requests)

    def move_window(self, count: int) -> None:
        """Drop the first rows, and add rows for the next requests of the trace."""
        begin, stay = self.num_read, self.num_rows - count
        concurrency = self.trace.concurrency or 0
        end = min(begin + max(ROWS, stay // 4, concurrency + 1), self.trace.num_requests)
        arrival_s = self.trace.arrival_s[begin:end]
        if self.feed.is_closed:
            arrival_s = np.where(np.arange(begin, end) < concurrency, arrival_s, np.inf)
        # At the scheduler; the record says when requests were sent.
        move_window(self.pools[0], count, arrival_s + self.ingress_delay_s)
        for pool in self.pools[1:]:  # where caches arrive
            move_window(pool, count, np.full(end - begin, np.nan))
        self.num_read = end
        feed, num_rows = self.feed, self.num_rows
        feed.num_come -= count
        feed.num_released += min(concurrency if begin == 0 else 0, num_rows) - count
        if not feed.is_closed:
            feed.num_released = num_rows
        # All that are in flight may end, and be followed by others, at once.
        feed.used_up = NEVER if end == self.trace.num_requests else num_rows - concurrency
        num_replicas = sum(pool.num_replicas for pool in self.pools)
        may_return = len(self.pools) > 1 or bool(self.plan.failures or self.plan.serving.tiers)
        # A request may be about to come to both pools.
        most = 2 * num_replicas + num_rows * may_return * len(self.pools) + 1
        # Those that a run leaves behind may be more than it can have with the next rows.
        self.events = move_events(self.events, count, max(most, int(self.events.num_left[0])))

    def balance_again(self, place: int) -> None:
        """Balance over the living replicas of a pool, after some stopped or started."""
        pool = self.pools[place]
        pool.balance_again()
        if place == 1 and self._transfers is not None:
            self._transfers = self._transfers._replace(receivers=max(1, pool.num_living_groups))

    def number_of(self, place: int, replica: int) -> int:
        """Number of a pool's replica among those of all pools."""
        return replica + place * self.pools[0].num_replicas

    def find_replica(self, number: int) -> tuple[int, int]:
        """Find the place of the pool and the replica in it, by the number among those
        of all pools.
        """
        place = int(number >= self.pools[0].num_replicas)
        return place, number - place * self.pools[0].num_replicas


def _start_feed(trace: RequestTrace, ingress_delay_s: float) -> Records:
    feed = make_records(Feed)[()]
    feed.is_closed = trace.concurrency is not None
    feed.ingress_delay_s, feed.send_s = ingress_delay_s, trace.send_s
    first = trace.arrival_s[: trace.concurrency or 0]
    feed.sent_s = first.max(initial=0.0) if trace.start == "at_once" else 0.0
    feed.num_requests, feed.chosen = trace.num_requests, -1
    return feed


# Looks at a pool when the replica of it that has taken most steps has taken some number.


class StepLooks:
    """Numbers of steps that somebody waits for; at most one of each pool."""

    def __init__(self, state: LoopState, instants: Instants) -> None:
        """Begin with none."""
        self._state, self._instants = state, instants
        self._waits: dict[int, Event] = {}
        """Event of each pool that is looked at, by its place; its value is the time."""

    def count(self, place: int) -> int:
        """Count the steps of the replica of a pool that has taken most."""
        return int(self._state.pools[place].ranks.counts.num_steps.max())

    def wait_for(self, place: int, num_steps: int) -> Event:
        """Make the event of a pool's replica that has taken more steps than any so far."""
        self._state.pools[place].ranks.counts.look_steps[:] = num_steps
        event = self._waits[place] = Event(self._instants.env)
        return event

    def reach(self) -> float:
        """Let the event happen that the loop has stopped for. Returns its time."""
        place, _ = self._state.find_replica(int(self._state.feed.asks))
        at_s = float(self._state.feed.stopped_s)
        self._state.pools[place].ranks.counts.look_steps[:] = NEVER
        event = self._waits.pop(place)
        instant = self._instants.wait_until(at_s, CHANGE)
        instant.callbacks = [event.trigger]
        return at_s
