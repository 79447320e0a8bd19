"""Scaling laws: how good a model of a size is, one formula a file; their fitted coefficients are
files of ``workloads/laws``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from simulator.base.frozen import Frozen


class ModelSize(NamedTuple):
    """Size of a model, as scaling laws ask for it."""

    total: float
    """Parameters without the embedding and the output matrix."""
    active: float
    """Parameters that one token uses, counted likewise."""
    embedding: float = 0.0
    """Parameters of the embedding and the output matrix."""
    expansion: float = 1.0
    """Feed-forward weights of the layers with experts over those that one token uses, ``E``."""
    granularity: float = 1.0
    """Experts that one token uses in a layer, shared ones among them, ``G``."""

    @property
    def is_dense(self) -> bool:
        """Whether every token uses every parameter."""
        return self.expansion == 1.0

    def make_dense(self, parameters: float) -> ModelSize:
        """Dense model of so many parameters with the same embeddings, which count among them."""
        own = max(parameters - self.embedding, 1.0)
        return ModelSize(own, own, self.embedding)


class ScalingLaw(Frozen, ABC):
    """Base of every formula; the name of a formula's file is its ``kind``."""

    kind: str
    """Kind of formula."""

    @abstractmethod
    def predict_loss(self, size: ModelSize, tokens: float) -> float | None:
        """Loss in nats a token of a model of ``size`` that was trained on ``tokens`` tokens;
        ``None`` where the law predicts none.

        Raises:
            UserError: if the law does not hold for such models.
        """

    @abstractmethod
    def find_equal_dense(self, size: ModelSize, tokens: float) -> float:
        """Parameters, embeddings included, of the dense model with the loss of a model of
        ``size`` on as many tokens.

        Raises:
            UserError: if the law does not hold for such models.
        """

    def measure(self, size: ModelSize, tokens: float) -> dict[str, float]:
        """Quantities as the law counts them, by the names of ranges in its file."""
        return {
            "total_parameters": size.total,
            "active_parameters": size.active,
            "tokens": tokens,
            "expansion": size.expansion,
            "granularity": size.granularity,
        }
