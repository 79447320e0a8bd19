"""Laws that predict a loss: the dense model of equal loss is found on their own curve."""

from __future__ import annotations

import math
from abc import abstractmethod

from simulator.config.laws import ModelSize, ScalingLaw

_HALVINGS = 60
_LARGEST = 1e18
"""Parameters beyond which no dense model is looked for."""


class LossLaw(ScalingLaw):
    """Law whose loss falls with the parameters of a dense model."""

    @abstractmethod
    def predict_loss(self, size: ModelSize, tokens: float) -> float:
        """Loss in nats a token."""

    def find_equal_dense(self, size: ModelSize, tokens: float) -> float:
        loss = self.predict_loss(size, tokens)
        low, high = size.embedding + 1.0, _LARGEST
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            if self.predict_loss(size.make_dense(middle), tokens) > loss:
                low = middle
            else:
                high = middle
        return high


def saturate_experts(experts: float, start: float, most: float) -> float:
    """Effective number of experts, which rises from ``start`` for one expert towards ``most``:
    equation 1 of Clark et al. (2022), arXiv:2202.01169.

    >>> saturate_experts(1.0, 2.0732, 290.4521)
    2.0732
    """
    if experts == 1.0:
        return start
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
