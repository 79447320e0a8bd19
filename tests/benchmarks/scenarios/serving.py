"""How many requests a second the engine serves at the ``step`` fidelity, beside an earlier
revision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.table import StepTable, start_table
from simulator.engine.timeline import Served, serve
from simulator.workload.traces import RequestTrace
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
from tests.benchmarks.revision import RefusedError, Revision, start_revision
from tests.benchmarks.rows import Row

TITLE = "The engine at the step fidelity"
ORDER = 10
OPT_IN = False
OWN, BASE = "own", "base"
"""What takes turns: this engine and the earlier revision's."""
HOPELESS = 128
"""Replicas from which on the engine before one clock is not run."""


class Asked(NamedTuple):
    """A case and what was asked of it when the engine got one clock (decision 14)."""

    case: Case
    ratio: float | None = None
    """Times as many requests a second as the revision before that."""
    rate_per_s: float | None = None
    """Requests a second where all requests are served; of fewer, fixed costs are a larger part."""


CASES = (
    Asked(Case("dense, 1 replica", DENSE, 40_000, rate_per_s=22.0), ratio=13.0),
    Asked(Case("dense, 1 replica, 64 in flight", DENSE, 20_000, concurrency=64)),
    Asked(
        Case(
            "dense, 1 replica, 64 in flight, KV-bound",
            DENSE | FIRST_CHUNKS,
            5_000,
            concurrency=64,
            kv_requests=20,
        ),
        ratio=2.0,
    ),
    Asked(
        Case(
            "dense, 16 replicas, least outstanding",
            DENSE | LEAST,
            10_000,
            replicas=16,
            rate_per_s=300.0,
        ),
        ratio=24.0,
    ),
    Asked(
        Case(
            "dense, 1,000 replicas, least outstanding",
            DENSE | LEAST,
            40_000,
            replicas=1_000,
            rate_per_s=16_000.0,
        ),
        rate_per_s=9_000.0,
    ),
    Asked(
        Case("DeepSeek-V3, attention DP 32, EP 32", DEEPSEEK, 40_000, rate_per_s=100.0), ratio=17.0
    ),
    Asked(Case("Mixtral-8x7B, attention DP 8, EP 8", MIXTRAL, 40_000, rate_per_s=100.0)),
    Asked(
        Case("Mixtral-8x7B, DP 8, EP 8, Azure trace", MIXTRAL, 19_366, workload="azure-conv"),
        ratio=5.0,
    ),
)


class Tables:
    """Tables of prices, each entry filled once."""

    def __init__(self) -> None:
        self._known: dict[Any, StepTable] = {}

    def fill(self, pool: PoolState, stream: str) -> StepTable:
        """For :func:`~simulator.engine.timeline.serve`."""
        prices = pool.prices
        placement = prices.placement
        key = (
            placement.model.name,
            placement.layout,
            placement.cluster.name,
            prices.max_tokens,
            stream,
        )
        if key not in self._known:
            self._known[key] = start_table(pool.mixes)
        return self._known[key]


def count_steps(served: Served) -> int:
    """Steps of all replicas."""
    return int(served.steps["num_steps"].sum())


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """Every case; what stands beside it is measured in turns with it."""
    tables = Tables()
    with ExitStack() as stack:
        base, refusal = _start(effort, stack)
        for asked in CASES:
            count = effort.take(asked.case.num_requests)
            own = asked._replace(case=dataclasses.replace(asked.case, num_requests=count))
            tell(own.case.name)
            yield from _measure_case(own, tables, base, refusal, effort)


def _start(effort: Effort, stack: ExitStack) -> tuple[Revision | None, str]:
    """The earlier revision, or why there is none; nothing of both where none is asked for."""
    if effort.base is None:
        return None, ""
    try:
        return stack.enter_context(start_revision(effort.base)), ""
    except RefusedError as error:
        return None, str(error)


def _measure_case(
    asked: Asked, tables: Tables, base: Revision | None, refusal: str, effort: Effort
) -> Iterator[Row]:
    case = asked.case
    plan, trace = make_case(case)
    calls = {OWN: _prepare(plan, trace, tables)}
    if base is not None and case.replicas < HOPELESS:
        try:
            calls[BASE] = _prepare_base(base, case)
        except RefusedError as error:
            refusal = f"revision {effort.base}: {error}"
    spent = time_in_turns(calls, effort.rounds)
    rates = {name: trace.num_requests / seconds for name, seconds in spent.items()}
    yield _tell_rate(asked, rates, refusal, effort)
    steps = count_steps(serve(plan, trace, fill=tables.fill))
    note = f"{steps:,} steps"
    step_ns = spent[OWN] / steps * 1e9
    yield Row("serving", case.name, "a step", "ns", step_ns, rounds=effort.rounds, note=note)


def _prepare(plan: DeploymentPlan, trace: RequestTrace, tables: Tables) -> Callable[[], float]:
    """CPU seconds of the engine up to the table of requests, its table of prices filled."""

    def call() -> object:
        return serve(plan, trace, fill=tables.fill).requests_table()

    call()
    return partial(repeated_cpu_s, call)


def _prepare_base(base: Revision, case: Case) -> Callable[[], float]:
    base.serve(case)
    return partial(base.serve, case)


def _tell_rate(asked: Asked, rates: dict[str, float], refusal: str, effort: Effort) -> Row:
    """Requests a second, beside the earlier revision's where there is one."""
    case, rate = asked.case, rates[OWN]
    row = Row("serving", case.name, "requests", "1/s", rate, "higher", rounds=effort.rounds)
    if effort.base is None or case.replicas >= HOPELESS:
        target = asked.rate_per_s if effort.share == 1 else None
        note = f"{case.num_requests:,} requests"
        return dataclasses.replace(row, target=target, note=note)
    return dataclasses.replace(
        row,
        beside=f"revision {effort.base}",
        beside_value=rates.get(BASE),
        target=asked.ratio,
        target_of="ratio",
        note=refusal or f"{case.num_requests:,} requests",
    )
