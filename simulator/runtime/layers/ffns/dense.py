"""Dense feed-forward blocks."""

from __future__ import annotations

from simulator.config.ffns.dense import DenseFFN
from simulator.config.sparsity import Pruning
from simulator.runtime.layers.feed_forward import FeedForward
from simulator.runtime.layers.weights import WHOLE, Part


class Dense(FeedForward):
    """Feed-forward block of a dense layer."""

    def __init__(
        self,
        spec: DenseFFN,
        hidden_size: int,
        part: Part = WHOLE,
        pruning: Pruning | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            spec.intermediate_size,
            is_gated=spec.is_gated,
            has_bias=spec.has_bias,
            part=part,
            pruning=pruning,
        )
