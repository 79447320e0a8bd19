"""Rule of thumb: a mixture of experts is as good as a dense model of the geometric mean of its
total and its active parameters.
"""

from __future__ import annotations

import math
from typing import Literal

from simulator.config.laws import ModelSize, ScalingLaw


class GeometricMean(ScalingLaw):
    """``sqrt(total x active)`` parameters, embeddings included. Predicts no loss."""

    kind: Literal["geometric_mean"]
    """Geometric mean of total and active parameters."""

    def predict_loss(self, size: ModelSize, tokens: float) -> None:
        return None

    def find_equal_dense(self, size: ModelSize, tokens: float) -> float:
        return math.sqrt((size.total + size.embedding) * (size.active + size.embedding))
