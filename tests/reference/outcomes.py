"""What became of each request, as :data:`simulator.results.tables.REQUEST_COLUMNS` has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from simulator.cost.transfer import Transfer
from tests.reference.pool import Pool
from tests.reference.requests import Request

Row = dict[str, Any]


def tabulate(pools: Sequence[Pool]) -> pd.DataFrame:
    """A row for each request, with times as far as they came."""
    if len(pools) == 1:
        stream_s = pools[0].plan.placement.calibration.engine.stream_s
        rows = [
            _describe(request) | {"stream_s": min(request.streams, 512) * stream_s}
            for request in pools[0].requests
        ]
    else:
        transfer, before = pools[1].plan.transfer, pools[1].plan.serving.replicas
        pairs = zip(pools[0].requests, pools[1].requests, strict=True)
        rows = [_describe_both(*pair, transfer, before) for pair in pairs]
    return pd.DataFrame(rows)


def _describe(request: Request) -> Row:
    return {
        "replica": -1 if request.replica is None else request.replica,
        "dp_rank": request.rank,
        "scheduled_s": _number(request.scheduled_s),
        "first_token_s": _number(request.first_s),
        "finish_s": _number(request.finish_s),
        "num_cached": request.cached,
        "num_read": 0 if request.scheduled_s is None else request.read,
        "num_preemptions": request.preemptions,
        "num_retries": _count_retries(request),
        "outcome": "refused"
        if request.is_refused
        else _tell_outcome(request.finish_s, request.lost_s),
        "prefill_replica": -1,
        "room_wait_s": 0.0,
        "transfer_s": 0.0,
    }


def _describe_both(prompt: Request, decode: Request, transfer: Transfer, before: int) -> Row:
    """A request of two pools; prefill replicas are numbered behind those that decode."""
    goes_on = decode.num_output > 1 or transfer.recomputes_last
    shows = decode if goes_on else prompt
    finish_s = shows.finish_s if goes_on else shows.first_s
    lost_s = decode.lost_s if prompt.lost_s is None else prompt.lost_s
    return _describe(shows) | {
        "replica": -1 if not goes_on or decode.replica is None else decode.replica,
        "dp_rank": decode.rank if goes_on else -1,
        "scheduled_s": _number(prompt.scheduled_s),
        "finish_s": _number(finish_s),
        "num_cached": prompt.cached,
        "num_read": 0 if prompt.scheduled_s is None else prompt.read,
        "num_preemptions": prompt.preemptions + decode.preemptions,
        "num_retries": _count_retries(prompt) + _count_retries(decode),
        "outcome": "refused" if prompt.is_refused else _tell_outcome(finish_s, lost_s),
        "prefill_replica": -1 if prompt.replica is None else prompt.replica + before,
        "room_wait_s": _measure_room_wait(prompt, decode, transfer) if goes_on else 0.0,
        "transfer_s": _measure_transfer(prompt, decode, transfer) if goes_on else 0.0,
    }


def _measure_room_wait(prompt: Request, decode: Request, transfer: Transfer) -> float:
    """Seconds for which a request waited for room in the decode pool, before its prompt and
    behind it.
    """
    if decode.reserved_s is None:
        return 0.0
    held_s = _measure_held(prompt, decode, transfer)
    if not transfer.reserves_first or prompt.arrival_s is None:
        return held_s
    computed_s = math.inf if prompt.first_s is None else prompt.first_s
    until_s = min(decode.reserved_s, max(computed_s, prompt.arrival_s))
    return max(until_s - prompt.arrival_s, 0.0) + (0.0 if math.isnan(held_s) else held_s)


def _measure_held(prompt: Request, decode: Request, transfer: Transfer) -> float:
    """Seconds for which a cache that was ready to leave waited for room."""
    if decode.reserved_s is None or prompt.first_s is None:
        return math.nan
    return max(decode.reserved_s - (prompt.first_s + transfer.handshake_s), 0.0)


def _measure_transfer(prompt: Request, decode: Request, transfer: Transfer) -> float:
    """Seconds from the end of a prompt until its cache was there, but for those that it waited."""
    if decode.arrival_s is None:
        return 0.0
    held_s = _measure_held(prompt, decode, transfer)
    return decode.arrival_s - _number(prompt.first_s) - held_s


def _number(at_s: float | None) -> float:
    return math.nan if at_s is None else at_s


def _count_retries(request: Request) -> int:
    """Times that a request was sent again, and not those when nobody was there."""
    return request.retries - (request.retries > 0 and request.lost_s is not None)


def _tell_outcome(finish_s: float | None, lost_s: float | None) -> str:
    if lost_s is not None:
        return "lost"
    return "unfinished" if finish_s is None else "finished"
