"""Failures of GPUs during a run, and recoveries of their replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from simpy.events import ProcessGenerator

from simulator.engine.changes import (
    Changed,
    Kind,
    forget_tokens,
    halt_replica,
    lose_groups,
    lose_requests,
    send_again,
    stop_replica,
    undo_formed,
    withdraw_requests,
)
from simulator.engine.instants import AGAIN, CHANGE
from simulator.engine.outages import Outages
from simulator.engine.run import Run
from simulator.engine.shrunk import RanksLeft, count_loaded_bytes, place_on_left
from simulator.engine.state import Ints
from simulator.policies.failure_contracts import find_interruption
from simulator.policies.failures import Change

Flags = NDArray[np.bool_]


class _Became(NamedTuple):
    """New state of a replica."""

    kind: Kind
    num_gpus: int
    """GPUs that it serves with."""
    interrupted_s: float = 0.0
    """Seconds until it does."""


class Failing:
    """Failures of a deployment, in all pools."""

    def __init__(self, run: Run) -> None:
        """Begin with all GPUs at work."""
        self._run, self._state = run, run.state
        self._outages = [Outages(pool.plan) for pool in self._state.pools]
        self._noticed_s: dict[tuple[int, int], float] = {}
        """Time at which the latest failure of a replica is noticed, by place and replica."""
        self._num_hangs: Counter[tuple[int, int]] = Counter()
        """Failures of a replica that are not noticed yet, by place and replica."""
        self._announced: set[tuple[int, int, tuple[int, ...]]] = set()
        """Failures that are announced, by place, replica and GPUs."""
        self._evacuating: set[tuple[int, int]] = set()
        """Replicas that get no requests until an announced failure, by place and replica."""
        self.changed: list[Changed] = []
        self._waits_to_send: list[tuple[int, list[int]]] = []
        """Numbers of requests that replicas gave back at this instant, by place of their pool."""

    def is_broken(self, place: int, replica: int) -> bool:
        """Whether GPUs of a replica are out of work."""
        return bool(self._outages[place].find_lost(replica).any())

    def is_announced(self, place: int, replica: int) -> bool:
        """Whether a failure of a replica is announced."""
        return any(key[:2] == (place, replica) for key in self._announced)

    def keep_drained(self, place: int, replica: int) -> None:
        """Leave a replica drained whatever becomes of the failure that was announced."""
        self._evacuating.discard((place, replica))

    def begin(self, place: int, replica: int, at_s: float) -> None:
        """Let a replica that has started serve, unless a failure of it is announced."""
        self._state.pools[place].clock.counts.is_gone[replica] = 0
        if self.is_announced(place, replica):
            self._evacuate(place, replica, at_s)

    def follow(self, changes: Iterator[Change]) -> ProcessGenerator:
        """Apply a failure policy's changes: failures when they are noticed, and repairs when ranks
        have started.
        """
        for change in changes:
            yield self._run.instants.wait_until(change.at_s, CHANGE)
            if change.at_s > self._run.until_s:
                return
            self._run.run_ahead(change.at_s)
            place = self._state.names.index(change.pool)
            policy = self._state.pools[place].plan.serving.recovery
            if change.is_notice:
                self._announce(change, place)
                continue
            if change.starts:
                keys = [(place, replica) for replica in change.replicas]
                from_s = max([change.at_s, *(self._noticed_s.get(key, 0.0) for key in keys)])
                # Where no replica is held on them, nothing starts on repaired GPUs.
                held = self._state.pools[place].is_ready[list(change.replicas)]
                then_s = from_s + policy.startup_s * bool(held.any())
            else:
                then_s = change.at_s + policy.detection_s
                self._fail(change, place, then_s)
            if then_s == change.at_s:
                self._apply(change, place, change.at_s)
            else:
                self._run.instants.env.process(self._apply_later(change, place, then_s))

    def _announce(self, change: Change, place: int) -> None:
        """Send no more requests to replicas of which GPUs will fail, nor to those that start before
        that.
        """
        clock = self._state.pools[place].clock
        for replica in change.replicas:
            if not self._hits_living(change, place, replica):
                continue
            self._announced.add((place, replica, change.gpus))
            if not (clock.counts.is_gone[replica, 0] or clock.counts.is_draining[replica, 0]):
                self._evacuate(place, replica, change.at_s)
        self._state.balance_again(place)
        self._run.scale_soon()

    def _evacuate(self, place: int, replica: int, at_s: float) -> None:
        pool = self._state.pools[place]
        self._evacuating.add((place, replica))
        pool.clock.counts.is_draining[replica] = 1
        self._note(_Became("evacuates", pool.count_gpus(replica)), place, at_s, {replica: _none()})

    def _apply_later(self, change: Change, place: int, at_s: float) -> ProcessGenerator:
        yield self._run.instants.wait_until(at_s, CHANGE)
        if at_s <= self._run.until_s:
            self._run.run_ahead(at_s)
            self._apply(change, place, at_s)

    def _fail(self, change: Change, place: int, noticed_s: float) -> None:
        """Cut the steps of replicas whose GPUs fail, which hang until that is noticed."""
        pool, hung = self._state.pools[place], []
        for replica in change.replicas:
            self._noticed_s[place, replica] = noticed_s
            if pool.clock.counts.is_gone[replica, 0] or not self._hits_living(
                change, place, replica
            ):
                continue
            if self._run.cut_step(place, replica, change.at_s):
                undo_formed(pool, replica)
            number = self._state.number_of(place, replica)
            halt_replica(pool, replica, number, self._state.events)
            pool.clock.counts.is_paused[replica] += 1
            if not self._num_hangs[place, replica]:
                hung.append(replica)
            self._num_hangs[place, replica] += 1
        self._outages[place].apply(change)
        if noticed_s > change.at_s and hung:
            became = _Became("hangs", 0)
            self._note(became, place, change.at_s, dict.fromkeys(hung, _none()))

    def _hits_living(self, change: Change, place: int, replica: int) -> bool:
        """Whether a failure hits a data-parallel group that serves."""
        outages, ranks = self._outages[place], self._state.pools[place].ranks_of(replica)
        groups = outages.find_groups(outages.list_gpus(change, replica))
        return bool((ranks.each.is_lost[groups] == 0).any())

    def _apply(self, change: Change, place: int, at_s: float) -> None:
        """Let replicas stop, shrink, grow or start, as their GPUs are out of work or not: also for
        failures that are noticed with another one.
        """
        if change.starts:
            self._outages[place].apply(change)
        given: dict[_Became, dict[int, Ints]] = {}
        pool = self._state.pools[place]
        for replica in change.replicas:
            num_hangs = 0 if change.starts else self._num_hangs.pop((place, replica), 0)
            if change.starts and self._num_hangs[place, replica]:
                continue  # what has failed meanwhile is noticed first
            pool.clock.counts.is_paused[replica] -= num_hangs
            if not change.starts:
                self._end_notice(change, place, replica)
            found = self._recover(place, replica)
            if found is not None:
                given.setdefault(found[0], {})[replica] = found[1]
            elif num_hangs:
                self._pause(place, replica, 0.0)
        for became, rows_of in given.items():
            self._note(became, place, at_s, rows_of)
            for replica in rows_of if became.kind == "starts" else ():
                self.begin(place, replica, at_s)
        self._state.balance_again(place)
        self._run.scale_soon()

    def _end_notice(self, change: Change, place: int, replica: int) -> None:
        """Send requests again to a replica whose announced failure has come, once it serves."""
        self._announced.discard((place, replica, change.gpus))
        if (place, replica) in self._evacuating and not self.is_announced(place, replica):
            self._evacuating.remove((place, replica))
            self._state.pools[place].clock.counts.is_draining[replica] = 0

    def _note(self, became: _Became, place: int, at_s: float, given_back: dict[int, Ints]) -> None:
        kind, num_gpus, seconds = became
        name = self._state.names[place]
        changed = Changed(at_s, name, kind, given_back, num_gpus, at_s + seconds)
        self.changed.append(changed)
        if not self._waits_to_send:
            send = partial(self._send_again, at_s)
            self._run.instants.call_at(self._run.instants.env.now, AGAIN, send)
        self._waits_to_send.append((place, changed.list_requests()))

    def _recover(self, place: int, replica: int) -> tuple[_Became, Ints] | None:
        """Bring a replica into the state that its GPUs allow. Returns what it became, and the
        requests that it lost; ``None`` where it stays as it is.
        """
        pool = self._state.pools[place]
        clock, ranks = pool.clock_of(replica), pool.ranks_of(replica)
        layout = pool.plan.placement.layout
        lost_D = self._outages[place].find_lost(replica)
        if clock.counts.is_gone[0]:
            if lost_D.any() or not pool.is_ready[replica]:
                return None
            return _Became("starts", layout.num_gpus), _none()
        was_lost_D = ranks.each.is_lost[: layout.attention_dp] == 1
        if (lost_D == was_lost_D).all():
            return None
        states = self._run.replica_states
        before = states.find_left(place, replica)
        placed = place_on_left(pool.plan, before, lost_D) if lost_D.any() else None
        if lost_D.any() and placed is None:
            return _Became("stops", 0), self.stop(place, replica)
        newly_D = lost_D & ~was_lost_D
        rows = lose_groups(pool, replica, newly_D, self._state.events) if newly_D.any() else _none()
        ranks.each.is_lost[: layout.attention_dp] = lost_D
        left = None if placed is None else RanksLeft(np.flatnonzero(~lost_D), placed)
        states.shrink(place, replica, left)
        loaded_bytes = (
            0.0 if left is None else count_loaded_bytes(pool.plan.placement, before, left)
        )
        if not newly_D.any():
            loaded_bytes = 0.0  # ranks that join have loaded theirs before
        seconds = find_interruption(pool.plan.serving.recovery, loaded_bytes)
        self._pause(place, replica, seconds)
        kind: Kind = "shrinks" if newly_D.any() else "grows"
        return _Became(kind, int((~lost_D).sum()) * layout.tp, seconds), rows

    def stop(self, place: int, replica: int) -> Ints:
        """Stop a replica, whose step under way has been cut off before. Returns the requests that
        it had, by their numbers in the trace.
        """
        pool, events = self._state.pools[place], self._state.events
        self._run.replica_states.shrink(place, replica, None)
        halt_replica(pool, replica, self._state.number_of(place, replica), events)
        return stop_replica(pool, replica, events)

    def _pause(self, place: int, replica: int, seconds: float) -> None:
        """Let a replica form steps again after a while, behind the step in flight."""
        self._state.pools[place].clock.counts.is_paused[replica] += 1
        self._run.instants.env.process(self._run.pause(place, replica, seconds))

    def _send_again(self, at_s: float) -> None:
        """Send the given-back requests again, after all changes of this instant."""
        state = self._state
        for place in range(len(state.pools)):
            rows = [row for own, row in self.list_again() if own == place]
            fate = state.pools[place].plan.serving.recovery.requests
            if fate == "lose":
                lose_requests(rows, place, at_s, state)
                continue
            if place == 0:
                withdraw_requests(rows, at_s, state)
            if fate == "retry":
                forget_tokens(rows, state.pools[place])
            send_again(rows, place, at_s, state.events)
        self._waits_to_send.clear()
        self._run.look_soon()

    def list_again(self) -> list[tuple[int, int]]:
        """List the place of the pool and the row of each request that is to be sent again."""
        first = self._state.first.requests.first
        return [(place, r - first) for place, again in self._waits_to_send for r in again]


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)
