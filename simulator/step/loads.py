"""Load of one step on its ranks: imbalance, bytes read and dropped pairs, logged beside its
seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.step.expert_prices import find_imbalance
from simulator.step.prices import PHASES, Prices
from simulator.step.program import PricedBatch


class Loads(NamedTuple):
    """Loads of one step, in the order of the step log's columns."""

    imbalance: float
    """Ratio of the busiest rank's token-expert pairs to the mean rank's, averaged over MoE
    layers."""
    read_bytes: float
    """Bytes of weights and cache that the mean rank reads."""
    dropped_pairs: float
    """Token-expert pairs dropped in all layers."""


def measure_loads(prices: Prices, priced: PricedBatch) -> Loads:
    """Sum the loads of a batch over its layers and its halves."""
    imbalance, dropped_pairs = 0.0, 0.0
    read_bytes = prices.read_bytes_per_step + _sum_cache_bytes(prices, priced)
    read_bytes += (len(priced.parts) - 1) * prices.overlapped_bytes
    for part, steps in priced.parts:
        share = int(part.tokens_d.sum()) / int(priced.batch.tokens_d.sum())
        for step in steps:
            imbalance += share * float(find_imbalance(step.pairs_R)) / len(steps)
            read_bytes += step.read_bytes
            dropped_pairs += step.dropped_pairs
    return Loads(imbalance, read_bytes, dropped_pairs)


def _sum_cache_bytes(prices: Prices, priced: PricedBatch) -> float:
    """Bytes of the cache that the mean data-parallel rank reads."""
    return sum(
        term.num_layers * cost * float(prices.sum_contexts(term, phase, priced.batch)[:, 1].mean())
        for term in prices.context_kernels
        for phase, cost in zip(PHASES, (term.prefill_bytes, term.decode_bytes), strict=True)
    )
