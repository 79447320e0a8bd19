"""Transfers of caches from a prefill pool to a decode pool: each sending rank sends one cache after
another, and the receiving ranks share the arrivals. Compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inner
from simulator.cost.transfer import Transfer, seconds_left
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.state import Floats, Ints, Requests
from simulator.workload.traces import RequestTrace


class Transfers(NamedTuple):
    """Caches to be sent, and occupation of the wires."""

    is_transferred: NDArray[np.bool_]
    """``[N]`` whether a request decodes elsewhere once its prompt is computed."""
    recomputes_last: int
    """1 where the decode pool computes the last token of a prompt again, else 0."""
    reserves_first: bool
    """Whether a prompt is computed only once the decode pool has room for its cache."""
    send_s: Floats
    """``[N]`` seconds on the sending GPUs' wires."""
    receive_s: Floats
    """``[N]`` seconds on the receiving GPUs' wires."""
    handshake_s: float
    """Seconds of the pools' handshake about one cache."""
    latency_s: float
    """Seconds from the last byte sent to its arrival."""
    layers: int
    """Layers that are sent one by one while the prompt is computed; 0 where all are sent at its
    end."""
    stages: int
    """Pipeline stages that send."""
    receivers: int
    """Data-parallel ranks of all decode replicas."""
    free_s: Floats
    """``[M, dp]`` times at which each sending rank's wire is free, seconds."""
    received_s: Floats
    """``[1]`` time at which the receiving wires are free, seconds."""
    is_carried: bool
    """Whether wires are simulated, so that nobody knows yet when a cache that leaves arrives."""
    ended: Ints
    """Scratch space for the prompts that end in one step."""


def start_transfers(
    wires: Transfer,
    prefill: DeploymentPlan,
    decode: DeploymentPlan,
    trace: RequestTrace,
    most_ended: int,
    is_carried: bool,
) -> Transfers:
    """Make transfers with free wires.

    Args:
        most_ended: prompts that may end in one step.
        is_carried: whether wires are simulated.
    """
    return Transfers(
        is_transferred=wires.is_transferred(trace.num_output),
        recomputes_last=int(wires.recomputes_last),
        reserves_first=wires.reserves_first,
        send_s=np.array(
            [wires.send_s(int(tokens)) for tokens in trace.num_input], dtype=np.float64
        ),
        receive_s=np.array(
            [wires.receive_s(int(tokens)) for tokens in trace.num_input], dtype=np.float64
        ),
        handshake_s=wires.handshake_s,
        latency_s=wires.latency_s,
        layers=wires.layers,
        stages=wires.stages,
        receivers=decode.serving.replicas * wires.decode_dp,
        free_s=np.zeros((prefill.serving.replicas, prefill.placement.layout.attention_dp)),
        received_s=np.zeros(1),
        is_carried=is_carried,
        ended=np.zeros(most_ended, dtype=np.int64),
    )


@jit_inner
def find_arrival(
    transfers: Transfers, requests: Requests, replica: int, request: int, now_s: float
) -> float:
    """Find the time at which a computed prompt's cache arrives at the decode pool, which has room
    for it from now on; called in order of time.
    """
    row, handshake_s = requests.each[request], transfers.handshake_s
    ended_s = row.first_s
    computing_s = ended_s - row.scheduled_s + handshake_s
    send_s = seconds_left(
        transfers.send_s[request], computing_s, transfers.layers, transfers.stages
    )
    receive_s = seconds_left(
        transfers.receive_s[request], computing_s, transfers.layers, transfers.stages
    )
    # The GPUs of a pipeline hold the caches of all batches in flight.
    sender = row.dp_rank % transfers.free_s.shape[1]
    start_s = max(max(ended_s + handshake_s, now_s), transfers.free_s[replica, sender])
    transfers.free_s[replica, sender] = start_s + send_s
    transfers.received_s[0] = (
        max(transfers.received_s[0], start_s) + receive_s / transfers.receivers
    )
    return float(
        max(start_s + max(send_s, receive_s), transfers.received_s[0]) + transfers.latency_s
    )
