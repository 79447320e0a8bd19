"""Samples of the steps of a run whose ranks are not simulated, for drops by layer."""

from __future__ import annotations

from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.by_ranks import read_batches
from simulator.engine.pool import PoolState

_MOST_BATCHES = 32
"""Most batches that are counted; each takes some 10 to 100 ms, and layers differ by more than large
batches do."""


def count_formed_step(pool: PoolState, replica: int) -> None:
    """Count what is dropped and rerouted of the step that a replica has formed, layer by layer,
    unless enough are counted.
    """
    prices, count = pool.prices, pool.overflow
    if not prices.placement.drops_pairs or count.num_batches >= _MOST_BATCHES:
        return
    rng = prices.placement.rng("overflow by layer", count.num_batches)
    for batch in read_batches(pool.requests, pool.ranks_of(replica)):
        count.add(prices, prices.price_batch(batch, int(rng.integers(POOL_TOKENS))))
