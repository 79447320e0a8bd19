"""Loss of mixtures of experts by their granularity, beside dense models of the same experiments."""

from __future__ import annotations

from typing import Literal

from simulator.base.quantities import Coefficient
from simulator.config.laws import ModelSize
from simulator.config.laws._loss import LossLaw


class FineGrained(LossLaw):
    """``L = c + (g / G^gamma + a) / N^alpha + b / D^beta`` with ``N`` all parameters without
    embeddings, and ``L = c + a' / N^alpha' + b' / D^beta'`` for dense models (Krajewski et al.
    2024, arXiv:2402.07871, equations 9 and 1).
    """

    kind: Literal["fine_grained"]
    """Sum of powers with a term for the granularity."""
    c: Coefficient
    """Loss that no model goes below, a number of nats a token."""
    a: Coefficient
    """Factor of the parameters' term of a mixture of experts."""
    alpha: Coefficient
    """Exponent of parameters of a mixture of experts."""
    b: Coefficient
    """Factor of the tokens' term of a mixture of experts."""
    beta: Coefficient
    """Exponent of tokens of a mixture of experts."""
    g: Coefficient
    """Factor of the granularity's term."""
    gamma: Coefficient
    """Exponent of granularity."""
    dense_a: Coefficient
    """Factor of the parameters' term of a dense model."""
    dense_alpha: Coefficient
    """Exponent of parameters of a dense model."""
    dense_b: Coefficient
    """Factor of the tokens' term of a dense model."""
    dense_beta: Coefficient
    """Exponent of tokens of a dense model."""

    def predict_loss(self, size: ModelSize, tokens: float) -> float:
        if size.is_dense:
            model = self.dense_a / size.total**self.dense_alpha
            return float(self.c + model + self.dense_b / tokens**self.dense_beta)
        factor = self.g / size.granularity**self.gamma + self.a
        return float(self.c + factor / size.total**self.alpha + self.b / tokens**self.beta)
