"""One replica with so many requests in flight: the load under which serving points are measured."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.step_log import LOG_COLUMNS, ROW_STEPS
from simulator.engine.table import StepTable
from simulator.engine.timeline import serve
from simulator.workload.traces import RequestTrace


class ClosedLoop(NamedTuple):
    """What became of each request, and the steps."""

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
    served = serve(one, trace, fill=lambda *_: table, way_s=0.0)
    requests = served.pools["both"].requests
    more_tokens = np.where(requests.num_output > 1, requests.num_output - 1, np.nan)
    return ClosedLoop(
        ttft_s=requests.first_s - requests.arrival_s,
        tpot_s=(requests.finish_s - requests.first_s) / more_tokens,
        arrival_s=requests.arrival_s.copy(),
        steps=served.log[:, : len(LOG_COLUMNS)],
        num_steps=served.log[:, ROW_STEPS],
    )
