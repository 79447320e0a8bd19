"""Counts of token-expert pairs that an overflow policy drops or reroutes, layer by layer."""

from __future__ import annotations

import numpy as np

from simulator.results.tables import OverflowByLayer
from simulator.step.prices import Prices
from simulator.step.program import PricedBatch


class OverflowCount:
    """Pairs of batches of one model that were counted."""

    def __init__(self, num_layers: int) -> None:
        """Start at nothing.

        Args:
            num_layers: MoE layers of the model.
        """
        self.num_batches = 0
        self._pairs_3L = np.zeros((3, num_layers), dtype=np.int64)
        """Pairs that were chosen, dropped and rerouted, by layer."""

    def add(self, prices: Prices, priced: PricedBatch) -> None:
        """Add a batch, where anything can be dropped."""
        moe = prices.placement.model.moe
        if moe is None or not prices.placement.drops_pairs:
            return
        self.num_batches += 1
        for part, steps in priced.parts:
            changed = [(step.dropped_pairs, step.rerouted_pairs) for step in steps]
            self._pairs_3L[0] += int(part.tokens_d.sum()) * moe.top_k
            self._pairs_3L[1:] += np.array(changed, dtype=np.int64).T

    def join(self, other: OverflowCount) -> None:
        """Add the batches of another pool."""
        self.num_batches += other.num_batches
        self._pairs_3L += other._pairs_3L

    def report(self, dropped_share: float) -> OverflowByLayer | None:
        """Report the shares of pairs by layer; ``None`` without any.

        Args:
            dropped_share: share of all pairs of the run that were dropped, which the shares by
                layer are scaled to: batches that were counted may be few.
        """
        chosen_L, dropped_L, rerouted_L = self._pairs_3L
        if not chosen_L.any():
            return None
        counted = dropped_L.sum() / chosen_L.sum()
        scale = dropped_share / counted if counted else 1.0
        shares = [
            np.minimum(scale * pairs_L / chosen_L, 1.0).tolist()
            for pairs_L in (dropped_L, rerouted_L)
        ]
        return OverflowByLayer(self.num_batches, *shares)
