"""Log of steps as tables: rows that compiled code fills, and tables made of those whose steps have
ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.cost.engine_time import streams_s
from simulator.cost.transfer import Transfer
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import PoolState
from simulator.engine.state import Floats, Ints, Records
from simulator.engine.step_log import DECODES, LOG_COLUMNS, NUM_COLUMNS, POOL, REPLICA, ROW_STEPS
from simulator.results.tables import ADMISSION_LIMITS, OUTCOMES, REQUEST_COLUMNS, STEP_COLUMNS
from simulator.workload.traces import RequestTrace

_LOG_ROWS = 8192
"""Rows of one part of the log."""
HELD_ROWS = 1 << 17
"""Rows held in memory before they are stored."""
COST_COLUMNS = LOG_COLUMNS[-3:]
"""Columns of the log that are not in the table of steps."""
_COUNTS = ("prefill_tokens", "decode_tokens", "running", "waiting")


class StepLog:
    """Rows of steps in order of their forming, those of a replica in order of their start."""

    def __init__(self, put_away: Callable[[list[Floats]], None]) -> None:
        """Start an empty log.

        Args:
            put_away: stores parts of the log whose steps have ended, none before an earlier one.
        """
        self.rows = np.empty((_LOG_ROWS, NUM_COLUMNS))
        """Rows of the latest steps, and free ones."""
        self.num_taken = 0
        """Number of ``rows`` that are taken."""
        self._put_away = put_away
        self._full: list[Floats] = []
        self._tokens_away = np.zeros((2, 2))

    @property
    def is_full(self) -> bool:
        """Whether no row is left."""
        return self.num_taken == len(self.rows)

    def go_on(self, now_s: float, replicas: Sequence[Records]) -> None:
        """Begin another part behind a full one, and store what has ended by now, if it is much.

        Args:
            replicas: of all pools, which name rows that later steps may join or change.
        """
        self._begin_part(replicas)
        if sum(map(len, self._full)) >= HELD_ROWS:
            has_ended = [bool((part[:, 0] + part[:, 1] < now_s).all()) for part in self._full]
            count = len(has_ended) if all(has_ended) else has_ended.index(False)
            if count:
                for place in range(2):
                    self._tokens_away[place] += _count_tokens(self._full[:count], place)
                self._put_away(self._full[:count])
                del self._full[:count]

    def _begin_part(self, replicas: Sequence[Records]) -> None:
        """Move the rows that replicas refer to into another part, so that which steps share a row
        depends on their replica alone.
        """
        full = self.rows
        named = [pool[name] for pool in replicas for name in ("run_row", "last_row")]
        rows = np.unique(np.concatenate([field.ravel() for field in named]))
        carried = rows[rows >= 0]
        self.rows, self.num_taken = np.empty((len(carried) + _LOG_ROWS, NUM_COLUMNS)), len(carried)
        self.rows[: len(carried)] = full[carried]
        place_of = np.full(len(full) + 1, -1)
        place_of[carried] = np.arange(len(carried))
        for field in named:
            field[:] = place_of[field]
        # Steps that ranks take write into their rows, which no replica names: no copy of those.
        self._full.append(np.delete(full, carried, axis=0) if len(carried) else full)

    def count_tokens(self, place: int, drafted: int) -> int:
        """Count the tokens that the steps of a pool have computed.

        Args:
            drafted: draft tokens that are computed with each decode token.
        """
        held = _count_tokens([*self._full, self.rows[: self.num_taken]], place)
        prefilled, decodes = self._tokens_away[place] + held
        return int(prefilled + decodes * (1 + drafted))

    def list_rows(self, place: int, since_s: float) -> Floats:
        """List the rows that are held of a pool's steps that end after some time."""
        parts = [part for part in (*self._full, self.rows[: self.num_taken]) if len(part)]
        rows = np.concatenate([part[part[:, POOL] == place] for part in parts] or [self.rows[:0]])
        found: Floats = rows[rows[:, 0] + rows[:, 1] > since_s]
        return found

    def end(self) -> None:
        """Store all that is left."""
        self._put_away([*self._full, self.rows[: self.num_taken]])
        self._full.clear()


def _count_tokens(parts: Sequence[Floats], place: int) -> Floats:
    """Count the prompt tokens of a pool's steps, and the sequences that decode in them, ``[2]``."""
    columns = [LOG_COLUMNS.index("prefill_tokens"), DECODES]
    counts = [part[part[:, POOL] == place][:, columns].sum(axis=0) for part in parts]
    found: Floats = np.sum(counts, axis=0)
    return found


def read_steps(
    parts: Sequence[Floats], pools: Mapping[str, PoolState]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Convert parts of the log into a table of ``STEP_COLUMNS`` without the deployment, replica
    after replica, and one of :data:`COST_COLUMNS` beside it.
    """
    log = np.concatenate(parts)
    if (is_cut := np.isnan(log[:, 1])).any():  # in flight for nobody, when all requests have ended
        log = log[~is_cut]
    replica, names = log[:, REPLICA].astype(np.int64), ["both"]
    if len(pools) > 1:  # in the log the pool comes first that requests come to first
        names = ["prefill", "decode"]
        replica += np.where(log[:, POOL] == 0, pools["prefill"].first_replica, 0)
    order = np.argsort(replica, kind="stable")
    rows = slice(None) if (order == np.arange(len(order))).all() else order
    limits, of_pool = log[rows, LOG_COLUMNS.index("limited_by")], log[rows, POOL]
    columns: dict[str, object] = {
        "replica": replica[rows],
        "pool": pd.Categorical.from_codes(of_pool.astype("int8"), pd.Index(names)),
        "num_steps": log[rows, ROW_STEPS].astype(np.int64),
        "decodes": log[rows, DECODES].astype(np.int64),
        "limited_by": pd.Categorical.from_codes(limits.astype("int8"), pd.Index(ADMISSION_LIMITS)),
    }
    # A column at a time, so that a long log is not held twice.
    for place, column in enumerate(LOG_COLUMNS):
        if column not in columns:
            kind = np.int64 if column in _COUNTS else np.float64
            columns[column] = np.array(log[rows, place], dtype=kind)
    own = [column for column in STEP_COLUMNS if column != "deployment"]
    steps, costs = (
        pd.DataFrame({column: columns[column] for column in part}, copy=False)
        for part in (own, COST_COLUMNS)
    )
    return steps, costs


# Rows of the table of requests, from the state of those in the window.


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
    first, last = (pools.get(name) or pools["both"] for name in ("prefill", "decode"))
    prompts, decodes, begin = first.requests.each, last.requests.each, first.requests.first
    end = begin + len(prompts)
    # Of an open loop exactly what the trace says.
    is_open = trace.concurrency is None
    sent_s = np.array(
        trace.arrival_s[begin:end] if is_open else prompts.arrival_s - ingress_delay_s
    )
    # Of reads from tiers only those before a request was first scheduled are over.
    is_scheduled = ~np.isnan(prompts.scheduled_s)
    stream_s = plan.placement.calibration.engine.stream_s if plan.transfer is None else 0.0
    columns: dict[str, Any] = {
        "request": decodes.number,
        "replica": decodes.replica,
        "dp_rank": decodes.dp_rank,
        "arrival_s": sent_s,
        "scheduled_s": prompts.scheduled_s,
        "first_token_s": decodes.first_s,
        "finish_s": decodes.finish_s,
        "stream_s": streams_s(decodes.streams, stream_s),
        "num_input": decodes.num_input,
        "num_output": decodes.num_output,
        "num_cached": prompts.cached,
        "num_read": prompts.read * is_scheduled,
        "read_wait_s": np.where(is_scheduled, np.nan_to_num(prompts.read_wait_s), 0.0),
        "num_preemptions": sum(pool.requests.each.preemptions for pool in pools.values()),
        "num_retries": sum(_count_retries(pool.requests.each) for pool in pools.values()),
        **dict.fromkeys(("room_wait_s", "transfer_s", "transfer_bytes"), np.zeros(len(sent_s))),
        "prefill_replica": np.full(len(sent_s), -1),
    }
    if plan.transfer is not None:
        columns |= _describe_transfers(first, last, plan.transfer, sent_s + ingress_delay_s)
    lost_s = np.fmax(prompts.lost_s, decodes.lost_s)
    columns["outcome"] = _outcomes(first, columns["finish_s"], lost_s)
    names: pd.Index[str] = pd.Index(["", *trace.domains])
    columns["domain"] = pd.Categorical.from_codes(prompts.domain + 1, names)
    priority = trace.attributes.get("priority", np.zeros(end, dtype=np.int64))
    columns["priority"] = priority[begin:end]
    return pd.DataFrame({name: columns[name] for name in REQUEST_COLUMNS if name in columns})


def _describe_transfers(
    prefill: PoolState, decode: PoolState, transfer: Transfer, asked_s: Floats
) -> dict[str, Floats | Ints]:
    """Describe the transfers of caches from pool to pool, and what else depends on these."""
    prompts, decodes = prefill.requests.each, decode.requests.each
    moved = transfer.is_transferred(decodes.num_output)
    first_s = np.where(moved, decodes.first_s, prompts.first_s)
    has_left = moved & ~np.isnan(decodes.arrival_s)
    # A cache that is ready to leave may wait for room in the decode pool, as may a prompt before.
    held_s = np.maximum(decodes.reserved_s - (prompts.first_s + transfer.handshake_s), 0.0)
    waits_s = held_s
    if transfer.reserves_first:
        computed_s = np.fmax(prompts.first_s, asked_s)
        computed_s[np.isnan(prompts.first_s)] = np.inf  # lost before it was computed
        before_s = np.maximum(np.minimum(decodes.reserved_s, computed_s) - asked_s, 0.0)
        waits_s = before_s + np.nan_to_num(held_s)
    num_bytes = [transfer.num_bytes(int(tokens)) for tokens in prompts.num_input]
    return {
        "replica": np.where(moved, decodes.replica, -1),
        "dp_rank": np.where(moved, decodes.dp_rank, -1),
        "first_token_s": first_s,
        "finish_s": np.where(moved, decodes.finish_s, first_s),
        "prefill_replica": np.where(
            prompts.replica < 0, -1, prompts.replica + prefill.first_replica
        ),
        "room_wait_s": np.where(moved & ~np.isnan(decodes.reserved_s), waits_s, 0.0),
        "transfer_s": np.where(has_left, decodes.arrival_s - prompts.first_s - held_s, 0.0),
        "transfer_bytes": np.where(has_left, num_bytes, 0.0),
    }


def _count_retries(requests: Records) -> Ints:
    """Count how often each request was sent again, without those given back when no replica was
    left.
    """
    found: Ints = requests.retries - ((requests.retries > 0) & ~np.isnan(requests.lost_s))
    return found


def _outcomes(first: PoolState, finish_s: Floats, lost_s: Floats) -> pd.Series:
    """Outcome of each request, one of :data:`~simulator.results.tables.OUTCOMES`.

    Args:
        first: pool that the requests arrived at.
    """
    is_refused = first.requests.each.num_input > first.limits.longest_prompt
    codes = np.where(np.isnan(finish_s), OUTCOMES.index("unfinished"), OUTCOMES.index("finished"))
    codes[~np.isnan(lost_s)] = OUTCOMES.index("lost")
    codes[~np.isnan(lost_s) & is_refused] = OUTCOMES.index("refused")
    return pd.Series(pd.Categorical.from_codes(codes.astype("int8"), dtype=_OUTCOME))
