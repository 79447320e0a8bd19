"""Serve a trace: SimPy owns virtual time and what changes a deployment, and one compiled loop
everything routine.

At the ``step`` fidelity the loop runs ahead to the next change. Where ranks are simulated it forms
and completes the steps, and SimPy says when they end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, EventPriority, ProcessGenerator

from simulator.base.progress import CountDone
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.assembly import make_record
from simulator.engine.by_ranks import ByRanks, read_batches
from simulator.engine.changes import Changed, apply_change, cut_row, send_again
from simulator.engine.events import ENDS, code_of, push_event, remove_events, start_events
from simulator.engine.fabric import FluidWires
from simulator.engine.hand_over import HandOver
from simulator.engine.limits import make_limits
from simulator.engine.message import MessageWires
from simulator.engine.pool import PoolState
from simulator.engine.replicas import ASKS, DONE, PRICE_WANTED, STEP_FORMED, next_event, run_ahead
from simulator.engine.sending import Feed
from simulator.engine.served import Served
from simulator.engine.step_log import NUM_COLUMNS, POOL, REPLICA
from simulator.engine.step_price import price_step
from simulator.engine.table import StepTable, empty_table, fill_entry, start_table
from simulator.engine.transfers import start_transfers
from simulator.policies.failures import Change
from simulator.results.tables import DeploymentRecord
from simulator.workload.traces import RequestTrace

Fidelity = Literal["step", "rank", "message"]
MakeTable = Callable[[PoolState, str], StepTable]
"""Starts a pool's table; entries that it lacks are filled with the random numbers of the stream."""
_POOLS: tuple[str, ...] = ("both", "prefill", "decode")
"""Names of pools, that which requests come to first before the other."""
STREAMS = {"both": "steps", "decode": "steps", "prefill": "prefill steps"}
"""Names of the random numbers of each pool's steps."""
_LOG_ROWS = 8192
_LAST, _CHANGE, _AGAIN = EventPriority(2), EventPriority(3), EventPriority(4)
"""Behind everything else that SimPy does at an instant, so that all steps that end then have ended;
behind that, where something changes; and when all of that instant has changed."""


def run_plan(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity = "step",
    progress: CountDone = lambda _: None,
    fill: MakeTable = lambda pool, _: start_table(pool.prices),
) -> DeploymentRecord:
    """Serve the whole trace and return what happened, with steps of each kind shown.

    Args:
        fill: makes the tables of the ``step`` fidelity, such as slower ones.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    return make_record(serve(plan, trace, fidelity, progress=progress, fill=fill))


def serve(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity = "step",
    *,
    progress: CountDone = lambda _: None,
    fill: MakeTable = lambda pool, _: start_table(pool.prices),
    way_s: float | None = None,
    until: float | None = None,
) -> Served:
    """Serve a trace on all replicas of all pools, which may stop and start as the plan's failures
    have it.

    Args:
        progress: told how many requests are done, some ten times a second.
        fill: makes the tables of the ``step`` fidelity; may return what it returned before for a
            plan that differs in its replicas only.
        way_s: seconds from the client to the scheduler; by default what the calibration says.
        until: seconds since the first arrival after which nothing happens any more, and what is
            under way is cut off; by default until all is done.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    pools = _start_pools(plan, trace)
    if way_s is None:
        way_s = (plan.prefill or plan).placement.calibration.engine.first_token_s
    tables: dict[str, StepTable] = {}
    by_ranks: dict[str, ByRanks] = {}
    for name, pool in pools.items():
        if fidelity == "step":
            tables[name] = fill(pool, STREAMS[name])
        else:
            tables[name] = empty_table()
            by_ranks[name] = _make_by_ranks(pool, fidelity, STREAMS[name])
    timeline = _Timeline(plan, trace, pools, tables, by_ranks, way_s, progress)
    timeline.run(math.inf if until is None else until)
    return Served(
        plan, trace, pools, by_ranks, timeline.log(), way_s, tuple(timeline.changed), until
    )


def _start_pools(plan: DeploymentPlan, trace: RequestTrace) -> dict[str, PoolState]:
    if plan.prefill is None:
        return {"both": PoolState(plan, trace)}
    # Nothing but decodes comes to the decode pool; what is preempted is computed again there.
    limits = make_limits(plan, trace)
    rules = limits.rules._replace(mixes_phases=True, balance_steps=0, wait_steps=0)
    limits = limits._replace(rules=rules, prefix_tokens=0, prefix_blocks=0)
    prompts = replace(trace, num_output=np.ones_like(trace.num_output))
    hands_over = make_limits(plan.prefill, prompts)._replace(hands_over=True)
    decode = PoolState(plan, trace, limits, "balancing decodes")
    decode.requests.arrival_s[:] = np.nan  # those of caches
    return {"decode": decode, "prefill": PoolState(plan.prefill, prompts, hands_over)}


def _make_by_ranks(pool: PoolState, fidelity: Fidelity, stream: str) -> ByRanks:
    make_messages = partial(MessageWires, fabric=pool.plan.placement.fabric)
    return ByRanks(pool.prices, FluidWires if fidelity == "rank" else make_messages, stream)


@dataclass
class _UnderWay:
    """A step of a fidelity that simulates ranks."""

    row: NDArray[np.float64]
    cut_s: float | None = None
    """When its replica stopped."""


class _Timeline:
    """One run: the compiled loop, and SimPy for changes and where ranks are simulated."""

    def __init__(
        self,
        plan: DeploymentPlan,
        trace: RequestTrace,
        pools: dict[str, PoolState],
        tables: dict[str, StepTable],
        by_ranks: dict[str, ByRanks],
        way_s: float,
        progress: CountDone,
    ) -> None:
        # As a float, for compiled code would be compiled once more for whole numbers.
        self._env = simpy.Environment(initial_time=0.0)
        self._plan = plan
        self._names = names = [name for name in _POOLS if name in pools]
        self._pools = [pools[name] for name in names]
        self._by_ranks = [by_ranks[name] for name in names if name in by_ranks]
        self._first = self._pools[0].with_table(tables[names[0]])
        self._handing = self._start_handing(trace, tables)
        self._progress = progress
        num_replicas = sum(pool.num_replicas for pool in self._pools)
        count, concurrency = trace.num_requests, trace.concurrency
        may_return = len(names) > 1 or bool(plan.failures)
        # A request may be about to come to both pools.
        self._events = start_events(2 * num_replicas + count * may_return * len(names) + 1)
        arrival_s = self._first.requests.arrival_s
        if concurrency is not None:
            arrival_s[:] = np.where(np.arange(count) < concurrency, 0.0, np.inf)
        arrival_s += way_s  # at the scheduler; the record says when requests were sent
        self._feed = Feed(
            num_come=np.zeros(1, dtype=np.int64),
            num_released=np.array([count if concurrency is None else min(concurrency, count)]),
            is_closed=concurrency is not None,
            way_s=way_s,
            num_done=np.zeros(1, dtype=np.int64),
            chosen=np.full(1, -1, dtype=np.int64),
            asks=np.zeros(1, dtype=np.int64),
        )
        self._logs: list[NDArray[np.float64]] = []
        self._log = np.empty((_LOG_ROWS, NUM_COLUMNS))
        self._rows = 0
        self._looks_s: set[float] = set()
        """When the loop is looked at, as far as that is known."""
        self._under_way: dict[int, _UnderWay] = {}
        """By number of the replica in all pools, where ranks are simulated."""
        self._num_cut = 0
        """Steps that were cut off, and whose ranks SimPy still follows to their end."""
        self.changed: list[Changed] = []
        self._waits_to_send: list[tuple[int, list[int]]] = []
        """Requests that replicas gave back at this instant, by place of their pool."""
        self._until_s = math.inf

    def _start_handing(self, trace: RequestTrace, tables: dict[str, StepTable]) -> HandOver | None:
        wires, prefill = self._plan.transfer, self._plan.prefill
        if wires is None or prefill is None:
            return None
        pool = self._pools[1].with_table(tables[self._names[1]])
        most_ended = int(self._first.ranks.running[0].size)
        return HandOver(pool, start_transfers(wires, prefill, self._plan, trace, most_ended))

    def run(self, until_s: float) -> None:
        """Let everything happen up to ``until_s``, that instant included."""
        self._until_s = until_s
        for changes in self._plan.list_failures():
            self._env.process(self._follow(changes))
        if self._by_ranks:
            self._look_at(0.0)
        while self._feed.num_done[0] < self._num_requests:
            next_s = min(self._env.peek(), until_s)
            if not self._by_ranks:
                self._run_ahead(next_s)
            is_done = self._feed.num_done[0] == self._num_requests
            if is_done or next_s == math.inf or self._env.peek() > until_s:
                break
            self._env.step()
        if self._feed.num_done[0] < self._num_requests:
            for place, pool in enumerate(self._pools):
                for replica in range(pool.num_replicas):
                    self._cut_step(place, replica, until_s)
        while self._num_cut:
            self._env.step()

    @property
    def _num_requests(self) -> int:
        return len(self._first.requests.times)

    def log(self) -> NDArray[np.float64]:
        """Rows of all steps, those of a replica in order of their start. They are handed out once:
        a long log is not held twice.
        """
        parts = [self._log[: self._rows], *reversed(self._logs)]
        self._logs.clear()
        found = np.empty((sum(map(len, parts)), self._log.shape[1]))
        begin = 0
        while parts:
            part = parts.pop()
            found[begin : begin + len(part)] = part
            begin += len(part)
        return found

    def _follow(self, changes: Iterator[Change]) -> ProcessGenerator:
        """Let what a policy says happen when it says it."""
        for change in changes:
            yield self._make_event(change.at_s, _CHANGE)
            if change.at_s > self._until_s:
                return
            self._run_ahead(change.at_s)
            place = self._names.index(change.pool)
            if not change.starts:
                for replica in change.replicas:
                    self._cut_step(place, replica, change.at_s)
            self.changed.append(apply_change(change, place, self._pools, self._events))
            self._balance_again(place)
            if not self._waits_to_send:
                event = self._make_event(self._env.now, _AGAIN)
                event.callbacks = [partial(self._send_again, at_s=change.at_s)]
            self._waits_to_send.append((place, self.changed[-1].again))

    def _send_again(self, _: Event, at_s: float) -> None:
        """All that changes at this instant has changed."""
        for place in range(len(self._pools)):
            waiting = [r for own, again in self._waits_to_send if own == place for r in again]
            send_again(waiting, place, at_s, self._events)
        self._waits_to_send.clear()
        if self._by_ranks:
            self._look_at(self._env.now)

    def _balance_again(self, place: int) -> None:
        """Replicas of a pool have stopped or started."""
        pool = self._pools[place]
        balance = pool.balance_again()
        if place == 0:
            self._first = self._first._replace(balance=balance)
            return
        assert self._handing is not None
        assert self._plan.transfer is not None
        decode, transfers = self._handing
        receivers = pool.num_living * self._plan.transfer.decode_dp
        self._handing = HandOver(
            decode._replace(balance=balance), transfers._replace(receivers=max(1, receivers))
        )

    def _cut_step(self, place: int, replica: int, at_s: float) -> None:
        """End the step that a replica has under way; no token comes of it."""
        number = self._number_of(place, replica)
        if self._by_ranks:
            if number in self._under_way:
                self._under_way.pop(number).cut_s = at_s
                self._num_cut += 1
            return
        if remove_events(self._events, [code_of(ENDS, number)]):
            cut_row(self._find_row(place, replica), at_s)

    def _find_row(self, place: int, replica: int) -> NDArray[np.float64]:
        """The log row of the latest step of a replica."""
        for log in (self._log[: self._rows], *reversed(self._logs)):
            rows = np.flatnonzero((log[:, POOL] == place) & (log[:, REPLICA] == replica))
            if len(rows):
                found: NDArray[np.float64] = log[rows[-1]]
                return found
        raise ValueError(f"replica {replica} has taken no step")

    def _number_of(self, place: int, replica: int) -> int:
        """Number of a replica among those of all pools."""
        return replica + place * self._pools[0].num_replicas

    def _run_ahead(self, until_s: float) -> None:
        why = -1
        while why != DONE:
            why, self._rows = run_ahead(
                self._events,
                self._feed,
                self._first,
                self._handing,
                until_s,
                self._log,
                self._rows,
                not self._by_ranks,
            )
            if why == ASKS:
                self._feed.chosen[0] = self._pools[self._feed.asks[0]].choose()
                continue
            if why == PRICE_WANTED:
                self._price_step(int(self._feed.asks[0]))
            if why == STEP_FORMED:
                self._env.process(self._take_step(self._log[self._rows - 1]))
            if self._rows == len(self._log):
                self._start_log()
            if why != STEP_FORMED:
                self._progress(int(self._feed.num_done[0]))

    def _price_step(self, number: int) -> None:
        """Price the step that a replica has formed, filling the entries that the table lacks."""
        place = int(number >= self._pools[0].num_replicas)
        pool, replica = self._pools[place], number - place * self._pools[0].num_replicas
        table = self._handing.pool.table if self._handing and place else self._first.table
        row = self._log[pool.clock.last_row[replica, 0]]
        while np.isnan(row[1]):
            fill_entry(table, pool.prices, STREAMS[self._names[place]], *table.wanted.tolist())
            row[1] = price_step(pool.requests, pool.ranks_of(replica), table, row[:POOL])
        push_event(self._events, row[0] + row[1], code_of(ENDS, number))

    def _start_log(self) -> None:
        """Put the full log away, and begin another."""
        self._logs.append(self._log)
        self._log, self._rows = np.empty_like(self._log), 0
        for pool in self._pools:
            pool.clock.run_row[:] = pool.clock.last_row[:] = -1

    def _take_step(self, row: NDArray[np.float64]) -> ProcessGenerator:
        """A formed step at a fidelity that simulates ranks."""
        place, replica = int(row[POOL]), int(row[REPLICA])
        pool, number = self._pools[place], self._number_of(place, replica)
        step = self._under_way[number] = _UnderWay(row)
        taken = yield from self._by_ranks[place].take_step(
            self._env,
            replica,
            int(pool.clock.num_steps[replica, 0]) - 1,
            read_batches(pool.requests, pool.ranks_of(replica)),
            row[:POOL],
        )
        if step.cut_s is not None:
            cut_row(row, step.cut_s)
            self._num_cut -= 1
            return
        del self._under_way[number]
        self._by_ranks[place].taken.add(taken)
        push_event(self._events, self._env.now, code_of(ENDS, number))
        self._look_at(self._env.now)

    def _look_at(self, at_s: float) -> None:
        """Run ahead at a time, when everything else at that instant has happened."""
        if at_s in self._looks_s:
            return
        self._looks_s.add(at_s)
        event = self._make_event(at_s, _LAST)
        event.callbacks = [partial(self._look, at_s=at_s)]

    def _make_event(self, at_s: float, priority: EventPriority) -> Event:
        event = Event(self._env)
        event._ok, event._value = True, None
        self._env.schedule(event, priority=priority, delay=max(0.0, at_s - self._env.now))
        return event

    def _look(self, _: Event, at_s: float) -> None:
        self._looks_s.discard(at_s)
        if self._env.now > self._until_s:
            return
        # An event may come a rounding error before its time.
        self._run_ahead(max(at_s, self._env.now))
        next_s, _code = next_event(self._events, self._feed, self._first.requests.times)
        if next_s < math.inf:
            self._look_at(next_s)
