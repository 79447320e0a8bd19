"""Timeline of a run: SimPy owns virtual time and the changes of a deployment, and one compiled loop
does everything routine.

At the ``step`` fidelity the loop runs ahead to the next change. Where ranks are simulated it forms
and completes the steps, and SimPy times them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from simpy.events import Event, Process, ProcessGenerator

from simulator.base.columns import Spool
from simulator.base.progress import CountDone
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.assembly import make_record
from simulator.engine.audit import Audit
from simulator.engine.by_ranks import (
    ByRanks,
    Fidelity,
    StepUnderWay,
    read_batches,
    start_ranks_of,
)
from simulator.engine.carried_caches import CarriedCaches
from simulator.engine.changes import Changed, cut_row
from simulator.engine.degrading import degrade
from simulator.engine.events import ENDS, FORMS, code_of, find_event, push_event, remove_events
from simulator.engine.failing import Failing
from simulator.engine.instants import CHANGE, Instants
from simulator.engine.loop_state import LoopState
from simulator.engine.moving_experts import MovingExperts
from simulator.engine.overflow_samples import count_formed_step
from simulator.engine.pool import PoolState, start_pools
from simulator.engine.rebalances import rebalance
from simulator.engine.replica_states import ReplicaStates
from simulator.engine.replicas import (
    ASKS,
    CACHE_LEAVES,
    DONE,
    DRAINED,
    LOOKS,
    PRICE_WANTED,
    STEP_FORMED,
    USED_UP,
    next_event,
    run_ahead,
)
from simulator.engine.request_rows import read_requests
from simulator.engine.scaling import Scaling, leave_drained
from simulator.engine.sending import form_soon
from simulator.engine.served import Rows, Served
from simulator.engine.shared_wires import SharedWires
from simulator.engine.step_log import POOL, REPLICA
from simulator.engine.step_looks import StepLooks
from simulator.engine.step_price import count_profiles, price_step
from simulator.engine.step_rows import StepLog, read_steps
from simulator.engine.table import StepTable, empty_table, fill_entry, start_table
from simulator.engine.windows import count_settled
from simulator.policies.contracts import list_looks
from simulator.policies.scaling_contracts import scales
from simulator.results.tables import DeploymentRecord, ExpertsMoved
from simulator.workload.traces import RequestTrace

MakeTable = Callable[[PoolState, str], StepTable]
"""Factory of a pool's table; entries that it lacks are filled with the random numbers of the named
stream."""
STREAMS = {"both": "steps", "decode": "steps", "prefill": "prefill steps"}
"""Names of the random streams of each pool's steps."""


def run_plan(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: Fidelity = "step",
    progress: CountDone = lambda _: None,
    fill: MakeTable = lambda pool, _: start_table(pool.mixes),
) -> DeploymentRecord:
    """Serve the whole trace and return a record of the run, with steps of each kind shown.

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
    fill: MakeTable = lambda pool, _: start_table(pool.mixes),
    ingress_delay_s: float | None = None,
    until: float | None = None,
    keeps_steps: bool = True,
) -> Served:
    """Serve a trace on all replicas of all pools, which may stop and start as the plan's failures
    have it.

    Args:
        progress: told how many requests are done, some ten times a second.
        fill: makes the tables of the ``step`` fidelity, once more when experts have moved; may
            return what it returned before for a plan that differs in its replicas only.
        ingress_delay_s: seconds from the client to the scheduler; by default the
            calibration's.
        until: seconds since the first arrival after which nothing happens any more, and what is
            under way is cut off; by default until all is done.
        keeps_steps: whether the tables of steps are made, most of the memory of a long run.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    pools = start_pools(plan, trace)
    if ingress_delay_s is None:
        ingress_delay_s = (plan.prefill or plan).placement.calibration.engine.first_token_s
    tables: dict[str, StepTable] = {}
    by_ranks: dict[str, ByRanks] = {}
    for name, pool in pools.items():
        if fidelity == "step":
            tables[name] = fill(pool, STREAMS[name])
        else:
            tables[name] = empty_table()
            by_ranks[name] = start_ranks_of(pool, fidelity, STREAMS[name])
    state = LoopState(plan, trace, pools, tables, ingress_delay_s, fidelity != "step")
    timeline = _Timeline(state, pools, by_ranks, fill, progress, fidelity, keeps_steps)
    timeline.run(math.inf if until is None else until)
    rows = timeline.close()
    changes = timeline.changed, tuple(timeline.rebalances), until
    audits = tuple(audit.report() for audit in timeline.audits)
    timeline.forget()
    return Served(plan, trace, pools, by_ranks, rows, ingress_delay_s, *changes, audits)


class _Timeline:
    """One run: the compiled loop, and SimPy for changes and where ranks are simulated."""

    def __init__(
        self,
        state: LoopState,
        pools: dict[str, PoolState],
        by_ranks: dict[str, ByRanks],
        fill: MakeTable,
        progress: CountDone,
        fidelity: Fidelity,
        keeps_steps: bool,
    ) -> None:
        self._keeps_steps = keeps_steps
        self.instants = Instants()
        self._env = self.instants.env
        self.state, self._pools = state, pools
        self._fill, self._progress = fill, progress
        self._by_ranks = [by_ranks[name] for name in state.names if name in by_ranks]
        self.log = StepLog(self._put_away)
        self._rows = Rows(Spool(), Spool(), Spool())
        self._under_way: dict[int, StepUnderWay] = {}
        """Steps in flight by number of the replica in all pools, where ranks are simulated."""
        self._num_cut = 0
        """Number of steps that were cut short, and whose ranks SimPy still follows to their end."""
        self.wires = None
        if fidelity != "step":
            self.wires = SharedWires(self._env, state, fidelity)
            self._caches = CarriedCaches(self, self.wires)
            for place, executor in enumerate(self._by_ranks):
                executor.find_wires = partial(self.wires.find, place)
        self.replica_states = ReplicaStates(state, self._by_ranks, fidelity)
        self.step_looks = StepLooks(state, self.instants)
        self._failing = Failing(self)
        self._scaling = {
            place: Scaling(self, self._failing, place)
            for place, pool in enumerate(state.pools)
            if scales(pool.plan.serving.scaling, pool.num_replicas)
        }
        self.rebalances: list[ExpertsMoved] = []
        self.audits = [Audit(n, one, self.replica_states) for n, one in enumerate(state.pools)]
        self.until_s = math.inf

    @property
    def changed(self) -> tuple[Changed, ...]:
        """Changes of replicas so far."""
        return tuple(self._failing.changed)

    def run(self, until_s: float) -> None:
        """Let everything happen up to ``until_s``, that instant included."""
        self.until_s = until_s
        self.replica_states.degrade_all(0.0)
        if times := self.replica_states.list_instants():
            self._env.process(degrade(self, times))
        for changes in self.state.plan.list_failures():
            self._env.process(self._failing.follow(changes))
        for place, pool in enumerate(self.state.pools):
            looks = list_looks(pool.plan.serving.rebalancing)
            first_s = next(looks, None)
            if first_s is not None:
                by_ranks = self._by_ranks[place] if self._by_ranks else None
                fill = partial(self._fill, pool, STREAMS[self.state.names[place]])
                kept = self.replica_states, fill, self.rebalances
                experts = MovingExperts(self.state, place, by_ranks, *kept)
                self._env.process(rebalance(self, place, experts, chain([first_s], looks)))
        for scaling in self._scaling.values():
            self._env.process(scaling.follow())
        if self._by_ranks:
            self._look_at(0.0)
        while not self.state.is_done:
            if not self._by_ranks:
                self.run_ahead(min(self._env.peek(), until_s))
                if self.state.is_done:
                    break
            next_s = self._env.peek()  # of a replica that has drained meanwhile, perhaps
            if next_s == math.inf or next_s > until_s:
                break
            self._env.step()
        if not self.state.is_done:
            for place, pool in enumerate(self.state.pools):
                for replica in range(pool.num_replicas):
                    self.cut_step(place, replica, until_s)
        while self._num_cut:
            self._env.step()

    def close(self) -> Rows:
        """Store all rows that are left."""
        self.log.end()
        while self.state.num_read < self.state.trace.num_requests:
            self._put_requests_away(self._read_requests())
            self.state.move_window(self.state.num_rows)
        state = self.state
        args = state.plan, state.trace, self._pools, state.ingress_delay_s
        self._rows.requests.add(lambda: read_requests(*args))
        return self._rows

    def forget(self) -> None:
        """Let go of everything that refers back to this run, whose arrays would stay in memory
        until Python looks for cycles: gigabytes of the many short runs of a search.
        """
        self.__dict__.clear()

    def _read_requests(self) -> pd.DataFrame:
        state = self.state
        return read_requests(state.plan, state.trace, self._pools, state.ingress_delay_s)

    def _put_requests_away(self, requests: pd.DataFrame) -> None:
        self._rows.requests.add(lambda: requests)

    def _put_away(self, log: list[NDArray[np.float64]]) -> None:
        """Make tables of parts of the log."""
        if not self._keeps_steps:
            return
        read = cache(partial(read_steps, log, self._pools))
        self._rows.steps.add(lambda: read()[0])
        self._rows.costs.add(lambda: read()[1])

    def pause_all(self, place: int, seconds: float) -> list[Process]:
        """Pause all replicas of a pool while their experts move."""
        moving = list(self.replica_states.list_placements(place))
        self.state.pools[place].clock.counts.is_paused[moving] += 1
        return [self._env.process(self.pause(place, replica, seconds)) for replica in moving]

    def pause(self, place: int, replica: int, seconds: float) -> ProcessGenerator:
        """Keep a replica from forming steps for a while, behind its step in flight: until when."""
        state, number = self.state, self.state.number_of(place, replica)
        if number in self._under_way:
            yield self._under_way[number].ended
        begin_s = find_event(state.events, code_of(ENDS, number)) or self._env.now
        yield self.instants.wait_until(begin_s + seconds, CHANGE)
        now_s = max(begin_s + seconds, self._env.now)
        self.run_ahead(now_s)
        clock = state.pools[place].clock
        clock.counts.is_paused[replica] -= 1
        form_soon(state.events, clock, replica, number, now_s, FORMS)
        if self._by_ranks:
            self._look_at(now_s)
        return now_s

    def cut_step(self, place: int, replica: int, at_s: float) -> bool:
        """Cut a replica's step in flight short. Returns whether there was one."""
        number = self.state.number_of(place, replica)
        if self.wires is not None:
            if number not in self._under_way:
                return False
            self._under_way.pop(number).cut_s = at_s
            self.wires.leave(place, replica)
            self._num_cut += 1
            return True
        was_there = remove_events(self.state.events, [code_of(ENDS, number)]) > 0
        if was_there:
            clock = self.state.pools[place].clock_of(replica)
            cut_row(self.log.rows[clock.counts.last_row[0]], at_s)
        return was_there

    def run_ahead(self, until_s: float) -> None:
        """Let everything happen up to a time, that instant included."""
        why, log, state = -1, self.log, self.state
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
                place, row = state.feed.asks.tolist()
                state.feed.chosen[0] = state.pools[place].choose(row)
                continue
            if why == USED_UP:
                self._move_window()
            if why == DRAINED:
                until_s = min(until_s, leave_drained(self._scaling, state))
            if why == LOOKS:
                until_s = min(until_s, self.step_looks.reach())
            if why == PRICE_WANTED:
                self._price_step(int(state.feed.asks[0]))
            if why == CACHE_LEAVES:
                self._caches.send(int(state.feed.asks[0]))
            if why == STEP_FORMED:
                self._env.process(self._take_step(log.rows[log.num_taken - 1]))
            if log.is_full:
                log.go_on(self._find_next(), [pool.clock for pool in state.pools])
            if why not in (STEP_FORMED, CACHE_LEAVES):
                self._progress(int(state.feed.num_done[0]))

    def _move_window(self) -> None:
        """Store the first requests that are settled, and go on with the next of the trace."""
        state, requests = self.state, self._read_requests()
        again = [row for _, row in self._failing.list_again()]
        count = count_settled(requests, state.pools, state.events, again)
        if count:
            self._put_requests_away(requests.iloc[:count])
        state.move_window(count)

    def _price_step(self, number: int) -> None:
        """Price the step that a replica has formed, filling the entries that the table lacks."""
        state = self.state
        place, replica = state.find_replica(number)
        pool = state.pools[place]
        row = self.log.rows[pool.clock.counts.last_row[replica, 0]]
        own = self.replica_states.find(place, replica)
        mixes, z = (own.mixes, own.number) if own else (pool.mixes, 0)
        table, ranks = state.pool_at(place).table, pool.ranks_of(replica)
        while np.isnan(row[1]):
            fill_entry(table, mixes, STREAMS[state.names[place]], *table.wanted.tolist())
            row[1] = price_step(pool.requests, ranks, table, z, row[:POOL])
        count_profiles(table)
        self.audits[place].look_at(replica, row[1], table.factor)
        if own is None:
            count_formed_step(pool, replica)
        push_event(state.events, row[0] + row[1], code_of(ENDS, number))

    def _find_next(self) -> float:
        state = self.state
        return float(next_event(state.events, state.feed, state.first.requests.each)[0])

    def _take_step(self, row: NDArray[np.float64]) -> ProcessGenerator:
        """Execute a formed step at a fidelity that simulates ranks."""
        place, replica = int(row[POOL]), int(row[REPLICA])
        pool, number = self.state.pools[place], self.state.number_of(place, replica)
        step = self._under_way[number] = StepUnderWay(row, Event(self._env))
        executor, ranks = self._by_ranks[place], pool.ranks_of(replica)
        own = self.replica_states.find(place, replica)
        if own is not None and own.by_ranks is not None:
            executor = own.by_ranks
            ranks = ranks if own.left is None else own.left.select_ranks(ranks)
        taken = yield from executor.take_step(
            self._env,
            replica,
            int(pool.clock.counts.num_steps[replica, 0]) - 1,
            read_batches(pool.requests, ranks),
            row[:POOL],
        )
        if step.ended.callbacks:
            step.ended.succeed()
        if step.cut_s is not None:
            cut_row(row, step.cut_s)
            self._num_cut -= 1
            return
        del self._under_way[number]
        if own is None or own.left is None:  # figures show whole replicas
            self._by_ranks[place].taken.add(taken)
        push_event(self.state.events, self._env.now, code_of(ENDS, number))
        self._look_at(self._env.now)

    def scale_soon(self) -> None:
        """Launch and drain replicas at this instant once all has changed."""
        for scaling in self._scaling.values():
            scaling.adjust_soon()

    def look_soon(self) -> None:
        """Go on at this instant once all has changed."""
        if self._by_ranks:
            self._look_at(self._env.now)

    def _look_at(self, at_s: float) -> None:
        """Run ahead at a time, after everything else at that instant."""
        self.instants.look_at(at_s, self._look)

    def _look(self, at_s: float) -> None:
        if self._env.now > self.until_s:
            return
        # An event may come a rounding error before its time.
        self.run_ahead(max(at_s, self._env.now))
        next_s = self._find_next()
        if next_s < math.inf and not self.state.is_done:
            self._look_at(next_s)
