"""Prices of a pipeline of stages beside those of its layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.cost.stages import VECTORS
from simulator.deployment.placement import Placement
from simulator.step.prices import Prices
from simulator.work.layout import stage_layers


def sends_s(prices: Prices, num_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds that a batch travels between pipeline stages, for each number of tokens.

    Each tensor-parallel rank sends its part of the vectors, and those of the next stage gather
    them: half of an all-reduce, which scatters sums and gathers them.
    """
    placement = prices.placement
    if placement.sends is None:
        return np.zeros(len(num_tokens))
    vector_bytes = placement.model.hidden_size * BYTES_PER_ELEMENT[placement.precision.activations]
    sent_s = placement.sends.seconds(
        np.asarray(num_tokens * (VECTORS * vector_bytes / placement.layout.tp), dtype=np.float64)
    )
    if placement.layout.tp == 1:
        return sent_s
    gathered_s = (placement.layout.pp - 1) * prices.all_reduces_s(VECTORS * num_tokens) / 2
    return np.asarray(sent_s + gathered_s, dtype=np.float64)


def stage_shares(placement: Placement) -> tuple[float, float]:
    """Shares of all layers in a pipeline's longest stage, and in its last, which has the output
    head too. All layers count alike.
    """
    stages = [
        len(layers) for layers in stage_layers(placement.model.num_layers, placement.layout.pp)
    ]
    return max(stages) / sum(stages), stages[-1] / sum(stages)
