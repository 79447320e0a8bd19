"""State that the compiled loop works on: the pools with their window on the trace, the arrival of
requests, and the events.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.events import start_events
from simulator.engine.hand_over import HandOver
from simulator.engine.pool import PoolState
from simulator.engine.sending import Feed, Pool
from simulator.engine.state import NEVER
from simulator.engine.table import StepTable
from simulator.engine.transfers import start_transfers
from simulator.engine.windows import ROWS, move_events, move_window
from simulator.workload.traces import RequestTrace

POOLS: tuple[str, ...] = ("both", "prefill", "decode")
"""Names of pools; requests arrive at the earlier ones first."""


class LoopState:
    """Arguments of :func:`simulator.engine.replicas.run_ahead`."""

    def __init__(
        self,
        plan: DeploymentPlan,
        trace: RequestTrace,
        pools: Mapping[str, PoolState],
        tables: Mapping[str, StepTable],
        ingress_delay_s: float,
        carries_caches: bool,
    ) -> None:
        """Give the first requests of the trace rows; none has arrived.

        Args:
            ingress_delay_s: seconds from the client to the scheduler.
            carries_caches: whether wires between pools are simulated.
        """
        self.plan, self.trace, self.ingress_delay_s = plan, trace, ingress_delay_s
        self.names = [name for name in POOLS if name in pools]
        self.pools = [pools[name] for name in self.names]
        self.num_read = 0
        """Requests of the trace that have, or had, a row."""
        self.events = start_events(0)
        self.feed = _start_feed(trace, ingress_delay_s)
        self.first = self.pools[0].with_table(tables[self.names[0]])
        self.handing = self._start_handing(tables, carries_caches)
        self._transfers = self.handing.transfers if self.handing else None
        self.move_window(0)

    def _start_handing(
        self, tables: Mapping[str, StepTable], carries_caches: bool
    ) -> HandOver | None:
        wires, prefill = self.plan.transfer, self.plan.prefill
        if wires is None or prefill is None:
            return None
        pool = self.pools[1].with_table(tables[self.names[1]])
        most_ended = int(self.first.ranks.running[0].size)
        transfers = start_transfers(
            wires, prefill, self.plan, self.trace, most_ended, carries_caches
        )
        return HandOver(pool, transfers)

    @property
    def num_rows(self) -> int:
        """Number of requests in the window."""
        return len(self.first.requests.each)

    @property
    def is_done(self) -> bool:
        """Whether every request is finished or lost."""
        return bool(self.feed.num_done[0] == self.trace.num_requests)

    def move_window(self, count: int) -> None:
        """Drop the first rows, and add rows for the next requests of the trace."""
        begin, stay = self.num_read, self.num_rows - count
        concurrency = self.trace.concurrency or 0
        end = min(begin + max(ROWS, stay // 4, concurrency + 1), self.trace.num_requests)
        arrival_s = self.trace.arrival_s[begin:end]
        if self.feed.is_closed:
            arrival_s = np.where(np.arange(begin, end) < concurrency, 0.0, np.inf)
        # At the scheduler; the record says when requests were sent.
        move_window(self.pools[0], count, arrival_s + self.ingress_delay_s)
        for pool in self.pools[1:]:  # where caches arrive
            move_window(pool, count, np.full(end - begin, np.nan))
        self.num_read = end
        self._use_rows()
        self._move_feed(count, concurrency if begin == 0 else 0)
        num_replicas = sum(pool.num_replicas for pool in self.pools)
        may_return = len(self.pools) > 1 or bool(self.plan.failures)
        # A request may be about to come to both pools.
        most = 2 * num_replicas + self.num_rows * may_return * len(self.pools) + 1
        self.events = move_events(self.events, count, most)

    def _move_feed(self, count: int, num_begin: int) -> None:
        feed, num_rows = self.feed, self.num_rows
        feed.num_come[0] -= count
        feed.num_released[0] += min(num_begin, num_rows) - count
        if not feed.is_closed:
            feed.num_released[0] = num_rows
        # All that are in flight may end, and be followed by others, at once.
        spare = self.trace.concurrency or 0
        is_last = self.num_read == self.trace.num_requests
        feed.used_up[0] = NEVER if is_last else num_rows - spare

    def _use_rows(self) -> None:
        """Pass the rows that the pools have now to compiled code."""
        first = self.pools[0]
        self.first = self.first._replace(requests=first.requests, balance=first.balance)
        if self.handing is None or self._transfers is None:
            return
        pool, rows = self.pools[1], slice(first.requests.first, self.num_read)
        decode = self.handing.pool._replace(requests=pool.requests, balance=pool.balance)
        transfers = self.handing.transfers._replace(
            is_transferred=self._transfers.is_transferred[rows],
            send_s=self._transfers.send_s[rows],
            receive_s=self._transfers.receive_s[rows],
        )
        self.handing = HandOver(decode, transfers)

    def balance_again(self, place: int) -> None:
        """Balance over the living replicas of a pool, after some stopped or started."""
        pool = self.pools[place]
        self._replace_pool(place, self.pool_at(place)._replace(balance=pool.balance_again()))
        if place == 1 and self.handing is not None and self.plan.transfer is not None:
            receivers = max(1, pool.num_living_groups)
            transfers = self.handing.transfers._replace(receivers=receivers)
            self.handing = self.handing._replace(transfers=transfers)

    def use_table(self, place: int, table: StepTable) -> None:
        """Use another table for steps of a pool that are formed from now on."""
        self._replace_pool(place, self.pool_at(place)._replace(table=table))

    def pool_at(self, place: int) -> Pool:
        """Pool at a place, as compiled code sees it."""
        if place == 0:
            return self.first
        assert self.handing is not None
        return self.handing.pool

    def _replace_pool(self, place: int, pool: Pool) -> None:
        if place == 0:
            self.first = pool
        elif self.handing is not None:
            self.handing = self.handing._replace(pool=pool)

    def number_of(self, place: int, replica: int) -> int:
        """Number of a pool's replica among those of all pools."""
        return replica + place * self.pools[0].num_replicas

    def find_replica(self, number: int) -> tuple[int, int]:
        """Find the place of the pool and the replica in it, by the number among those
        of all pools.
        """
        place = int(number >= self.pools[0].num_replicas)
        return place, number - place * self.pools[0].num_replicas


def _start_feed(trace: RequestTrace, ingress_delay_s: float) -> Feed:
    def count(value: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.full(1, value, dtype=np.int64)

    return Feed(
        num_come=count(),
        num_released=count(),
        is_closed=trace.concurrency is not None,
        ingress_delay_s=ingress_delay_s,
        num_done=count(),
        num_requests=trace.num_requests,
        chosen=count(-1),
        used_up=count(),
        asks=np.zeros(2, dtype=np.int64),
        stopped_s=np.zeros(1),
    )
