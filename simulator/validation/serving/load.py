"""The load under which serving points are taken, and what is reported of it.

As vLLM's ``benchmark_serving`` and InferenceX send it: all of ``c`` requests start at once, each
next one when one ends, ``10 c`` in all, and the means over all requests are reported, so the crowd
at the beginning weighs a tenth.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.config.calibration.engine import parse_release
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.table import StepTable
from simulator.validation.serving.campaigns import load_campaigns
from simulator.validation.serving.closed_loop import serve_closed_loop
from simulator.validation.serving.deployments import stream_interval
from simulator.validation.serving.points import Point
from simulator.validation.serving.sums import sums_of
from simulator.workload.traces import RequestTrace

_FEW_ROUNDS = 4
_MANY_TOKENS = 2_000_000
"""Output tokens beyond which fewer rounds are simulated, and the middle ones stand for those left
out."""
_OVERLAPPING_SGLANG = (0, 5, 6)
"""Release from which SGLang's requests no longer stay in step. Before, what waited was computed
together and then decoded together."""


T = TypeVar("T", float, NDArray[np.float64])


class Latencies(NamedTuple):
    """Means over all requests, seconds."""

    ttft_s: float
    tpot_s: float


def trace_of(point: Point) -> RequestTrace:
    """The requests of a measurement, or of enough of its rounds."""
    client = load_campaigns()[point.campaign].client
    is_long = client.rounds * point.concurrency * point.num_output > _MANY_TOKENS
    count = point.concurrency * (min(_FEW_ROUNDS, client.rounds) if is_long else client.rounds)
    rng = np.random.default_rng(0)

    def lengths(longest: int, spread: float = 0.0) -> NDArray[np.int64]:
        if point.shortest < 1:
            return rng.integers(
                max(1, int(longest * point.shortest)), longest + 1, size=count, dtype=np.int64
            )
        return np.maximum(
            1, np.rint(longest * rng.uniform(1 - spread, 1 + spread, size=count))
        ).astype(np.int64)

    return RequestTrace(
        arrival_s=np.zeros(count),
        num_input=lengths(point.num_input),
        num_output=lengths(point.num_output, 0.0 if _is_in_step(point) else client.jitter),
        provenance="the load of a serving point",
        has_arrivals=False,
        concurrency=point.concurrency,
    )


def _is_in_step(point: Point) -> bool:
    return point.engine == "sglang" and () < parse_release(point.version) < _OVERLAPPING_SGLANG


def _rounds(point: Point) -> int:
    return load_campaigns()[point.campaign].client.rounds


def weights_of(count: int, concurrency: int, all_rounds: int) -> NDArray[np.float64]:
    """Weight of each request in a mean over all rounds: those of middle rounds stand for the ones
    that were not simulated.

    Args:
        all_rounds: requests of the measurement over its concurrency.
    """
    weights = np.ones(count)
    rounds = count // concurrency
    if 2 < rounds < all_rounds:
        weights[concurrency : count - concurrency] = (all_rounds - 2) / (rounds - 2)
    return np.asarray(weights / weights.sum())


def sums(plan: DeploymentPlan, table: StepTable, point: Point) -> NDArray[np.float64]:
    """Parts of the point's latencies, see
    :func:`~simulator.validation.serving.sums.sums_of`.

    Raises:
        UserError: if a request does not fit in the KV cache.
    """
    trace = trace_of(point)
    served = serve_closed_loop(
        plan, table._replace(step_s=0.0, sequence_s=1.0, prompt_s=0.0), trace
    )
    found = sums_of(
        served, trace.num_output, weights_of(trace.num_requests, point.concurrency, _rounds(point))
    )
    return np.array(_stream_latencies(found[0], found[1], point, plan))


def measure(plan: DeploymentPlan, table: StepTable, point: Point) -> Latencies:
    """Serve the point's load.

    What passes outside the engine before a first token is added to what the steps take, not put
    before a request's arrival: measured requests follow each other so closely that little of it can
    lie between the end of one and the start of the next.

    Raises:
        UserError: if a request does not fit in the KV cache.
    """
    trace, engine = trace_of(point), plan.placement.calibration.engine
    served = serve_closed_loop(plan, table, trace)
    weights = weights_of(trace.num_requests, point.concurrency, _rounds(point))
    has_tpot = np.isfinite(served.tpot_s)
    tpot_s = (
        float(np.average(served.tpot_s[has_tpot], weights=weights[has_tpot]))
        if has_tpot.any()
        else float("nan")
    )
    ttft_s, tpot_s = _stream_latencies(float(served.ttft_s @ weights), tpot_s, point, plan)
    return Latencies(ttft_s + engine.first_token_s + point.concurrency * engine.stream_s, tpot_s)


def _stream_latencies(ttft: T, tpot: T, point: Point, plan: DeploymentPlan) -> tuple[T, T]:
    """Latencies that clients see where the first token comes together with some that follow it."""
    more_steps = stream_interval(point, plan.placement.model) - 1
    more = min(more_steps * plan.placement.drafts.mean_kept, point.num_output - 1)
    if more == 0:
        return ttft, tpot
    return ttft + more * tpot, tpot * (1 - more / max(1, point.num_output - 1))
