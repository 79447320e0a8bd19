"""One replica with so many requests in flight: the load under which serving points are measured."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.table import StepTable
from simulator.engine.timeline import serve
from simulator.results.metrics import latencies
from simulator.workload.traces import RequestTrace


class ClosedLoop(NamedTuple):
    """Latencies of each request, and the steps."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    """Seconds between the first token and the last, over the tokens after the first; not a number
    with one token."""
    arrival_s: NDArray[np.float64]
    """At the scheduler."""
    steps: NDArray[np.float64]
    """``[rows, LOG_COLUMNS]``, see :mod:`simulator.engine.step_log`."""
    num_steps: NDArray[np.float64]
    """Steps that each of these rows stands for."""


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
    latency, steps = latencies(served.requests), served.steps_of("both")
    return ClosedLoop(
        ttft_s=latency["ttft_s"].to_numpy(),
        tpot_s=latency["tpot_s"].to_numpy(),
        arrival_s=served.requests["arrival_s"].to_numpy(),
        steps=steps[list(LOG_COLUMNS)].to_numpy(),
        num_steps=steps["num_steps"].to_numpy(np.float64),
    )
