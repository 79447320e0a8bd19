"""How many requests a second the engine serves at the ``step`` fidelity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from simulator.engine.timeline import Served, serve
from tests.benchmarks.clock import repeated_cpu_s, time_in_turns
from tests.benchmarks.deployments import (
    DEEPSEEK,
    DENSE,
    FIRST_CHUNKS,
    LEAST,
    MIXTRAL,
    Case,
    make_case,
)
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row
from tests.tables import Tables

ORDER = 10
OPT_IN = False
IN_FLIGHT = "dense, 1 replica, 64 in flight"
MANY = "dense, 1,000 replicas, least outstanding"
CASES = (
    Case("dense, 1 replica", DENSE, 40_000, rate_per_s=22.0),
    Case(IN_FLIGHT, DENSE, 20_000, concurrency=64),
    Case(f"{IN_FLIGHT}, KV-bound", DENSE | FIRST_CHUNKS, 5_000, concurrency=64, kv_requests=20),
    Case("dense, 16 replicas, least outstanding", DENSE | LEAST, 10_000, 16, rate_per_s=300.0),
    Case(MANY, DENSE | LEAST, 40_000, 1_000, rate_per_s=16_000.0),
    Case("DeepSeek-V3, attention DP 32, EP 32", DEEPSEEK, 40_000, rate_per_s=100.0),
    Case("Mixtral-8x7B, attention DP 8, EP 8", MIXTRAL, 40_000, rate_per_s=100.0),
    Case("Mixtral-8x7B, DP 8, EP 8, Azure trace", MIXTRAL, 19_366, workload="azure-conv"),
)
TARGETS_PER_S = {MANY: 9_000.0}
"""Requests a second that were asked for when the engine got one clock (decision 14), where all are
served; of fewer, fixed costs are a larger part."""


def count_steps(served: Served) -> int:
    """Steps of all replicas."""
    return int(served.steps["num_steps"].sum())


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """CPU time of the engine up to the table of requests, its table of prices filled."""
    tables = Tables()
    for case in CASES:
        tell(case.name)
        count = effort.take(case.num_requests)
        plan, trace = make_case(dataclasses.replace(case, num_requests=count))

        def call(plan=plan, trace=trace) -> Served:
            served = serve(plan, trace, fill=tables.fill)
            served.requests_table()
            return served

        steps, rounds = count_steps(call()), effort.rounds
        timed = {case.name: lambda call=call: repeated_cpu_s(call)}
        seconds = time_in_turns(timed, rounds)[case.name]
        yield Row(
            "serving",
            case.name,
            "requests",
            "1/s",
            count / seconds,
            "higher",
            TARGETS_PER_S.get(case.name) if effort.share == 1 else None,
            rounds,
            f"{count:,} requests",
        )
        step_ns = seconds / steps * 1e9
        yield Row(
            "serving", case.name, "a step", "ns", step_ns, rounds=rounds, note=f"{steps:,} steps"
        )
