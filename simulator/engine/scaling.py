"""Scaling of a deployment during a run: replicas that are launched, drain and leave."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from simpy.events import ProcessGenerator

from simulator.engine.changes import Event, Failing, Kind
from simulator.engine.loop_state import AGAIN, CHANGE, LoopState
from simulator.engine.replica_states import Run
from simulator.policies.contracts import decide_replicas, list_looks
from simulator.policies.scaling import PoolLoad


class Scaling:
    """Replicas of one pool, as its scaling policy has them.

    A replica that is held starts, serves, or has stopped and waits for repair; or it drains.
    """

    def __init__(self, run: Run, failing: Failing, place: int) -> None:
        """Begin with as many replicas as the policy begins with.

        Args:
            place: of the pool.
        """
        self._run, self._failing, self._place = run, failing, place
        self._pool = run.state.pools[place]
        serving = self._pool.plan.serving
        self._policy, self._most = serving.scaling, serving.replicas
        self._wanted = serving.first_replicas
        self._launched = dict.fromkeys(range(self._wanted), 0)
        """Number of the launch of each replica that is held, draining ones left out."""
        self._num_launches = 0
        self._loads: list[PoolLoad] = []
        self._is_soon = False

    def follow(self) -> ProcessGenerator:
        """Ask the policy at its times, and launch and drain replicas as it decides."""
        for at_s in list_looks(self._policy):
            yield self._run.instants.wait_until(at_s, CHANGE)
            if at_s > self._run.until_s:
                return
            self._run.run_ahead(at_s)
            self._loads.append(self._measure_load(at_s))
            self._wanted = decide_replicas(self._policy, self._loads, self._most)
            self.adjust_soon()

    def _measure_load(self, at_s: float) -> PoolLoad:
        living = self._pool.list_living()
        serving = living[np.isin(living, list(self._launched))]
        requests, tokens = self._pool.count_outstanding(serving)
        return PoolLoad(
            at_s,
            self._wanted,
            len(serving),
            sum(not self._pool.is_ready[replica] for replica in self._launched),
            int(requests.sum()),
            int(tokens.sum()),
        )

    def adjust_soon(self) -> None:
        """Launch and drain replicas once all of this instant has changed."""
        if not self._is_soon:
            self._is_soon = True
            env = self._run.instants.env
            self._run.instants.call_at(env.now, AGAIN, lambda: self._adjust(env.now))

    def _adjust(self, at_s: float) -> None:
        """Launch replicas where fewer than wanted serve or start, as long as GPUs are free, and let
        some leave or drain where there are more.
        """
        self._is_soon = False
        if self._run.state.is_done:
            return
        counts = self._pool.ranks.counts
        for replica in np.flatnonzero(counts.is_gone & counts.is_draining).tolist():
            self._step(replica, "drained", at_s)
        free = self._list_free()
        while free and self._count() < self._wanted:
            self._launch(free.pop(0), at_s)
        while len(self._launched) > self._wanted:
            replica = self._choose_surplus()
            del self._launched[replica]
            self._step(replica, "surplus", at_s)
        if not self._pool.is_balanced:
            self._run.state.balance_again(self._place)
            self._run.look_soon()

    def _list_free(self) -> list[int]:
        """List the replicas that are not held and whose GPUs work, without notice of a failure."""
        is_draining = self._pool.ranks.counts.is_draining
        return [
            replica
            for replica in range(self._most)
            if replica not in self._launched
            and not is_draining[replica, 0]
            and not self._failing.is_broken(self._place, replica)
            and not self._failing.is_announced(self._place, replica)
        ]

    def _count(self) -> int:
        """Number of replicas that count as wanted ones: without those that have failed, where
        others are launched for them.
        """
        if not self._policy.replaces_failed:
            return len(self._launched)
        return len(self._launched) - sum(map(self._has_failed, self._launched))

    def _has_failed(self, replica: int) -> bool:
        """Whether a replica has stopped, or will not start, since GPUs of it have failed; or will
        stop, as was announced.
        """
        if self._failing.is_announced(self._place, replica):
            return True
        is_gone = bool(self._pool.ranks.counts.is_gone[replica, 0])
        is_starting = not self._pool.is_ready[replica]
        return is_gone and not (is_starting and not self._failing.is_broken(self._place, replica))

    def _choose_surplus(self) -> int:
        """Choose a replica to leave: one that has failed, else one that starts, else the one that
        was launched last.
        """

        def rank(replica: int) -> tuple[bool, bool, int, int]:
            starts = not self._pool.is_ready[replica]
            return self._has_failed(replica), starts, self._launched[replica], replica

        return max(self._launched, key=rank)

    def _launch(self, replica: int, at_s: float) -> None:
        self._num_launches += 1
        self._launched[replica] = self._num_launches
        self._step(replica, "launched", at_s, self._policy.startup_s)
        serves_s = at_s + self._policy.startup_s
        if serves_s == at_s:
            self._step(replica, "started", at_s)
        else:
            start = self._start_later(replica, self._num_launches, serves_s)
            self._run.instants.env.process(start)

    def _start_later(self, replica: int, launch: int, at_s: float) -> ProcessGenerator:
        """Let a replica serve once it has started, unless it has left since."""
        yield self._run.instants.wait_until(at_s, CHANGE)
        if at_s > self._run.until_s or self._launched.get(replica) != launch:
            return
        self._run.run_ahead(at_s)
        self._step(replica, "started", at_s)
        self.adjust_soon()

    def leave_at(self, at_s: float, replica: int) -> None:
        """Give a replica's GPUs back at a time, when it has drained."""

        def leave() -> None:
            if at_s <= self._run.until_s and self._pool.ranks.counts.is_draining[replica, 0]:
                self._run.run_ahead(at_s)
                if self._step(replica, "drained", at_s):
                    self.adjust_soon()

        self._run.instants.call_at(at_s, CHANGE, leave)

    def _step(self, replica: int, event: Event, at_s: float, seconds: float = 0.0) -> Kind | None:
        """Bring a replica into its next state. Returns what it does.

        Args:
            seconds: until it serves, where it is launched.
        """
        kind = self._failing.step(self._place, replica, event)
        if kind == "leaves":
            self._failing.stop(self._place, replica)
        if kind is not None:
            self._failing.note(kind, self._place, replica, at_s, seconds)
        return kind


def leave_drained(scaling: Mapping[int, Scaling], state: LoopState) -> float:
    """Let the replica that the loop has stopped for leave, where its pool scales. Returns the time
    at which it has drained, infinity where the pool does not.

    Args:
        scaling: of the pools that scale, by their places.
    """
    place, replica = state.find_replica(int(state.feed.asks))
    if place not in scaling:
        return math.inf
    at_s = float(state.feed.stopped_s)
    scaling[place].leave_at(at_s, replica)
    return at_s
