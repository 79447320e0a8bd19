"""Audit of a run's prices: some of its own steps, priced rank by rank as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simpy

from simulator.engine.by_ranks import ByRanks, read_batches
from simulator.engine.fabric import FluidWires
from simulator.engine.pool import PoolState
from simulator.engine.replica_states import ReplicaStates
from simulator.engine.step_log import POOL
from simulator.results.tables import PriceAudit
from simulator.step.prices import Prices

_MOST = 20
"""Most steps of a kind that are audited; each takes some 10 to 100 ms."""


class Audits(NamedTuple):
    """Errors of a pool's prices; ``None`` where no step was audited."""

    mixes: PriceAudit | None
    """Error of steps that are priced by their mix of requests."""
    changed: PriceAudit | None
    """Error of steps with slower GPUs or links, with ranks lost, or beside experts that move."""


class Audit:
    """Audit of a pool's steps whose price asked for an entry of the table: the first, and ever
    fewer of later ones.
    """

    def __init__(self, place: int, pool: PoolState, states: ReplicaStates) -> None:
        self._place, self._pool, self._states = place, pool, states
        self._num_seen = [0, 0]
        """Steps so far of replicas in the usual state, and in others."""
        self._ratios: tuple[list[float], list[float]] = [], []
        """Priced over rank by rank of these steps that were audited."""
        self._prices: dict[int, Prices] = {}
        """Prices of states, with the links to themselves."""

    def look_at(self, replica: int, duration_s: float, factor: float) -> None:
        """Compare a formed step's price with what its ranks take, if it is its turn.

        Args:
            factor: that prices are slowed by; none is audited where they are.
        """
        is_changed = self._states.find(self._place, replica) is not None
        number, ratios = self._num_seen[is_changed], self._ratios[is_changed]
        self._num_seen[is_changed] += 1
        if len(ratios) == _MOST or factor != 1.0:
            return
        if (is_changed or self._pool.profiles is not None) and number >= int(len(ratios) ** 1.2):
            ratios.append(duration_s / self._measure(replica, len(ratios)))

    def report(self) -> Audits:
        """Summarise the audited steps."""
        return Audits(*map(_summarise, self._ratios))

    def _measure(self, replica: int, number: int) -> float:
        """Seconds of the step that a replica has formed, from the tokens of its requests, beside
        experts that move meanwhile.
        """
        pool, env, row = self._pool, simpy.Environment(), np.zeros(POOL)
        prices, ranks = pool.prices, self._states.ranks_of(self._place, replica)
        own = self._states.find(self._place, replica)
        beside = self._states.beside.get(self._place)
        if own is not None:
            if own.number not in self._prices:
                self._prices[own.number] = self._states.price_alone(self._place, replica)
            prices = self._prices[own.number]
        wires = FluidWires(env)
        if beside is not None and (own is None or own.left is None):
            wires.carry(beside[0])
        batches = read_batches(pool.requests, ranks)
        step = ByRanks("rank", "audit").take_step(
            env, replica, number, batches, row, prices, lambda: wires
        )
        env.run(env.process(step))
        return float(row[1])


def _summarise(ratios: Sequence[float]) -> PriceAudit | None:
    if not ratios:
        return None
    off = np.array(ratios) - 1
    return PriceAudit(len(off), float(off.mean()), float(np.quantile(np.abs(off), 0.9)))
