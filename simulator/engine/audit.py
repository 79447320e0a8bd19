"""Audit of prices by mixes of requests: some of a run's own steps, priced rank by rank as well."""

from __future__ import annotations

import numpy as np
import simpy

from simulator.engine.by_ranks import ByRanks, read_batches
from simulator.engine.fabric import FluidWires
from simulator.engine.pool import PoolState
from simulator.engine.step_log import POOL
from simulator.results.tables import PriceAudit

_MOST = 20
"""Most steps that are audited; each takes some 10 to 100 ms."""


class Audit:
    """Audit of a pool's steps whose price asked for an entry of the table: the first, and ever
    fewer of later ones.
    """

    def __init__(self, pool: PoolState) -> None:
        self._pool, self._num_seen = pool, 0
        self._ratios: list[float] = []

    def look_at(self, replica: int, duration_s: float, factor: float) -> None:
        """Compare a formed step's price with what its ranks take, if it is its turn.

        Args:
            factor: that prices are slowed by; none is audited where they are.
        """
        number, self._num_seen = self._num_seen, self._num_seen + 1
        if self._pool.profiles is None or len(self._ratios) == _MOST or factor != 1.0:
            return
        if number >= int(len(self._ratios) ** 1.2):
            self._ratios.append(duration_s / self._measure(replica))

    def report(self) -> PriceAudit | None:
        """Summarise the audited steps; ``None`` without any."""
        if not self._ratios:
            return None
        off = np.array(self._ratios) - 1
        return PriceAudit(len(off), float(off.mean()), float(np.quantile(np.abs(off), 0.9)))

    def _measure(self, replica: int) -> float:
        """Seconds of the step that a replica has formed, from the tokens of its requests."""
        pool, env, row = self._pool, simpy.Environment(), np.zeros(POOL)
        batches = read_batches(pool.requests, pool.ranks_of(replica))
        by_ranks = ByRanks(pool.prices, FluidWires, "audit")
        env.run(env.process(by_ranks.take_step(env, replica, len(self._ratios), batches, row)))
        return float(row[1])
