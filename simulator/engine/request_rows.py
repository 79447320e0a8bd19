"""Rows of the table of requests, from the state of those in the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from simulator.cost.transfer import Transfer
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.state import Floats, Ints, Records
from simulator.results.tables import OUTCOMES, REQUEST_COLUMNS
from simulator.workload.traces import RequestTrace

_OUTCOME = pd.CategoricalDtype(list(OUTCOMES))


def read_requests(
    plan: DeploymentPlan,
    trace: RequestTrace,
    pools: Mapping[str, PoolState],
    ingress_delay_s: float,
) -> pd.DataFrame:
    """Read ``REQUEST_COLUMNS`` without the deployment, for the requests that the pools have rows
    for.

    Args:
        pools: by name, ``both`` or ``prefill`` and ``decode``.
        ingress_delay_s: seconds from the client to the scheduler.
    """
    first = (pools.get("prefill") or pools["both"]).requests
    end = first.first + len(first.each)
    # Of an open loop exactly what the trace says.
    is_open = trace.concurrency is None
    sent_s = np.array(
        trace.arrival_s[first.first : end] if is_open else first.each.arrival_s - ingress_delay_s
    )
    if plan.transfer is None:
        columns = _one_pool(pools["both"], sent_s)
    else:
        columns = _two_pools(
            pools["prefill"], pools["decode"], plan.transfer, sent_s, ingress_delay_s
        )
    names: pd.Index[str] = pd.Index(["", *trace.domains])
    columns["domain"] = pd.Categorical.from_codes(first.each.domain + 1, names)
    priority = trace.attributes.get("priority", np.zeros(end, dtype=np.int64))
    columns["priority"] = priority[first.first : end]
    return pd.DataFrame({name: columns[name] for name in REQUEST_COLUMNS if name in columns})


def _one_pool(pool: PoolState, sent_s: Floats) -> dict[str, Any]:
    requests, count = pool.requests.each, len(sent_s)
    return {
        "request": requests.number,
        "replica": pool.replica_of,
        "dp_rank": requests.dp_rank,
        "arrival_s": sent_s,
        "scheduled_s": requests.scheduled_s,
        "first_token_s": requests.first_s,
        "finish_s": requests.finish_s,
        "num_input": requests.num_input,
        "num_output": requests.num_output,
        "num_cached": requests.cached,
        "num_preemptions": requests.preemptions,
        "num_retries": _count_retries(requests),
        "outcome": _outcomes(requests.finish_s, requests.lost_s),
        "prefill_replica": np.full(count, -1),
        "room_wait_s": np.zeros(count),
        "transfer_s": np.zeros(count),
        "transfer_bytes": np.zeros(count),
    }


def _two_pools(
    prefill: PoolState,
    decode: PoolState,
    transfer: Transfer,
    sent_s: Floats,
    ingress_delay_s: float,
) -> dict[str, Any]:
    prompts, decodes = prefill.requests.each, decode.requests.each
    moved = transfer.is_transferred(decodes.num_output)
    first_s = np.where(moved, decodes.first_s, prompts.first_s)
    finish_s = np.where(moved, decodes.finish_s, first_s)
    lost_s = np.fmax(prompts.lost_s, decodes.lost_s)
    has_left = moved & ~np.isnan(decodes.arrival_s)
    held_s = _ready_waits_s(transfer, prompts, decodes)
    waits_s = _room_waits_s(transfer, prompts, decodes, held_s, sent_s + ingress_delay_s)
    num_bytes = [transfer.num_bytes(int(tokens)) for tokens in prompts.num_input]
    return {
        "request": decodes.number,
        "replica": np.where(moved, decode.replica_of, -1),
        "dp_rank": np.where(moved, decodes.dp_rank, -1),
        "arrival_s": sent_s,
        "scheduled_s": prompts.scheduled_s,
        "first_token_s": first_s,
        "finish_s": finish_s,
        "num_input": decodes.num_input,
        "num_output": decodes.num_output,
        "num_cached": prompts.cached,
        "num_preemptions": prompts.preemptions + decodes.preemptions,
        "num_retries": _count_retries(prompts) + _count_retries(decodes),
        "outcome": _outcomes(finish_s, lost_s),
        "prefill_replica": np.where(
            prefill.replica_of < 0, -1, prefill.replica_of + decode.num_replicas
        ),
        "room_wait_s": np.where(moved & ~np.isnan(decodes.reserved_s), waits_s, 0.0),
        "transfer_s": np.where(has_left, decodes.arrival_s - prompts.first_s - held_s, 0.0),
        "transfer_bytes": np.where(has_left, num_bytes, 0.0),
    }


def _ready_waits_s(transfer: Transfer, prompts: Records, decodes: Records) -> Floats:
    """Seconds that caches ready to leave waited for room in the decode pool."""
    ready_s = prompts.first_s + transfer.handshake_s
    held_s: Floats = np.maximum(decodes.reserved_s - ready_s, 0.0)
    return held_s


def _room_waits_s(
    transfer: Transfer, prompts: Records, decodes: Records, held_s: Floats, asked_s: Floats
) -> Floats:
    """Seconds that requests waited for room in the decode pool, computed or not."""
    if not transfer.reserves_first:
        return held_s
    first_s = np.fmax(prompts.first_s, asked_s)
    before_s = np.maximum(np.minimum(decodes.reserved_s, first_s) - asked_s, 0.0)
    waits_s: Floats = before_s + np.nan_to_num(held_s)
    return waits_s


def _count_retries(requests: Records) -> Ints:
    """Count how often each request was sent again, without those given back when no replica was
    left.
    """
    found: Ints = requests.retries - ((requests.retries > 0) & ~np.isnan(requests.lost_s))
    return found


def _outcomes(finish_s: Floats, lost_s: Floats) -> pd.Series:
    """Outcome of each request, one of :data:`~simulator.results.tables.OUTCOMES`."""
    codes = np.where(np.isnan(finish_s), OUTCOMES.index("unfinished"), OUTCOMES.index("finished"))
    codes[~np.isnan(lost_s)] = OUTCOMES.index("lost")
    return pd.Series(pd.Categorical.from_codes(codes.astype("int8"), dtype=_OUTCOME))
