"""Serve a trace: SimPy owns virtual time and what changes a deployment, and one compiled loop
everything routine.

At the ``step`` fidelity the loop runs ahead to the next change. Where ranks are simulated it forms
and completes the steps, and SimPy says when they end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray
from simpy.events import Event, EventPriority, ProcessGenerator

from simulator.base.columns import Spool
from simulator.base.progress import CountDone
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.assembly import make_record
from simulator.engine.by_ranks import ByRanks, read_batches
from simulator.engine.changes import Changed, apply_change, cut_row, send_again
from simulator.engine.events import ENDS, code_of, push_event, remove_events
from simulator.engine.fabric import FluidWires
from simulator.engine.limits import make_limits
from simulator.engine.loop_state import LoopState
from simulator.engine.message import MessageWires
from simulator.engine.pool import PoolState
from simulator.engine.replicas import (
    ASKS,
    DONE,
    PRICE_WANTED,
    STEP_FORMED,
    USED_UP,
    next_event,
    run_ahead,
)
from simulator.engine.request_rows import read_requests
from simulator.engine.served import Rows, Served
from simulator.engine.step_log import POOL, REPLICA
from simulator.engine.step_price import price_step
from simulator.engine.step_rows import StepLog, read_steps
from simulator.engine.table import StepTable, empty_table, fill_entry, start_table
from simulator.engine.windows import count_settled
from simulator.policies.failures import Change
from simulator.results.tables import DeploymentRecord
from simulator.workload.traces import RequestTrace

Fidelity = Literal["step", "rank", "message"]
MakeTable = Callable[[PoolState, str], StepTable]
"""Starts a pool's table; entries that it lacks are filled with the random numbers of the stream."""
STREAMS = {"both": "steps", "decode": "steps", "prefill": "prefill steps"}
"""Names of the random numbers of each pool's steps."""
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
    timeline = _Timeline(LoopState(plan, trace, pools, tables, way_s), pools, by_ranks, progress)
    timeline.run(math.inf if until is None else until)
    rows = timeline.close()
    return Served(plan, pools, by_ranks, rows, way_s, tuple(timeline.changed), until)


def _start_pools(plan: DeploymentPlan, trace: RequestTrace) -> dict[str, PoolState]:
    if plan.prefill is None:
        return {"both": PoolState(plan, trace)}
    # Nothing but decodes comes to the decode pool; what is preempted is computed again there.
    limits = make_limits(plan, trace)
    rules = limits.rules._replace(mixes_phases=True, balance_steps=0, wait_steps=0)
    limits = limits._replace(rules=rules, prefix_tokens=0, prefix_blocks=0)
    prompts = replace(trace, num_output=np.broadcast_to(np.int64(1), trace.num_output.shape))
    hands_over = make_limits(plan.prefill, prompts)._replace(hands_over=True)
    decode = PoolState(plan, trace, limits, "balancing decodes")
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
        state: LoopState,
        pools: dict[str, PoolState],
        by_ranks: dict[str, ByRanks],
        progress: CountDone,
    ) -> None:
        # As a float, for compiled code would be compiled once more for whole numbers.
        self._env = simpy.Environment(initial_time=0.0)
        self._state, self._pools, self._progress = state, pools, progress
        self._by_ranks = [by_ranks[name] for name in state.names if name in by_ranks]
        self._log = StepLog(self._put_away)
        self._rows = Rows(Spool(), Spool(), Spool())
        self._looks_s: set[float] = set()
        """When the loop is looked at, as far as that is known."""
        self._under_way: dict[int, _UnderWay] = {}
        """By number of the replica in all pools, where ranks are simulated."""
        self._num_cut = 0
        """Steps that were cut off, and whose ranks SimPy still follows to their end."""
        self.changed: list[Changed] = []
        self._waits_to_send: list[tuple[int, list[int]]] = []
        """Numbers of requests that replicas gave back at this instant, by place of their pool."""
        self._until_s = math.inf

    def run(self, until_s: float) -> None:
        """Let everything happen up to ``until_s``, that instant included."""
        self._until_s = until_s
        for changes in self._state.plan.list_failures():
            self._env.process(self._follow(changes))
        if self._by_ranks:
            self._look_at(0.0)
        while not self._state.is_done:
            next_s = min(self._env.peek(), until_s)
            if not self._by_ranks:
                self._run_ahead(next_s)
            if self._state.is_done or next_s == math.inf or self._env.peek() > until_s:
                break
            self._env.step()
        if not self._state.is_done:
            for place, pool in enumerate(self._state.pools):
                for replica in range(pool.num_replicas):
                    self._cut_step(place, replica, until_s)
        while self._num_cut:
            self._env.step()

    def close(self) -> Rows:
        """Put away all that is left."""
        self._log.end()
        while self._state.num_read < self._state.trace.num_requests:
            self._put_requests_away(self._read_requests())
            self._state.move_window(self._state.num_rows)
        self._rows.requests.add(self._read_requests)
        return self._rows

    def _read_requests(self) -> pd.DataFrame:
        state = self._state
        return read_requests(state.plan, state.trace, self._pools, state.way_s)

    def _put_requests_away(self, requests: pd.DataFrame) -> None:
        self._rows.requests.add(lambda: requests)

    def _put_away(self, log: list[NDArray[np.float64]]) -> None:
        """Make tables of parts of the log."""
        read = cache(partial(read_steps, log, self._pools))
        self._rows.steps.add(lambda: read()[0])
        self._rows.costs.add(lambda: read()[1])

    def _follow(self, changes: Iterator[Change]) -> ProcessGenerator:
        """Let what a policy says happen when it says it."""
        for change in changes:
            yield self._make_event(change.at_s, _CHANGE)
            if change.at_s > self._until_s:
                return
            self._run_ahead(change.at_s)
            place = self._state.names.index(change.pool)
            if not change.starts:
                for replica in change.replicas:
                    self._cut_step(place, replica, change.at_s)
            state = self._state
            self.changed.append(apply_change(change, place, state.pools, state.events))
            state.balance_again(place)
            if not self._waits_to_send:
                event = self._make_event(self._env.now, _AGAIN)
                event.callbacks = [partial(self._send_again, at_s=change.at_s)]
            self._waits_to_send.append((place, self.changed[-1].again))

    def _send_again(self, _: Event, at_s: float) -> None:
        """All that changes at this instant has changed."""
        for place in range(len(self._state.pools)):
            rows = [row for own, row in self._list_again() if own == place]
            send_again(rows, place, at_s, self._state.events)
        self._waits_to_send.clear()
        if self._by_ranks:
            self._look_at(self._env.now)

    def _list_again(self) -> list[tuple[int, int]]:
        """Place of the pool and row of each request that is to be sent again."""
        first = self._state.first.requests.first
        return [(place, r - first) for place, again in self._waits_to_send for r in again]

    def _cut_step(self, place: int, replica: int, at_s: float) -> None:
        """End the step that a replica has under way; no token comes of it."""
        number = self._state.number_of(place, replica)
        if self._by_ranks:
            if number in self._under_way:
                self._under_way.pop(number).cut_s = at_s
                self._num_cut += 1
            return
        if remove_events(self._state.events, [code_of(ENDS, number)]):
            cut_row(self._log.find_row(place, replica), at_s)

    def _run_ahead(self, until_s: float) -> None:
        why, log, state = -1, self._log, self._state
        while why != DONE:
            why, log.num_taken = run_ahead(
                state.events,
                state.feed,
                state.first,
                state.handing,
                until_s,
                log.rows,
                log.num_taken,
                not self._by_ranks,
            )
            if why == ASKS:
                state.feed.chosen[0] = state.pools[state.feed.asks[0]].choose()
                continue
            if why == USED_UP:
                self._move_window()
            if why == PRICE_WANTED:
                self._price_step(int(state.feed.asks[0]))
            if why == STEP_FORMED:
                self._env.process(self._take_step(log.rows[log.num_taken - 1]))
            if log.is_full:
                self._start_log()
            if why != STEP_FORMED:
                self._progress(int(state.feed.num_done[0]))

    def _move_window(self) -> None:
        """Put away the first requests that are settled, and go on with the next of the trace."""
        state, requests = self._state, self._read_requests()
        again = [row for _, row in self._list_again()]
        count = count_settled(requests, state.pools, state.events, again)
        if count:
            self._put_requests_away(requests.iloc[:count])
        state.move_window(count)

    def _price_step(self, number: int) -> None:
        """Price the step that a replica has formed, filling the entries that the table lacks."""
        state = self._state
        place, replica = state.find_replica(number)
        pool = state.pools[place]
        table = state.handing.pool.table if state.handing and place else state.first.table
        row = self._log.rows[pool.clock.last_row[replica, 0]]
        while np.isnan(row[1]):
            fill_entry(table, pool.prices, STREAMS[state.names[place]], *table.wanted.tolist())
            row[1] = price_step(pool.requests, pool.ranks_of(replica), table, row[:POOL])
        push_event(state.events, row[0] + row[1], code_of(ENDS, number))

    def _start_log(self) -> None:
        """Go on with another part of the log."""
        state = self._state
        next_s, _code = next_event(state.events, state.feed, state.first.requests.times)
        self._log.go_on(next_s)
        for pool in state.pools:
            pool.clock.run_row[:] = pool.clock.last_row[:] = -1

    def _take_step(self, row: NDArray[np.float64]) -> ProcessGenerator:
        """A formed step at a fidelity that simulates ranks."""
        place, replica = int(row[POOL]), int(row[REPLICA])
        pool, number = self._state.pools[place], self._state.number_of(place, replica)
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
        push_event(self._state.events, self._env.now, code_of(ENDS, number))
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
        state = self._state
        next_s, _code = next_event(state.events, state.feed, state.first.requests.times)
        if next_s < math.inf:
            self._look_at(next_s)
