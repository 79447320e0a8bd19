"""How CPU time grows with requests, replicas, ranks and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.table import make_table
from simulator.engine.timeline import serve
from simulator.workload.traces import RequestTrace
from tests.benchmarks.clock import cpu_s, time_in_turns
from tests.benchmarks.deployments import (
    DEEPSEEK_LAYERS,
    DENSE,
    LEAST,
    Case,
    cut_deepseek,
    make_case,
)
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Growth
from tests.benchmarks.scenarios.serving import count_steps
from tests.benchmarks.scenarios.steps import prepare_step
from tests.tables import Tables

ORDER = 30
OPT_IN = False
ENGINE_STEP = "a step of the engine"
"""CPU time over the steps that were taken: the same requests take more steps on more replicas."""
IN_FLIGHT = 512
"""Requests in flight where ranks and layers are followed: at a rate, models whose steps take longer
would form fewer and fuller ones."""
RANKS_OF_LAYERS = 16
"""Ranks over which the number of layers is followed."""


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Growth]:
    """A growth at a time; its sizes are measured in turns."""
    tables = Tables()
    tell("requests")
    yield _follow("requests", "engine at step", _over_requests(effort, tables), effort.rounds)
    tell("replicas")
    yield _follow("replicas", ENGINE_STEP, _over_replicas(effort, tables), effort.rounds)
    by_ranks = {n: cut_deepseek(DEEPSEEK_LAYERS, n) for n in effort.ranks}
    by_layers = {n: cut_deepseek(n, RANKS_OF_LAYERS) for n in effort.layers}
    trace = _trace(effort)
    for along, plans in (("ranks", by_ranks), ("layers", by_layers)):
        tell(f"{along}: tables of prices")
        pools = {n: PoolState(plan, trace) for n, plan in plans.items()}
        fills = {n: partial(cpu_s, partial(make_table, p.prices)) for n, p in pools.items()}
        yield _follow(along, "table of prices", fills, 1)
        tell(f"{along}: steps of the engine")
        served = {n: _prepare(plan, trace, tables) for n, plan in plans.items()}
        yield _follow(along, ENGINE_STEP, served, effort.rounds)
        tell(f"{along}: steps at rank")
        steps = {n: partial(cpu_s, prepare_step(plan, "rank")) for n, plan in plans.items()}
        yield _follow(along, "a step at rank", steps, effort.rounds)


def _follow(along: str, name: str, calls: Mapping[int, Callable[[], float]], rounds: int) -> Growth:
    spent = time_in_turns(calls, rounds)
    return Growth(along, name, tuple(spent), tuple(spent.values()), rounds)


def _over_requests(effort: Effort, tables: Tables) -> dict[int, Callable[[], float]]:
    found = {}
    for count in effort.requests:
        plan, trace = make_case(Case("", DENSE, count, rate_per_s=22.0))
        found[count] = partial(cpu_s, partial(serve, plan, trace, fill=tables.fill))
    found[min(effort.requests)]()  # fills the table that all share
    return found


def _over_replicas(effort: Effort, tables: Tables) -> dict[int, Callable[[], float]]:
    found = {}
    for replicas in effort.replicas:
        case = Case("", DENSE | LEAST, effort.take(40_000), replicas, rate_per_s=16.0 * replicas)
        found[replicas] = _prepare(*make_case(case), tables)
    return found


def _trace(effort: Effort) -> RequestTrace:
    _, trace = make_case(Case("", DENSE, effort.take(20_000), concurrency=IN_FLIGHT))
    return trace


def _prepare(plan: DeploymentPlan, trace: RequestTrace, tables: Tables) -> Callable[[], float]:
    """CPU seconds of a step while all requests are served, its table filled."""
    call = partial(serve, plan, trace, fill=tables.fill)
    num_steps = count_steps(call())
    return lambda: cpu_s(call) / num_steps
