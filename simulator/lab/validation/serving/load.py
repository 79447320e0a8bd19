"""The load under which serving points are taken, and what is reported of it.

As vLLM's ``benchmark_serving`` and InferenceX send it: all of ``c`` requests start at once, each
next one when one ends, ``10 c`` in all, and the means over all requests are reported, so the crowd
at the beginning weighs a tenth.

With a fixed number of requests in flight, which requests share a step does not depend on how long
steps take, so both latencies are sums over steps, linear in the engine's own coefficients. One
simulation then serves any number of fits (:func:`sums`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError
from simulator.config.calibration.engine import parse_release
from simulator.cost.engine_time import streams_s
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.table import StepTable
from simulator.engine.timeline import serve
from simulator.lab.validation.serving.campaigns import load_campaigns
from simulator.lab.validation.serving.deployments import stream_interval
from simulator.lab.validation.serving.points import Point
from simulator.results.metrics import latencies
from simulator.workload.traces import RequestTrace

_FEW_ROUNDS = 4
_MANY_TOKENS = 2_000_000
"""Output tokens beyond which fewer rounds are simulated, and the middle ones stand for those left
out."""
_OVERLAPPING_SGLANG = (0, 5, 6)
"""Release from which SGLang's requests no longer stay in step. Before, what waited was computed
together and then decoded together."""


T = TypeVar("T", float, Floats)
TERMS = ("kernel_s", "steps", "sequence_steps", "prompt_steps")
"""Seconds of kernels; steps; sequences of the fullest rank, summed over steps; steps with prompt
tokens."""


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

    def lengths(longest: int, spread: float = 0.0) -> Ints:
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


def weights_of(count: int, concurrency: int, all_rounds: int) -> Floats:
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


def sums(plan: DeploymentPlan, table: StepTable, point: Point) -> Floats:
    """Parts of the point's latencies, see :func:`sums_of`.

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
    front_s = engine.first_token_s + streams_s(point.concurrency, engine.stream_s)
    return Latencies(ttft_s + front_s, tpot_s)


def _stream_latencies(ttft: T, tpot: T, point: Point, plan: DeploymentPlan) -> tuple[T, T]:
    """Latencies that clients see where the first token comes together with some that follow it."""
    more_steps = stream_interval(point, plan.placement.model) - 1
    more = min(more_steps * plan.placement.drafts.mean_kept, point.num_output - 1)
    if more == 0:
        return ttft, tpot
    return ttft + more * tpot, tpot * (1 - more / max(1, point.num_output - 1))


class ClosedLoop(NamedTuple):
    """Latencies of each request, and the steps."""

    ttft_s: Floats
    """At the engine."""
    tpot_s: Floats
    """Seconds between the first token and the last, over the tokens after the first; not a number
    with one token."""
    arrival_s: Floats
    """At the scheduler."""
    steps: pd.DataFrame
    """Rows of :data:`simulator.engine.step_log.LOG_COLUMNS`, and ``num_steps`` that each stands
    for.
    """


def serve_closed_loop(plan: DeploymentPlan, table: StepTable, trace: RequestTrace) -> ClosedLoop:
    """Serve a trace on one replica with ``trace.concurrency`` requests in flight.

    Raises:
        UserError: if the trace is no closed loop, or its longest request does not fit in the KV
            cache.
    """
    if trace.concurrency is None:
        raise UserError(f"deployment '{plan.name}': a closed loop needs a concurrency")
    one = replace(plan, serving=replace(plan.serving, replicas=1))
    served = serve(one, trace, fill=lambda *_: table, ingress_delay_s=0.0)
    requests = served.requests
    latency = latencies(requests)
    return ClosedLoop(
        ttft_s=(latency["ttft_s"] - requests["stream_s"]).to_numpy(),
        tpot_s=latency["tpot_s"].to_numpy(),
        arrival_s=requests["arrival_s"].to_numpy(),
        steps=served.steps_of("both"),
    )


def sums_of(served: ClosedLoop, num_output: Ints, weights: Floats) -> Floats:
    """``[2, TERMS]`` for the weighted mean TTFT and TPOT.

    Args:
        served: with a table whose own time is one second for each sequence and nothing else, so
            that the log counts them.
        weights: of requests, summing to 1.
    """
    names = ("start_s", "duration_s", "prefill_tokens", "overhead_s", "num_steps")
    start_s, duration_s, prompts, sequences, num_steps = (
        served.steps[name].to_numpy(np.float64) for name in names
    )
    end_s = start_s + duration_s
    first_s = served.arrival_s + served.ttft_s
    finish_s = first_s + np.where(num_output > 1, served.tpot_s, 0.0) * (num_output - 1)
    half_s = 1e-9 * max(float(end_s[-1]), 1.0)
    arrives, first, last = (
        np.searchsorted(start_s, served.arrival_s - half_s),
        np.searchsorted(end_s, first_s - half_s),
        np.searchsorted(end_s, finish_s - half_s),
    )
    has_more = num_output > 1
    share = (
        np.where(has_more, weights / weights[has_more].sum() / np.maximum(num_output - 1, 1), 0.0)
        if has_more.any()
        else 0 * weights
    )
    of_ttft = _sum_weights(len(start_s), arrives, first, weights)
    of_tpot = _sum_weights(len(start_s), first + 1, last, share)
    parts = np.stack([duration_s - sequences, num_steps, sequences, prompts > 0], axis=1)
    return np.stack([of_ttft @ parts, of_tpot @ parts])


def _sum_weights(num_steps: int, begin: Ints, last: Ints, weights: Floats) -> Floats:
    """Weight of the requests that each row of steps is part of: from row ``begin`` to ``last``,
    both inside.
    """
    change = np.zeros(num_steps + 2)
    np.add.at(change, np.minimum(begin, num_steps), weights)
    np.add.at(change, np.minimum(last, num_steps - 1) + 1, -weights)
    return np.cumsum(change)[:num_steps]
