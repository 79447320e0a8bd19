"""Run a plan on a trace: SimPy lets requests arrive, a load balancer sends them to replicas, replicas run their steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import simpy
from simpy.events import Event, ProcessGenerator

from simulator.engine.fabric import FluidWires
from simulator.engine.fast import LOG_COLUMNS
from simulator.engine.message import MessageWires
from simulator.engine.probe import probe
from simulator.engine.replica import ByRanks, ByTable, Execute, Replica
from simulator.engine.state import Limits, Requests, start_requests
from simulator.engine.table import StepTable, make_table
from simulator.fit import check_requests
from simulator.plan import Plan
from simulator.price import Prices
from simulator.records import NUM_GAP_BINS, STEP_COLUMNS, DeploymentRecord, Gaps
from simulator.traces import RequestTrace
from simulator.workload import longest_tokens

Fidelity = Literal["step", "rank", "message"]
Progress = Callable[[int], None]
"""Told how many requests have finished so far."""


def run_plan(plan: Plan, trace: RequestTrace, fidelity: Fidelity = "step", progress: Progress = lambda _: None) -> DeploymentRecord:
    """Serve the whole trace and return what happened.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    longest = longest_tokens(trace)
    check_requests(plan.capacity, longest, f"deployment '{plan.name}'")
    limits = make_limits(plan, trace)
    prices = Prices(plan, limits.token_budget if limits.splits_prompts else max(limits.token_budget, longest))
    requests = start_requests(trace, with_prefixes=limits.prefix_tokens > 0)
    num_prefixes = int(trace.prefix_ids.max()) + 1 if limits.prefix_tokens and len(trace.prefix_ids) else 0
    blocks = scaled_blocks(plan, limits)
    replicas = [Replica(requests, limits, plan.layout.attention_dp, blocks, num_prefixes) for _ in range(plan.replicas)]
    run = _Run(plan, requests, replicas, trace.concurrency, progress)
    if fidelity == "step":
        table = make_table(prices, plan.rng("steps"))
        if trace.concurrency is None:
            run.in_compiled_code(table)
        elif len(replicas) == 1:
            run.in_compiled_loop(table, trace.concurrency)
        else:
            run.in_simpy(ByTable(table))
    else:
        make_wires = FluidWires if fidelity == "rank" else partial(MessageWires, fabric=plan.fabric)
        run.in_simpy(ByRanks(prices, make_wires, plan.rng("steps")))
    return _record(plan, prices, run)


def make_limits(plan: Plan, trace: RequestTrace) -> Limits:
    """What batching goes by: the scheduling policy's rules and the cache's blocks.

    Prefix blocks are whole KV blocks: where the trace's do not divide, KV blocks are cut to their common divisor. Models that
    carry a state, or whose every layer keeps a window only, have nothing that grows by prefix blocks, and share none.
    """
    capacity = plan.capacity
    has_state = any(mixer.state_elements() for mixer in plan.model.mixers.values())
    grows = capacity.cache.bytes_per_token > 0
    shares_prefixes = plan.spec.prefix_caching and trace.prefix_block_tokens > 0 and grows and not has_state
    prefix_tokens = trace.prefix_block_tokens if shares_prefixes else 0
    block_tokens = math.gcd(capacity.block_tokens, prefix_tokens) if prefix_tokens else capacity.block_tokens
    cut = capacity.block_tokens // block_tokens
    return Limits(
        token_budget=plan.rules.token_budget,
        max_sequences=plan.rules.max_sequences,
        mixes_phases=plan.rules.mixes_phases,
        splits_prompts=plan.rules.splits_prompts,
        block_tokens=block_tokens if capacity.cache.bytes_per_token else 1 << 40,
        sequence_blocks=capacity.sequence_blocks * cut,
        prefix_tokens=prefix_tokens,
        prefix_blocks=prefix_tokens // block_tokens,
        watermark_blocks=0 if plan.rules.reserves_output else capacity.num_blocks * cut // 100,
        reserves_output=plan.rules.reserves_output,
        poll_steps=plan.rules.poll_steps,
        balance_steps=plan.rules.balance_steps if plan.layout.attention_dp > 1 else 0,
    )


def scaled_blocks(plan: Plan, limits: Limits) -> int:
    """KV blocks of a rank, in blocks of ``limits``."""
    if not plan.capacity.cache.bytes_per_token:
        return plan.capacity.num_blocks
    return plan.capacity.num_blocks * (plan.capacity.block_tokens // limits.block_tokens)


class _Run:
    """One run of all replicas."""

    def __init__(
        self, plan: Plan, requests: Requests, replicas: list[Replica], concurrency: int | None, progress: Progress
    ) -> None:
        self.plan = plan
        self.requests = requests
        self.replicas = replicas
        self.concurrency = concurrency
        self.progress = progress
        self.replica_of = np.zeros(len(requests.arrival_s), dtype=np.int64)
        self._tokens = requests.num_input + requests.num_output
        self._way_s = plan.calibration.engine.first_token_s
        requests.arrival_s[:] += self._way_s  # at the scheduler; the record says when they were sent
        self._balancer = plan.balancing.prepare(len(replicas), plan.rng("balancing"))

    def _choose(self, request: int) -> Replica:
        outstanding = np.array([replica.outstanding for replica in self.replicas], dtype=np.int64)
        tokens = np.array([replica.outstanding_tokens for replica in self.replicas], dtype=np.int64)
        chosen = self._balancer.choose(outstanding, tokens)
        self.replica_of[request] = chosen
        return self.replicas[chosen]

    def _tick(self) -> None:
        self.progress(sum(int(replica.clock.num_finished[0]) for replica in self.replicas))

    def in_compiled_code(self, table: StepTable) -> None:
        """Open loop at the ``step`` fidelity: replicas are brought up to an arrival only where the balancer looks at them."""
        env = simpy.Environment()
        env.process(self._arrive(env, table))
        env.run()
        for replica in self.replicas:
            replica.advance(table, math.inf, self._tick)
        self._tick()

    def in_compiled_loop(self, table: StepTable, concurrency: int) -> None:
        """Closed loop on one replica at the ``step`` fidelity: every request comes when another ends, so nobody need choose."""
        replica = self.replicas[0]
        replica.assign_loop(concurrency, self._way_s)
        replica.advance(table, math.inf, self._tick, concurrency)
        self._tick()

    def _arrive(self, env: simpy.Environment, table: StepTable) -> ProcessGenerator:
        looks = self.plan.balancing.needs_load and len(self.replicas) > 1
        for request, arrival_s in enumerate(self.requests.arrival_s):
            if looks:
                yield env.timeout(max(0.0, arrival_s - env.now))
                for replica in self.replicas:
                    replica.advance(table, float(arrival_s), lambda: None)
                if request % 256 == 0:
                    self._tick()
            self._choose(request).assign(request)

    def in_simpy(self, execute: Execute) -> None:
        """Every step is an event: the detailed fidelities, and closed loops on several replicas."""
        env = simpy.Environment()
        wakes: list[list[Event]] = [[env.event()] for _ in self.replicas]
        freed = simpy.Container(env) if self.concurrency is not None else None

        def on_finish(count: int) -> None:
            if freed is not None:
                freed.put(count)
            self._tick()

        for replica, wake in zip(self.replicas, wakes, strict=True):
            env.process(replica.run(env, execute, wake, on_finish))
        env.process(self._send(env, wakes, freed))
        # Replicas sleep when all is done, and the run ends with the last event.
        env.run()

    def _send(self, env: simpy.Environment, wakes: list[list[Event]], freed: simpy.Container | None) -> ProcessGenerator:
        for request in range(len(self.replica_of)):
            if freed is None:
                wait_s = float(self.requests.arrival_s[request]) - env.now
                if wait_s > 0.0:  # requests of one instant are sent at once, so that one step may hold them all
                    yield env.timeout(wait_s)
            else:
                if self.concurrency is not None and request >= self.concurrency:
                    yield freed.get(1)
                if self._way_s > 0.0:
                    env.process(self._deliver(env, request, wakes))
                    continue
                self.requests.arrival_s[request] = env.now
            self._hand_over(request, wakes)

    def _deliver(self, env: simpy.Environment, request: int, wakes: list[list[Event]]) -> ProcessGenerator:
        """A request of a closed loop on its way from the client to the scheduler."""
        yield env.timeout(self._way_s)
        self.requests.arrival_s[request] = env.now
        self._hand_over(request, wakes)

    def _hand_over(self, request: int, wakes: list[list[Event]]) -> None:
        replica = self._choose(request)
        replica.assign(request)
        wake = wakes[self.replicas.index(replica)][0]
        if not wake.triggered:
            wake.succeed()


def _record(plan: Plan, prices: Prices, run: _Run) -> DeploymentRecord:
    requests = run.requests
    unfinished = int(np.isnan(requests.finish_s).sum())
    if unfinished:
        raise RuntimeError(f"{unfinished} requests of deployment '{plan.name}' never finished")
    table = pd.DataFrame(
        {
            "request": np.arange(len(requests.arrival_s)),
            "replica": run.replica_of,
            "dp_rank": requests.dp_rank,
            "arrival_s": requests.arrival_s - plan.calibration.engine.first_token_s,
            "scheduled_s": requests.scheduled_s,
            "first_token_s": requests.first_s,
            "finish_s": requests.finish_s,
            "num_input": requests.num_input,
            "num_output": requests.num_output,
            "num_cached": requests.cached,
            "num_preemptions": requests.preemptions,
        }
    )
    logs = []
    for number, replica in enumerate(run.replicas):
        log = pd.DataFrame(replica.log(), columns=list(LOG_COLUMNS))
        log.insert(0, "replica", number)
        logs.append(log)
    everything = pd.concat(logs, ignore_index=True)
    steps = everything[[column for column in STEP_COLUMNS if column != "deployment"]]
    counts = {"prefill_tokens": "int64", "decode_tokens": "int64", "running": "int64", "waiting": "int64"}
    found = probe(plan, prices, everything, table)
    gaps = sum((replica.clock.gap_counts for replica in run.replicas), np.zeros(NUM_GAP_BINS, dtype=np.int64))
    weighted = everything["load_imbalance"] * everything["duration_s"]

    def named(frame: pd.DataFrame) -> pd.DataFrame:
        named_frame = frame.copy()
        named_frame.insert(0, "deployment", plan.name)
        return named_frame

    return DeploymentRecord(
        name=plan.name,
        requests=named(table),
        steps=named(steps.astype(counts)),
        ranks=named(found.ranks),
        experts=named(found.experts),
        traffic=named(found.traffic),
        spans=named(found.spans),
        itl=Gaps(gaps),
        load_imbalance=float(weighted.sum() / everything["duration_s"].sum()) if plan.experts else float("nan"),
        read_bytes=float(everything["read_bytes"].sum()) * plan.layout.num_ranks,
    )
