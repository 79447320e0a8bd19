"""Equal replicas behind one load balancer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import simpy
from simpy.events import Event, ProcessGenerator

from simulator.deployment.memory import check_requests
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.limits import make_limits, scaled_blocks
from simulator.engine.start import start_requests
from simulator.engine.state import Floats, Ints, Limits, Requests
from simulator.engine.table import StepTable
from simulator.policies.balancing import Rule
from simulator.policies.contracts import choose_replica, prepare_balancer
from simulator.step.prices import Prices
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace
from tests.reference.replica import Execute, Replica


class Pool:
    """The replicas of one plan, and the requests as far as this pool serves them."""

    def __init__(
        self,
        plan: DeploymentPlan,
        trace: RequestTrace,
        limits: Limits | None = None,
        stream: str = "balancing",
    ) -> None:
        """No request has come.

        Args:
            limits: other than the plan's own for this trace.
            stream: names the balancer's random numbers.

        Raises:
            UserError: if the trace's longest request does not fit in the KV cache.
        """
        longest = longest_tokens(trace)
        check_requests(plan.serving.capacity, longest, f"deployment '{plan.name}'")
        self.plan = plan
        limits = limits or make_limits(plan, trace)
        self.prices = Prices(
            plan.placement,
            limits.rules.token_budget
            if limits.rules.splits_prompts
            else max(limits.rules.token_budget, longest),
        )
        self.requests: Requests = start_requests(trace, with_prefixes=limits.prefix_tokens > 0)
        num_prefixes = (
            int(trace.prefix_ids.max()) + 1 if limits.prefix_tokens and len(trace.prefix_ids) else 0
        )
        blocks = scaled_blocks(plan, limits)
        self.replicas = [
            Replica(
                self.requests,
                limits,
                plan.placement.layout.attention_dp,
                blocks,
                num_prefixes,
                plan.placement.layout.pp,
                number,
            )
            for number in range(plan.serving.replicas)
        ]
        self.replica_of = np.zeros(trace.num_requests, dtype=np.int64)
        self._balancer = prepare_balancer(
            plan.serving.balancing, len(self.replicas), plan.placement.rng(stream)
        )
        self._turns: Ints | None = None
        self._num_sent = 0
        self._wakes: list[list[Event]] = []

    @property
    def num_finished(self) -> int:
        """Requests that have left."""
        return sum(int(replica.clock.num_finished[0]) for replica in self.replicas)

    def assign(self, request: int) -> Replica:
        """Send a request to the replica that the balancer chooses."""
        outstanding = np.array([replica.outstanding for replica in self.replicas], dtype=np.int64)
        tokens = np.array([replica.outstanding_tokens for replica in self.replicas], dtype=np.int64)
        chosen = self._choose(outstanding, tokens)
        self.replica_of[request] = chosen
        self.replicas[chosen].assign(request)
        return self.replicas[chosen]

    def _choose(self, outstanding: Ints, tokens: Ints) -> int:
        rule = self._balancer
        if not isinstance(rule, Rule):
            return choose_replica(rule, outstanding, tokens)
        if rule.turns is None:
            return int((rule.per_request * outstanding + rule.per_token * tokens).argmin())
        if self._turns is None:
            self._turns = rule.turns(len(self.replica_of))
        self._num_sent += 1
        return int(self._turns[self._num_sent - 1])

    def serve(self, table: StepTable, order: Iterable[int], tick: Callable[[], None]) -> None:
        """Serve an open loop in compiled code: replicas are brought up to an arrival only where the
        balancer looks at them.

        Args:
            order: the requests in order of arrival.
        """
        looks = self.plan.serving.balancing.needs_load and len(self.replicas) > 1
        for number, request in enumerate(order):
            if looks:
                for replica in self.replicas:
                    replica.advance(table, float(self.requests.arrival_s[request]), lambda: None)
                if number % 256 == 0:
                    tick()
            self.assign(request)
        for replica in self.replicas:
            replica.advance(table, math.inf, tick)
        tick()

    def start(
        self, env: simpy.Environment, execute: Execute, on_finish: Callable[[Ints], None]
    ) -> None:
        """Let every step be an event from now on.

        Args:
            on_finish: called with the requests that a step finished.
        """
        self._wakes = [[env.event()] for _ in self.replicas]
        for replica, wake in zip(self.replicas, self._wakes, strict=True):
            env.process(replica.run(env, execute, wake, on_finish))

    def hand_over(self, request: int) -> None:
        """A request has come: wake the replica that gets it."""
        replica = self.assign(request)
        wake = self._wakes[self.replicas.index(replica)][0]
        if not wake.triggered:
            wake.succeed()


def send(
    env: simpy.Environment,
    pool: Pool,
    concurrency: int | None,
    freed: simpy.Container | None,
    way_s: float,
) -> ProcessGenerator:
    """Requests come: at their times, or in a closed loop when another ends.

    Args:
        freed: one for each request that has ended, in a closed loop.
        way_s: from the client to the scheduler; arrival times are at the scheduler, those of an
            open loop from the beginning.
    """
    requests = pool.requests
    for request in range(len(requests.arrival_s)):
        if freed is None:
            wait_s = float(requests.arrival_s[request]) - env.now
            if (
                wait_s > 0.0
            ):  # requests of one instant are sent at once, so that one step may hold them all
                yield env.timeout(wait_s)
        else:
            if concurrency is not None and request >= concurrency:
                yield freed.get(1)
            if way_s > 0.0:
                env.process(_deliver(env, pool, request, way_s))
                continue
            requests.arrival_s[request] = env.now
        pool.hand_over(request)


def sent_s(trace: RequestTrace, arrival_s: Floats, way_s: float) -> Floats:
    """When clients sent their requests, which reach the scheduler ``way_s`` later; of an open loop
    exactly what the trace says.
    """
    return (
        np.asarray(trace.arrival_s, dtype=np.float64)
        if trace.concurrency is None
        else arrival_s - way_s
    )


def _deliver(env: simpy.Environment, pool: Pool, request: int, way_s: float) -> ProcessGenerator:
    """A request of a closed loop on its way from the client to the scheduler."""
    yield env.timeout(way_s)
    pool.requests.arrival_s[request] = env.now
    pool.hand_over(request)
