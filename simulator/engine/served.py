"""What is left when a trace has been served."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import ByRanks
from simulator.engine.changes import Changed
from simulator.engine.pool import PoolState
from simulator.engine.state import Floats, Ints, Requests
from simulator.engine.step_log import DECODES, LOG_COLUMNS, POOL, REPLICA, ROW_STEPS
from simulator.results.tables import MOVE_COLUMNS, OUTCOMES, ReplicasChanged
from simulator.workload.traces import RequestTrace

_COUNTS = ("prefill_tokens", "decode_tokens", "running", "waiting")


@dataclass(frozen=True)
class Served:
    """Requests, steps and what their ranks did."""

    plan: DeploymentPlan
    trace: RequestTrace
    pools: dict[str, PoolState]
    """By name, ``both`` for one that computes prompts and decodes, else ``decode`` and
    ``prefill``."""
    by_ranks: dict[str, ByRanks]
    """What ran the steps of each, where ranks were simulated."""
    log: Floats
    """``[steps, columns]``, those of a replica in order of their start."""
    way_s: float
    """From the client to the scheduler."""
    changed: tuple[Changed, ...] = ()
    """In order of time."""
    until_s: float | None = None
    """When it was ended, if not when all was done."""

    def steps_of(self, name: str) -> pd.DataFrame:
        """The steps of a pool, replica after replica, with the columns ``replica`` (among those of
        the pool), ``num_steps``, ``decodes`` and :data:`~simulator.engine.step_log.LOG_COLUMNS`.
        """
        rows: slice | Ints = slice(None)
        if len(self.pools) > 1:
            rows = np.flatnonzero(self.log[:, POOL] == (name != "prefill"))
        if self.pools[name].num_replicas > 1:
            order = np.argsort(self.log[rows, REPLICA], kind="stable")
            rows = order if isinstance(rows, slice) else rows[order]
        # A column at a time, so that a long log is not held twice.
        columns = {
            "replica": self.log[rows, REPLICA].astype(np.int64),
            "num_steps": self.log[rows, ROW_STEPS].astype(np.int64),
            "decodes": self.log[rows, DECODES].astype(np.int64),
        }
        for place, column in enumerate(LOG_COLUMNS):
            kind = np.int64 if column in _COUNTS else np.float64
            columns[column] = np.array(self.log[rows, place], dtype=kind)
        return pd.DataFrame(columns, copy=False)

    @property
    def sent_s(self) -> Floats:
        """``[N]`` when clients sent their requests, which reach the scheduler ``way_s`` later; of
        an open loop exactly what the trace says.
        """
        if self.trace.concurrency is None:
            return np.asarray(self.trace.arrival_s, dtype=np.float64)
        first = self.pools.get("prefill") or self.pools["both"]
        sent_s: Floats = first.requests.arrival_s - self.way_s
        return sent_s

    def moves_table(self) -> pd.DataFrame:
        """``MOVE_COLUMNS`` but the deployment, in order of time."""
        rows = [
            (int(request), self._number_of(changed.change.pool, replica), changed.change.at_s)
            for changed in self.changed
            for replica, requests in changed.given_back.items()
            for request in requests
        ]
        return pd.DataFrame(rows, columns=list(MOVE_COLUMNS)[1:]).astype(
            {"request": np.int64, "replica": np.int64, "at_s": np.float64}
        )

    def list_changes(self) -> tuple[ReplicasChanged, ...]:
        """What happened to replicas, in order of time."""
        return tuple(
            ReplicasChanged(
                at_s=changed.change.at_s,
                pool=changed.change.pool,
                starts=changed.change.starts,
                replicas=[self._number_of(changed.change.pool, r) for r in changed.given_back],
                num_requests=sum(len(requests) for requests in changed.given_back.values()),
            )
            for changed in self.changed
            if changed.given_back
        )

    def _number_of(self, pool: str, replica: int) -> int:
        """Number of a pool's replica among those of all pools."""
        return replica + (self.plan.serving.replicas if pool == "prefill" else 0)

    def requests_table(self) -> pd.DataFrame:
        """``REQUEST_COLUMNS`` but the deployment."""
        return self._one_pool() if "both" in self.pools else self._two_pools()

    def _one_pool(self) -> pd.DataFrame:
        pool = self.pools["both"]
        requests, count = pool.requests, len(pool.replica_of)
        return pd.DataFrame(
            {
                "request": np.arange(count),
                "replica": pool.replica_of,
                "dp_rank": requests.dp_rank,
                "arrival_s": self.sent_s,
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
        )

    def _two_pools(self) -> pd.DataFrame:
        transfer = self.plan.transfer
        assert transfer is not None
        prefill, decode = self.pools["prefill"], self.pools["decode"]
        prompts, decodes = prefill.requests, decode.requests
        moved = transfer.goes_on(self.trace.num_output)
        first_s = np.where(moved, decodes.first_s, prompts.first_s)
        finish_s = np.where(moved, decodes.finish_s, first_s)
        lost_s = np.fmax(prompts.lost_s, decodes.lost_s)
        has_left = moved & ~np.isnan(decodes.arrival_s)
        room_s = np.where(moved & ~np.isnan(decodes.reserved_s), self._room_waits_s(), 0.0)
        from_prefill = np.where(
            prefill.replica_of < 0, -1, prefill.replica_of + decode.plan.serving.replicas
        )
        num_bytes = [transfer.num_bytes(int(tokens)) for tokens in prompts.num_input]
        return pd.DataFrame(
            {
                "request": np.arange(len(moved)),
                "replica": np.where(moved, decode.replica_of, -1),
                "dp_rank": np.where(moved, decodes.dp_rank, -1),
                "arrival_s": self.sent_s,
                "scheduled_s": prompts.scheduled_s,
                "first_token_s": first_s,
                "finish_s": finish_s,
                "num_input": decodes.num_input,
                "num_output": decodes.num_output,
                "num_cached": prompts.cached,
                "num_preemptions": prompts.preemptions + decodes.preemptions,
                "num_retries": _count_retries(prompts) + _count_retries(decodes),
                "outcome": _outcomes(finish_s, lost_s),
                "prefill_replica": from_prefill,
                "room_wait_s": room_s,
                "transfer_s": np.where(
                    has_left, decodes.arrival_s - prompts.first_s - self._held_s(), 0.0
                ),
                "transfer_bytes": np.where(has_left, num_bytes, 0.0),
            }
        )

    def _held_s(self) -> Floats:
        """Seconds for which caches that were ready to leave waited for room in the decode pool."""
        transfer = self.plan.transfer
        assert transfer is not None
        ready_s = self.pools["prefill"].requests.first_s + transfer.handshake_s
        held_s: Floats = np.maximum(self.pools["decode"].requests.reserved_s - ready_s, 0.0)
        return held_s

    def _room_waits_s(self) -> Floats:
        """Seconds for which requests waited for room in the decode pool, computed or not."""
        transfer, requests = self.plan.transfer, self.pools["decode"].requests
        assert transfer is not None
        if not transfer.reserves_first:
            return self._held_s()
        asked_s = self.sent_s + self.way_s
        first_s = np.fmax(self.pools["prefill"].requests.first_s, asked_s)
        before_s = np.maximum(np.minimum(requests.reserved_s, first_s) - asked_s, 0.0)
        waits_s: Floats = before_s + np.nan_to_num(self._held_s())
        return waits_s


def _count_retries(requests: Requests) -> Ints:
    """Times that each request was sent again: not when it was given back and nobody was there."""
    found: Ints = requests.retries - ((requests.retries > 0) & ~np.isnan(requests.lost_s))
    return found


def _outcomes(finish_s: Floats, lost_s: Floats) -> pd.Series:
    """What became of each request, one of :data:`~simulator.results.tables.OUTCOMES`."""
    codes = np.where(np.isnan(finish_s), OUTCOMES.index("unfinished"), OUTCOMES.index("finished"))
    codes[~np.isnan(lost_s)] = OUTCOMES.index("lost")
    return pd.Series(pd.Categorical.from_codes(codes.astype("int8"), pd.Index(OUTCOMES)))
