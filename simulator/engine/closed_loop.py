"""One replica with so many requests in flight: the load under which serving points are measured.
Compiled throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.deployment.memory import check_requests
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.limits import make_limits, scaled_blocks
from simulator.engine.replica import Replica
from simulator.engine.state import start_requests
from simulator.engine.table import StepTable
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace


class Served(NamedTuple):
    """What became of each request, and the steps."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    """Seconds between the first token and the last, over the tokens after the first; not a number
    with one token."""
    arrival_s: NDArray[np.float64]
    """At the scheduler."""
    steps: NDArray[np.float64]
    """``[steps, LOG_COLUMNS]``, see :mod:`simulator.engine.fast`."""


def serve_closed_loop(
    plan: DeploymentPlan, table: StepTable, trace: RequestTrace, way_s: float = 0.0
) -> Served:
    """Serve a trace on one replica with ``trace.concurrency`` requests in flight.

    Args:
        way_s: from the client to the scheduler, which is part of the time to the first token.

    Raises:
        UserError: if the trace is no closed loop, or its longest request does not fit in the KV
            cache.
    """
    if trace.concurrency is None:
        raise UserError(f"deployment '{plan.name}': a closed loop needs a concurrency")
    check_requests(plan.capacity, longest_tokens(trace), f"deployment '{plan.name}'")
    limits = make_limits(plan, trace)
    requests = start_requests(trace, with_prefixes=False)
    replica = Replica(
        requests, limits, plan.layout.attention_dp, scaled_blocks(plan, limits), 0, plan.layout.pp
    )
    replica.assign_loop(trace.concurrency, way_s)
    replica.advance(table, math.inf, lambda: None, trace.concurrency)
    more_tokens = np.where(requests.num_output > 1, requests.num_output - 1, np.nan)
    return Served(
        ttft_s=requests.first_s - requests.arrival_s + way_s,
        tpot_s=(requests.finish_s - requests.first_s) / more_tokens,
        arrival_s=requests.arrival_s.copy(),
        steps=replica.log(),
    )
