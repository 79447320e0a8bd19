"""Run a plan on a trace: SimPy lets requests arrive, a load balancer sends them to replicas,
replicas run their steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import simpy

from simulator.base.progress import CountDone
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.fabric import FluidWires
from simulator.engine.message import MessageWires
from simulator.engine.state import Floats, Ints
from simulator.engine.table import StepTable, make_table
from simulator.step.prices import Prices
from simulator.workload.traces import RequestTrace
from tests.reference.pool import Pool, send, sent_s
from tests.reference.replica import ByRanks, ByTable, Execute, Replica


class Reference(NamedTuple):
    """What happened."""

    requests: pd.DataFrame
    """``REQUEST_COLUMNS`` but the deployment."""
    logs: list[Floats]
    """``[steps, LOG_COLUMNS]`` of each replica, those that decode first."""
    gaps: Ints


def serve_reference(
    plan: DeploymentPlan,
    trace: RequestTrace,
    fidelity: str = "step",
    make: Callable[[Prices, str], StepTable] = make_table,
) -> Reference:
    """Serve the whole trace with the engine of before, on a deployment of one pool, by tables that
    ``make`` makes.
    """
    run = _Run(plan, trace, lambda _: None)
    if fidelity != "step":
        run.in_simpy(_by_ranks(run.pool, fidelity, "steps"))
    else:
        table = make(run.pool.prices, "steps")
        if trace.concurrency is None:
            run.pool.serve(table, range(trace.num_requests), run.tick)
        elif len(run.pool.replicas) == 1:
            run.in_compiled_loop(table, trace.concurrency)
        else:
            run.in_simpy(ByTable(table))
    return _reference(run.table(), run.pool.replicas)


def _reference(requests: pd.DataFrame, replicas: list[Replica]) -> Reference:
    gaps = sum(replica.clock.gap_counts for replica in replicas)
    return Reference(requests, [replica.log() for replica in replicas], gaps)


def _by_ranks(pool: Pool, fidelity: str, stream: str) -> ByRanks:
    make_wires = (
        FluidWires
        if fidelity == "rank"
        else partial(MessageWires, fabric=pool.plan.placement.fabric)
    )
    return ByRanks(pool.prices, make_wires, stream)


class _Run:
    """One run of all replicas."""

    def __init__(self, plan: DeploymentPlan, trace: RequestTrace, progress: CountDone) -> None:
        self.pool = Pool(plan, trace)
        self.concurrency = trace.concurrency
        self.progress = progress
        self._trace = trace
        self._way_s = plan.placement.calibration.engine.first_token_s
        self.pool.requests.arrival_s[:] += (
            self._way_s
        )  # at the scheduler; the record says when they were sent

    def tick(self) -> None:
        self.progress(self.pool.num_finished)

    def in_compiled_loop(self, table: StepTable, concurrency: int) -> None:
        """Closed loop on one replica at the ``step`` fidelity: every request comes when another
        ends, so nobody need choose.
        """
        replica = self.pool.replicas[0]
        replica.assign_loop(concurrency, self._way_s)
        replica.advance(table, math.inf, self.tick, concurrency)
        self.tick()

    def in_simpy(self, execute: Execute) -> None:
        """Every step is an event: the detailed fidelities, and closed loops on several replicas."""
        env = simpy.Environment()
        freed = simpy.Container(env) if self.concurrency is not None else None

        def on_finish(done: Ints) -> None:
            if freed is not None:
                freed.put(len(done))
            self.tick()

        self.pool.start(env, execute, on_finish)
        env.process(send(env, self.pool, self.concurrency, freed, self._way_s))
        # Replicas sleep when all is done, and the run ends with the last event.
        env.run()

    def table(self) -> pd.DataFrame:
        """``REQUEST_COLUMNS`` but the deployment."""
        requests, count = self.pool.requests, len(self.pool.replica_of)
        return pd.DataFrame(
            {
                "request": np.arange(count),
                "replica": self.pool.replica_of,
                "dp_rank": requests.dp_rank,
                "arrival_s": sent_s(self._trace, requests.arrival_s, self._way_s),
                "scheduled_s": requests.scheduled_s,
                "first_token_s": requests.first_s,
                "finish_s": requests.finish_s,
                "num_input": requests.num_input,
                "num_output": requests.num_output,
                "num_cached": requests.cached,
                "num_preemptions": requests.preemptions,
                "prefill_replica": np.full(count, -1),
                "transfer_s": np.zeros(count),
                "transfer_bytes": np.zeros(count),
            }
        )
